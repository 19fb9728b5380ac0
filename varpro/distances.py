"""Energy distance D(p, q) = sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|) between weighted point sets.

On the circle the chord |e^{ia} - e^{ib}| = 2 sin((b - a)/2), for a <= b < a + 2 pi, splits into products of a and
of b, so that each mean costs one merge of two sorted lists.
"""

from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
from numba import prange
from scipy.fft import fftfreq, irfft2, rfft2, rfftfreq
from scipy.spatial.distance import cdist

from varpro.compiled import VECTORISED, compiled

_PAIRS = 1 << 20  # distances that are held at a time


class PointSet(ABC):
    """A weighted point set in one space: ``points (n, ...)``, n >= 1, and ``masses (n,)``, which are divided by their
    sum (default: equal).

    Raises ValueError where the points have another shape, or the masses are not n finite numbers >= 0, one above 0.
    """

    @abstractmethod
    def mean_distance(self, other: Self) -> float:
        """E|X - Y| with X from this measure and Y from ``other``, independent."""

    @cached_property
    def self_distance(self) -> float:
        """E|X - X'|; kept, since one measure is often compared with many."""
        return self.mean_distance(self)

    def energy_distance(self, other: Self) -> float:
        """D(self, other) >= 0, in the units of the points (on the circle chords of the unit circle)."""
        return _energy_distance(self.mean_distance(other), self.self_distance, other.self_distance)


def _energy_distance(mean: float, own: float, others: float) -> float:
    return float(np.sqrt(max(2 * mean - own - others, 0.0)))


def _points(points: np.ndarray, dimension: int | None = None) -> np.ndarray:
    """``points (n, d)`` in float64; d = ``dimension`` unless that is None."""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or 0 in points.shape or dimension not in (None, points.shape[1]):
        raise ValueError(f"points {points.shape} are not allowed: (n, {dimension or 'd'}), n >= 1")
    return points


def _masses(masses: np.ndarray | None, count: int) -> np.ndarray:
    """``masses (count,)`` divided by their sum; for None equal ones."""
    if masses is None:
        return np.full(count, 1.0 / count)
    masses = np.asarray(masses, dtype=np.float64)
    if masses.shape != (count,):
        raise ValueError(f"masses {masses.shape} are not allowed for {count} points: ({count},)")
    total = masses.sum()
    if not (masses.min() >= 0 and 0 < total < np.inf):
        raise ValueError("masses are not allowed: finite numbers >= 0, one of them above 0")
    return masses / total


class EuclideanMeasure(PointSet):
    """A weighted point set in R^d: ``points (n, d)``, any d; all pairs are summed, a few rows at a time."""

    def __init__(self, points: np.ndarray, masses: np.ndarray | None = None) -> None:
        self.points = _points(points)
        self.masses = _masses(masses, len(self.points))

    def mean_distance(self, other: Self) -> float:
        """E|X - Y| with X from this measure and Y from ``other``, independent."""
        rows = max(1, _PAIRS // len(other.points))
        return sum(
            float(self.masses[i : i + rows] @ cdist(self.points[i : i + rows], other.points) @ other.masses)
            for i in range(0, len(self.points), rows)
        )


class CircleMeasure(PointSet):
    """A weighted point set on the circle, sorted once: ``points`` are directions (n, 2), or angles (n,) in radians."""

    def __init__(self, points: np.ndarray, masses: np.ndarray | None = None) -> None:
        if np.ndim(points) == 1 and len(points):
            angles = np.asarray(points, dtype=np.float64)
        else:
            x, y = _points(points, 2).T
            angles = np.arctan2(y, x)
        angles, self.masses = np.mod(angles, 2 * np.pi), _masses(masses, len(angles))
        if masses is None:  # numpy sorts values several times faster than it finds their order
            self.angles = np.sort(angles)
        else:
            order = np.argsort(angles)
            self.angles, self.masses = angles[order], self.masses[order]
        self.cosines, self.sines = np.cos(self.angles / 2), np.sin(self.angles / 2)

    def mean_distance(self, other: Self) -> float:
        """E|X - Y| of chords, X from this measure and Y from ``other``, independent, in O(n)."""
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


class TorusMeasure(PointSet):
    """A weighted point set on the torus R^2 / (4 Z)^2: ``points (n, 2)``, any representatives."""

    def __init__(self, points: np.ndarray, masses: np.ndarray | None = None) -> None:
        self.x, self.y = np.ascontiguousarray(_points(points, 2).T)
        self.masses = _masses(masses, len(self.x))

    def mean_distance(self, other: Self) -> float:
        """E|wrap(X - Y)|, all pairs, memory O(n)."""
        rows = np.empty(len(self.x))
        _mean_distances(self.x, self.y, other.x, other.y, other.masses, rows)
        return float((self.masses * rows).sum())  # numpy's sum: the same digits for any number of threads


@compiled(parallel=True, fastmath=VECTORISED)
def _mean_distances(x, y, other_x, other_y, other_masses, rows):
    """rows_i <- E|wrap(p_i - Y)|, wrap(z) = z - 4 round(z / 4) per coordinate."""
    for i in prange(x.shape[0]):
        total = 0.0
        for j in range(other_x.shape[0]):
            dx, dy = x[i] - other_x[j], y[i] - other_y[j]
            dx -= 4.0 * np.floor(0.25 * dx + 0.5)
            dy -= 4.0 * np.floor(0.25 * dy + 0.5)
            total += other_masses[j] * np.sqrt(dx * dx + dy * dy)
        rows[i] = total


class TorusDensity:
    """A smooth law on the torus given by averages over cells, ``density (n, n)``, x along the first axis.

    Cell (i, j) has its centre at (-2 + (i + 1/2) h, -2 + (j + 1/2) h), h = 4/n. ``density`` is divided by its
    integral. The potential U(x) = E|wrap(x - Y)| at the centres is one fast Fourier transform and back; between them
    a polynomial of degree 5 per axis goes through the nearest 6 x 6 values. Fourth order in h (docs/diffusion_2d.md).

    Raises ValueError where ``density`` is not square or n < 6.
    """

    def __init__(self, density: np.ndarray) -> None:
        density = np.asarray(density, dtype=np.float64)
        if density.ndim != 2 or density.shape[0] != density.shape[1] or len(density) < 6:
            raise ValueError(f"the density must be square, (n, n) with n >= 6, not {density.shape}")
        spectrum = rfft2(density / density.sum())
        kernel, self_kernel = _kernels(len(density))
        self.potential = irfft2(spectrum * kernel, s=density.shape)
        self.self_distance = float((np.square(np.abs(spectrum)) * self_kernel).sum())  # E|wrap(Y - Y')|

    def mean_distance(self, other: TorusMeasure) -> float:
        """E|wrap(X - Y)| with X from the point set ``other`` and Y from this law."""
        return _interpolated_mean(self.potential, other.x, other.y, other.masses)

    def energy_distance(self, other: TorusMeasure) -> float:
        """D(self, other) >= 0, in the units of the plane."""
        return _energy_distance(self.mean_distance(other), self.self_distance, other.self_distance)


@lru_cache(maxsize=4)
def _kernels(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (n, n // 2 + 1) of the transformed cell masses: for the potential at the centres, for the self-distance.

    The first is the transform of the means of |wrap(z)| over the cells around all differences of centres, which is
    exact for a density that is constant in each cell. Along an axis, with s(k) = sinc(k h / 2), averages over cells
    are s times a smooth density and steps are s times their transform: dividing by s^2 gives the smooth density. The
    self-distance needs its values at the centres, one more s, and Parseval's sum over half of the transform.
    """
    width = 4.0 / n
    steps = np.arange(n // 2 + 1) * width
    low, high = steps - width / 2, np.minimum(steps + width / 2, 2.0)  # |wrap| is even about 2, so half a cell will do
    corners = [_distance_integral(a[:, None], b[None]) for a in (low, high) for b in (low, high)]
    means = (corners[3] - corners[2] - corners[1] + corners[0]) / np.outer(high - low, high - low)
    index = np.minimum(np.arange(n), n - np.arange(n))
    sinc = np.outer(np.sinc(fftfreq(n)), np.sinc(rfftfreq(n)))
    kernel = rfft2(means[np.ix_(index, index)]).real / sinc**2  # even, so real
    times = np.full(n // 2 + 1, 2.0)  # how often Parseval's sum has each column
    times[0] = 1.0
    if n % 2 == 0:
        times[-1] = 1.0
    return kernel, kernel / sinc * times / n**2


def _distance_integral(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integral of |z| over [0, a] x [0, b], odd in a and b: a b |z|/3 + a^3 asinh(b/|a|)/6 + b^3 asinh(a/|b|)/6."""
    return a * b * np.hypot(a, b) / 3 + (a**3 * np.arcsinh(b / np.abs(a)) + b**3 * np.arcsinh(a / np.abs(b))) / 6


@compiled()
def _interpolated_mean(values: np.ndarray, x: np.ndarray, y: np.ndarray, masses: np.ndarray) -> float:
    """sum_k masses_k V(x_k, y_k), V from the values (n, n) at the cell centres by 6 x 6 Lagrange polynomials."""
    n = values.shape[0]
    weights_x, weights_y = np.empty(6), np.empty(6)
    total = 0.0
    for k in range(x.shape[0]):
        i = _lagrange_weights((x[k] + 2.0) * (n / 4.0) - 0.5, weights_x)
        j = _lagrange_weights((y[k] + 2.0) * (n / 4.0) - 0.5, weights_y)
        value = 0.0
        for a in range(6):
            row = 0.0
            for b in range(6):
                row += weights_y[b] * values[(i + a) % n, (j + b) % n]
            value += weights_x[a] * row
        total += masses[k] * value
    return total


@compiled()
def _lagrange_weights(place: float, weights: np.ndarray) -> int:
    """Weights (6,) of the nodes first, ..., first + 5 around ``place``, in steps of the grid; returns first."""
    first = int(np.floor(place)) - 2
    t = place - first
    for a in range(6):
        weight = 1.0
        for b in range(6):
            if b != a:
                weight *= (t - b) / (a - b)
        weights[a] = weight
    return first
