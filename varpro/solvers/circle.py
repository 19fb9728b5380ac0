"""Linear-time VarPro and two-timescale training for ReLU features on the circle S^1.

Every product with the Gram matrix of ReLU features of two-dimensional inputs, and the ridge solve itself, cost
O(M) once samples and neurons are sorted by their angle modulo pi. The derivation, with the stability argument, is
in docs/linear_time_relu.md; formula numbers (F1), (F2), ... below refer to it.

Conventions inside the compiled functions. A neuron is w = s v with v in the upper half-plane and s = +-1; ``pos``
is 1.0 where s = +1 and 0.0 where s = -1. A sample is x = c z with z = r (sin a, -cos a), c = +-1, a in [0, pi).
Then v . z = r sin(a - t), so a sample lies "below" neuron t where a < t. Angles are never computed: a monotone
``key`` in [0, 2] stands for them. Neurons are kept in increasing key ("folded order"); ``ident`` maps each to its
place in the caller's arrays. All sums over samples are means (divided by N).

Relatives of the factorisation: Foreman-Mackey et al. 2017 (celerite), Andersen and Chen 2020, Cai et al. 2024.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import prange
from numba.extending import overload

from varpro import simd
from varpro.compiled import FUSED, VECTORISED, compiled, in_cache
from varpro.features import ReLUCircle
from varpro.problem import Problem
from varpro.relu import bucket_starts, folded_key, folded_samples
from varpro.solvers.base import Objective, Reduced, Solver, check_constants
from varpro.solvers.population import PopulationTables, population_tables

_BISECT_ABOVE = 16  # a bucket with more samples than this is searched by bisection
_WIDE = 1 << 15  # neurons from which two threads gain more than they cost
_BLOCK = 256  # neurons whose generators are made at a time: 16 kB each for U and V stay in the first-level cache
_INSERTION_MOVES = 0.5  # moves per neuron before the in-place insertion sort gives way to the merge
_MERGE_MOVES = 8.0  # moves per neuron before the merge gives way to a full sort
_DIRECT_BELOW = 1e-8  # below this share of mean(y^2) the data term is summed over the samples themselves
_REFINE_ABOVE = 1e-12  # bound on the relative prediction error that triggers refinement of the solve ...
_REFINE_DIGITS = 7e-15  # ... but for small lambda this times rms(|x|) / sqrt(lambda), 40 times what round-off leaves
_REFINE_ALWAYS = 1e-10  # ... and never more than this
_WARN_ABOVE = 1e-9  # the same bound, where refinement could not bring it below
_REFINEMENTS = 300  # conjugate-gradient steps at most
_PATIENCE = 30  # steps without a better bound that end the refinement
_RIDGE_FLOORS = (0.0, 1e-8, 1e-6)  # least ridge of the factor that preconditions, in units of mean |x|^2


class SampleTables(NamedTuple):
    """The samples in order of their folded angle, with prefix sums; built once per data set, memory O(N).

    ``prefix[i]`` holds the means over the first i samples of z z^T for c = +1 (xx, xy, yy), of z z^T for c = -1
    (xx, xy, yy), and of y z (x, y); ``totals`` holds mean y z over c = +1 and over c = -1, then mean y^2 and mean
    |x|^2. ``starts[b]`` is the first sample of bucket b of [0, 2].
    """

    keys: np.ndarray
    starts: np.ndarray
    prefix: np.ndarray
    totals: np.ndarray
    z: np.ndarray
    sign: np.ndarray
    y: np.ndarray


class Workspace(NamedTuple):
    """Neurons in folded order and the arrays of one epoch; built once per width, memory O(M)."""

    v: np.ndarray  # (M, 2) directions in the upper half-plane
    pos: np.ndarray  # (M,) 1.0 where w = v, 0.0 where w = -v
    u: np.ndarray  # (M,) outer weights
    key: np.ndarray  # (M,)
    ident: np.ndarray  # (M,) place in the caller's order
    below: np.ndarray  # (M,) row of the prefix table: the number of samples below the neuron
    rows: np.ndarray  # (M + 2, 8) prefix table at the neurons, between its two ends; infinite data only
    moment: np.ndarray  # (M,) mean phi y
    met: np.ndarray  # (M, 8) the generator that meets the sums of a sweep: U in the left half, V in the right
    block: np.ndarray  # (2, _BLOCK, 8) the generator that enters the sums, for the neurons that are being factored
    sums: np.ndarray  # (2, 9, 8) S and f where the sweeps from left and right meet
    handed: np.ndarray  # (2, 8) what either half hands to the other
    meeting: np.ndarray  # (8, 9) the system for it
    lower: np.ndarray  # (M, 8) factor W
    pivot: np.ndarray  # (M,) diagonal of K, then the pivots D
    half: np.ndarray  # (M, 2) half-plane sums of the residual
    next_u: np.ndarray  # (M,) two-timescale descent only
    crossed: np.ndarray  # (M,) whether the neuron crossed the horizontal axis in the last step


def sample_tables(inputs: np.ndarray, targets: np.ndarray) -> SampleTables:
    """Sort ``inputs (N, 2)`` with ``targets (N,)`` and build their prefix sums in O(N log N).

    The sums run in extended precision where the platform has it and are rounded once. Raises ValueError for other
    shapes, and where there are no samples.
    """
    if len(inputs) == 0 or tuple(inputs.shape) != (len(inputs), 2) or tuple(targets.shape) != (len(inputs),):
        shapes = f"inputs {tuple(inputs.shape)} with targets {tuple(targets.shape)}"
        raise ValueError(f"{shapes} are not allowed: (N, 2) with (N,), N >= 1")
    z, sign, keys = folded_samples(np.ascontiguousarray(inputs, dtype=np.float64))
    y = np.asarray(targets, dtype=np.float64)
    order = np.argsort(keys, kind="stable")
    z, sign, keys, y = z[order], sign[order], keys[order], y[order]
    count = len(keys)
    upper = sign > 0
    squares = np.stack([z[:, 0] ** 2, z[:, 0] * z[:, 1], z[:, 1] ** 2], axis=1)
    columns = np.concatenate([squares * upper[:, None], squares * ~upper[:, None], y[:, None] * z], axis=1)
    prefix = np.zeros((count + 1, 8))
    for j in range(8):
        prefix[1:, j] = np.cumsum(columns[:, j], dtype=np.longdouble) / count
    means = [
        np.sum(column, dtype=np.longdouble) / count
        for column in (*(y[:, None] * z * upper[:, None]).T, *(y[:, None] * z * ~upper[:, None]).T, y**2)
    ]
    totals = np.array([*means, np.sum(z**2, dtype=np.longdouble) / count], dtype=np.float64)
    return SampleTables(keys, bucket_starts(keys), prefix, totals, z, sign, y)


def workspace(width: int) -> Workspace:
    """Arrays for ``width`` neurons (about 225 bytes each; 64 more with infinite data)."""
    return Workspace(
        v=np.empty((width, 2)),
        pos=np.empty(width),
        u=np.empty(width),
        key=np.empty(width),
        ident=np.arange(width),
        below=np.empty(width, dtype=np.int64),
        rows=np.empty((width + 2, 8)),
        moment=np.empty(width),
        met=np.empty((width, 8)),
        block=np.empty((2, min(width, _BLOCK), 8)),
        sums=np.empty((2, 9, 8)),
        handed=np.empty((2, 8)),
        meeting=np.empty((8, 9)),
        lower=np.empty((width, 8)),
        pivot=np.empty(width),
        half=np.empty((width, 2)),
        next_u=np.empty(width),
        crossed=np.zeros(width, dtype=np.bool_),
    )


# --- keys and order ----------------------------------------------------------------------------------------------


@compiled()
def _gather(ws, weights, outer):
    """Fold the caller's neurons into the workspace, in the order left by the last call."""
    for k in range(weights.shape[0]):
        x, y = weights[ws.ident[k], 0], weights[ws.ident[k], 1]
        down = y < 0.0 or (y == 0.0 and x < 0.0)
        ws.pos[k] = 0.0 if down else 1.0
        ws.v[k, 0] = -x if down else x
        ws.v[k, 1] = -y if down else y
        ws.u[k] = outer[ws.ident[k]]
        ws.key[k] = folded_key(ws.v[k, 0], ws.v[k, 1])


@compiled()
def _scatter(ws, weights, outer):
    """Give the neurons back to the caller's arrays."""
    for k in range(weights.shape[0]):
        sign = 2.0 * ws.pos[k] - 1.0
        weights[ws.ident[k], 0] = sign * ws.v[k, 0]
        weights[ws.ident[k], 1] = sign * ws.v[k, 1]
        outer[ws.ident[k]] = ws.u[k]


@compiled()
def _sort(ws):
    """Restore increasing keys; nearly sorted input costs O(M)."""
    budget = _INSERTION_MOVES * ws.key.shape[0] + 64
    key = ws.key
    for k in range(1, key.shape[0]):
        this = key[k]
        if this >= key[k - 1]:
            continue
        x, y, pos, u, ident, crossed = ws.v[k, 0], ws.v[k, 1], ws.pos[k], ws.u[k], ws.ident[k], ws.crossed[k]
        j = k
        while j > 0 and key[j - 1] > this and budget > 0:
            key[j], ws.v[j, 0], ws.v[j, 1] = key[j - 1], ws.v[j - 1, 0], ws.v[j - 1, 1]
            ws.pos[j], ws.u[j] = ws.pos[j - 1], ws.u[j - 1]
            ws.ident[j], ws.crossed[j] = ws.ident[j - 1], ws.crossed[j - 1]
            j -= 1
            budget -= 1
        key[j], ws.v[j, 0], ws.v[j, 1], ws.pos[j], ws.u[j] = this, x, y, pos, u
        ws.ident[j], ws.crossed[j] = ident, crossed
        if budget <= 0:
            _sort_families(ws)
            return


@compiled()
def _sort_families(ws):
    """Restore increasing keys by sorting upper and lower neurons apart and merging them.

    Within a family the speed of a neuron is a function of its angle, so each family stays nearly sorted while the two
    slide past each other; this is what keeps wide students linear.
    """
    rows = ws.lower  # free between a step and the next factorisation
    uppers = _split_families(ws, rows)
    _sort_rows(rows, 0, uppers)
    _sort_rows(rows, uppers, ws.key.shape[0])
    _merge(ws, rows, uppers)


@compiled()
def _split_families(ws, rows):
    """Copy upper neurons to the front of ``rows`` and lower ones behind them, each in order; the number of uppers.

    Neurons that crossed the horizontal axis changed family and end of it: they go to the end where their key belongs.
    A row holds key, v, pos, u and ident (exact in float64 up to 2^53).
    """
    width = ws.key.shape[0]
    sizes, fronts, backs = np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64)
    for k in range(width):
        sizes[0] += ws.pos[k] > 0.5
        if ws.crossed[k]:
            (fronts if ws.key[k] < 1.0 else backs)[int(ws.pos[k] < 0.5)] += 1
    sizes[1] = width - sizes[0]
    front = np.array([0, sizes[0]])
    middle = front + fronts
    back = front + sizes - backs
    for k in range(width):
        family = int(ws.pos[k] < 0.5)
        place = middle if not ws.crossed[k] else front if ws.key[k] < 1.0 else back
        row = rows[place[family]]
        place[family] += 1
        row[0], row[1], row[2] = ws.key[k], ws.v[k, 0], ws.v[k, 1]
        row[3], row[4], row[5] = ws.pos[k], ws.u[k], ws.ident[k]
    return sizes[0]


@compiled()
def _sort_rows(rows, begin, end):
    """Sort ``rows[begin:end]`` by their first entry: by insertion, and if that takes too many moves, by brute force."""
    budget = _MERGE_MOVES * (end - begin) + 64
    this = np.empty(rows.shape[1])
    for k in range(begin + 1, end):
        if rows[k, 0] >= rows[k - 1, 0]:
            continue
        this[:] = rows[k]
        j = k
        while j > begin and rows[j - 1, 0] > this[0]:
            rows[j] = rows[j - 1]
            j -= 1
            budget -= 1
        rows[j] = this
        if budget <= 0:
            rows[begin:end] = rows[begin:end][np.argsort(rows[begin:end, 0], kind="mergesort")]
            return


@compiled()
def _merge(ws, rows, uppers):
    """Fill the workspace from the two sorted families ``rows[:uppers]`` and ``rows[uppers:]``."""
    width = ws.key.shape[0]
    i, j = 0, uppers
    while i < uppers and j < width:
        lower_first = rows[j, 0] < rows[i, 0]
        source = j if lower_first else i  # no branch: which family comes first cannot be predicted
        _take_row(ws, i + j - uppers, rows[source])
        i += not lower_first
        j += lower_first
    for k in range(i, uppers):
        _take_row(ws, k + j - uppers, rows[k])
    for k in range(j, width):
        _take_row(ws, k, rows[k])


@compiled(inline="always")
def _take_row(ws, k, row):
    ws.key[k], ws.v[k, 0], ws.v[k, 1] = row[0], row[1], row[2]
    ws.pos[k], ws.u[k], ws.ident[k] = row[3], row[4], int(row[5])


@compiled(inline="always")
def _locate(tables, key):
    """Number of samples with a smaller key; 0 for NaN, which must not become an index."""
    if not key <= 2.0:
        return 0
    buckets = tables.starts.shape[0] - 1
    bucket = min(int(key * (0.5 * buckets)), buckets - 1)
    low, high = tables.starts[bucket], tables.starts[bucket + 1]
    while high - low > _BISECT_ABOVE:
        middle = (low + high) // 2
        if tables.keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    while low < high and tables.keys[low] < key:
        low += 1
    return low


# --- the two kinds of tables: everything else is one code -----------------------------------------------------------


@compiled()
def _population_ends(tables, ws):
    """Write the rows of the prefix table at the angles 0 and pi, which belong to no neuron (F13, F14)."""
    last = ws.rows.shape[0] - 1
    for j in range(8):
        ws.rows[0, j] = 0.0
    for j in range(6):
        ws.rows[last, j] = 0.0 if j == 1 or j == 4 else 0.5  # G(pi) = I / 2
    ws.rows[last, 6] = tables.totals[0] + tables.totals[2]
    ws.rows[last, 7] = tables.totals[1] + tables.totals[3]


@compiled(inline="always")
def _population_row(tables, ws, k):
    """Write the row of the prefix table at the angle t of neuron k and return its place (F13, F14).

    G(t) is the mean of z z^T over a < t for either sign; R(t) = G(t) B + series. Inlined: a call would copy both tuples
    of arrays for every neuron.
    """
    rows, place = ws.rows, k + 1
    x, y = ws.v[k, 0], ws.v[k, 1]
    t = math.atan2(y, x)
    xx, xy, yy = (t - x * y) / (2.0 * math.pi), -y * y / (2.0 * math.pi), (t + x * y) / (2.0 * math.pi)
    rows[place, 0], rows[place, 1], rows[place, 2] = xx, xy, yy
    rows[place, 3], rows[place, 4], rows[place, 5] = xx, xy, yy
    cell = _locate(tables, ws.key[k])
    s = (t - tables.centres[cell]) * tables.scales[cell]
    bx, by = tables.slopes[cell, 0], tables.slopes[cell, 1]
    rows[place, 6] = xx * bx + xy * by + _polynomial(tables.series, cell, 0, s)
    rows[place, 7] = xy * bx + yy * by + _polynomial(tables.series, cell, 1, s)
    return place


@compiled(inline="always")
def _polynomial(series, cell, row, s):
    value = 0.0
    for j in range(series.shape[2] - 1, -1, -1):
        value = value * s + series[cell, row, j]
    return value


def _row_below(tables, ws, k):
    """The row of ``_prefix(tables, ws)`` that belongs to neuron k."""
    raise NotImplementedError("compiled code only")


def _begin_rows(tables, ws):
    """What is to be written before any row: with infinite data the two ends, which every half of the neurons needs."""
    raise NotImplementedError("compiled code only")


def _prefix(tables, ws):
    """The prefix table: that of the samples, or with infinite data the one made at the neurons."""
    raise NotImplementedError("compiled code only")


def _direct_mean_square(tables, ws):
    """Mean squared residual, summed without cancellation."""
    raise NotImplementedError("compiled code only")


@overload(_begin_rows)
def _choose_begin_rows(tables, ws):
    if tables.instance_class is PopulationTables:
        return lambda tables, ws: _population_ends(tables, ws)
    return lambda tables, ws: None


@overload(_row_below)
def _choose_row_below(tables, ws, k):
    if tables.instance_class is PopulationTables:
        return lambda tables, ws, k: _population_row(tables, ws, k)
    return lambda tables, ws, k: _locate(tables, ws.key[k])


@overload(_prefix)
def _choose_prefix(tables, ws):
    if tables.instance_class is PopulationTables:
        return lambda tables, ws: ws.rows
    return lambda tables, ws: tables.prefix


@overload(_direct_mean_square)
def _choose_direct_mean_square(tables, ws):
    if tables.instance_class is PopulationTables:
        return lambda tables, ws: _population_mean_square(tables, ws)
    return lambda tables, ws: _sample_mean_square(tables, ws)


# --- Gram matrix -------------------------------------------------------------------------------------------------


@compiled()
def _moments(tables, ws, begin, end):
    """Row of the prefix table, and mean phi y (F6), of neurons begin to end: what an epoch without a solve needs."""
    plus_x, plus_y, minus_x, minus_y = tables.totals[0], tables.totals[1], tables.totals[2], tables.totals[3]
    _begin_rows(tables, ws)
    prefix = _prefix(tables, ws)
    for k in range(begin, end):
        below = _row_below(tables, ws, k)
        up = ws.pos[k] > 0.5
        x = (plus_x if up else minus_x) - prefix[below, 6]
        y = (plus_y if up else minus_y) - prefix[below, 7]
        ws.below[k] = below
        ws.moment[k] = ws.v[k, 0] * x + ws.v[k, 1] * y


@compiled(inline="always")
def _generators(tables, ws, k, u, v):
    """Rows U_k into ``u`` and V_k into ``v``, with K_jk = V_j . U_k for t_j <= t_k, and K_kk into pivot (F4, F5)."""
    ws.pivot[k] = _generators_for(tables, ws, k, ws.v[k, 0], ws.v[k, 1], u, v)


@compiled(inline="always")
def _generators_for(tables, ws, k, x, y, u, v):
    """The same for a vector (x, y) in the place of v_k, on the half-plane of neuron k; returns the diagonal entry."""
    prefix = _prefix(tables, ws)
    full = prefix[prefix.shape[0] - 1]
    row = prefix[ws.below[k]]
    p = ws.pos[k]
    n = 1.0 - p
    plus_x, plus_y = row[0] * x + row[1] * y, row[1] * x + row[2] * y
    minus_x, minus_y = row[3] * x + row[4] * y, row[4] * x + row[5] * y
    up_x = p * (full[0] * x + full[1] * y) - plus_x
    up_y = p * (full[1] * x + full[2] * y) - plus_y
    down_x = n * (full[3] * x + full[4] * y) - minus_x
    down_y = n * (full[4] * x + full[5] * y) - minus_y
    u[0], u[1], u[2], u[3] = up_x, up_y, down_x, down_y
    u[4], u[5], u[6], u[7] = p * x, p * y, n * x, n * y
    v[0], v[1], v[2], v[3] = p * x, p * y, n * x, n * y
    v[4], v[5], v[6], v[7] = minus_x, minus_y, plus_x, plus_y
    own_x, own_y = p * (up_x + minus_x) + n * (down_x + plus_x), p * (up_y + minus_y) + n * (down_y + plus_y)
    return x * own_x + y * own_y


@compiled()
def _generators_of(tables, ws, half, begin, end):
    """Generators of neurons begin to end of one half, all of one block.

    A sweep's sums are over one generator and are met by the other: the sums of the left half are over V and met by U
    (the sums reach from smaller angles to larger), those of the right half over U and met by V. What meets the sums is
    needed again on the way back and goes to ``met``; what enters them is kept for the block alone.
    """
    block = ws.block[half]
    for k in range(begin, end):
        if half == 0:
            _generators(tables, ws, k, ws.met[k], block[k - begin])
        else:
            _generators(tables, ws, k, block[k - begin], ws.met[k])


@compiled(inline="always")
def _eliminate(ws, k, v, ridge, s0, s1, s2, s3, s4, s5, s6, s7, f):
    """One neuron of a sweep (F7): pivot D, column W, z / D, and the sums S and f with this neuron in."""
    u = simd.load(ws.met, k)
    lo = simd.madd(s1, simd.lane(u, 1), simd.mul(s0, simd.lane(u, 0)))
    lo = simd.madd(s3, simd.lane(u, 3), simd.madd(s2, simd.lane(u, 2), lo))
    hi = simd.madd(s5, simd.lane(u, 5), simd.mul(s4, simd.lane(u, 4)))
    hi = simd.madd(s7, simd.lane(u, 7), simd.madd(s6, simd.lane(u, 6), hi))
    known = simd.add(lo, hi)
    pivot = max(ws.pivot[k] + ridge - simd.dot(u, known), ridge)
    z = ws.u[k] - simd.dot(u, f)
    q = simd.sub(v, known)
    w = simd.mul(q, simd.splat(1.0 / pivot))
    simd.store(ws.lower, k, w)
    ws.pivot[k] = pivot
    ws.u[k] = z / pivot
    f = simd.madd(w, simd.splat(z), f)
    s0, s1 = simd.madd(w, simd.lane(q, 0), s0), simd.madd(w, simd.lane(q, 1), s1)
    s2, s3 = simd.madd(w, simd.lane(q, 2), s2), simd.madd(w, simd.lane(q, 3), s3)
    s4, s5 = simd.madd(w, simd.lane(q, 4), s4), simd.madd(w, simd.lane(q, 5), s5)
    s6, s7 = simd.madd(w, simd.lane(q, 6), s6), simd.madd(w, simd.lane(q, 7), s7)
    return s0, s1, s2, s3, s4, s5, s6, s7, f


@compiled()
def _factor(tables, ws, ridge):
    """Factor K + ridge I from both ends towards the middle, with the right-hand side in u (F7); z / D is left in u.

    The two sweeps share nothing: one computes while the other waits.
    """
    width = ws.key.shape[0]
    middle = width // 2
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = af = simd.splat(0.0)
    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = bf = simd.splat(0.0)
    for done in range(0, width - middle, _BLOCK):
        a_end, b_begin, b_end = min(done + _BLOCK, middle), max(width - done - _BLOCK, middle), width - done
        _generators_of(tables, ws, 0, done, a_end)
        _generators_of(tables, ws, 1, b_begin, b_end)
        for i in range(b_end - b_begin):
            k = b_end - 1 - i
            v = simd.load(ws.block[1], k - b_begin)
            b0, b1, b2, b3, b4, b5, b6, b7, bf = _eliminate(ws, k, v, ridge, b0, b1, b2, b3, b4, b5, b6, b7, bf)
            k = done + i
            if k < a_end:
                v = simd.load(ws.block[0], i)
                a0, a1, a2, a3, a4, a5, a6, a7, af = _eliminate(ws, k, v, ridge, a0, a1, a2, a3, a4, a5, a6, a7, af)
    _keep(ws.sums[0], a0, a1, a2, a3, a4, a5, a6, a7, af)
    _keep(ws.sums[1], b0, b1, b2, b3, b4, b5, b6, b7, bf)


@compiled()
def _factor_half(tables, ws, ridge, half):
    """One of the two sweeps of ``_factor``, for a thread of its own."""
    width = ws.key.shape[0]
    middle = width // 2
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = f = simd.splat(0.0)
    for done in range(0, width - middle if half else middle, _BLOCK):
        begin = max(width - done - _BLOCK, middle) if half else done
        end = width - done if half else min(done + _BLOCK, middle)
        _generators_of(tables, ws, half, begin, end)
        for i in range(end - begin):
            k = end - 1 - i if half else begin + i
            v = simd.load(ws.block[half], k - begin)
            s0, s1, s2, s3, s4, s5, s6, s7, f = _eliminate(ws, k, v, ridge, s0, s1, s2, s3, s4, s5, s6, s7, f)
    _keep(ws.sums[half], s0, s1, s2, s3, s4, s5, s6, s7, f)


@compiled(inline="always")
def _keep(sums, s0, s1, s2, s3, s4, s5, s6, s7, f):
    simd.store(sums, 0, s0)
    simd.store(sums, 1, s1)
    simd.store(sums, 2, s2)
    simd.store(sums, 3, s3)
    simd.store(sums, 4, s4)
    simd.store(sums, 5, s5)
    simd.store(sums, 6, s6)
    simd.store(sums, 7, s7)
    simd.store(sums, 8, f)


@compiled()
def _forward_half(ws, b, half):
    """b <- D^-1 L^-1 b in one half, towards the middle (F7)."""
    width = b.shape[0]
    middle = width // 2
    f = simd.splat(0.0)
    for i in range(width - middle if half else middle):
        k = width - 1 - i if half else i
        z = b[k] - simd.dot(simd.load(ws.met, k), f)
        f = simd.madd(simd.load(ws.lower, k), simd.splat(z), f)
        b[k] = z / ws.pivot[k]
    simd.store(ws.sums[half], 8, f)


@compiled()
def _meet(ws):
    """What each half hands to the other: p = U_B^T u_B = f_B - S_B q and q = V_A^T u_A = f_A - S_A p (F8)."""
    s_a, s_b, matrix = ws.sums[0], ws.sums[1], ws.meeting
    for i in range(8):
        right = s_b[8, i]
        for j in range(8):
            matrix[i, j] = 1.0 if i == j else 0.0
        for k in range(8):
            right -= s_b[i, k] * s_a[8, k]
            for j in range(8):
                matrix[i, j] -= s_b[i, k] * s_a[k, j]
        matrix[i, 8] = right
    _eliminate_dense(matrix)
    for i in range(8):
        q = s_a[8, i]
        for k in range(8):
            q -= s_a[i, k] * matrix[k, 8]
        ws.handed[0, i] = matrix[i, 8]
        ws.handed[1, i] = q


@compiled()
def _eliminate_dense(matrix):
    """Solve the n x n system with its right-hand side in column n, in place, by elimination with row pivoting."""
    n = matrix.shape[0]
    for k in range(n):
        best = k
        for i in range(k + 1, n):
            if abs(matrix[i, k]) > abs(matrix[best, k]):
                best = i
        if best != k:
            for j in range(k, n + 1):
                matrix[k, j], matrix[best, j] = matrix[best, j], matrix[k, j]
        for i in range(k + 1, n):
            factor = matrix[i, k] / matrix[k, k]
            for j in range(k + 1, n + 1):
                matrix[i, j] -= factor * matrix[k, j]
    for k in range(n - 1, -1, -1):
        for j in range(k + 1, n):
            matrix[k, n] -= matrix[k, j] * matrix[j, n]
        matrix[k, n] /= matrix[k, k]


@compiled()
def _backward(ws, z):
    """z <- L^-T z, from the middle towards both ends (F8)."""
    width = z.shape[0]
    middle = width // 2
    g, h = simd.load(ws.handed, 0), simd.load(ws.handed, 1)
    for i in range(width - middle):
        h = _substitute(ws, z, middle + i, h)
        if i < middle:
            g = _substitute(ws, z, middle - 1 - i, g)


@compiled()
def _backward_half(ws, z, half):
    """One of the two sweeps of ``_backward``, for a thread of its own."""
    width = z.shape[0]
    middle = width // 2
    g = simd.load(ws.handed, half)
    for i in range(width - middle if half else middle):
        g = _substitute(ws, z, middle + i if half else middle - 1 - i, g)


@compiled(inline="always")
def _substitute(ws, z, k, g):
    value = z[k] - simd.dot(simd.load(ws.lower, k), g)
    z[k] = value
    return simd.madd(simd.load(ws.met, k), simd.splat(value), g)


@compiled()
def _precondition(ws, b):
    """b <- (K + ridge I)^-1 b with the factor at hand."""
    _forward_half(ws, b, 0)
    _forward_half(ws, b, 1)
    _meet(ws)
    _backward(ws, b)


# --- prediction, residual, gradient ------------------------------------------------------------------------------


@compiled(fastmath=VECTORISED)
def _slopes_at_zero(ws, u, turn=None):
    """A+ and A- before the first neuron: minus the mean of u v over lower and over upper neurons (F2).

    With ``turn (M,)`` it is the mean of u v + turn v', v' being v turned by a right angle.
    """
    plus_x = plus_y = minus_x = minus_y = 0.0
    for k in range(u.shape[0]):
        n = 1.0 - ws.pos[k]
        plus_x -= n * u[k] * ws.v[k, 0]
        plus_y -= n * u[k] * ws.v[k, 1]
        minus_x -= ws.pos[k] * u[k] * ws.v[k, 0]
        minus_y -= ws.pos[k] * u[k] * ws.v[k, 1]
        if turn is not None:
            plus_x += n * turn[k] * ws.v[k, 1]
            plus_y -= n * turn[k] * ws.v[k, 0]
            minus_x += ws.pos[k] * turn[k] * ws.v[k, 1]
            minus_y -= ws.pos[k] * turn[k] * ws.v[k, 0]
    width = u.shape[0]
    return plus_x / width, plus_y / width, minus_x / width, minus_y / width


@compiled(inline="always")
def _interval(row, old, ax, ay, bx, by):
    """Sums of f z over the samples between two rows of the prefix table, for c = +1 and for c = -1 (F9)."""
    d0, d1, d2 = row[0] - old[0], row[1] - old[1], row[2] - old[2]
    d3, d4, d5 = row[3] - old[3], row[4] - old[4], row[5] - old[5]
    return d0 * ax + d1 * ay, d1 * ax + d2 * ay, d3 * bx + d4 * by, d4 * bx + d5 * by


@compiled(fastmath=FUSED)
def _half_plane_sums(tables, ws, u, with_targets, turn=None):
    """half_k <- mean of r x over the samples where neuron k is active, r = f - y (or f alone) (F9).

    ``turn`` is that of ``_slopes_at_zero``: f is then the change of the prediction when u_k changes by u and the neuron
    turns (docs/second_order.md, S8).

    Between two neurons f is linear on either side, f = A+ . z for c = +1 and A- . z for c = -1, so each interval adds
    dP+ A+ + dP- A- - dR; no pass over the samples.
    """
    width, scale = u.shape[0], 1.0 / u.shape[0]
    ax, ay, bx, by = _slopes_at_zero(ws, u, turn)
    px = py = mx = my = 0.0  # sums of f z over the samples passed, c = +1 and c = -1
    prefix = _prefix(tables, ws)
    old = prefix[0]
    for k in range(width):
        row = prefix[ws.below[k]]
        fx, fy, gx, gy = _interval(row, old, ax, ay, bx, by)
        px, py, mx, my = px + fx, py + fy, mx + gx, my + gy
        ws.half[k, 0] = px + mx - with_targets * row[6]
        ws.half[k, 1] = py + my - with_targets * row[7]
        jump_x, jump_y = scale * u[k] * ws.v[k, 0], scale * u[k] * ws.v[k, 1]
        if turn is not None:
            jump_x, jump_y = jump_x - scale * turn[k] * ws.v[k, 1], jump_y + scale * turn[k] * ws.v[k, 0]
        ax, ay, bx, by = ax + jump_x, ay + jump_y, bx + jump_x, by + jump_y
        old = row
    fx, fy, gx, gy = _interval(prefix[prefix.shape[0] - 1], old, ax, ay, bx, by)
    px, py = px + fx - with_targets * tables.totals[0], py + fy - with_targets * tables.totals[1]
    mx, my = mx + gx - with_targets * tables.totals[2], my + gy - with_targets * tables.totals[3]
    _close_half_planes(ws, px, py, mx, my)


@compiled()
def _close_half_planes(ws, px, py, mx, my):
    """From prefix sums to half-planes: T+ - T_k for upper neurons, T_k - T- for lower ones (F9)."""
    for k in range(ws.key.shape[0]):
        x, y, up = ws.half[k, 0], ws.half[k, 1], ws.pos[k] > 0.5
        ws.half[k, 0] = px - x if up else x - mx
        ws.half[k, 1] = py - y if up else y - my


@compiled(inline="always")
def _active_mean(ws, k):
    """mean phi_k r = w_k . half_k (F9)."""
    return (2.0 * ws.pos[k] - 1.0) * (ws.v[k, 0] * ws.half[k, 0] + ws.v[k, 1] * ws.half[k, 1])


@compiled(fastmath=VECTORISED)
def _reductions(tables, ws, lmbda, centre):
    """Mean squared residual, mean (u - c)^2, and mean square of the gradient in u, d = mean phi r + lam (u - c).

    mean r^2 = mean y^2 + (1/M) sum_j u_j (mean phi_j r - mean phi_j y) for any u (F10).
    """
    width = ws.key.shape[0]
    data = penalty = slope = 0.0
    for k in range(width):
        product = _active_mean(ws, k)
        away = ws.u[k] - centre
        gradient = product + lmbda * away
        data += ws.u[k] * (product - ws.moment[k])
        penalty += away * away
        slope += gradient * gradient
    return tables.totals[4] + data / width, penalty / width, slope / width


@compiled()
def _sample_mean_square(tables, ws):
    """Mean squared residual summed over the samples: no cancellation, O(N + M)."""
    width, count = ws.key.shape[0], tables.y.shape[0]
    ax, ay, bx, by = _slopes_at_zero(ws, ws.u)
    total = 0.0
    first = 0
    for k in range(width + 1):
        end = ws.below[k] if k < width else count
        for i in range(first, end):
            upper = tables.sign[i] > 0.0
            f = (ax if upper else bx) * tables.z[i, 0] + (ay if upper else by) * tables.z[i, 1]
            total += (f - tables.y[i]) ** 2
        if k < width:
            jump_x, jump_y = ws.u[k] * ws.v[k, 0] / width, ws.u[k] * ws.v[k, 1] / width
            ax, ay, bx, by = ax + jump_x, ay + jump_y, bx + jump_x, by + jump_y
            first = end
    return total / count


@compiled()
def _population_mean_square(tables, ws):
    """Mean squared residual of infinite data by quadrature between neurons and ends of cells, O(L + M) (F15)."""
    width = ws.key.shape[0]
    ax, ay, bx, by = _slopes_at_zero(ws, ws.u)
    total = begin = 0.0
    k = cell = 0
    while cell < tables.ends.shape[0]:
        angle = math.atan2(ws.v[k, 1], ws.v[k, 0]) if k < width else math.inf
        end = min(angle, tables.ends[cell])
        if end > begin:
            total += _arc_mean_square(tables, cell, begin, end, ax, ay, bx, by)
            begin = end
        if angle > tables.ends[cell]:
            cell += 1
        else:
            jump_x, jump_y = ws.u[k] * ws.v[k, 0] / width, ws.u[k] * ws.v[k, 1] / width
            ax, ay, bx, by = ax + jump_x, ay + jump_y, bx + jump_x, by + jump_y
            k += 1
    return total


@compiled()
def _arc_mean_square(tables, cell, begin, end, ax, ay, bx, by):
    """(1/pi) int r^2 / |z|^2 da over an arc inside a cell, both signs, by three Gauss points."""
    middle, reach = 0.5 * (begin + end), 0.5 * (end - begin)
    total = 0.0
    for point in range(-1, 2):
        a = middle + point * math.sqrt(0.6) * reach
        s = (a - tables.centres[cell]) * tables.scales[cell]
        mean_x = 0.5 * (tables.slopes[cell, 0] + _polynomial(tables.series, cell, 2, s))
        mean_y = 0.5 * (tables.slopes[cell, 1] + _polynomial(tables.series, cell, 3, s))
        x, y = math.sin(a), -math.cos(a)
        plus = (ax - mean_x - tables.half[0]) * x + (ay - mean_y - tables.half[1]) * y
        minus = (bx - mean_x + tables.half[0]) * x + (by - mean_y + tables.half[1]) * y
        total += (5.0 if point != 0 else 8.0) / 9.0 * (plus * plus + minus * minus)
    return total * reach / math.pi


@compiled()
def _loss(tables, ws, lmbda, data, penalty):
    """L = mean r^2 / (2 lam) + mean (u - c)^2 / 2, the data term summed directly where the short form cancels."""
    if data < _DIRECT_BELOW * tables.totals[4]:
        data = _direct_mean_square(tables, ws)
    return data / (2.0 * lmbda) + 0.5 * penalty


@compiled(fastmath=FUSED)
def _step_weights(ws, rate):
    """w <- (w - rate u mean_active(r x)) / |.|, folded again, with its new key (docs/definitions.md, 1).

    False, with neurons that must not be used, where one has no direction any more.
    """
    sound = True
    for k in range(ws.key.shape[0]):
        shift = rate * ws.u[k] * (2.0 * ws.pos[k] - 1.0)
        x, y = ws.v[k, 0] - shift * ws.half[k, 0], ws.v[k, 1] - shift * ws.half[k, 1]
        square = x * x + y * y
        sound &= 0.0 < square < np.inf
        flip = -1.0 if y < 0.0 else 1.0
        ws.crossed[k] = flip < 0.0
        norm = flip / math.sqrt(square)
        x, y = x * norm, y * norm
        ws.pos[k] = ws.pos[k] if flip > 0.0 else 1.0 - ws.pos[k]
        ws.v[k, 0], ws.v[k, 1] = x, y
        ws.key[k] = folded_key(x, y)
    return sound


@compiled(fastmath=FUSED)
def _next_outer(ws, lmbda, centre, rate):
    """next_u <- u - rate (mean phi r + lam (u - c)): a gradient step at rate lam M times ``rate`` (docs/definitions.md,
    1)."""
    for k in range(ws.key.shape[0]):
        product = _active_mean(ws, k)
        ws.next_u[k] = ws.u[k] - rate * (product + lmbda * (ws.u[k] - centre))


# --- inner solve -------------------------------------------------------------------------------------------------


@compiled()
def _error_bound(tables, lmbda, centre, slope):
    """Bound on the relative rms error of the predictions from the mean squared u-gradient (F11).

    |f - f*|_rms <= |grad|_rms / (2 sqrt(lam)), in units of the rms of the targets and of the penalty's prediction.
    """
    unit = math.sqrt(tables.totals[4]) + abs(centre) * math.sqrt(tables.totals[5])
    return 0.5 * math.sqrt(slope / lmbda) / unit if unit != 0.0 else 0.0


@compiled()
def _tolerated(tables, lmbda):
    """The error bound above which a solve is refined, whatever the unit of the inputs."""
    return min(max(_REFINE_ABOVE, _REFINE_DIGITS * math.sqrt(tables.totals[5] / lmbda)), _REFINE_ALWAYS)


@compiled()
def _times_hessian(tables, ws, x, lmbda, out):
    """out <- (K / M + lam I) x."""
    _half_plane_sums(tables, ws, x, 0.0)
    for k in range(x.shape[0]):
        out[k] = _active_mean(ws, k) + lmbda * x[k]


@compiled()
def _inner_residual(tables, ws, lmbda, centre, residual):
    """residual <- minus the gradient of the inner problem at u, mean phi (y - f) - lam (u - c); its mean square."""
    _half_plane_sums(tables, ws, ws.u, 1.0)
    for k in range(residual.shape[0]):
        product = _active_mean(ws, k)
        residual[k] = -product - lmbda * (ws.u[k] - centre)
    return np.mean(residual * residual)


@compiled()
def _conjugate_gradients(tables, ws, lmbda, centre, goal):
    """Lower the inner residual from u, preconditioned by the factor, until the error bound is below ``goal`` (F12).

    Leaves the best u met and returns its bound; a u that is not finite is replaced by c first.
    """
    width = ws.key.shape[0]
    if not np.isfinite(np.sum(ws.u)):
        ws.u[:] = centre
    residual, direction = np.empty(width), np.zeros(width)
    product, z = np.empty(width), np.empty(width)
    best, best_step, best_u = np.inf, 0, ws.u.copy()
    previous = 1.0
    for step in range(_REFINEMENTS):
        bound = _error_bound(tables, lmbda, centre, _inner_residual(tables, ws, lmbda, centre, residual))
        if bound < best:
            best, best_step = bound, step
            best_u[:] = ws.u
        if not bound > goal or step - best_step >= _PATIENCE:
            break
        z[:] = width * residual
        _precondition(ws, z)
        energy = np.dot(residual, z)
        direction *= energy / previous if step else 0.0
        direction += z
        previous = energy
        _times_hessian(tables, ws, direction, lmbda, product)
        curvature = np.dot(direction, product)
        if not curvature > 0.0:
            break
        ws.u[:] = ws.u + energy / curvature * direction
    ws.u[:] = best_u
    return best


@compiled()
def _refine(tables, ws, lmbda, centre):
    """Solve again with conjugate gradients on top; returns the error bound reached.

    For tiny lambda the factor itself can break down. It is then made for a larger ridge, which only costs steps.
    """
    goal = 0.3 * _tolerated(tables, lmbda)
    best, best_u = np.inf, np.full_like(ws.u, centre)
    for floor in _RIDGE_FLOORS:
        ridge = max(lmbda, floor * tables.totals[5])
        _right_hand_side(ws, lmbda, centre, 0, ws.key.shape[0])
        _factor(tables, ws, ws.key.shape[0] * ridge)
        _meet(ws)
        _backward(ws, ws.u)
        bound = _conjugate_gradients(tables, ws, lmbda, centre, goal)
        if bound < best:
            best = bound
            best_u[:] = ws.u
        if best <= goal:
            break
    ws.u[:] = best_u
    return best


@compiled()
def _right_hand_side(ws, lmbda, centre, begin, end):
    """u <- M (mean phi y + lam c): with K + lam M I on the left this is the inner problem."""
    for k in range(begin, end):
        ws.u[k] = ws.u.shape[0] * (ws.moment[k] + lmbda * centre)


@compiled()
def _solve(tables, ws, lmbda, centre):
    """u <- argmin_u L by one factorisation, for neurons in folded order (docs/definitions.md, 1)."""
    width = ws.key.shape[0]
    if width >= _WIDE:
        _solve_on_two_threads(tables, ws, lmbda, centre)
        return
    _moments(tables, ws, 0, width)
    _right_hand_side(ws, lmbda, centre, 0, width)
    _factor(tables, ws, width * lmbda)
    _meet(ws)
    _backward(ws, ws.u)


@compiled(parallel=True)
def _solve_on_two_threads(tables, ws, lmbda, centre):
    """``_solve`` with one thread for either half of the neurons."""
    width = ws.key.shape[0]
    cuts = (0, width // 2, width)
    for half in prange(2):
        _moments(tables, ws, cuts[half], cuts[half + 1])
        _right_hand_side(ws, lmbda, centre, cuts[half], cuts[half + 1])
        _factor_half(tables, ws, width * lmbda, half)
    _meet(ws)
    for half in prange(2):
        _backward_half(ws, ws.u, half)


@compiled()
def _settle(tables, ws, lmbda, centre, accuracy):
    """Half-plane sums and reductions at u; where the error bound is too large the solve is refined first."""
    _half_plane_sums(tables, ws, ws.u, 1.0)
    data, penalty, slope = _reductions(tables, ws, lmbda, centre)
    bound = _error_bound(tables, lmbda, centre, slope)
    if not bound <= _tolerated(tables, lmbda):
        bound = _refine(tables, ws, lmbda, centre)
        _half_plane_sums(tables, ws, ws.u, 1.0)
        data, penalty, slope = _reductions(tables, ws, lmbda, centre)
        accuracy[1] += 1
    accuracy[0] = max(accuracy[0], bound)
    return data, penalty


@compiled()
def _optimise_outer(tables, ws, weights, outer, lmbda, centre, accuracy):
    """outer <- argmin_u L at ``weights``; returns mean r^2 and mean (u - c)^2 there."""
    _gather(ws, weights, outer)
    _sort(ws)
    _solve(tables, ws, lmbda, centre)
    data, penalty = _settle(tables, ws, lmbda, centre, accuracy)
    for k in range(outer.shape[0]):
        outer[ws.ident[k]] = ws.u[k]
    return data, penalty


@compiled()
def _reduced_risk(tables, ws, weights, outer, gradient, lmbda, centre, accuracy):
    """R(w) = min_u L; outer <- argmin_u L, gradient <- dR/dw, which is dL/dw at fixed u (envelope theorem).

    dL/dw_j = u_j mean_active(r x) / (lam M), less its part along w_j.
    """
    data, penalty = _optimise_outer(tables, ws, weights, outer, lmbda, centre, accuracy)
    width = ws.key.shape[0]
    for k in range(width):
        scale = ws.u[k] / (lmbda * width)
        x, y = ws.half[k, 0], ws.half[k, 1]
        v, w = ws.v[k, 0], ws.v[k, 1]
        radial = (x * v + y * w) / (v * v + w * w)
        gradient[ws.ident[k], 0] = scale * (x - radial * v)
        gradient[ws.ident[k], 1] = scale * (y - radial * w)
    return _loss(tables, ws, lmbda, data, penalty)


@compiled()
def _varpro_epochs(tables, ws, weights, outer, lmbda, centre, time_scale, losses, accuracy):
    """VarPro epochs from a state whose u is optimal to one whose u is optimal (docs/definitions.md, 1).

    Returns early, with NaN from that loss on, where a loss or a step is not finite.
    """
    _gather(ws, weights, outer)
    _sort(ws)
    _moments(tables, ws, 0, ws.key.shape[0])
    for epoch in range(losses.shape[0]):
        data, penalty = _settle(tables, ws, lmbda, centre, accuracy)
        loss = _loss(tables, ws, lmbda, data, penalty)
        if not (np.isfinite(loss) and _step_weights(ws, time_scale / lmbda)):
            return
        losses[epoch] = loss
        _sort(ws)
        _solve(tables, ws, lmbda, centre)
    _settle(tables, ws, lmbda, centre, accuracy)
    _scatter(ws, weights, outer)


@compiled()
def _two_timescale_epochs(tables, ws, weights, outer, lmbda, centre, time_scale, losses, outer_rate):
    """Two-timescale epochs: both gradients at the same point (docs/definitions.md, 1).

    Ends early as ``_varpro_epochs`` does.
    """
    _gather(ws, weights, outer)
    _sort(ws)
    for epoch in range(losses.shape[0]):
        _moments(tables, ws, 0, ws.key.shape[0])
        _half_plane_sums(tables, ws, ws.u, 1.0)
        data, penalty, _ = _reductions(tables, ws, lmbda, centre)
        loss = _loss(tables, ws, lmbda, data, penalty)
        _next_outer(ws, lmbda, centre, outer_rate)  # before the weights move, used after
        if not (np.isfinite(loss) and _step_weights(ws, time_scale / lmbda)):
            return
        losses[epoch] = loss
        ws.u[:] = ws.next_u
        _sort(ws)
    _scatter(ws, weights, outer)


# --- for callers -------------------------------------------------------------------------------------------------


class CircleSolver(Solver[np.ndarray]):
    """The ``linear`` solver: ReLU features on the circle in linear time, float64 on the CPU.

    ``inputs (N, 2)`` and ``targets (N,)`` are float64 arrays; ``lmbda > 0``; ``centre`` is the penalty centre c;
    ``time_scale`` is the learning rate of the weights per neuron (eta_w = M time_scale); ``outer_update`` is
    ``"ridge"`` (VarPro) or ``"gradient"`` (two-timescale, eta_u = lam M times ``outer_rate``). Raises ValueError for
    other shapes and for what is neither.
    """

    name, devices, dtypes, takes_infinite_data = "linear", ("cpu",), ("float64",), True

    def __init__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        lmbda: float,
        centre: float,
        time_scale: float = 2**-10,
        outer_update: str = "ridge",
        outer_rate: float = 1.0,
    ) -> None:
        self._prepare(sample_tables(inputs, targets), lmbda, centre, time_scale, outer_update, outer_rate)

    def _prepare(
        self,
        tables: SampleTables | PopulationTables,
        lmbda: float,
        centre: float,
        time_scale: float,
        outer_update: str,
        outer_rate: float,
    ) -> None:
        check_constants(lmbda, centre, outer_update)
        self.tables = tables
        self.lmbda, self.centre, self.time_scale = float(lmbda), float(centre), float(time_scale)
        self.outer_update, self.outer_rate = outer_update, float(outer_rate)
        self._workspace: Workspace | None = None
        self._achieved = np.zeros(2)  # largest error bound of the inner solves so far, and how many were refined

    @classmethod
    def from_tables(
        cls,
        tables: SampleTables | PopulationTables,
        lmbda: float,
        centre: float,
        time_scale: float,
        outer_update: str,
        outer_rate: float = 1.0,
    ) -> "CircleSolver":
        """The same solver on tables already built: of samples, or of infinite data (``population_tables``)."""
        solver = cls.__new__(cls)
        solver._prepare(tables, lmbda, centre, time_scale, outer_update, outer_rate)
        return solver

    @classmethod
    def obstacle(cls, objective: Objective, problem: Problem) -> str:
        if type(objective.features) is not ReLUCircle:
            return f"computes ReLU features on the circle, not {objective.features.name}"
        many = problem.targets is not None and problem.targets.shape[1] > 1
        return "takes targets with one output" if many else ""

    @classmethod
    def build(cls, objective: Objective, problem: Problem, *, device: str, dtype: str, tf32: bool) -> "CircleSolver":
        constants = *objective.constants, objective.outer_update, objective.outer_rate
        if problem.inputs is None:
            teacher = problem.teacher.numpy() if problem.law is None else problem.law.density
            return cls.from_tables(population_tables(teacher), *constants)
        return cls(problem.inputs.numpy(), problem.targets[:, 0].numpy(), *constants)

    @classmethod
    def compilation(cls, objective: Objective, problem: Problem, dtype: str) -> int:
        ways = (_varpro_epochs, _reduced_risk) if objective.outer_update == "ridge" else (_two_timescale_epochs,)
        tables = "PopulationTables" if problem.inputs is None else "SampleTables"
        return 0 if any(in_cache(way, mentioning=tables) for way in ways) else 40

    def own(self, tensor: torch.Tensor) -> np.ndarray:
        """A float64 copy in the form the other methods take: weights (M, 2) or outer weights (M,)."""
        return tensor.double().numpy().copy()

    def solve(self, weights: np.ndarray) -> np.ndarray:
        """Optimal outer weights (M,) for ``weights (M, 2)``, unit vectors (docs/definitions.md, 1).

        Raises ValueError for another shape, FloatingPointError where weights or targets are not finite.
        """
        outer = np.zeros(len(weights))
        state = self.tables, self._workspace_for(weights), weights, outer
        data, _ = _optimise_outer(*state, self.lmbda, self.centre, self._achieved)
        _check_finite(weights, data)
        return outer

    def reduced(self, weights: np.ndarray) -> Reduced:
        """R(w) = min_u L at ``weights (M, 2)``, unit vectors, with its tangential gradient (M, 2) and u (M,).

        Raises as :meth:`solve` does.
        """
        outer, gradient = np.zeros(len(weights)), np.empty_like(weights)
        state = self.tables, self._workspace_for(weights), weights, outer, gradient
        risk = _reduced_risk(*state, self.lmbda, self.centre, self._achieved)
        _check_finite(weights, risk)
        return Reduced(risk, gradient, outer)

    def advance(self, weights: np.ndarray, outer: np.ndarray, epochs: int) -> np.ndarray:
        """Train ``weights (M, 2)`` and ``outer (M,)`` in place for ``epochs`` epochs; returns the losses (epochs,).

        The state must have optimal outer weights where ``outer_update`` is ``"ridge"``, and has them afterwards.
        Raises ValueError for other shapes and types.
        """
        losses = np.full(epochs, np.nan)
        ws = self._workspace_for(weights)
        if not _is_array(outer, (len(weights),)):
            raise ValueError(f"outer {_described(outer)} is not allowed: an array ({len(weights)},) of float64")
        state = (self.tables, ws, weights, outer, self.lmbda, self.centre, self.time_scale)
        if self.outer_update == "ridge":
            _varpro_epochs(*state, losses, self._achieved)
        else:
            _two_timescale_epochs(*state, losses, self.outer_rate)
        return losses

    def report(self) -> dict[str, float]:
        """``worst_bound``: the largest bound on the rms error of predictions that an inner solve left, in units of
        rms(y) + |c| rms(|x|); ``refined``: how many solves went through refinement."""
        return {"worst_bound": float(self._achieved[0]), "refined": int(self._achieved[1])}

    def caution(self) -> str:
        bound = self._achieved[0]
        if bound <= _WARN_ABOVE:
            return ""
        other = "" if isinstance(self.tables, PopulationTables) else " or compare with --solver dense --dtype float64"
        return (
            f"inner solve: predictions may be off by {bound:.1e} (rms(y) + |c| rms(|x|)) at lambda {self.lmbda:g}; "
            f"raise --lambda{other}"
        )

    def _workspace_for(self, weights: np.ndarray) -> Workspace:
        if not _is_array(weights, (len(weights), 2)):
            raise ValueError(f"weights {_described(weights)} are not allowed: an array (M, 2) of float64")
        if self._workspace is None or len(self._workspace.u) != len(weights):
            self._workspace = workspace(len(weights))
        return self._workspace


def _is_array(values: object, shape: tuple[int, ...]) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == np.float64 and values.shape == shape


def _described(values: object) -> str:
    return f"{getattr(values, 'shape', type(values).__name__)} of {getattr(values, 'dtype', 'no type')}"


def _check_finite(weights: np.ndarray, risk: float) -> None:
    """Neurons that are NaN have no place in the order of the others: the solve leaves them out."""
    if not (math.isfinite(risk) and np.isfinite(weights).all()):
        raise FloatingPointError("inner solve: weights or targets not finite or too large; try a smaller time scale")
