"""Weighted ultra-fast diffusion on the circle, solved in the quantile coordinate (paper, Section 6.1).

The limit of the unbiased VarPro flow of injective features (of ReLU without a bias: ``projected``) is, for the teacher
density nu on angles x (period 2 pi),

    d_t mu = - (1/2) d_x ( mu d_x (nu/mu)^2 ),      mu = nu is stationary.

With the quantile X(s, t), X(s + 1) = X(s) + 2 pi, mu(X) = 1 / X_s, and Y = N(X), N the cdf of nu, the energy is the
Dirichlet energy of Y and the flow its gradient flow in X:

    F = (1/2) int (nu/mu)^2 dmu = (1/2) int_0^1 Y_s^2 ds,      d_t X = nu(X) Y_ss.

Space: n equal steps of s and three-point differences. This is again a gradient flow, of the discrete energy
F = (n/2) sum_i (Y_{i+1} - Y_i)^2, so its Jacobian is symmetric as well as cyclic tridiagonal; second order in n.
Time: the Rosenbrock pair of Shampine and Reichelt (The MATLAB ODE suite, 1997; "ode23s"), second order and L-stable,
with its own interpolant between the steps. A step is tried again, shorter, when its error estimate is too large, when
X stops being increasing or when the energy grows. Mass and positivity need no care: the density is a difference of
an increasing cdf.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from varpro.compiled import compiled
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
from varpro.domains.circle import BUMP_MASSES, MAX_GAMMA, SECOND_BUMP

MIN_GRID_SIZE = 8


@dataclass(frozen=True)
class Diffusion:
    """A solution: S snapshots of cell averages on G cells, and the history of K accepted steps.

    ``density (S, G)`` per radian; ``grid (G,)`` cell centres in radians; ``snapshot_epochs (S,)``;
    ``energy (K + 1,)`` and ``times (K + 1,)``: F and the time at the start and after every accepted step;
    ``steps`` = K; ``positions (n,)``: the quantiles X(i/n) at the last time, which can serve as a ``start``.
    """

    density: np.ndarray
    grid: np.ndarray
    snapshot_epochs: np.ndarray
    energy: np.ndarray
    times: np.ndarray
    steps: int
    positions: np.ndarray


class _State(NamedTuple):
    """Per node, (n,) each: X, Y = N(X), nu(X), nu'(X) and the curvature Y_ss; d_t X = density * curvature."""

    x: np.ndarray
    y: np.ndarray
    density: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray


def solve_diffusion(
    gamma: float,
    snapshot_epochs: Sequence[int] | np.ndarray,
    time_scale: float = 2**-10,
    grid_size: int = 4096,
    rtol: float = 1e-5,
    progress: Callable[[float], None] | None = None,
    start: np.ndarray | None = None,
) -> Diffusion:
    """Densities of the diffusion towards nu_gamma at the times ``snapshot_epochs * time_scale``, from uniform.

    ``rtol`` bounds the estimated L1 error that one step makes in the density; that of a snapshot is about
    0.1 rtol^(2/3) at most, plus what ``grid_size`` leaves. ``progress`` is called with the done fraction of the time.
    ``start (n,)``: other initial quantiles X(i/n) in radians, increasing, less than one turn in all, n >= 8; without
    it n = ``grid_size`` and X(s) = 2 pi s - pi.

    Raises ValueError when an argument is out of range, RuntimeError when no step is short enough.
    """
    check_gamma(gamma, MAX_GAMMA)
    check_numbers(time_scale, rtol)
    check_grid_size(grid_size, MIN_GRID_SIZE)
    epochs = checked_epochs(snapshot_epochs)
    edges = np.linspace(-math.pi, math.pi, grid_size + 1)
    teacher = _teacher(gamma)
    levels = np.array([_law(edge, teacher)[2] for edge in edges])
    state = _evaluate(edges[:-1].copy() if start is None else _checked_start(start), teacher)
    times = epochs * float(time_scale)
    history = History(times, lambda state: 0.5 + _excess_energy(state.y), state, (_cell_masses(state.y, levels),))

    def cells(step: Step, part: float) -> tuple[np.ndarray]:
        trial, size = step.trial, step.time_after - step.time_before
        return (_cell_masses(_interpolate(trial.before, trial.after.y, *trial.details, size, part), levels),)

    size = first_size(rtol, _density_change(state.x, state.density * state.curvature))
    steps = accepted_steps(partial(_attempt, teacher=teacher), state, size, times[-1], rtol)
    for step in history.follow(steps, cells, progress):
        state = step.trial.after
    (density,) = history.snapshots
    density *= grid_size / (2 * math.pi)
    grid = (edges[1:] + edges[:-1]) / 2
    return Diffusion(density, grid, epochs, history.energy, history.times, len(history.times) - 1, state.x)


def _attempt(state: _State, size: float, teacher: tuple[float, float, float, float]) -> Trial:
    """One step: admissible where X stays increasing and the energy falls; the details are the stages k1 and k2."""
    solvable, after, k1, k2, error_vector = _rosenbrock_step(state, size, teacher)
    error = _density_change(state.x, error_vector) if solvable else math.inf
    admissible = solvable and _increasing(after.x, after.y)
    admissible = admissible and decreases(_excess_energy(state.y), _excess_energy(after.y))
    return Trial(error, admissible, state, after, (k1, k2))


# ---- the law of the teacher at one angle: that of varpro.domains.circle, in scalar form ----


@compiled(error_model="python")
def _bump(x: float, gamma: float) -> tuple[float, float, float]:
    """Density, its slope and cdf of one bump at 0: r q / 2 pi, its derivative, 1/2 + atan(r tan(x/2)) / pi.

    r = sqrt(1 + gamma), q = 1 / (1 + gamma sin^2(x/2)).
    """
    root = math.sqrt(1 + gamma)
    turns = np.floor((x + math.pi) / (2 * math.pi))
    half = x / 2 - math.pi * turns
    sine, cosine = math.sin(half), math.cos(half)
    q = 1 / (1 + gamma * sine * sine)
    cdf = turns + 0.5 + math.atan2(root * sine, cosine) / math.pi
    return root * q / (2 * math.pi), -root * gamma * sine * cosine * q * q / (2 * math.pi), cdf


def _teacher(gamma: float) -> tuple[float, float, float, float]:
    """gamma, the masses of the two bumps and the place of the second, for the compiled functions.

    As arguments: a compiled function keeps the globals that it was compiled with, also from one process to the next.
    """
    return float(gamma), *BUMP_MASSES, SECOND_BUMP


@compiled(error_model="python")
def _law(x: float, teacher: tuple[float, float, float, float]) -> tuple[float, float, float]:
    """nu(x), nu'(x) and N(x) up to a constant, which no difference of Y sees: a mixture of two bumps."""
    gamma, first, second, shift = teacher
    density, slope, cdf = _bump(x, gamma)
    density2, slope2, cdf2 = _bump(x - shift, gamma)
    return first * density + second * density2, first * slope + second * slope2, first * cdf + second * cdf2


# ---- space: the semi-discrete flow ----


@compiled(error_model="python")
def _evaluate(x: np.ndarray, teacher: tuple[float, float, float, float]) -> _State:
    """The state at X: Y_i = N(X_i) and Y_ss = n^2 ((Y_{i+1} - Y_i) - (Y_i - Y_{i-1})), Y_{i+n} = Y_i + 1."""
    n = x.size
    y, density, slope, curvature = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        density[i], slope[i], y[i] = _law(x[i], teacher)
    left = y[0] + 1 - y[n - 1]
    for i in range(n):
        right = y[i + 1] - y[i] if i < n - 1 else y[0] + 1 - y[n - 1]
        curvature[i] = (right - left) * n * n
        left = right
    return _State(x, y, density, slope, curvature)


@compiled(error_model="python")
def _excess_energy(y: np.ndarray) -> float:
    """F - 1/2 = (1/(2n)) sum_i (n (Y_{i+1} - Y_i) - 1)^2, which keeps its digits near the minimum F = 1/2."""
    n = y.size
    total = (n * (y[0] + 1 - y[n - 1]) - 1) ** 2
    for i in range(n - 1):
        total += (n * (y[i + 1] - y[i]) - 1) ** 2
    return total / (2 * n)


@compiled(error_model="python")
def _increasing(x: np.ndarray, y: np.ndarray) -> bool:
    """X and Y increase over one whole turn; any NaN gives False."""
    n = x.size
    increasing = x[0] + 2 * math.pi > x[n - 1] and y[0] + 1 > y[n - 1]
    for i in range(n - 1):
        increasing = increasing and x[i + 1] > x[i] and y[i + 1] > y[i]
    return increasing


@compiled(error_model="python")
def _density_change(x: np.ndarray, dx: np.ndarray) -> float:
    """L1 size of the change of mu when X moves by dx: the total variation of mu dX, mu = 1 / X_s."""
    n = x.size
    previous = 2 * dx[n - 1] / (n * (x[0] - x[n - 2] + 2 * math.pi))
    total = 0.0
    for i in range(n):
        ahead = x[i + 1] if i < n - 1 else x[0] + 2 * math.pi
        behind = x[i - 1] if i > 0 else x[n - 1] - 2 * math.pi
        moved = 2 * dx[i] / (n * (ahead - behind))
        total += abs(moved - previous)
        previous = moved
    return total


# ---- time: one linearly implicit step ----


@compiled()  # a zero pivot is reported, not raised
def _factor(state: _State, weight: float) -> tuple[bool, np.ndarray, np.ndarray, np.ndarray]:
    """L D L^T of W = I - weight J, J_ij = d(nu_i Y_ss,i)/dX_j, cyclic tridiagonal: (definite, 1/D, L, last row of L).

    J_ii = nu'_i Y_ss,i - 2 n^2 nu_i^2,  J_{i,i+1} = n^2 nu_i nu_{i+1}. The corner of W fills the last row of L only.
    """
    nu, n = state.density, state.x.size
    inverse, lower, row = np.empty(n), np.zeros(n), np.zeros(n)
    scale = weight * n * n
    corner = -scale * nu[n - 1] * nu[0]
    definite, carried, last = True, 0.0, 0.0
    for i in range(n - 1):
        pivot = 1 - weight * state.slope[i] * state.curvature[i] + 2 * scale * nu[i] * nu[i] - carried
        definite = definite and pivot > 0
        inverse[i] = 1 / pivot
        beside = -scale * nu[i] * nu[i + 1]
        if i == n - 2:
            corner += beside
            beside = 0.0
        lower[i] = beside * inverse[i]
        row[i] = corner * inverse[i]
        carried = beside * lower[i]
        last += corner * row[i]
        corner = -corner * lower[i]
    pivot = 1 - weight * state.slope[n - 1] * state.curvature[n - 1] + 2 * scale * nu[n - 1] * nu[n - 1] - last
    inverse[n - 1] = 1 / pivot
    return definite and pivot > 0, inverse, lower, row


@compiled(error_model="python")
def _solve(inverse: np.ndarray, lower: np.ndarray, row: np.ndarray, right: np.ndarray) -> np.ndarray:
    """W^-1 right from the factors of W: forward, diagonal, backward."""
    n = right.size
    out = right.copy()
    last = out[n - 1] - row[0] * out[0]
    for i in range(1, n - 1):
        out[i] -= lower[i - 1] * out[i - 1]
        last -= row[i] * out[i]
    out[n - 1] = last * inverse[n - 1]
    out[n - 2] = out[n - 2] * inverse[n - 2] - row[n - 2] * out[n - 1]
    for i in range(n - 3, -1, -1):
        out[i] = out[i] * inverse[i] - lower[i] * out[i + 1] - row[i] * out[n - 1]
    return out


@compiled(error_model="python")
def _rosenbrock_step(
    state: _State, size: float, teacher: tuple[float, float, float, float]
) -> tuple[bool, _State, np.ndarray, np.ndarray, np.ndarray]:
    """One step h of the pair: (W definite, new state, k1, k2, error of X). f(X) = nu Y_ss, W = I - h d J:

    W k1 = f(X);  W (k2 - k1) = f(X + h k1 / 2) - k1;  X' = X + h k2;
    W k3 = f(X') - e_32 (k2 - f(X + h k1 / 2)) - 2 (k1 - f(X));  error = h (k1 - 2 k2 + k3) / 6.
    """
    definite, inverse, lower, row = _factor(state, size * DIAGONAL)
    rate = state.density * state.curvature
    k1 = _solve(inverse, lower, row, rate)
    middle = _evaluate(state.x + size / 2 * k1, teacher)
    middle_rate = middle.density * middle.curvature
    k2 = _solve(inverse, lower, row, middle_rate - k1) + k1
    after = _evaluate(state.x + size * k2, teacher)
    residual = after.density * after.curvature - E32 * (k2 - middle_rate) - 2 * (k1 - rate)
    k3 = _solve(inverse, lower, row, residual)
    return definite, after, k1, k2, size / 6 * (k1 - 2 * k2 + k3)


@compiled(error_model="python")
def _interpolate(
    before: _State, new_y: np.ndarray, k1: np.ndarray, k2: np.ndarray, size: float, part: float
) -> np.ndarray:
    """Y at ``part`` p of a step h: Y + p (Y' - Y) + p (1 - p) (h nu v - (Y' - Y)), v = (k1 - 2 d k2) / (1 - 2 d).

    v is the pair's own first slope, free of the stiff part that d_t X has. Where this Y is not increasing, the linear
    Y + p (Y' - Y) is, since Y and Y' are.
    """
    n = new_y.size
    y = before.y
    bend = part * (1 - part)
    out = np.empty(n)
    increasing = True
    for i in range(n):
        change = new_y[i] - y[i]
        first = size * before.density[i] * (k1[i] - 2 * DIAGONAL * k2[i]) / (1 - 2 * DIAGONAL)
        out[i] = y[i] + part * change + bend * (first - change)
        increasing = increasing and (i == 0 or out[i] > out[i - 1])
    if increasing and out[n - 1] < out[0] + 1:
        return out
    return y + part * (new_y - y)


# ---- output: from quantiles to the density ----


@compiled(error_model="python")
def _lifted(values: np.ndarray, i: int) -> float:
    """values[i] for any integer i, values[i + n] = values[i] + 1."""
    return values[i % values.size] + i // values.size


@compiled(error_model="python")
def _level_slopes(y: np.ndarray) -> np.ndarray:
    """n dS/dY, (n,), per node: 1 / (Y_{i+1} - Y_i) to fourth order, at most 3 times the slope to either side.

    The bound (Fritsch and Carlson, 1980) keeps the cubic through S(Y) increasing.
    """
    n = y.size
    slopes = np.empty(n)
    for i in range(n):
        right, left = _lifted(y, i + 1) - y[i], y[i] - _lifted(y, i - 1)
        wide = 8 * (right + left) - (_lifted(y, i + 2) - _lifted(y, i - 2))
        slopes[i] = 12 / max(wide, 4 * max(right, left))
    return slopes


@compiled(error_model="python")
def _cell_masses(y: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Mass (G,) of the cells whose edges have the teacher cdf ``levels (G + 1,)``: differences of S(Y) at the levels.

    Both are smooth in each other and S(Y) is the identity, up to a constant, at the stationary point.
    """
    n = y.size
    slopes = _level_slopes(y)
    masses = np.empty(levels.size - 1)
    i, node, part = 0, 0, 0.0
    while _lifted(y, i) > levels[0]:
        i -= 1
    for j in range(levels.size):
        while _lifted(y, i + 1) <= levels[j]:
            i += 1
        low = _lifted(y, i)
        gap = _lifted(y, i + 1) - low
        t = (levels[j] - low) / gap
        first, second = gap * slopes[i % n], gap * slopes[(i + 1) % n]
        new_part = t * t * (3 - 2 * t) + first * t * (1 - t) ** 2 - second * t * t * (1 - t)
        if j > 0:
            # Whole steps and parts apart: a small mass keeps its digits.
            masses[j - 1] = ((i - node) + (new_part - part)) / n
        node, part = i, new_part
    return masses


# ---- arguments ----


def _checked_start(start: np.ndarray) -> np.ndarray:
    x = np.array(start, dtype=np.float64)
    if x.ndim != 1 or x.size < MIN_GRID_SIZE or not np.all(np.isfinite(x)):
        raise ValueError(f"start must be at least {MIN_GRID_SIZE} finite angles in one axis, not {start}")
    if np.any(np.diff(x) <= 0) or x[-1] >= x[0] + 2 * math.pi:
        raise ValueError(f"start must increase and stay within one turn, not {start}")
    return x
