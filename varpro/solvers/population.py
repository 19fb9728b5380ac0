"""Infinite data on the circle: closed-form tables of x ~ N(0, I_2) for the linear-time solver.

The solver knows its data through sums over the samples below an angle (varpro/solvers/circle.py). For Gaussian inputs
these sums have closed forms, so that the population problem costs what a finite one does. Formula numbers refer to
docs/linear_time_relu.md, section 9. Conventions are those of the solver: folded angles t in [0, pi) and
v = (cos t, sin t).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from varpro.relu import bucket_starts, fold, folded_keys

Density = Callable[[np.ndarray], np.ndarray]

_FEWEST_CELLS = 64  # the quadrature of tiny losses needs arcs no longer than pi / 64
_MOST_CELLS = 1 << 20
_POINTS = 6  # Gauss points of a cell, and the degree of its polynomials
_LAST_TERM = 1e-14  # of the polynomial of A+ + A-: what is left out is a hundredth of it or less
_MASS = 1e-6  # of a density, away from 1


class PopulationTables(NamedTuple):
    """Infinitely many Gaussian samples, x ~ N(0, I_2), and a teacher, on L cells of the half-circle (F13 to F15).

    Made by :func:`population_tables`. Inside a cell A+ + A- of the teacher (F2) is
    ``slopes`` plus a polynomial in s, and R(t) (section 4) is G(t) ``slopes`` plus another; s runs from -1 to 1 in the
    cell. ``totals`` as for the samples.
    """

    keys: np.ndarray  # (L - 1,) of the inner ends of the cells
    starts: np.ndarray  # (buckets + 1,) as for the samples
    ends: np.ndarray  # (L,) angle at the upper end of each cell; the last is pi
    centres: np.ndarray  # (L,) angle where s = 0
    scales: np.ndarray  # (L,) ds / dt
    slopes: np.ndarray  # (L, 2)
    series: np.ndarray  # (L, 4, p) coefficients of 1, s, s^2, ...: of R (x, y), then of A+ + A- (x, y)
    half: np.ndarray  # (2,) (A+ - A-) / 2, the same everywhere
    totals: np.ndarray  # (6,)


def population_tables(teacher: np.ndarray | Density, outer: np.ndarray | None = None) -> PopulationTables:
    """Tables of inputs x ~ N(0, I_2) with targets y = f_teacher(x), for ``CircleSolver.from_tables``.

    ``teacher`` holds T unit vectors ``(T, 2)`` with outer weights ``outer (T,)`` (default: ones), y = mean_j u_j
    max(w_j . x, 0); or it is a density, called with angles in radians, y = int density(a) max(w_a . x, 0) da. Finite
    teachers are exact; a density is resolved to round-off.

    Raises ValueError where a teacher is not of this form, a density is too sharp for 2^20 cells, or its mass is not 1.
    """
    if callable(teacher):
        return _density_tables(teacher)
    weights = np.asarray(teacher, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != 2 or len(weights) == 0:
        raise ValueError(f"teacher must be a density or unit vectors (T, 2), not an array of shape {weights.shape}")
    if not np.abs(np.linalg.norm(weights, axis=1) - 1).max() < 1e-6:
        raise ValueError("teacher must hold unit vectors")
    masses = np.ones(len(weights)) if outer is None else np.asarray(outer, dtype=np.float64)
    if masses.shape != (len(weights),):
        raise ValueError(f"outer must have shape ({len(weights)},), not {masses.shape}")
    return _neuron_tables(weights, masses / len(weights))


def _moved(t: np.ndarray, v: np.ndarray) -> np.ndarray:
    """G(t) v(t) = (t v - (sin t, 0)) / 2 pi, G as in (F13), without the cancellation of the product: (n, 2)."""
    product = t[:, None] * v
    product[:, 0] -= np.sin(t)
    return product / (2 * math.pi)


def _neuron_tables(weights: np.ndarray, masses: np.ndarray) -> PopulationTables:
    """Cells between the teacher's neurons, no wider than pi / 64; A+ + A- is constant on each and so is R - G B."""
    v, sign = fold(weights)
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    grid = math.pi * np.arange(1, _FEWEST_CELLS) / _FEWEST_CELLS
    v = np.concatenate([v, np.stack([np.cos(grid), np.sin(grid)], axis=1)])
    upper = np.concatenate([sign > 0, np.ones(len(grid), dtype=bool)])
    masses = np.concatenate([masses, np.zeros(len(grid))])
    order = np.argsort(folded_keys(v), kind="stable")
    v, upper, masses = v[order], upper[order], masses[order]
    t = np.arctan2(v[:, 1], v[:, 0])
    jumps = masses[:, None] * v
    total = jumps.sum(axis=0)
    slopes = np.concatenate([-total[None], _running(2 * jumps) - total])
    values = np.concatenate([np.zeros((1, 2)), _running(-2 * masses[:, None] * _moved(t, v))])
    series = np.concatenate([values, np.zeros_like(values)], axis=1)[:, :, None]
    ends = np.append(t, math.pi)
    plus, minus = _target_sums(jumps[upper].sum(axis=0), jumps[~upper].sum(axis=0), values[-1])
    moments = np.einsum("td,td->t", v, np.where(upper[:, None], plus, minus) - values[1:])
    moments -= np.einsum("td,td->t", _moved(t, v), slopes[1:])  # v . G B, and G is symmetric
    half = (jumps[upper].sum(axis=0) - jumps[~upper].sum(axis=0)) / 2
    totals = np.array([*plus, *minus, masses @ moments, 2.0])
    zeros = np.zeros(len(ends))
    keys = folded_keys(v)
    return PopulationTables(keys, bucket_starts(keys), ends, zeros, zeros, slopes, series, half, totals)


def _density_tables(density: Density) -> PopulationTables:
    """Equal cells, twice as many until the polynomials are exact to round-off."""
    cells = _FEWEST_CELLS
    while True:
        tables = _cell_tables(density, cells)
        if np.abs(tables.series[:, 2:, -1]).max() <= _LAST_TERM * np.abs(tables.slopes).max():
            _check_mass(density, 4 * cells)
            return tables
        if cells >= _MOST_CELLS:
            raise ValueError(
                f"teacher: the density is too sharp or not smooth, {cells} cells of the half-circle are few"
            )
        cells *= 2


def _check_mass(density: Density, places: int) -> None:
    """Raises ValueError where a density that ``places`` resolve does not integrate to 1."""
    mass = 2 * math.pi * np.mean(density(2 * math.pi * np.arange(places) / places - math.pi))
    if abs(mass - 1) > _MASS:
        raise ValueError(f"teacher: the density integrates to {mass:.6g} over the circle, allowed is 1")


def _cell_tables(density: Density, cells: int) -> PopulationTables:
    """Tables on ``cells`` equal cells.

    dB = 2 v (nu(t) + nu(t + pi)) dt at Gauss points gives B = A+ + A- by integration of the polynomial through them,
    R' = (1/pi) e (e . B) with e = (sin t, -cos t) gives R in the same way (F14).
    """
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    step = math.pi / cells / 2  # dt / ds
    edges = math.pi * np.arange(cells + 1) / cells
    centres = (edges[1:] + edges[:-1]) / 2
    t = centres[:, None] + step * points  # (L, q)
    v = np.stack([np.cos(t), np.sin(t)], axis=-1)
    e = np.stack([v[..., 1], -v[..., 0]], axis=-1)
    upper, lower = (
        np.asarray(density(angles.ravel()), dtype=np.float64).reshape(t.shape) for angles in (t, t + math.pi)
    )
    if not (np.isfinite(upper).all() and np.isfinite(lower).all()):
        raise ValueError("teacher: the density is not finite everywhere")
    both = (upper + lower)[..., None] * v
    # from values at the points to coefficients of the integral from s = -1, and its values at the points
    to_coefficients = np.linalg.inv(np.vander(points, increasing=True))
    integral = np.zeros((_POINTS + 1, _POINTS))
    integral[1:] = to_coefficients / np.arange(1, _POINTS + 1)[:, None]
    integral[0] = -(np.power(-1.0, np.arange(_POINTS + 1)) @ integral)
    at_points = np.vander(points, _POINTS + 1, increasing=True) @ integral

    total = step * np.einsum("q,lqd->d", weights, both)
    rise = 2 * step * np.einsum("q,lqd->ld", weights, both)
    slopes = np.concatenate([np.zeros((1, 2)), _running(rise)])[:-1] - total
    moved = _moved(t.ravel(), v.reshape(-1, 2)).reshape(v.shape)
    values = _running(-2 * step * np.einsum("q,lqd->ld", weights, (upper + lower)[..., None] * moved))
    values = np.concatenate([np.zeros((1, 2)), values])
    increase = 2 * step * np.einsum("pq,lqd->lpd", at_points, both)  # B less its value where the cell begins
    rate = e * np.einsum("lqd,lqd->lq", e, increase)[..., None] / math.pi
    series = np.empty((cells, 4, _POINTS + 1))
    series[:, :2] = step * np.einsum("cq,lqd->ldc", integral, rate)
    series[:, 2:] = 2 * step * np.einsum("cq,lqd->ldc", integral, both)
    series[:, :2, 0] += values[:-1]

    parts = [step * np.einsum("q,lq,lqd->d", weights, part, v) for part in (upper, lower)]
    plus, minus = _target_sums(*parts, values[-1])
    powers = np.vander(points, _POINTS + 1, increasing=True)
    sums = np.einsum("pc,ldc->lpd", powers, series[:, :2])  # R less G B
    crossed = np.einsum("lqd,ld->lq", moved, slopes)  # v . G B
    mean_square = sum(
        step * np.einsum("q,lq,lq->", weights, part, np.einsum("lqd,lqd->lq", v, side - sums) - crossed)
        for part, side in ((upper, plus), (lower, minus))
    )
    half = (parts[0] - parts[1]) / 2
    keys = folded_keys(np.stack([np.cos(edges[1:-1]), np.sin(edges[1:-1])], axis=1))
    totals = np.array([*plus, *minus, mean_square, 2.0])
    scales = np.full(cells, 1 / step)
    return PopulationTables(keys, bucket_starts(keys), edges[1:], centres, scales, slopes, series, half, totals)


def _target_sums(upper: np.ndarray, lower: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Y+ and Y-: means of y z over c = +1 and c = -1.

    ``upper`` and ``lower (2,)``: sums of mass times v over the upper and lower neurons; ``last`` = - int G dB.
    """
    return upper / 2 + last / 2, lower / 2 + last / 2


def _running(values: np.ndarray) -> np.ndarray:
    """Cumulative sums along the first axis, in extended precision where the platform has it, rounded once."""
    return np.cumsum(values, axis=0, dtype=np.longdouble).astype(np.float64)
