"""Gauss-Newton steps on the reduced risk of the circle in linear time.

The unknowns are the angles of the neurons and their outer weights. The Gauss-Newton matrix in them is semiseparable
like the Gram matrix, with two rows per neuron: one for turning it, one for its outer weight. It is factored by the
sweeps of :mod:`varpro.solvers.circle`, two rows at a time. Formula numbers (S1), (S2), ... refer to
docs/second_order.md, (F1), ... to docs/linear_time_relu.md.

Conventions are those of the circle solver: neurons in folded order, all sums over samples are means. A vector of
unknowns holds, for neuron k, its turn in radians at 2 k and the change of its outer weight at 2 k + 1.
"""

import math
from typing import NamedTuple

import numpy as np

from varpro import simd
from varpro.compiled import FUSED, VECTORISED, compiled
from varpro.relu import folded_key
from varpro.solvers import circle
from varpro.solvers.circle import (
    CircleSolver,
    Workspace,
    _gather,
    _generators_for,
    _half_plane_sums,
    _keep,
    _loss,
    _meet,
    _moments,
    _scatter,
    _settle,
    _solve,
    _sort,
)

_BLOCK = 128  # neurons whose generators are made at a time, two rows each
_STEP_TOLERANCE = 1e-8  # bound on the relative error of a step in the energy norm that triggers refinement ...
_STEP_ROUNDING = 1e-17  # ... or this over lam mu, if larger: five times what rounding leaves of the bound
_REFINEMENTS = 100  # conjugate-gradient steps at most
_PATIENCE = 10  # steps without a better bound that end the refinement
FIRST_DAMPING = 1.0  # in units of the rms gradient per radian
SLOW_DECAY = 1.5  # of the damping after a step that lowered the risk by GOOD_FALL of itself or more ...
DECAY = 5.0  # ... and after one that lowered it by less
GOOD_FALL = 0.2
GROWTH = 4.0  # of the damping after a step that was not accepted
_LEAST_DAMPING = 5e-12  # times lam it is the least ridge of a turning row, in units of mean u^2 mean |x|^2
_LONGEST_TURN = 1.0  # radians
TRIALS = 40  # dampings tried in one iteration
LEAST_FALL = 1e-13  # of the risk: a step that cannot be expected to lower it by more ends the training
_STEP_BOUND, _STEP_REFINED, _EVALUATIONS = 2, 3, 4  # places in the effort; the first two are the solver's

# How a call ended: all iterations done, no step lowers the risk, the risk at the start is not finite.
DONE, STATIONARY, NOT_FINITE = range(3)


class NewtonSpace(NamedTuple):
    """The factor of the Gauss-Newton matrix and the vectors of one step; memory O(M), two rows per neuron."""

    met: np.ndarray  # (2 M, 8) the generator that meets the sums of a sweep, as in circle.Workspace
    block: np.ndarray  # (2, 2 _BLOCK, 8) the generator that enters them
    lower: np.ndarray  # (2 M, 8) factor W
    pivot: np.ndarray  # (2 M,) diagonal, then the pivots D
    couple: np.ndarray  # (M,) the entry of the diagonal block of two, divided by the first pivot
    sums: np.ndarray  # (2, 9, 8)
    handed: np.ndarray  # (2, 8)
    meeting: np.ndarray  # (8, 9)
    right: np.ndarray  # (2 M,) right-hand side
    step: np.ndarray  # (2 M,)
    residual: np.ndarray  # (2 M,) right-hand side less the matrix times the step
    direction: np.ndarray  # (2 M,) of conjugate gradients
    image: np.ndarray  # (2 M,) the matrix times a vector
    z: np.ndarray  # (2 M,) the preconditioned residual
    best: np.ndarray  # (2 M,) the step with the least error bound
    turn: np.ndarray  # (M,) u times the turns of a vector
    change: np.ndarray  # (M,) its changes of the outer weights


def newton_space(width: int) -> NewtonSpace:
    """Arrays for ``width`` neurons (about 430 bytes each)."""
    rows = 2 * width
    return NewtonSpace(
        met=np.empty((rows, 8)),
        block=np.empty((2, 2 * min(width, _BLOCK), 8)),
        lower=np.empty((rows, 8)),
        pivot=np.empty(rows),
        couple=np.empty(width),
        sums=np.empty((2, 9, 8)),
        handed=np.empty((2, 8)),
        meeting=np.empty((8, 9)),
        right=np.empty(rows),
        step=np.empty(rows),
        residual=np.empty(rows),
        direction=np.empty(rows),
        image=np.empty(rows),
        z=np.empty(rows),
        best=np.empty(rows),
        turn=np.empty(width),
        change=np.empty(width),
    )


@compiled()
def _pair_generators(tables, ws, ns, half, begin, end):
    """Both rows of the generators of neurons begin to end of one half, and the diagonal (S6)."""
    block = ns.block[half]
    for k in range(begin, end):
        x, y = ws.v[k, 0], ws.v[k, 1]
        for row in range(2):
            bx, by = (x, y) if row else (-ws.u[k] * y, ws.u[k] * x)
            met, enters = ns.met[2 * k + row], block[2 * (k - begin) + row]
            if half == 0:
                ns.pivot[2 * k + row] = _generators_for(tables, ws, k, bx, by, met, enters)
            else:
                ns.pivot[2 * k + row] = _generators_for(tables, ws, k, bx, by, enters, met)


@compiled(inline="always")
def _times(u, s0, s1, s2, s3, s4, s5, s6, s7):
    """S u."""
    lo = simd.madd(s1, simd.lane(u, 1), simd.mul(s0, simd.lane(u, 0)))
    lo = simd.madd(s3, simd.lane(u, 3), simd.madd(s2, simd.lane(u, 2), lo))
    hi = simd.madd(s5, simd.lane(u, 5), simd.mul(s4, simd.lane(u, 4)))
    hi = simd.madd(s7, simd.lane(u, 7), simd.madd(s6, simd.lane(u, 6), hi))
    return simd.add(lo, hi)


@compiled(inline="always")
def _eliminate_pair(ns, k, va, vb, turn_ridge, ridge, s0, s1, s2, s3, s4, s5, s6, s7, f):
    """Both rows of one neuron (S7): the products with S of the second do not wait for the first."""
    a, b = 2 * k, 2 * k + 1
    ua, ub = simd.load(ns.met, a), simd.load(ns.met, b)
    known_a, known_b = _times(ua, s0, s1, s2, s3, s4, s5, s6, s7), _times(ub, s0, s1, s2, s3, s4, s5, s6, s7)
    qa = simd.sub(va, known_a)
    cross = simd.dot(ub, qa)
    pivot_a = max(ns.pivot[a] + turn_ridge - simd.dot(ua, known_a), turn_ridge)
    couple = cross / pivot_a
    pivot_b = max(ns.pivot[b] + ridge - simd.dot(ub, known_b) - cross * couple, ridge)
    wa = simd.mul(qa, simd.splat(1.0 / pivot_a))
    qb = simd.madd(qa, simd.splat(-couple), simd.sub(vb, known_b))
    wb = simd.mul(qb, simd.splat(1.0 / pivot_b))
    za = ns.step[a] - simd.dot(ua, f)
    zb = ns.step[b] - simd.dot(ub, f) - couple * za
    simd.store(ns.lower, a, wa)
    simd.store(ns.lower, b, wb)
    ns.pivot[a], ns.pivot[b], ns.couple[k] = pivot_a, pivot_b, couple
    ns.step[a], ns.step[b] = za / pivot_a, zb / pivot_b
    f = simd.madd(wb, simd.splat(zb), simd.madd(wa, simd.splat(za), f))
    s0 = simd.madd(wb, simd.lane(qb, 0), simd.madd(wa, simd.lane(qa, 0), s0))
    s1 = simd.madd(wb, simd.lane(qb, 1), simd.madd(wa, simd.lane(qa, 1), s1))
    s2 = simd.madd(wb, simd.lane(qb, 2), simd.madd(wa, simd.lane(qa, 2), s2))
    s3 = simd.madd(wb, simd.lane(qb, 3), simd.madd(wa, simd.lane(qa, 3), s3))
    s4 = simd.madd(wb, simd.lane(qb, 4), simd.madd(wa, simd.lane(qa, 4), s4))
    s5 = simd.madd(wb, simd.lane(qb, 5), simd.madd(wa, simd.lane(qa, 5), s5))
    s6 = simd.madd(wb, simd.lane(qb, 6), simd.madd(wa, simd.lane(qa, 6), s6))
    s7 = simd.madd(wb, simd.lane(qb, 7), simd.madd(wa, simd.lane(qa, 7), s7))
    return s0, s1, s2, s3, s4, s5, s6, s7, f


@compiled()
def _factor_pairs(tables, ws, ns, turn_ridge, ridge):
    """Factor the Gauss-Newton matrix from both ends, the right-hand side in ``step``; D^-1 z is left there."""
    width = ws.key.shape[0]
    middle = width // 2
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = af = simd.splat(0.0)
    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = bf = simd.splat(0.0)
    left, right = ns.block[0], ns.block[1]
    for done in range(0, width - middle, _BLOCK):
        a_end, b_begin, b_end = min(done + _BLOCK, middle), max(width - done - _BLOCK, middle), width - done
        _pair_generators(tables, ws, ns, 0, done, a_end)
        _pair_generators(tables, ws, ns, 1, b_begin, b_end)
        for i in range(b_end - b_begin):
            k = b_end - 1 - i
            v0, v1 = simd.load(right, 2 * (k - b_begin)), simd.load(right, 2 * (k - b_begin) + 1)
            b0, b1, b2, b3, b4, b5, b6, b7, bf = _eliminate_pair(
                ns, k, v0, v1, turn_ridge, ridge, b0, b1, b2, b3, b4, b5, b6, b7, bf
            )
            k = done + i
            if k < a_end:
                v0, v1 = simd.load(left, 2 * i), simd.load(left, 2 * i + 1)
                a0, a1, a2, a3, a4, a5, a6, a7, af = _eliminate_pair(
                    ns, k, v0, v1, turn_ridge, ridge, a0, a1, a2, a3, a4, a5, a6, a7, af
                )
    _keep(ns.sums[0], a0, a1, a2, a3, a4, a5, a6, a7, af)
    _keep(ns.sums[1], b0, b1, b2, b3, b4, b5, b6, b7, bf)


@compiled(inline="always")
def _forward_pair(ns, b, k, f):
    za = b[2 * k] - simd.dot(simd.load(ns.met, 2 * k), f)
    zb = b[2 * k + 1] - simd.dot(simd.load(ns.met, 2 * k + 1), f) - ns.couple[k] * za
    b[2 * k], b[2 * k + 1] = za / ns.pivot[2 * k], zb / ns.pivot[2 * k + 1]
    f = simd.madd(simd.load(ns.lower, 2 * k), simd.splat(za), f)
    return simd.madd(simd.load(ns.lower, 2 * k + 1), simd.splat(zb), f)


@compiled(inline="always")
def _backward_pair(ns, z, k, g):
    zb = z[2 * k + 1] - simd.dot(simd.load(ns.lower, 2 * k + 1), g)
    za = z[2 * k] - simd.dot(simd.load(ns.lower, 2 * k), g) - ns.couple[k] * zb
    z[2 * k], z[2 * k + 1] = za, zb
    g = simd.madd(simd.load(ns.met, 2 * k + 1), simd.splat(zb), g)
    return simd.madd(simd.load(ns.met, 2 * k), simd.splat(za), g)


@compiled()
def _forward_pairs(ns, b):
    """b <- D^-1 L^-1 b in both halves, towards the middle."""
    width = ns.couple.shape[0]
    middle = width // 2
    f = h = simd.splat(0.0)
    for i in range(width - middle):
        h = _forward_pair(ns, b, width - 1 - i, h)
        if i < middle:
            f = _forward_pair(ns, b, i, f)
    simd.store(ns.sums[0], 8, f)
    simd.store(ns.sums[1], 8, h)


@compiled()
def _backward_pairs(ns, z):
    """z <- L^-T z, from the middle towards both ends."""
    width = ns.couple.shape[0]
    middle = width // 2
    g, h = simd.load(ns.handed, 0), simd.load(ns.handed, 1)
    for i in range(width - middle):
        h = _backward_pair(ns, z, middle + i, h)
        if i < middle:
            g = _backward_pair(ns, z, middle - 1 - i, g)


@compiled(fastmath=FUSED)
def _times_gauss_newton(tables, ws, ns, x, turn_ridge, ridge):
    """image <- A x (S8)."""
    width = ws.key.shape[0]
    for k in range(width):
        ns.turn[k], ns.change[k] = ws.u[k] * x[2 * k], x[2 * k + 1]
    _half_plane_sums(tables, ws, ns.change, 0.0, ns.turn)
    for k in range(width):
        sign = width * (2.0 * ws.pos[k] - 1.0)
        hx, hy = sign * ws.half[k, 0], sign * ws.half[k, 1]
        ns.image[2 * k] = ws.u[k] * (ws.v[k, 0] * hy - ws.v[k, 1] * hx) + turn_ridge * x[2 * k]
        ns.image[2 * k + 1] = ws.v[k, 0] * hx + ws.v[k, 1] * hy + ridge * x[2 * k + 1]


@compiled(fastmath=VECTORISED)
def _step_right_hand_side(ws, ns, lmbda):
    """right <- -lam M^2 dR/dtheta in the rows of the turns, 0 in those of the outer weights, which are optimal (S5).

    Returns the rms over neurons of M dR/dtheta.
    """
    width = ws.key.shape[0]
    square = 0.0
    for k in range(width):
        sign = width * (2.0 * ws.pos[k] - 1.0)
        ns.right[2 * k] = -sign * ws.u[k] * (ws.v[k, 0] * ws.half[k, 1] - ws.v[k, 1] * ws.half[k, 0])
        ns.right[2 * k + 1] = 0.0
        square += ns.right[2 * k] ** 2
    return math.sqrt(square / width) / (lmbda * width)


@compiled(fastmath=VECTORISED)
def _step_error(ns, turn_ridge, ridge):
    """residual <- b - A x with A x in image; (bound on |x - x*|_A^2, |x|_A^2)."""
    error = energy = 0.0
    for k in range(ns.couple.shape[0]):
        ra, rb = ns.right[2 * k] - ns.image[2 * k], ns.right[2 * k + 1] - ns.image[2 * k + 1]
        ns.residual[2 * k], ns.residual[2 * k + 1] = ra, rb
        error += ra * ra / turn_ridge + rb * rb / ridge
        energy += ns.step[2 * k] * ns.image[2 * k] + ns.step[2 * k + 1] * ns.image[2 * k + 1]
    return error, energy


@compiled()
def _precondition_step(ns, b):
    """b <- A^-1 b with the factor at hand."""
    _forward_pairs(ns, b)
    _meet(ns)
    _backward_pairs(ns, b)


@compiled()
def _solve_step(tables, ws, ns, lmbda, damping):
    """step <- A^-1 right by one factorisation, refined by conjugate gradients where the error bound asks for it.

    Returns the bound on the relative error in the energy norm (S9) and the number of refinements. As in the inner solve
    the residual is computed afresh every time, so that the bound belongs to the step at hand.
    """
    width = ws.key.shape[0]
    ridge, turn_ridge = width * lmbda, width * lmbda * damping
    ns.step[:] = ns.right
    _factor_pairs(tables, ws, ns, turn_ridge, ridge)
    _meet(ns)
    _backward_pairs(ns, ns.step)
    return _refine_step(tables, ws, ns, turn_ridge, ridge, _tolerated(lmbda * damping))


@compiled()
def _tolerated(least_ridge):
    """The error bound above which a step is refined: not what rounding leaves of it for a small ridge lam mu."""
    return max(_STEP_TOLERANCE, _STEP_ROUNDING / least_ridge)


@compiled()
def _refine_step(tables, ws, ns, turn_ridge, ridge, goal):
    """Conjugate gradients from the step at hand, preconditioned by the factor at hand, until the bound is met (S9)."""
    best, best_round, previous = np.inf, 0, np.inf
    ns.direction[:] = 0.0
    ns.best[:] = 0.0
    for i in range(_REFINEMENTS):
        _times_gauss_newton(tables, ws, ns, ns.step, turn_ridge, ridge)
        error, energy = _step_error(ns, turn_ridge, ridge)
        bound = math.sqrt(error / energy) if energy > 0.0 else np.inf
        if bound < best:
            best, best_round = bound, i
            ns.best[:] = ns.step
        if bound <= goal or i - best_round >= _PATIENCE:
            break
        if not np.isfinite(error):  # the factor ran off: start from 0
            ns.step[:] = 0.0
            ns.residual[:] = ns.right
        ns.z[:] = ns.residual
        _precondition_step(ns, ns.z)
        energy = np.dot(ns.residual, ns.z)
        ns.direction[:] = ns.z + energy / previous * ns.direction
        previous = energy
        _times_gauss_newton(tables, ws, ns, ns.direction, turn_ridge, ridge)
        curvature = np.dot(ns.direction, ns.image)
        if not curvature > 0.0:
            break
        ns.step[:] = ns.step + energy / curvature * ns.direction
    ns.step[:] = ns.best
    return best, i


@compiled()
def _turn_neurons(ws, ns, trial):
    """trial <- the neurons of ws turned by the step, by a radian at most, folded, with their new keys."""
    for k in range(ws.key.shape[0]):
        angle = min(max(ns.step[2 * k], -_LONGEST_TURN), _LONGEST_TURN)
        c, s = math.cos(angle), math.sin(angle)
        x, y = c * ws.v[k, 0] - s * ws.v[k, 1], s * ws.v[k, 0] + c * ws.v[k, 1]
        norm = math.sqrt(x * x + y * y)
        down = y < 0.0 or (y == 0.0 and x < 0.0)
        norm = -1.0 / norm if down else 1.0 / norm
        x, y = x * norm, y * norm
        trial.crossed[k] = down
        trial.pos[k] = 1.0 - ws.pos[k] if down else ws.pos[k]
        trial.v[k, 0], trial.v[k, 1] = x, y
        trial.key[k] = folded_key(x, y)
        trial.u[k], trial.ident[k] = ws.u[k], ws.ident[k]


@compiled()
def _least_damping(tables, ws, lmbda):
    """The damping below which rounding would govern the factor (docs/second_order.md, 3)."""
    return _LEAST_DAMPING * tables.totals[5] * np.mean(ws.u * ws.u) / lmbda


@compiled()
def _try_step(tables, ws, trial, ns, lmbda, centre, damping, effort):
    """trial <- the neurons after one damped step and their optimal u; the risk there, and the fall expected (S5)."""
    bound, refinements = _solve_step(tables, ws, ns, lmbda, damping)
    effort[_STEP_BOUND] = max(effort[_STEP_BOUND], bound)
    effort[_STEP_REFINED] += refinements > 0
    effort[_EVALUATIONS] += 1
    width = ws.key.shape[0]
    expected = 0.5 * np.dot(ns.right, ns.step) / (lmbda * width * width) if bound < np.inf else np.inf
    _turn_neurons(ws, ns, trial)
    _sort(trial)
    _solve(tables, trial, lmbda, centre)
    data, penalty = _settle(tables, trial, lmbda, centre, effort)
    return _loss(tables, trial, lmbda, data, penalty), expected


@compiled()
def damping_after(damping, before, after, slow_decay, decay):
    """The next damping after a step with ``damping`` that lowered the risk from ``before`` to ``after`` (S10)."""
    return damping / (slow_decay if before - after >= GOOD_FALL * before else decay)


@compiled()
def _iterations(tables, ws, trial, ns, weights, outer, lmbda, centre, damping, rule, risks, effort):
    """Levenberg-Marquardt iterations from a state whose u is optimal; (accepted, damping, how it ended) (S10).

    ``risks[i]`` is the reduced risk after i accepted iterations. ``rule`` holds first damping, slow decay and decay. A
    damping of 0 is replaced by the first one times the rms gradient.
    """
    first_damping, slow_decay, decay = rule
    _gather(ws, weights, outer)
    _sort(ws)
    _moments(tables, ws, 0, ws.key.shape[0])
    data, penalty = _settle(tables, ws, lmbda, centre, effort)
    risks[0] = _loss(tables, ws, lmbda, data, penalty)
    if not np.isfinite(risks[0]):
        return 0, damping, NOT_FINITE
    accepted, ending = 0, DONE
    while accepted < risks.shape[0] - 1 and ending == DONE:
        risk, size = risks[accepted], _step_right_hand_side(ws, ns, lmbda)
        if damping == 0.0:
            damping = first_damping * size
        ending = STATIONARY
        for _ in range(TRIALS if size > 0.0 else 0):
            damping = max(damping, _least_damping(tables, ws, lmbda))
            new, expected = _try_step(tables, ws, trial, ns, lmbda, centre, damping, effort)
            if new < risk:
                ending = DONE
                break
            damping *= GROWTH
            if expected <= LEAST_FALL * risk:
                break
        if ending != STATIONARY:
            damping = damping_after(damping, risk, new, slow_decay, decay)
            accepted += 1
            risks[accepted] = new
            ws, trial = trial, ws
    _scatter(ws, weights, outer)
    return accepted, damping, ending


# --- for callers -------------------------------------------------------------------------------------------------


class Training(NamedTuple):
    """What :meth:`CircleNewton.advance` did.

    ``risks (accepted + 1,)``: the reduced risk before, and after each accepted iteration; ``evaluations``: inner solves
    for steps, rejected ones included; ``damping``: for the next call; ``ending``: one of DONE, STATIONARY and
    NOT_FINITE.
    """

    risks: np.ndarray
    evaluations: int
    damping: float
    ending: int


class CircleNewton:
    """Levenberg-Marquardt on the reduced risk of ``solver`` in linear time (docs/second_order.md).

    An iteration costs O(M): the damped Gauss-Newton step in all angles and outer weights, then the exact solve for the
    outer weights at the new angles. A step is accepted if the reduced risk falls.
    """

    def __init__(self, solver: CircleSolver) -> None:
        self.solver = solver
        self._effort = np.zeros(5)
        self._spaces: tuple[Workspace, Workspace, NewtonSpace] | None = None

    def advance(
        self,
        weights: np.ndarray,
        outer: np.ndarray,
        iterations: int,
        damping: float = 0.0,
        first_damping: float = FIRST_DAMPING,
        slow_decay: float = SLOW_DECAY,
        decay: float = DECAY,
    ) -> Training:
        """At most ``iterations`` accepted iterations on ``weights (M, 2)`` and ``outer (M,)``, in place.

        The outer weights must be optimal, and are afterwards. ``damping`` is that of the first step, 0 for
        ``first_damping`` times the rms gradient. A step that lowers the risk by a fifth or more divides it by
        ``slow_decay``, another accepted one by ``decay``. Go on with the one returned.
        """
        width = len(weights)
        if self._spaces is None or len(self._spaces[0].u) != width:
            self._spaces = circle.workspace(width), circle.workspace(width), newton_space(width)
        solver, risks, before = self.solver, np.empty(iterations + 1), self._effort[_EVALUATIONS]
        self._effort[:2] = solver._achieved
        accepted, damping, ending = _iterations(
            solver.tables,
            *self._spaces,
            weights,
            outer,
            solver.lmbda,
            solver.centre,
            damping,
            (first_damping, slow_decay, decay),
            risks,
            self._effort,
        )
        solver._achieved[:] = self._effort[:2]
        return Training(risks[: accepted + 1], int(self._effort[_EVALUATIONS] - before), damping, ending)

    def report(self) -> dict[str, float]:
        """``worst_step_bound``: the largest bound on the relative error of a step in the energy norm (S9);
        ``refined_steps``: how many steps conjugate gradients went on with."""
        return {
            "worst_step_bound": float(self._effort[_STEP_BOUND]),
            "refined_steps": int(self._effort[_STEP_REFINED]),
        }
