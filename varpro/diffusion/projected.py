"""The projected ultra-fast diffusion on the circle: what training with ReLU features without bias converges to.

The ReLU sees of a measure on directions only the even harmonics and the first one. With H their span and nu the
teacher's density, the limit lam -> 0, M -> infinity of the unbiased VarPro flow is (docs/limit.md)

    d_t f = - d_x (f u d_x u),     u in 1 + H such that u f and nu have the same projection on H.

Folded form (P1 to P6 in docs/limit.md). On the half-circle let F(x) = f(x) + f(x + pi) and g = f / F, N the cdf of
nu(x) + nu(x + pi). With X(s, t), s in [0, 1), X(s + 1) = X(s) + pi, F(X) = 1 / X_s, Y = N(X), w = (cos X, sin X),

    J = (1/2) [ int (Y_s - 1)^2 ds + b . c ],   A c = b,
    A = int 4 g (1 - g) w w^T ds,   b = int_circle w nu - int w (2 g - 1) Y_s ds,

u(x) = Y_s + 2 (1 - g) c . w, u(x + pi) = Y_s - 2 g c . w, and the flow descends J:

    d_t X = - dJ/dX,     d_t g = d_s ( g (1 - g) F^2 d_s dJ/dg ).

Space: m equal steps of s, X at their ends and g on them; the flow is the gradient flow of the discrete J, in the
same metric. So the energy falls, and the mass of every cell is kept; second order in m. Time: the pair of
varpro/diffusion/stepping.py. Its matrix is cyclic banded, by an order of the unknowns from both ends banded, plus one
of rank two for c. A step is tried again, shorter, when its error estimate is too large, when X stops being
increasing, when a share g leaves (0, 1) or when the energy grows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.linalg.lapack import dgbtrf, dgbtrs

from varpro.diffusion.stepping import (
    DIAGONAL,
    E32,
    History,
    Step,
    Trial,
    accepted_steps,
    check_gamma,
    check_grid_size,
    check_numbers,
    checked_epochs,
    decreases,
    first_size,
)
from varpro.domains.circle import BUMP_MASSES, MAX_GAMMA, SECOND_BUMP, circle_cdf, circle_density

Density = Callable[[np.ndarray], np.ndarray]

_BAND = 9  # farthest unknown of an equation, in the order of ``_Grid``
_SAMPLES = 4  # of a callable density, per cell of the output grid


@dataclass(frozen=True)
class ProjectedDiffusion:
    """A solution: S snapshots on G cells, and the history of K accepted steps.

    ``density (S, G)``: cell averages per radian; ``outer (S, G)``: the outer weights u at the cell centres;
    ``grid (G,)``: the centres in radians; ``snapshot_epochs (S,)``; ``energy (K + 1,)`` and ``times (K + 1,)``: J,
    half the chi^2 of the visible harmonics, and the time at the start and after every accepted step; ``steps`` = K.
    """

    density: np.ndarray
    outer: np.ndarray
    grid: np.ndarray
    snapshot_epochs: np.ndarray
    energy: np.ndarray
    times: np.ndarray
    steps: int


class _Law(NamedTuple):
    """A probability law on the circle: density, its derivative and cdf (N(x + 2 pi) = N(x) + 1), and int w nu (2,)."""

    density: Density
    slope: Density
    cdf: Density
    first: np.ndarray


class _State(NamedTuple):
    """Nodes, (m,): x, y, density, slope (folded teacher). Cells, (m,): the rest. Global: c (2,), excess, rates."""

    x: np.ndarray
    share: np.ndarray  # g
    y: np.ndarray
    density: np.ndarray
    slope: np.ndarray
    ratio: np.ndarray  # Y_s
    wave: np.ndarray  # (2, m) w at the middle of the cell
    c: np.ndarray
    inverse: np.ndarray  # (2, 2) of A
    q: np.ndarray  # Y_s + (1 - 2 g) c . w, the mean of both u
    mobility: np.ndarray  # at the nodes
    rate: np.ndarray  # (2 m,) d_t X, then d_t g
    excess: float  # J


def solve_projected(
    teacher: float | Density | np.ndarray,
    snapshot_epochs: Sequence[int] | np.ndarray,
    time_scale: float = 2**-10,
    grid_size: int = 4096,
    rtol: float = 3e-5,
    progress: Callable[[float], None] | None = None,
    start: Density | np.ndarray | None = None,
) -> ProjectedDiffusion:
    """Densities (S, grid_size) of the projected diffusion at ``snapshot_epochs (S,)`` times ``time_scale``.

    It starts from the uniform density or from ``start``.

    ``teacher`` is the gamma of nu_gamma, or a positive density: called with angles in radians, or as averages on equal
    cells of [-pi, pi); so is ``start``. Densities are divided by their integral. ``grid_size`` is even. ``rtol`` bounds
    the estimated L1 error that one step makes in the density. ``progress`` is called with the done fraction of the
    time.

    Raises ValueError when an argument is out of range, RuntimeError when no step is short enough: at a density too
    sharp for the grid two nodes can meet (gamma = 1000 takes a grid_size of 512 or more).
    """
    check_numbers(time_scale, rtol)
    check_cells(grid_size)
    epochs = checked_epochs(snapshot_epochs)
    if isinstance(teacher, int | float | np.number):
        check_gamma(teacher, MAX_GAMMA)
        law = _gamma_law(float(teacher))
    else:
        law = _own_law(teacher, "teacher", grid_size)
    edges = np.linspace(-math.pi, math.pi, grid_size + 1)
    x, share = _first_state(start, grid_size)
    state = _evaluate(x, share, law)
    output = _Output(edges, law)
    times = epochs * float(time_scale)
    history = History(times, lambda state: state.excess, state, output(state))

    def between(step: Step, part: float) -> tuple[np.ndarray, np.ndarray]:
        return output(_between(step, part, law))

    count = sum(1 for _ in history.follow(_steps(state, law, times[-1], rtol), between, progress))
    density, outer = history.snapshots
    grid = (edges[1:] + edges[:-1]) / 2
    return ProjectedDiffusion(density, outer, grid, epochs, history.energy, history.times, count)


def harmonics(angles: np.ndarray, masses: np.ndarray, count: int) -> np.ndarray:
    """Fourier coefficients int exp(-i k x) of a weighted measure for k = 0 to ``count``: (count + 1,) complex.

    ``angles (n,)`` in radians, ``masses (n,)`` of any sign: those of u mu are masses times outer weights. ReLU
    features see k = 0, 1 and the even ones.
    """
    angles, masses = np.asarray(angles, dtype=np.float64), np.asarray(masses, dtype=np.float64)
    turn, power = np.exp(-1j * angles), masses.astype(np.complex128)
    found = np.empty(count + 1, dtype=np.complex128)
    for k in range(count + 1):
        found[k] = power.sum()
        power = power * turn
    return found


# ---- laws ----


def _gamma_law(gamma: float) -> _Law:
    """nu_gamma (docs/definitions.md, 2): two Poisson kernels, whose first harmonic is the radius r of the kernel."""
    root = math.sqrt(1 + gamma)
    radius = (root - 1) / (root + 1)
    bumps = zip(BUMP_MASSES, (0, SECOND_BUMP), strict=True)
    first = sum((m * radius * np.array([math.cos(a), math.sin(a)]) for m, a in bumps), np.zeros(2))

    def slope(x: np.ndarray) -> np.ndarray:
        total = np.zeros_like(x)
        for mass, centre in zip(BUMP_MASSES, (0.0, SECOND_BUMP), strict=True):
            below = 1 + gamma / 2 * (1 - np.cos(x - centre))
            total = total - mass * root * gamma / (4 * math.pi) * np.sin(x - centre) / (below * below)
        return total

    return _Law(lambda x: circle_density(x, gamma), slope, lambda x: circle_cdf(x, gamma), first)


def _own_law(density: Density | np.ndarray, name: str, cells: int) -> _Law:
    """The law of a callable, sampled, or of cell averages: a periodic spline of the density or of the cdf."""
    if callable(density):
        edges = np.linspace(-math.pi, math.pi, _SAMPLES * cells + 1)
        values = np.asarray(density(edges), dtype=np.float64)
        _check_positive(values, name)
        values[-1] = values[0]
        curve = CubicSpline(edges, values, bc_type="periodic")
        whole = curve.antiderivative()
        total = float(whole(math.pi))
        pdf, slope, cdf = curve, curve.derivative(), whole
    else:
        averages = np.asarray(density, dtype=np.float64)
        if averages.ndim != 1 or averages.size < 8:
            raise ValueError(f"{name} must be averages on at least 8 cells in one axis, not shape {averages.shape}")
        _check_positive(averages, name)
        total = float(averages.mean()) * 2 * math.pi
        edges = np.linspace(-math.pi, math.pi, averages.size + 1)
        excess = np.concatenate([[0.0], np.cumsum(averages / total - 1 / (2 * math.pi))]) * 2 * math.pi / averages.size
        excess[-1] = 0.0
        bend = CubicSpline(edges, excess * total, bc_type="periodic")
        mean = total / (2 * math.pi)
        cdf = lambda x: bend(x) + mean * (np.asarray(x) + math.pi)  # noqa: E731
        first_derivative, slope = bend.derivative(), bend.derivative(2)
        pdf = lambda x: first_derivative(x) + mean  # noqa: E731

    def wrapped(function: Density, turn: float) -> Density:
        def at(x: np.ndarray) -> np.ndarray:
            turns = np.floor((x + math.pi) / (2 * math.pi))
            return function(x - 2 * math.pi * turns) / total + turn * turns

        return at

    law = _Law(wrapped(pdf, 0.0), wrapped(slope, 0.0), wrapped(cdf, 1.0), np.zeros(2))
    fine = np.linspace(-math.pi, math.pi, 2 * (edges.size - 1), endpoint=False)
    values = law.density(fine)
    _check_positive(values, name)
    first = np.array([np.mean(np.cos(fine) * values), np.mean(np.sin(fine) * values)]) * 2 * math.pi
    return law._replace(first=first)


def check_cells(grid_size: int) -> None:
    """Raises ValueError where there is no grid of so many cells: the flow is computed on half of a circle."""
    check_grid_size(grid_size, 16)
    if grid_size % 2:
        raise ValueError(f"grid_size must be even, not {grid_size}")


def _check_positive(values: np.ndarray, name: str) -> None:
    if not (np.all(np.isfinite(values)) and np.all(values > 0)):
        raise ValueError(f"{name} must be finite and positive everywhere, its least value is {np.min(values):g}")


def _first_state(start: Density | np.ndarray | None, grid_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles X (m,) of the folded start and the shares g (m,) of the cells; m = grid_size / 2."""
    m = grid_size // 2
    x = math.pi * np.arange(m) / m - math.pi
    if start is None:
        return x, np.full(m, 0.5)
    law = _own_law(start, "start", grid_size)

    def folded(x: np.ndarray) -> np.ndarray:
        return law.cdf(x) + law.cdf(x + math.pi) - law.cdf(np.zeros(()))

    low, high = np.full(m, -math.pi), np.zeros(m)
    for _ in range(55):  # bisection to round-off
        middle = (low + high) / 2
        below = folded(middle) < np.arange(m) / m
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    x = (low + high) / 2
    return x, m * np.diff(law.cdf(np.append(x, x[0] + math.pi)))


# ---- space: the semi-discrete flow ----


def _before(values: np.ndarray, sign: float = 1.0) -> np.ndarray:
    """Cell values before each node: around the half-circle the two branches change places, and so does ``sign``."""
    shifted = np.roll(values, 1)
    shifted[0] *= sign
    return shifted


def _evaluate(x: np.ndarray, share: np.ndarray, law: _Law) -> _State:
    """The state at X and g with its rates (P3 to P6)."""
    m = x.size
    opposite = x + math.pi
    y = law.cdf(x) + law.cdf(opposite)
    density, slope = law.density(x) + law.density(opposite), law.slope(x) + law.slope(opposite)
    ahead = np.append(x[1:], x[0] + math.pi)
    ratio = m * np.diff(y, append=y[0] + 1)
    middle = (x + ahead) / 2
    wave = np.stack([np.cos(middle), np.sin(middle)])
    odd = 2 * share - 1
    spread = share * (1 - share)
    matrix = 4 * (wave * spread) @ wave.T / m
    right = law.first - wave @ (odd * ratio) / m
    inverse = np.linalg.inv(matrix)
    c = inverse @ right
    excess = 0.5 * (np.mean((ratio - 1) ** 2) + right @ c)
    height, height_slope = c @ wave, c[1] * wave[0] - c[0] * wave[1]  # c . w and its derivative in the angle
    q = ratio - odd * height
    r = odd * height_slope * ratio + 4 * spread * height * height_slope
    potential = -2 * height * q  # dJ/dg
    speed = m * density * (q - _before(q)) + (r + _before(r)) / 2  # (P5)
    gap = ahead - np.append(x[-1] - math.pi, x[:-1])
    step = potential - _before(potential, -1.0)
    mobility = (2 / (m * gap)) ** 2 * _upwind(odd, step)[0]
    flux = -m * mobility * step  # (P6)
    rate = np.concatenate([speed, -m * np.diff(flux, append=-flux[0])])
    return _State(x, share, y, density, slope, ratio, wave, c, inverse, q, mobility, rate, float(excess))


def _limited(odd: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Van Leer's slope of 2 g - 1 in every cell, and its derivatives with respect to the differences on either side."""
    left = odd - _before(odd, -1.0)
    right = np.append(left[1:], -left[0])
    product, total = left * right, left + right
    smooth = product > 0
    total = np.where(smooth, total, 1.0)
    return (
        np.where(smooth, 2 * product / total, 0.0),
        np.where(smooth, 2 * (right / total) ** 2, 0.0),
        np.where(smooth, 2 * (left / total) ** 2, 0.0),
    )


def _upwind(odd: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """g (1 - g) at the nodes, each factor from the side that its branch comes from; derivatives in 2 g - 1 there.

    The branch of g moves towards smaller potential relative to the other one, so it comes from below the node where
    ``step``, the difference of the potential, is negative. Limited slopes make this second order.
    """
    slope = _limited(odd)[0]
    low, high = _before(odd + slope / 2, -1.0), odd - slope / 2
    from_low = step < 0
    own, other = np.where(from_low, low, high), np.where(from_low, high, low)
    by_own, by_other = (1 - other) / 4, -(1 + own) / 4
    return (
        (1 + own) * (1 - other) / 4,
        np.where(from_low, by_own, by_other),
        np.where(from_low, by_other, by_own),
    )


def _banded_order(m: int) -> np.ndarray:
    """Places (2 m,) of the unknowns X_0, ..., g_0, ... when cells are taken from both ends: 0, m - 1, 1, m - 2, ..."""
    cells = np.arange(m)
    place = np.where(2 * cells < m, 2 * cells, 2 * (m - 1 - cells) + 1)
    return np.concatenate([2 * place, 2 * place + 1])


class _Matrix:
    """W = I - weight J for the rates of ``_evaluate``: factored, to be applied to right-hand sides.

    With c held fixed an equation meets unknowns of neighbouring cells only. Cells are ordered from both ends of s, 0,
    m - 1, 1, m - 2, ..., so that the cyclic band becomes a band. What c adds, (d rate / dc) (dc / dz), has rank two
    (Woodbury).
    """

    def __init__(self, state: _State, weight: float) -> None:
        m = state.x.size
        self.order = _banded_order(m)
        band = np.zeros((3 * _BAND + 1, 2 * m), order="F")
        local, self.by_c, c_by = _derivatives(state)
        for row, column, values in local:
            i, j = self.order[row], self.order[column]
            band[2 * _BAND + i - j, j] -= weight * values
        band[2 * _BAND] += 1
        self.factor, self.pivots, info = dgbtrf(band, _BAND, _BAND, overwrite_ab=1)
        self.sound = info == 0 and bool(np.isfinite(self.factor).all())
        if not self.sound:
            return
        self.c_by = weight * c_by  # (2, 2 m)
        self.columns = self._local(self.by_c)  # (2 m, 2)
        self.small = np.linalg.inv(np.eye(2) - self.c_by @ self.columns)

    def _local(self, right: np.ndarray) -> np.ndarray:
        sorted_right = np.empty_like(right)
        sorted_right[self.order] = right
        solution, _ = dgbtrs(self.factor, _BAND, _BAND, sorted_right, self.pivots, overwrite_b=1)
        return solution.reshape(right.shape)[self.order]

    def solve(self, right: np.ndarray) -> np.ndarray:
        """W^-1 right: (2 m,)."""
        local = self._local(right)
        return local + self.columns @ (self.small @ (self.c_by @ local))


def _derivatives(state: _State) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], np.ndarray, np.ndarray]:
    """Derivatives of the rates: (rows, columns, values) at fixed c, with respect to c (2 m, 2), and of c (2, 2 m).

    Unknowns: X_0 ... X_{m-1}, g_0 ... g_{m-1}. Suffixes: ``_l`` and ``_r`` with respect to X at the lower and the
    upper end of a cell, ``_g`` to its g, ``_c`` to c.
    """
    m = state.x.size
    x, share, ratio, wave, q, n = state.x, state.share, state.ratio, state.wave, state.q, state.density
    odd, spread = 2 * share - 1, share * (1 - share)
    turned = np.stack([-wave[1], wave[0]])
    height, height_slope = state.c @ wave, state.c @ turned
    after = np.roll(n, -1)  # teacher's folded density at the upper ends
    ratio_l, ratio_r = -m * n, m * after
    q_l, q_r, q_g, q_c = ratio_l - odd * height_slope / 2, ratio_r - odd * height_slope / 2, -2 * height, -odd * wave
    bend = -odd * height * ratio / 2 + 2 * spread * (height_slope**2 - height**2)
    r_l, r_r = odd * height_slope * ratio_l + bend, odd * height_slope * ratio_r + bend
    r_g = 2 * height_slope * ratio - 4 * odd * height * height_slope
    r_c = odd * ratio * turned + 4 * spread * (height * turned + height_slope * wave)
    p_l, p_r, p_g = -height_slope * q - 2 * height * q_l, -height_slope * q - 2 * height * q_r, 4 * height**2
    p_c = -2 * (wave * q + height * q_c)

    node, cell = np.arange(m), m + np.arange(m)
    below, above = np.roll(node, 1), np.roll(node, -1)
    speed = [
        (node, m * state.slope * (q - _before(q)) + m * n * (q_l - _before(q_r)) + (r_l + _before(r_r)) / 2),
        (above, m * n * q_r + r_r / 2),
        (below, -m * n * _before(q_l) + _before(r_l) / 2),
        (cell, m * n * q_g + r_g / 2),
        (m + below, -m * n * _before(q_g) + _before(r_g) / 2),
    ]
    # the flux through a node; the potential changes its sign around the half-circle
    step = -2 * height * q - _before(-2 * height * q, -1.0)
    gap = np.append(x[1:], x[0] + math.pi) - np.append(x[-1] - math.pi, x[:-1])
    squeeze = 2 * state.mobility / gap
    _, by_low, by_high = _upwind(odd, step)
    _, s_left, s_right = _limited(odd)
    first, last = np.where(node == 0, -1.0, 1.0), np.where(node == m - 1, -1.0, 1.0)
    bend_low = _before(s_left - s_right) / 2
    thin = 2 * (2 / (m * gap)) ** 2 * step
    by_cell = thin * (by_low * _before(s_right) / 2 + by_high * (1 - (s_left - s_right) / 2))
    by_below = thin * first * (by_low * (1 + bend_low) + by_high * s_left / 2)
    flux = [
        (node, -m * state.mobility * (p_l - _before(p_r, -1.0))),
        (above, -m * (-squeeze * step + state.mobility * p_r)),
        (below, -m * (squeeze * step - state.mobility * _before(p_l, -1.0))),
        (cell, -m * (by_cell + state.mobility * p_g)),
        (m + below, -m * (by_below - state.mobility * _before(p_g, -1.0))),
        (m + above, m * thin * by_high * last * s_right / 2),
        (m + np.roll(below, 1), m * thin * by_low * first * np.roll(first, 1) * _before(s_left) / 2),
    ]
    local = [(node, column, values) for column, values in speed]
    for column, values in flux:  # d_t g_j = m (flux_j - flux_{j+1}), flux_m = - flux_0
        local.append((cell, column, m * values))
        local.append((m + below, column, -m * values * np.where(node == 0, -1.0, 1.0)))
    n_c = m * n * (q_c - np.roll(q_c, 1, axis=1)) + (r_c + np.roll(r_c, 1, axis=1)) / 2
    p_before = np.roll(p_c, 1, axis=1)
    p_before[:, 0] *= -1
    flux_c = -m * state.mobility * (p_c - p_before)
    by_c = np.concatenate([n_c, -m * np.diff(flux_c, axis=1, append=-flux_c[:, :1])], axis=1).T

    # A dc = db - dA c
    common = -odd * ratio * turned / 2 - 2 * spread * (turned * height + wave * height_slope)
    lower, upper = common - odd * ratio_l * wave, common - odd * ratio_r * wave
    by_x = lower + np.roll(upper, 1, axis=1)
    by_x[:, 0] = lower[:, 0] + upper[:, -1]
    by_g = -2 * ratio * wave + 4 * odd * height * wave
    return local, by_c, state.inverse @ np.concatenate([by_x, by_g], axis=1) / m


# ---- time ----


def _steps(state: _State, law: _Law, end: float, rtol: float) -> Iterator[Step]:
    """The adaptive steps from time 0 to ``end``, each within ``rtol`` and with a smaller energy."""

    def attempt(state: _State, size: float) -> Trial:
        with np.errstate(all="ignore"):  # a step that is too long is refused
            after, k1, k2, error = _rosenbrock_step(state, size, law)
        return Trial(error, math.isfinite(error), state, after, (k1, k2))

    size = first_size(rtol, _density_change(state, state.rate))
    return accepted_steps(attempt, state, size, end, rtol, "; a finer grid_size may help")


def _moved_state(state: _State, change: np.ndarray, law: _Law) -> _State:
    m = state.x.size
    return _evaluate(state.x + change[:m], state.share + change[m:], law)


def _rosenbrock_step(state: _State, size: float, law: _Law) -> tuple[_State, np.ndarray, np.ndarray, float]:
    """One step of the pair of varpro/diffusion/stepping.py; the error is infinite where it must not be taken."""
    refused = state, state.rate, state.rate, math.inf
    matrix = _Matrix(state, size * DIAGONAL)
    if not matrix.sound:
        return refused
    k1 = matrix.solve(state.rate)
    if not _admissible(state, size / 2 * k1):
        return refused
    middle = _moved_state(state, size / 2 * k1, law)
    k2 = matrix.solve(middle.rate - k1) + k1
    if not _admissible(state, size * k2):
        return refused
    after = _moved_state(state, size * k2, law)
    k3 = matrix.solve(after.rate - E32 * (k2 - middle.rate) - 2 * (k1 - state.rate))
    error = _density_change(state, size / 6 * (k1 - 2 * k2 + k3))
    return after, k1, k2, error if decreases(state.excess, after.excess) else math.inf


def _admissible(state: _State, change: np.ndarray) -> bool:
    """Whether X would increase and g stay in (0, 1); any NaN gives False."""
    m = state.x.size
    x, share = state.x + change[:m], state.share + change[m:]
    return bool(np.all(np.diff(x, append=x[0] + math.pi) > 0) and np.all(share > 0) and np.all(share < 1))


def _density_change(state: _State, change: np.ndarray) -> float:
    """L1 size of the change of f when X and g change: that of F from X, and twice that of g."""
    m = state.x.size
    gap = np.append(state.x[1:], state.x[0] + math.pi) - np.append(state.x[-1] - math.pi, state.x[:-1])
    moved = 2 * change[:m] / (m * gap)
    return float(np.abs(moved - np.roll(moved, 1)).sum() + 2 * np.abs(change[m:]).mean())


def _between(step: Step, part: float, law: _Law) -> _State:
    """The state at ``part`` p of a step: z + p (z' - z) + p (1 - p) (h v - (z' - z)), v = (k1 - 2 d k2) / (1 - 2 d).

    Where that is not admissible the linear part is, since both ends are.
    """
    before, after, (k1, k2) = step.trial.before, step.trial.after, step.trial.details
    if part == 1.0:
        return after
    change = np.concatenate([after.x - before.x, after.share - before.share])
    first = (step.time_after - step.time_before) * (k1 - 2 * DIAGONAL * k2) / (1 - 2 * DIAGONAL)
    bent = part * change + part * (1 - part) * (first - change)
    return _moved_state(before, bent if _admissible(before, bent) else part * change, law)


# ---- output ----


class _Output:
    """From a state to cell averages of f and values of u on the output grid.

    The mass below an angle is interpolated as a function of Y, in which it is straight at the end of the flow but for
    the share; monotone interpolation (Fritsch and Carlson 1980) keeps densities positive.
    """

    def __init__(self, edges: np.ndarray, law: _Law) -> None:
        centres = (edges[1:] + edges[:-1]) / 2
        self.per_radian = centres.size / (2 * math.pi)
        self.edge_levels = law.cdf(edges) + law.cdf(edges + math.pi)  # Y at the edges: two more in one turn
        self.centre_levels = law.cdf(centres) + law.cdf(centres + math.pi)

    def __call__(self, state: _State) -> tuple[np.ndarray, np.ndarray]:
        m = state.x.size
        lift = math.floor(self.edge_levels[0] - state.y[0]) - 1  # half-turns from X_0 to well below the first edge
        y = np.concatenate([state.y + lift + turn for turn in range(6)])  # reaches from below the grid to above it
        y = np.append(y, state.y[0] + lift + 6)
        c_wave = state.c @ state.wave
        masses = np.concatenate([state.share, 1 - state.share]) / m
        outer = np.concatenate([state.q + c_wave, state.q - c_wave])
        if lift % 2:  # the other branch comes first
            masses, outer = np.roll(masses, m), np.roll(outer, m)
        below = np.concatenate([[0.0], np.cumsum(np.tile(masses, 3))])
        cells = np.diff(PchipInterpolator(y, below)(self.edge_levels))
        curve = PchipInterpolator((y[1:] + y[:-1]) / 2, np.tile(outer, 3))
        return cells * self.per_radian, curve(self.centre_levels)
