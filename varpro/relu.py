"""Folding of the plane modulo pi, and the prediction of a ReLU network of two-dimensional inputs in linear time.

The conventions are those of docs/linear_time_relu.md: a neuron is w = s v with v in the upper half-plane and s = +-1,
a sample is x = c z with z = r (sin a, -cos a), c = +-1 and a in [0, pi), and a monotone ``key`` in [0, 2] stands for an
angle. Formula numbers (F1), (F2) refer to that note.
"""

import numpy as np

from varpro.compiled import compiled


@compiled(inline="always")
def folded_key(x, y):
    """y / (x + y) for x >= 0, else 1 - x / (y - x), for y >= 0 (F1)."""
    total = abs(x) + y
    return (y if x >= 0.0 else total - x) / total


@compiled()
def _key_array(v):
    keys = np.empty(v.shape[0])
    for i in range(v.shape[0]):
        keys[i] = folded_key(v[i, 0], v[i, 1])
    return keys


def fold(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper-half-plane representatives (n, 2) of ``points`` (n, 2) and their signs (n,): points = sign * fold."""
    negative = (points[:, 1] < 0) | ((points[:, 1] == 0) & (points[:, 0] < 0))
    sign = np.where(negative, -1.0, 1.0)
    return points * sign[:, None], sign


def folded_keys(v: np.ndarray) -> np.ndarray:
    """Monotone stand-in for the angle of ``v`` (n, 2) in the upper half-plane: 0 at angle 0, 1 at pi/2, 2 at pi."""
    return np.array([folded_key(x, y) for x, y in v]) if len(v) < 8 else _key_array(np.ascontiguousarray(v))


def folded_samples(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(z, c, key) of ``inputs`` (N, 2): x = c z with z = r (sin a, -cos a), a in [0, pi)."""
    turned = np.stack([-inputs[:, 1], inputs[:, 0]], axis=1)  # r (cos a, sin a) up to sign
    unit, sign = fold(turned)
    return np.stack([unit[:, 1], -unit[:, 0]], axis=1), sign, folded_keys(unit)


def bucket_starts(keys: np.ndarray) -> np.ndarray:
    """First place of each bucket of [0, 2] in the sorted ``keys`` (n,); more than 2 n buckets."""
    buckets = 1 << max(4, int(2 * len(keys)).bit_length())
    starts = np.searchsorted(keys, np.linspace(0.0, 2.0, buckets + 1)).astype(np.int64)
    starts[-1] = len(keys)
    return starts


def predict(weights: np.ndarray, outer: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """f(x) = mean_j u_j max(w_j . x, 0) at ``inputs (N, 2)`` for ``weights (M, 2)``, ``outer (M,)``: (N,) float64.

    O((N + M) log (N + M)). A measure with unequal masses is a student with outer weights M * mass (F2).
    """
    v, side = fold(np.ascontiguousarray(weights, dtype=np.float64))
    order = np.argsort(folded_keys(v), kind="stable")
    v, upper = v[order], side[order] > 0
    jumps = np.asarray(outer, dtype=np.float64)[order, None] * v / len(v)
    passed = np.concatenate([np.zeros((1, 2)), np.cumsum(jumps, axis=0)])
    z, sign, keys = folded_samples(np.ascontiguousarray(inputs, dtype=np.float64))
    slopes = passed[np.searchsorted(folded_keys(v), keys)]
    slopes -= np.where(sign[:, None] > 0, jumps[~upper].sum(axis=0), jumps[upper].sum(axis=0))
    return np.einsum("nd,nd->n", slopes, z)
