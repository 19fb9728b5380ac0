"""Weighted ultra-fast diffusion on the torus [-2, 2)^2 (Appendix B), by convex steps; docs/diffusion_2d.md derives it.

With the teacher density F and r = F/f the flow is that of the circle (paper, Section 6.1; varpro.diffusion.circle):

    d_t f = - div( F grad r ),      f = F is stationary,      energy (1/2) int F^2 / f >= 1/2.

Space: averages f_ij of n x n equal cells and two-point fluxes with F averaged over the faces, so d_t f = A r with A
symmetric, positive semidefinite and A 1 = 0; second order. Time: TR-BDF2 (Bank et al. 1985), two implicit stages,
second order and L-stable, with the third-order companion of Hosea and Shampine (1996) to estimate the error. A stage
f = base + tau A r with f = F/r is the minimum of the strictly convex

    (tau/2) r.A r + base.r - F.log r,      r > 0,

so it has exactly one solution for any tau: it is positive and has the mass of ``base``. Newton's method finds it; its
matrices diag(F/r^2) + tau A go to :mod:`varpro.diffusion.multigrid`. The unknowns are the differences q = f - F and
e = r - 1 = -q/f, which keep their digits on the way to F = f.

Arrays (n, n) have x along their first axis and y along the second.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from varpro.compiled import compiled
from varpro.diffusion.multigrid import Grids, apply_fluxes, grid_sizes, make_grids, solve_shifted
from varpro.diffusion.stepping import (
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
from varpro.domains.torus import TORUS_MODES, torus_bump_cdf, torus_bump_density

SIDE = 4.0  # length of the torus
MIN_GRID_SIZE = 4
MAX_GAMMA = 1e4  # beyond, a bump is narrower than a cell of a grid of 256^2
DIAGONAL = 1 - math.sqrt(0.5)  # of both implicit stages, in steps
MIDDLE = 2 * DIAGONAL  # time of the first, in steps
WEIGHT = math.sqrt(2) / 4  # of the first two slopes in the step
ERROR_WEIGHTS = ((1 - WEIGHT) / 3 - WEIGHT, (3 * WEIGHT + 1) / 3 - WEIGHT, DIAGONAL / 3 - DIAGONAL)
NEWTON_SHARE = 1e-2  # of what a step may err, or of what it moves where that is less: L1 residual of a stage
NEWTON_FLOOR = 1e-16  # L1; the mass is 1
FLAT = 1e-24  # an energy this close to its minimum is round-off: it may go up
FILTER_SHARE = 0.1  # of what a step may err: residual of the linear system in its error estimate
FORCING = 0.1  # residual of the linear system in Newton's steps, relative; less when Newton converges fast
MAX_NEWTON_STEPS = 30
MAX_HALVINGS = 30  # of a Newton step
MAX_ITERATIONS = 100  # of one linear solve


@dataclass(frozen=True)
class TorusTeacher:
    """A teacher density on the grid, as averages over cells and over faces, (n, n) each.

    ``faces_x[i, j]`` belongs to the face between the cells (i - 1, j) and (i, j), ``faces_y[i, j]`` to that between
    (i, j - 1) and (i, j), periodically. All are positive; the integral of the density is 1.
    """

    cells: np.ndarray
    faces_x: np.ndarray
    faces_y: np.ndarray

    @classmethod
    def of_law(cls, gamma: float, grid_size: int) -> "TorusTeacher":
        """The law of Appendix B, [b(x + 1) b(y) + b(x - 1) b(y - 1)] / 2, with exact averages from the cdf of b."""
        edges = np.linspace(-SIDE / 2, SIDE / 2, grid_size + 1)
        cells, faces_x, faces_y = np.zeros((3, grid_size, grid_size))
        for x, y in TORUS_MODES:
            averages = [np.diff(torus_bump_cdf(edges - mode, gamma)) * grid_size / SIDE for mode in (x, y)]
            points = [torus_bump_density(edges[:-1] - mode, gamma) for mode in (x, y)]
            cells += np.outer(averages[0], averages[1]) / len(TORUS_MODES)
            faces_x += np.outer(points[0], averages[1]) / len(TORUS_MODES)
            faces_y += np.outer(averages[0], points[1]) / len(TORUS_MODES)
        return cls(cells, faces_x, faces_y)

    @classmethod
    def of_density(cls, density: np.ndarray) -> "TorusTeacher":
        """Any positive cell averages (n, n), divided by their integral; a face gets the mean of its two cells.

        Raises ValueError where ``density`` is not square or not positive.
        """
        cells = _checked_density(density, "the teacher density")
        return cls(cells, (cells + np.roll(cells, 1, axis=0)) / 2, (cells + np.roll(cells, 1, axis=1)) / 2)


@dataclass(frozen=True)
class TorusDiffusion:
    """A solution: S snapshots of cell averages on n x n cells, and the history of K accepted steps.

    ``density (S, n, n)`` per unit area; ``grid (n,)`` cell centres along each axis; ``snapshot_epochs (S,)``;
    ``energy (K + 1,)`` and ``times (K + 1,)``: (1/2) int F^2/f and the time at the start and after every accepted
    step; ``steps`` = K; ``iterations``: of conjugate gradients, in all. The last density can serve as a ``start``.
    """

    density: np.ndarray
    grid: np.ndarray
    snapshot_epochs: np.ndarray
    energy: np.ndarray
    times: np.ndarray
    steps: int
    iterations: int


class _Problem(NamedTuple):
    """The averages F (n, n), the face coefficients on all grids, the area of a cell, and the tolerance of a step."""

    cells: np.ndarray
    grids: Grids
    area: float
    rtol: float


class _State(NamedTuple):
    """q = f - F, e = F/f - 1 and d_t f = A e, (n, n) each, with the step that led here.

    ``previous`` is e at the time ``distance`` earlier; 0 at the start, where ``previous`` is ``excess`` itself.
    """

    deviation: np.ndarray
    excess: np.ndarray
    rate: np.ndarray
    previous: np.ndarray
    distance: float


def solve_torus_diffusion(
    gamma: float | TorusTeacher,
    snapshot_epochs: Sequence[int] | np.ndarray,
    time_scale: float = 2**-10,
    grid_size: int = 256,
    rtol: float = 1e-5,
    progress: Callable[[float], None] | None = None,
    start: np.ndarray | None = None,
) -> TorusDiffusion:
    """Densities of the diffusion towards the law of Appendix B at ``snapshot_epochs * time_scale``, from uniform.

    ``gamma`` may also be a :class:`TorusTeacher`, whose grid then replaces ``grid_size``: an odd number up to 15
    times a power of two. ``rtol`` bounds the estimated L1 error that one step makes in the density;
    docs/diffusion_2d.md has measured errors of snapshots. ``progress`` is called with the done fraction of the time.
    ``start (n, n)``: another initial density, positive; it is divided by its integral.

    Raises ValueError when an argument is out of range (gamma = infinity has no density), RuntimeError when no step
    is short enough.
    """
    check_numbers(time_scale, rtol)
    if isinstance(gamma, TorusTeacher):
        teacher = gamma
        _check_sizes(len(teacher.cells))
    else:
        check_gamma(gamma, MAX_GAMMA)
        _check_sizes(grid_size)
        teacher = TorusTeacher.of_law(gamma, grid_size)
    epochs = checked_epochs(snapshot_epochs)
    n = len(teacher.cells)
    width = SIDE / n
    grids = make_grids(teacher.faces_x / width**2, teacher.faces_y / width**2)
    problem = _Problem(teacher.cells, grids, width**2, float(rtol))
    initial = np.full((n, n), SIDE**-2) if start is None else _checked_density(start, "start")
    if initial.shape != teacher.cells.shape:
        raise ValueError(f"start must have the shape of the grid, {(n, n)}, not {initial.shape}")
    state = _initial_state(problem, initial)
    times = epochs * float(time_scale)
    history = History(times, lambda state: 0.5 + _excess_energy(state, problem.area), state, (initial,))
    size = first_size(rtol, np.abs(state.rate).sum() * problem.area)

    def between(step: Step, part: float) -> tuple[np.ndarray]:
        return (_between(step, part, teacher.cells),)

    steps = accepted_steps(partial(_attempt, problem=problem), state, size, times[-1], rtol)
    iterations = [step.trial.details for step in history.follow(steps, between, progress)]
    grid = (np.arange(n) + 0.5) * width - SIDE / 2
    (density,) = history.snapshots
    return TorusDiffusion(density, grid, epochs, history.energy, history.times, len(iterations), sum(iterations))


def _initial_state(problem: _Problem, density: np.ndarray) -> _State:
    deviation = density - problem.cells
    excess, rate = -deviation / density, np.empty_like(density)
    apply_fluxes(*_faces(problem.grids), excess, rate)
    return _State(deviation, excess, rate, excess, 0.0)


def _attempt(state: _State, size: float, problem: _Problem) -> Trial:
    """One step of TR-BDF2: admissible where both stages converged and the energy falls; details: the iterations."""
    solved, after, error, iterations = _step(problem, state, size)
    excess, new_excess = _excess_energy(state, problem.area), _excess_energy(after, problem.area)
    return Trial(error, solved and decreases(excess, new_excess, FLAT), state, after, iterations)


def _excess_energy(state: _State, area: float) -> float:
    """(1/2) int F^2/f - 1/2 = (1/2) int (f - F)^2/f, which keeps its digits near the minimum; both have mass 1."""
    return -0.5 * area * float((state.deviation * state.excess).sum())


def _between(step: Step, part: float, cells: np.ndarray) -> np.ndarray:
    """The density (n, n) at ``part`` of a step, for the teacher's averages ``cells (n, n)``.

    The cubic Hermite interpolant; where it is not positive, the linear one, which is. Both keep the mass.
    """
    before, after = step.trial.before, step.trial.after
    size, rest = step.time_after - step.time_before, 1 - part
    blend = part * part * (3 - 2 * part)
    bend = size * part * rest * (rest * before.rate - part * after.rate)
    density = cells + ((1 - blend) * before.deviation + blend * after.deviation + bend)
    return density if density.min() > 0 else cells + (rest * before.deviation + part * after.deviation)


# ---- one step ----


@compiled()
def _step(problem: _Problem, state: _State, size: float) -> tuple[bool, _State, float, int]:
    """One step h: (both stages solved, new state, L1 error estimate, iterations). d = 1 - sqrt(1/2), w = sqrt(2)/4:

    f2 = f + h d (k1 + k2),   f' = f + h (w k1 + w k2 + d k3),   k = A r at f, f2 and f';
    error = (I + h d A diag(F/f'^2))^-1 h (third-order weights - these) . (k1, k2, k3).
    """
    tau = DIAGONAL * size
    share = min(problem.rtol, size * problem.area * _absolute_sum(state.rate))
    tolerance = max(NEWTON_SHARE * share, NEWTON_FLOOR)
    guess = _extrapolate(state.previous, state.excess, state.rate, problem.cells, state.distance, MIDDLE * size)
    base = state.deviation + tau * state.rate
    solved, middle, its = _solve_stage(problem, base, tau, guess, tolerance)
    if not solved:
        return False, state, np.inf, its
    _, excess, rate = middle
    guess = _extrapolate(state.excess, excess, rate, problem.cells, MIDDLE * size, (1 - MIDDLE) * size)
    base = state.deviation + (WEIGHT * size) * (state.rate + rate)
    solved, last, its3 = _solve_stage(problem, base, tau, guess, tolerance)
    if not solved:
        return False, state, np.inf, its + its3
    after = _State(last[0], last[1], last[2], state.excess, size)
    first, second, third = ERROR_WEIGHTS
    raw = (first * state.rate + second * rate + third * after.rate) / DIAGONAL
    shift = problem.cells / ((1 + after.excess) ** 2 * tau)
    filtered, its4 = solve_shifted(
        problem.grids, shift, raw, FILTER_SHARE * problem.rtol / (tau * problem.area), MAX_ITERATIONS
    )
    error = tau * problem.area * _absolute_sum(shift * filtered)
    return True, after, error, its + its3 + its4


@compiled()
def _extrapolate(
    older: np.ndarray, newer: np.ndarray, rate: np.ndarray, cells: np.ndarray, distance: float, ahead: float
) -> np.ndarray:
    """A guess of e at the time ``ahead`` of ``newer``: the parabola in log r through both, with the newer slope.

    d_t log r = -(d_t f)/f = -rate (1 + e)/F. Changes of more than a factor e are not believed.
    """
    guess = np.empty_like(newer)
    n = newer.shape[0]
    for i in range(n):
        for j in range(n):
            ratio = 1 + newer[i, j]
            slope = -rate[i, j] * ratio / cells[i, j]
            change = slope * ahead
            if distance > 0:
                back = math.log1p((older[i, j] - newer[i, j]) / ratio)
                change += (back + slope * distance) * (ahead / distance) ** 2
            guess[i, j] = newer[i, j] + ratio * math.expm1(max(-1.0, min(1.0, change)))
    return guess


@compiled()
def _solve_stage(
    problem: _Problem, base: np.ndarray, tau: float, excess: np.ndarray, tolerance: float
) -> tuple[bool, tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """(solved, (q, e, A e), iterations) with q = base + tau A e, q = F/(1 + e) - F up to ``tolerance`` in L1.

    Newton's method from ``excess`` for the residual A e + (base + F e/(1 + e))/tau, the gradient of the convex
    function divided by tau. q is what the flux form gives, so the mass is that of ``base`` to round-off whatever the
    tolerance; e is taken from q at the end.
    """
    below, left = _faces(problem.grids)
    residual, rate, moved = np.empty_like(base), np.empty_like(base), np.empty_like(base)
    shift, trial_rate = np.empty_like(base), np.empty_like(base)
    scale = tau * problem.area
    apply_fluxes(below, left, excess, rate)
    norm = scale * _residual(problem.cells, base, tau, excess, rate, residual)
    old_norm, iterations = norm, 0
    for newton in range(MAX_NEWTON_STEPS + 1):
        if norm <= tolerance and _all_positive(problem.cells, base, tau, rate):
            deviation = base + tau * rate
            return True, (deviation, -deviation / (problem.cells + deviation), rate), iterations
        if newton == MAX_NEWTON_STEPS or not norm < np.inf:
            break
        forcing = FORCING if newton == 0 else min(FORCING, (norm / old_norm) ** 1.5)  # towards order 1.5
        _stiffness(problem.cells, tau, excess, shift)
        target = max(0.3 * tolerance, forcing * norm) / scale
        uphill, its = solve_shifted(problem.grids, shift, residual, target, MAX_ITERATIONS)
        iterations += its
        length = 1.0
        for _ in range(MAX_HALVINGS):
            descent = _move(excess, uphill, length, residual, moved)
            apply_fluxes(below, left, moved, trial_rate)
            trial_norm = scale * _residual(problem.cells, base, tau, moved, trial_rate, shift)
            # Along the segment the function is convex: it must fall at first and not rise much at the end.
            ascent = _slope(shift, excess, moved)
            if (descent < 0 and ascent <= -0.5 * descent) or trial_norm <= tolerance:
                break
            length /= 2
        old_norm, norm = norm, trial_norm
        excess, moved = moved, excess
        rate, trial_rate = trial_rate, rate
        residual, shift = shift, residual
    return False, (base, excess, rate), iterations


@compiled()
def _faces(grids: Grids) -> tuple[np.ndarray, np.ndarray]:
    """The face coefficients of the finest grid, (n, n) each."""
    n = grids.sizes[0]
    return grids.below[: n * n].reshape(n, n), grids.left[: n * n].reshape(n, n)


@compiled()
def _residual(
    cells: np.ndarray, base: np.ndarray, tau: float, excess: np.ndarray, rate: np.ndarray, residual: np.ndarray
) -> float:
    """residual <- A e + (base + F e/(1 + e))/tau; its absolute sum."""
    n, total = base.shape[0], 0.0
    for i in range(n):
        row = 0.0
        for j in range(n):
            e = excess[i, j]
            value = rate[i, j] + (base[i, j] + cells[i, j] * (e / (1 + e))) / tau
            residual[i, j] = value
            row += abs(value)
        total += row
    return total


@compiled()
def _stiffness(cells: np.ndarray, tau: float, excess: np.ndarray, shift: np.ndarray) -> None:
    """shift <- F/(r^2 tau), which with A is the derivative of the residual."""
    n = cells.shape[0]
    for i in range(n):
        for j in range(n):
            ratio = 1 + excess[i, j]
            shift[i, j] = cells[i, j] / (ratio * ratio * tau)


@compiled()
def _move(excess: np.ndarray, uphill: np.ndarray, length: float, residual: np.ndarray, moved: np.ndarray) -> float:
    """moved <- e moved along p = -length uphill / r; residual . (moved - e).

    r becomes r (1 + p) for p > 0 and r/(1 - p) for p < 0: Newton's step for r, or that for f = F/r, which is the same
    to first order. Both stay positive for any length.
    """
    n = excess.shape[0]
    for i in range(n):
        for j in range(n):
            e = excess[i, j]
            change = -length * uphill[i, j]
            p = change / (1 + e)
            moved[i, j] = e + change if p > 0 else (e + p) / (1 - p)
    return _slope(residual, excess, moved)


@compiled()
def _slope(residual: np.ndarray, old: np.ndarray, new: np.ndarray) -> float:
    """residual . (new - old)"""
    total = 0.0
    for i in range(old.shape[0]):
        row = 0.0
        for j in range(old.shape[1]):
            row += residual[i, j] * (new[i, j] - old[i, j])
        total += row
    return total


@compiled()
def _all_positive(cells: np.ndarray, base: np.ndarray, tau: float, rate: np.ndarray) -> bool:
    n, positive = cells.shape[0], True
    for i in range(n):
        for j in range(n):
            positive &= cells[i, j] + (base[i, j] + tau * rate[i, j]) > 0
    return positive


@compiled()
def _absolute_sum(values: np.ndarray) -> float:
    total = 0.0
    for i in range(values.shape[0]):
        row = 0.0
        for j in range(values.shape[1]):
            row += abs(values[i, j])
        total += row
    return total


# ---- arguments ----


def _check_sizes(grid_size: int) -> None:
    check_grid_size(grid_size, MIN_GRID_SIZE)
    grid_sizes(grid_size)


def _checked_density(density: np.ndarray, name: str) -> np.ndarray:
    """``density`` as float64 (n, n), divided by its integral."""
    cells = np.array(density, dtype=np.float64)
    if cells.ndim != 2 or cells.shape[0] != cells.shape[1]:
        raise ValueError(f"{name} must be square, (n, n), not {cells.shape}")
    if not (np.isfinite(cells).all() and cells.min() > 0):
        raise ValueError(f"{name} must be finite and above 0 everywhere; its smallest value is {cells.min()}")
    return cells / (cells.mean() * SIDE**2)
