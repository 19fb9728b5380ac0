"""Energy distance D(p, q) = sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|) between weighted point sets.

On the circle the chord |e^{ia} - e^{ib}| = 2 sin((b - a)/2), for a <= b < a + 2 pi, splits into products of a and
of b, so that each mean costs one merge of two sorted lists.
"""

from functools import cached_property

import numpy as np
from numba import prange
from scipy.spatial.distance import cdist

from varpro.compiled import VECTORISED, compiled

_PAIRS = 1 << 20  # distances that are held at a time


class EuclideanMeasure:
    """A weighted point set in R^d: ``points (n, d)``, any d; all pairs are summed, a few rows at a time.

    ``masses (n,)`` are non-negative and are divided by their sum (default: equal).
    """

    def __init__(self, points: np.ndarray, masses: np.ndarray | None = None) -> None:
        self.points = np.asarray(points, dtype=np.float64)
        masses = np.ones(len(self.points)) if masses is None else np.asarray(masses, dtype=np.float64)
        self.masses = masses / masses.sum()

    def mean_distance(self, other: "EuclideanMeasure") -> float:
        """E|X - Y| with X from this measure and Y from ``other``, independent."""
        rows = max(1, _PAIRS // len(other.points))
        return sum(
            float(self.masses[i : i + rows] @ cdist(self.points[i : i + rows], other.points) @ other.masses)
            for i in range(0, len(self.points), rows)
        )

    @cached_property
    def self_distance(self) -> float:
        """E|X - X'|; kept, since one measure is often compared with many."""
        return self.mean_distance(self)

    def energy_distance(self, other: "EuclideanMeasure") -> float:
        """D(self, other) >= 0, in the units of the points."""
        squared = 2 * self.mean_distance(other) - self.self_distance - other.self_distance
        return float(np.sqrt(max(squared, 0.0)))


class CircleMeasure:
    """A weighted point set on the circle, sorted once.

    ``points`` holds directions (n, 2), or angles (n,) in radians; ``masses (n,)`` are non-negative and are divided
    by their sum (default: equal).
    """

    def __init__(self, points: np.ndarray, masses: np.ndarray | None = None) -> None:
        points = np.asarray(points, dtype=np.float64)
        angles = np.arctan2(points[:, 1], points[:, 0]) if points.ndim == 2 else points
        angles = np.mod(angles, 2 * np.pi)
        if masses is None:  # numpy sorts values several times faster than it finds their order
            self.angles = np.sort(angles)
            self.masses = np.full(len(angles), 1.0 / len(angles))
        else:
            order = np.argsort(angles)
            masses = np.asarray(masses, dtype=np.float64)[order]
            self.angles, self.masses = angles[order], masses / masses.sum()
        self.cosines, self.sines = np.cos(self.angles / 2), np.sin(self.angles / 2)

    def mean_chord(self, other: "CircleMeasure") -> float:
        """E|X - Y| with X from this measure and Y from ``other``, independent."""
        return _mean_chord(
            self.angles,
            self.masses,
            self.cosines,
            self.sines,
            other.angles,
            other.masses,
            other.cosines,
            other.sines,
        )

    @cached_property
    def self_chord(self) -> float:
        """E|X - X'|; kept, since one measure is often compared with many."""
        return self.mean_chord(self)

    def energy_distance(self, other: "CircleMeasure") -> float:
        """D(self, other) >= 0, in the units of the plane (chords of the unit circle)."""
        squared = 2 * self.mean_chord(other) - self.self_chord - other.self_chord
        return float(np.sqrt(max(squared, 0.0)))


@compiled()
def _mean_chord(a, p, cos_a, sin_a, b, q, cos_b, sin_b):
    """2 sum_i p_i [sin(a_i/2) (2 C(a_i) - C) - cos(a_i/2) (2 S(a_i) - S)].

    C(t) and S(t) are the sums of q cos(b/2) and q sin(b/2) over b < t; C and S those over all b.
    """
    all_cos = all_sin = 0.0
    for j in range(b.shape[0]):
        all_cos += q[j] * cos_b[j]
        all_sin += q[j] * sin_b[j]
    below_cos = below_sin = total = 0.0
    j = 0
    for i in range(a.shape[0]):
        while j < b.shape[0] and b[j] < a[i]:
            below_cos += q[j] * cos_b[j]
            below_sin += q[j] * sin_b[j]
            j += 1
        total += p[i] * (sin_a[i] * (2.0 * below_cos - all_cos) - cos_a[i] * (2.0 * below_sin - all_sin))
    return 2.0 * total


class TorusMeasure:
    """A point set with equal masses on the torus R^2 / (4 Z)^2: ``points (n, 2)``, any representatives."""

    def __init__(self, points: np.ndarray) -> None:
        self.x, self.y = np.ascontiguousarray(np.asarray(points, dtype=np.float64).T)

    def mean_distance(self, other: "TorusMeasure") -> float:
        """E|wrap(X - Y)|, all pairs, memory O(n)."""
        rows = np.empty(len(self.x))
        _mean_distances(self.x, self.y, other.x, other.y, rows)
        return float(rows.mean())

    @cached_property
    def self_distance(self) -> float:
        """E|wrap(X - X')|; kept, since one measure is often compared with many."""
        return self.mean_distance(self)

    def energy_distance(self, other: "TorusMeasure") -> float:
        """D(self, other) >= 0, in the units of the plane."""
        squared = 2 * self.mean_distance(other) - self.self_distance - other.self_distance
        return float(np.sqrt(max(squared, 0.0)))


@compiled(parallel=True, fastmath=VECTORISED)
def _mean_distances(x, y, other_x, other_y, rows):
    """rows_i <- mean_j |wrap(p_i - q_j)|, wrap(z) = z - 4 round(z / 4) per coordinate."""
    count = other_x.shape[0]
    for i in prange(x.shape[0]):
        total = 0.0
        for j in range(count):
            dx, dy = x[i] - other_x[j], y[i] - other_y[j]
            dx -= 4.0 * np.floor(0.25 * dx + 0.5)
            dy -= 4.0 * np.floor(0.25 * dy + 0.5)
            total += np.sqrt(dx * dx + dy * dy)
        rows[i] = total / count
