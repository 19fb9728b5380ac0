"""VarPro training of RBF networks on the torus R^2/(4 Z^2) on the CPU: compiled passes and warm conjugate gradients.

phi(w, x) = g(|d|) with d = wrap(w - x). Neurons move little in an epoch, so the outer weights are extrapolated from
the last epochs and corrected by conjugate gradients on

    A u = b,    A = phi^T phi / (N M) + lam I,    b = phi^T y / N + lam c,

preconditioned by the inverse of A at an earlier epoch. Features are made once per epoch, in the same pass as the
residual of the extrapolated u. They may be float32; residuals, gradients and outer weights are float64 always.

Features are held in blocks of 128 samples, (blocks, M, 128): a block stays in the second-level cache while a pass goes
through it forth (phi u) and back (phi^T r). Samples are padded to whole blocks and neurons to a multiple of four, both
with features 0. Sums over samples are formed in a fixed number of chunks, so that no result depends on the threads.
"""

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numba import get_num_threads, prange, set_num_threads, types
from numba.extending import overload
from scipy.linalg import blas, lapack

from varpro.compiled import FUSED, VECTORISED, compiled, in_cache, is_kept
from varpro.features import LAPLACE, RAISED_COSINE, RadialTorus
from varpro.problem import Problem
from varpro.solvers.base import (
    RESIDUAL,
    Objective,
    Reduced,
    Solver,
    check_constants,
    unsolved,
    wide_student,
    with_least_ridge,
)
from varpro.threads import ThreadChoice, one_blas_thread

KERNELS = {kernel.name: kernel for kernel in (LAPLACE, RAISED_COSINE)}
_BLOCK = 128  # samples per block; 1024 float32 neurons of a block fill 512 kB
_CHUNKS = 16  # parts of the sums over samples, at most
_LINE = 64  # bytes of a cache line, and of the longest vector
_TILE = 32  # neurons whose features are summed in the precision of the features before float64 takes over
_STEPS = 40  # conjugate-gradient steps before the solve is made anew
_MEMORY = 8  # epochs over which the number of steps is averaged
_WIDEST = 20000  # neurons; a new preconditioner takes 36 bytes a pair of them, 14 GB
_SERIAL = 1 << 18  # features (N M) up to which threads cost more than they gain
_MET, _STALE, _MISSED = 0, 1, 2  # how the compiled epochs ended: all done, a new preconditioner pays, solve missed
_SOLVES, _STEPS_TAKEN, _FACTORISATIONS, _EXACT = 0, 1, 2, 3  # places in the counts: in all ...
_PAST, _AGE, _AGE_STEPS, _AVERAGE = 4, 5, 6, 7  # ... epochs in the history; since the last factorisation


class Samples(NamedTuple):
    """The data in blocks; padded samples have the target 0 and no part in any sum."""

    x: np.ndarray  # (2, blocks, 128) coordinates, in the precision of the features
    y: np.ndarray  # (blocks, 128)
    count: int  # N


class Workspace(NamedTuple):
    """The state and the arrays of one epoch; M is padded to a multiple of four, with outer weights 0."""

    phi: np.ndarray  # (blocks, M, 128) features
    w: np.ndarray  # (M, 2)
    u: np.ndarray  # (M,)
    history: np.ndarray  # (2, M) the outer weights of the last two epochs before u
    residual: np.ndarray  # (blocks, 128) f - y
    product: np.ndarray  # (blocks, 128) phi p / M
    sums: np.ndarray  # (chunks, M, 2) parts of sums over samples
    scratch: np.ndarray  # (chunks, 2, 128) in the precision of the features
    inverse: np.ndarray  # (M, M) the preconditioner, in the precision of the features
    slope: np.ndarray  # (M,) b - A u
    direction: np.ndarray  # (M,)
    image: np.ndarray  # (M,) A p
    counts: np.ndarray  # (8,) by the places named above
    worst: np.ndarray  # (2,) largest and last relative residual


# --- kernels -----------------------------------------------------------------------------------------------------


def _taylor(angle: float, first: int, terms: int, precision: type) -> tuple:
    """Coefficients (-1)^k angle^(2k + first) / (2k + first)! of q^k, highest power first."""
    powers = [(k, 2 * k + first) for k in reversed(range(terms))]
    return tuple(precision((-1) ** k * angle**n / math.factorial(n)) for k, n in powers)


_COSINE_SINGLE, _COSINE_DOUBLE = _taylor(math.pi / 4, 0, 7, np.float32), _taylor(math.pi / 4, 0, 11, np.float64)
_SINE_SINGLE, _SINE_DOUBLE = _taylor(math.pi / 2, 1, 9, np.float32), _taylor(math.pi / 2, 1, 14, np.float64)


@compiled(fastmath=FUSED)
def _horner(coefficients, q):
    """The polynomial in q with these coefficients, highest power first."""
    value = coefficients[0]
    for k in range(1, len(coefficients)):
        value = value * q + coefficients[k]
    return value


def _laplace(r):
    """8 exp(-2 r) for 0 <= r <= 40, in float32 or float64, by arithmetic that vectorises.

    8 exp(-2 r) = 2^k 8 exp(-2 f) with k the integer nearest to -2 r / ln 2, a polynomial for f = r + k ln 2 / 2, of
    size ln 2 / 4 at most, and 2^k made of its bits. To add 1.5 2^23 (in float64 1.5 2^52) rounds to an integer and has
    it in the last bits, so that no conversion is needed: before AVX-512 there is none of float64. What is added holds
    the bias of the exponent too. 2^k is a factor, not a sum of exponents, so that a NaN stays one.
    """
    raise NotImplementedError("for compiled code")


def _exponential(terms: int, precision: type) -> tuple:
    """Coefficients 8 (-2)^k / k! of f^k, highest power first."""
    return tuple(precision(8 * (-2) ** k / math.factorial(k)) for k in reversed(range(terms)))


_EXPONENTIAL_SINGLE, _EXPONENTIAL_DOUBLE = _exponential(8, np.float32), _exponential(14, np.float64)


def _laplace_single(r):
    shifted = r * np.float32(-2.8853900817779268) + np.float32(1.5 * 2**23 + 127)
    k = shifted - np.float32(1.5 * 2**23 + 127)
    f = (r + k * np.float32(0.3466796875)) - k * np.float32(1.06097220027e-4)
    return _horner(_EXPONENTIAL_SINGLE, f) * np.int32(np.float32(shifted).view(np.int32) << 23).view(np.float32)


def _laplace_double(r):
    shifted = r * -2.8853900817779268 + (1.5 * 2**52 + 1023)
    k = shifted - (1.5 * 2**52 + 1023)
    f = (r + k * 0.3465728759765625) + k * 7.1430341015470862e-7
    return _horner(_EXPONENTIAL_DOUBLE, f) * np.int64(np.float64(shifted).view(np.int64) << 52).view(np.float64)


@overload(_laplace, jit_options={"fastmath": FUSED})
def _laplace_compiled(r):
    return _laplace_single if r == types.float32 else _laplace_double


def _cosine(q):
    """cos(pi r / 4) for q = r^2 in [0, 4]."""
    raise NotImplementedError("for compiled code")


def _sine_ratio(q):
    """sin(pi r / 2) / r for q = r^2 in [0, 4]."""
    raise NotImplementedError("for compiled code")


@overload(_cosine, jit_options={"fastmath": FUSED})
def _cosine_compiled(q):
    if q == types.float32:
        return lambda q: _horner(_COSINE_SINGLE, q)
    return lambda q: _horner(_COSINE_DOUBLE, q)


@overload(_sine_ratio, jit_options={"fastmath": FUSED})
def _sine_ratio_compiled(q):
    if q == types.float32:
        return lambda q: _horner(_SINE_SINGLE, q)
    return lambda q: _horner(_SINE_DOUBLE, q)


@compiled(fastmath=FUSED)
def _wrap(z):
    """-2 + (z + 2) mod 4."""
    number = type(z)
    return z - number(4.0) * np.floor(z * number(0.25) + number(0.5))


@compiled(fastmath=FUSED)
def _laplace_row(x, y, w0, w1, phi):
    """phi_i <- 8 exp(-2 |wrap(w - x_i)|).

    In two loops: all in one, an iteration is so long that a processor sees no other to do while it waits for results.
    """
    for i in range(_BLOCK):
        d0, d1 = _wrap(w0 - x[i]), _wrap(w1 - y[i])
        phi[i] = np.sqrt(d0 * d0 + d1 * d1)
    for i in range(_BLOCK):
        phi[i] = _laplace(phi[i])


@compiled(fastmath=FUSED)
def _laplace_term(d0, d1, phi, r):
    """r phi / |d|, with a finite value for d = 0."""
    return r * phi / max(np.sqrt(d0 * d0 + d1 * d1), type(d0)(1e-18))


@compiled(fastmath=VECTORISED)
def _laplace_slope(x, y, w0, w1, phi, r):
    """sum_i r_i d phi_i / d w = -2 sum_i r_i phi_i d_i / |d_i|, with 0 for d_i = 0."""
    number = phi.dtype.type
    sum0 = sum1 = number(0.0)
    for i in range(_BLOCK):
        d0, d1 = _wrap(w0 - x[i]), _wrap(w1 - y[i])
        scale = _laplace_term(d0, d1, phi[i], r[i])
        sum0 += scale * d0
        sum1 += scale * d1
    return number(-2.0) * sum0, number(-2.0) * sum1


@compiled(fastmath=FUSED)
def _cos_row(x, y, w0, w1, phi):
    """phi_i <- (1 + cos(pi r_i / 2)) / 2 = cos^2(pi r_i / 4) for r_i = |wrap(w - x_i)| <= 2, else 0."""
    number = phi.dtype.type
    for i in range(_BLOCK):
        d0, d1 = _wrap(w0 - x[i]), _wrap(w1 - y[i])
        q = d0 * d0 + d1 * d1
        root = _cosine(min(q, number(4.0)))
        phi[i] = root * root if q <= number(4.0) else number(0.0)


@compiled(fastmath=FUSED)
def _cos_term(d0, d1, r):
    """r sin(pi |d| / 2) / |d| for |d| <= 2, else 0."""
    number = type(d0)
    q = d0 * d0 + d1 * d1
    return r * _sine_ratio(min(q, number(4.0))) if q <= number(4.0) else number(0.0)


@compiled(fastmath=VECTORISED)
def _cos_slope(x, y, w0, w1, r):
    """sum_i r_i d phi_i / d w = -(pi/4) sum_i r_i sin(pi |d_i| / 2) d_i / |d_i|, |d_i| <= 2."""
    number = x.dtype.type
    sum0 = sum1 = number(0.0)
    for i in range(_BLOCK):
        d0, d1 = _wrap(w0 - x[i]), _wrap(w1 - y[i])
        scale = _cos_term(d0, d1, r[i])
        sum0 += scale * d0
        sum1 += scale * d1
    return number(-0.25 * math.pi) * sum0, number(-0.25 * math.pi) * sum1


# --- passes over the samples -------------------------------------------------------------------------------------


@compiled()
def _chunk(part, blocks):
    """The blocks of one part of the sums, as a range."""
    parts = min(_CHUNKS, blocks)
    return range(part * blocks // parts, (part + 1) * blocks // parts)


@compiled(fastmath=VECTORISED)
def _add_rows(phi, v, first, total):
    """total_i += sum_j v_j phi_ji over the four neurons from ``first``."""
    number = phi.dtype.type
    v0, v1, v2, v3 = number(v[first]), number(v[first + 1]), number(v[first + 2]), number(v[first + 3])
    for i in range(_BLOCK):
        total[i] += v0 * phi[first, i] + v1 * phi[first + 1, i] + v2 * phi[first + 2, i] + v3 * phi[first + 3, i]


@compiled(fastmath=VECTORISED)
def _dot_rows(phi, r, first, sums, column):
    """sums[j, column] += sum_i phi_ji r_i for the four neurons from ``first``."""
    s0 = s1 = s2 = s3 = phi.dtype.type(0.0)
    for i in range(_BLOCK):
        s0 += phi[first, i] * r[i]
        s1 += phi[first + 1, i] * r[i]
        s2 += phi[first + 2, i] * r[i]
        s3 += phi[first + 3, i] * r[i]
    sums[first, column] += s0
    sums[first + 1, column] += s1
    sums[first + 2, column] += s2
    sums[first + 3, column] += s3


@compiled()
def _flush(part, total):
    """total += part, part <- 0."""
    for i in range(_BLOCK):
        total[i] += part[i]
        part[i] = 0.0


@compiled()
def _forth(phi, v, part, total):
    """total_i <- sum_j v_j phi_ji in one block: tiles in the precision of the features, their sum in float64."""
    total[:] = 0.0
    part[:] = 0.0
    for first in range(0, v.shape[0], 4):
        _add_rows(phi, v, first, part)
        if (first + 4) % _TILE == 0:
            _flush(part, total)
    _flush(part, total)


@compiled()
def _means(sums, column, count, out):
    """out_j <- sum over the parts of sums[part, j, column], divided by ``count``."""
    out[:] = 0.0
    for part in range(sums.shape[0]):
        for j in range(out.shape[0]):
            out[j] += sums[part, j, column]
    for j in range(out.shape[0]):
        out[j] /= count


@compiled()
def _make_block(samples, ws, block, width, laplace):
    """The features of one block, 0 for padded samples."""
    number = ws.phi.dtype.type
    x, y = samples.x[0, block], samples.x[1, block]
    for j in range(width):
        if laplace:
            _laplace_row(x, y, number(ws.w[j, 0]), number(ws.w[j, 1]), ws.phi[block, j])
        else:
            _cos_row(x, y, number(ws.w[j, 0]), number(ws.w[j, 1]), ws.phi[block, j])
        ws.phi[block, j, samples.count - block * _BLOCK :] = 0.0


@compiled()
def _back(phi, r, sums, column):
    """sums[j, column] += sum_i phi_ji r_i in one block."""
    for first in range(0, sums.shape[0], 4):
        _dot_rows(phi, r, first, sums, column)


@compiled()
def _evaluate_part(samples, ws, part, width, laplace):
    """The sums of phi r and of phi y over one part of the samples, with the features and residuals they need."""
    sums, first, second = ws.sums[part], ws.scratch[part, 0], ws.scratch[part, 1]
    sums[:] = 0.0
    for block in _chunk(part, ws.phi.shape[0]):
        _make_block(samples, ws, block, width, laplace)
        residual, y = ws.residual[block], samples.y[block]
        _forth(ws.phi[block], ws.u, first, residual)
        for i in range(_BLOCK):
            residual[i] = residual[i] / width - y[i]
            first[i] = residual[i]
            second[i] = y[i]
        _back(ws.phi[block], first, sums, 0)
        _back(ws.phi[block], second, sums, 1)


@compiled()
def _multiply_part(ws, part, width):
    """The sums of phi (phi p / M) over one part of the samples."""
    sums, first = ws.sums[part], ws.scratch[part, 0]
    sums[:] = 0.0
    for block in _chunk(part, ws.phi.shape[0]):
        product = ws.product[block]
        _forth(ws.phi[block], ws.direction, first, product)
        for i in range(_BLOCK):
            product[i] /= width
            first[i] = product[i]
        _back(ws.phi[block], first, sums, 0)


@compiled()
def _pull_back_part(samples, ws, part, width, laplace):
    """The sums of r d phi / d w over one part of the samples."""
    number = ws.phi.dtype.type
    sums, r = ws.sums[part], ws.scratch[part, 0]
    sums[:] = 0.0
    for block in _chunk(part, ws.phi.shape[0]):
        x, y = samples.x[0, block], samples.x[1, block]
        for i in range(_BLOCK):
            r[i] = ws.residual[block, i]
        for j in range(width):
            w0, w1 = number(ws.w[j, 0]), number(ws.w[j, 1])
            if laplace:
                sum0, sum1 = _laplace_slope(x, y, w0, w1, ws.phi[block, j], r)
            else:
                sum0, sum1 = _cos_slope(x, y, w0, w1, r)
            sums[j, 0] += sum0
            sums[j, 1] += sum1


@compiled(parallel=True)
def _evaluate(samples, ws, width, laplace, lmbda, centre):
    """Features at w, residual f - y and slope b - A u at u; returns |b|."""
    for part in prange(ws.sums.shape[0]):
        _evaluate_part(samples, ws, part, width, laplace)
    return _finish_slope(samples, ws, width, lmbda, centre)


@compiled()
def _finish_slope(samples, ws, width, lmbda, centre):
    _means(ws.sums, 0, samples.count, ws.slope)
    _means(ws.sums, 1, samples.count, ws.image)
    size = 0.0
    for j in range(width):
        ws.slope[j] = -ws.slope[j] - lmbda * (ws.u[j] - centre)
        size += (ws.image[j] + lmbda * centre) ** 2
    return math.sqrt(size)


@compiled(parallel=True)
def _multiply(samples, ws, width, lmbda):
    """product <- phi p / M, image <- A p for p = direction."""
    for part in prange(ws.sums.shape[0]):
        _multiply_part(ws, part, width)
    _means(ws.sums, 0, samples.count, ws.image)
    _add_ridge(ws, lmbda)


@compiled()
def _add_ridge(ws, lmbda):
    for j in range(ws.image.shape[0]):
        ws.image[j] += lmbda * ws.direction[j]


@compiled(parallel=True)
def _pull_back(samples, ws, width, laplace, out):
    """out[:, j] <- (1/N) sum_i r_i d phi(w_j, x_i) / d w_j: (2, M)."""
    for part in prange(ws.sums.shape[0]):
        _pull_back_part(samples, ws, part, width, laplace)
    _means(ws.sums, 0, samples.count, out[0])
    _means(ws.sums, 1, samples.count, out[1])


# --- inner solve -------------------------------------------------------------------------------------------------


@compiled(fastmath=VECTORISED)
def _dot(a, b):
    total = a.dtype.type(0.0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@compiled(parallel=True)
def _precondition(ws, scale, single, out):
    """out <- inverse * slope, the slope scaled to size 1 meanwhile."""
    single[:] = ws.slope / scale
    for j in prange(out.shape[0]):
        out[j] = scale * _dot(ws.inverse[j], single)


@compiled()
def _conjugate_gradients(samples, ws, width, lmbda, size, tolerance):
    """Lower |b - A u| / |b| below ``tolerance`` from u; returns the steps, and whether it was met.

    u, the slope b - A u and the residual f - y go along together.
    """
    if size == 0.0:  # b = 0, and so is u: no step would come that close
        ws.u[:], ws.slope[:] = 0.0, 0.0
        ws.residual[:] = -samples.y
    single, z = np.empty(ws.u.shape[0], ws.phi.dtype), np.empty(ws.u.shape[0])
    previous = 1.0
    for step in range(_STEPS + 1):
        ws.worst[1] = math.sqrt(_dot(ws.slope, ws.slope)) / size if size != 0.0 else 0.0
        if ws.worst[1] <= tolerance or step == _STEPS:
            break
        _precondition(ws, ws.worst[1] * size, single, z)
        energy = _dot(ws.slope, z)
        ws.direction[:] = z + (energy / previous if step else 0.0) * ws.direction
        previous = energy
        _multiply(samples, ws, width, lmbda)
        curvature = _dot(ws.direction, ws.image)
        if not (curvature > 0.0 and energy > 0.0):
            break
        length = energy / curvature
        ws.u[:] += length * ws.direction
        ws.slope[:] -= length * ws.image
        for block in range(ws.residual.shape[0]):
            for i in range(_BLOCK):
                ws.residual[block, i] += length * ws.product[block, i]
    met = ws.worst[1] <= tolerance
    if met:
        ws.worst[0] = max(ws.worst[0], ws.worst[1])
    return step, met


@compiled()
def _extrapolate(ws):
    """u at the next epoch from the last three: constant, linear or quadratic in time as far as the history goes."""
    past = int(ws.counts[_PAST])
    for j in range(ws.u.shape[0]):
        u, before, earlier = ws.u[j], ws.history[0, j], ws.history[1, j]
        ws.history[0, j], ws.history[1, j] = u, before
        if past == 1:
            ws.u[j] = 2.0 * u - before
        elif past >= 2:
            ws.u[j] = 3.0 * (u - before) + earlier
    ws.counts[_PAST] = past + 1


@compiled()
def _step_weights(samples, ws, width, laplace, rate, gradient):
    """w_j <- wrap(w_j - rate u_j mean_i r_i d phi(w_j, x_i) / d w_j); False where one is not finite."""
    _pull_back(samples, ws, width, laplace, gradient)
    sound = True
    for j in range(width):
        for axis in range(2):
            ws.w[j, axis] = _wrap(ws.w[j, axis] - rate * ws.u[j] * gradient[axis, j])
            sound &= np.isfinite(ws.w[j, axis])
    return sound


@compiled(fastmath=VECTORISED)
def _loss(samples, ws, width, lmbda, centre):
    """L = mean r^2 / (2 lam) + mean (u - c)^2 / 2."""
    data = penalty = 0.0
    for block in range(ws.residual.shape[0]):
        for i in range(min(_BLOCK, samples.count - block * _BLOCK)):
            data += ws.residual[block, i] ** 2
    for j in range(width):
        penalty += (ws.u[j] - centre) ** 2
    return data / samples.count / (2.0 * lmbda) + penalty / width / 2.0


@compiled()
def _count(ws, steps, price):
    """Keep the account of a solve; True where a new preconditioner pays.

    ``price`` is its cost in steps. It pays where an epoch takes more steps than an epoch has cost on average since the
    last one was made, that one included: there the average is least.
    """
    ws.counts[_SOLVES] += 1
    ws.counts[_STEPS_TAKEN] += steps
    ws.counts[_AGE] += 1
    ws.counts[_AGE_STEPS] += steps
    ws.counts[_AVERAGE] += (steps - ws.counts[_AVERAGE]) / min(ws.counts[_AGE], _MEMORY)
    return ws.counts[_AVERAGE] * ws.counts[_AGE] > price + ws.counts[_AGE_STEPS]


@compiled()
def _epochs(samples, ws, width, laplace, lmbda, centre, time_scale, tolerance, price, losses, first):
    """VarPro epochs from number ``first``: loss, step of the weights, inner solve.

    Returns the next epoch and how it ended; early where a new preconditioner is wanted, and with NaN from that loss on
    where the state is not finite.
    """
    gradient = np.empty((2, ws.u.shape[0]))
    for epoch in range(first, losses.shape[0]):
        loss = _loss(samples, ws, width, lmbda, centre)
        if not (np.isfinite(loss) and _step_weights(samples, ws, width, laplace, time_scale / lmbda, gradient)):
            return losses.shape[0], _MET
        losses[epoch] = loss
        _extrapolate(ws)
        size = _evaluate(samples, ws, width, laplace, lmbda, centre)
        steps, met = _conjugate_gradients(samples, ws, width, lmbda, size, tolerance)
        stale = _count(ws, steps, price)
        if stale or not met:
            return epoch + 1, _STALE if met else _MISSED
    return losses.shape[0], _MET


# --- for callers -------------------------------------------------------------------------------------------------


def _zeros(*shape: int, dtype: str | type = "float64") -> np.ndarray:
    """Zeros from the beginning of a cache line on: where vectors reach into the next one, an epoch takes 5 % longer."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _LINE, np.uint8)
    first = -memory.ctypes.data % _LINE
    return memory[first : first + size].view(dtype).reshape(shape)


def _blocked(values: np.ndarray, dtype: type) -> np.ndarray:
    """``values (n, N)`` in blocks, padded with zeros: (n, blocks, 128)."""
    blocks = -(-values.shape[1] // _BLOCK)
    out = _zeros(len(values), blocks * _BLOCK, dtype=dtype)
    out[:, : values.shape[1]] = values
    return out.reshape(len(values), blocks, _BLOCK)


def workspace(blocks: int, width: int, dtype: str) -> Workspace:
    """An empty workspace for ``width`` neurons."""
    padded = -(-width // 4) * 4
    parts = min(_CHUNKS, blocks)
    return Workspace(
        phi=_zeros(blocks, padded, _BLOCK, dtype=dtype),
        w=_zeros(padded, 2),
        u=_zeros(padded),
        history=_zeros(2, padded),
        residual=_zeros(blocks, _BLOCK),
        product=_zeros(blocks, _BLOCK),
        sums=_zeros(parts, padded, 2),
        scratch=_zeros(parts, 2, _BLOCK, dtype=dtype),
        inverse=_zeros(padded, padded, dtype=dtype),
        slope=_zeros(padded),
        direction=_zeros(padded),
        image=_zeros(padded),
        counts=_zeros(8),
        worst=_zeros(2),
    )


def compile_apart(dtype: str) -> None:
    """Fill numba's cache in a process of its own.

    Code that was just compiled and code from the cache differ in the last bits of sums: so all processes load it.
    """
    quiet = "from signal import *; signal(SIGINT, SIG_DFL)"  # Ctrl-C goes to both; the other process has the line
    work = f"from varpro.solvers import torus; torus.warm_up({dtype!r})"
    subprocess.run([sys.executable, "-c", f"{quiet}; {work}"], check=False)


def warm_up(dtype: str) -> None:
    """Load all that an epoch runs, or compile it."""
    points = np.linspace(-1, 1, 8).reshape(4, 2)
    solver = TorusSolver("laplace", points, points[:, 0], 1.0, 0.0, 0.1, dtype)
    weights = points[:2].copy()
    solver.advance(weights, solver.solve(weights), 2)


class TorusSolver(Solver[np.ndarray]):
    """The ``cg`` solver on the CPU: VarPro for radial kernels on the torus, targets with one output.

    ``kernel`` is the name of one of :data:`KERNELS`; ``inputs (N, 2)`` and ``targets (N,)`` are arrays; ``lmbda > 0``;
    ``centre`` is the penalty centre c; ``time_scale`` is the learning rate of the weights per neuron; ``dtype`` is the
    precision of the features. Every inner solve leaves |b - A u| <= 1e-6 |b| in float32 and 1e-10 |b| in float64.
    """

    name, devices, dtypes = "cg", ("cpu",), ("float32", "float64")

    def __init__(
        self,
        kernel: str,
        inputs: np.ndarray,
        targets: np.ndarray,
        lmbda: float,
        centre: float,
        time_scale: float,
        dtype: str = "float32",
    ) -> None:
        if kernel not in KERNELS:
            raise ValueError(f"kernel: {kernel!r} is not allowed: {' or '.join(KERNELS)}")
        check_constants(lmbda, centre, "ridge")
        self.dtype = dtype
        inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
        if inputs.ndim != 2 or inputs.shape[1] != 2 or targets.shape != inputs.shape[:1]:
            raise ValueError(f"inputs {inputs.shape} with targets {targets.shape} are not allowed: (N, 2) with (N,)")
        self.samples = Samples(_blocked(inputs.T, dtype), _blocked(targets[None], np.float64)[0], len(inputs))
        self.laplace = kernel == LAPLACE.name
        self.lmbda, self.centre, self.time_scale = float(lmbda), float(centre), float(time_scale)
        self._tolerance = RESIDUAL[dtype]
        self._workspace: Workspace | None = None
        self._width = 0
        self._thread_choice = ThreadChoice()

    @classmethod
    def obstacle(cls, objective: Objective, problem: Problem) -> str:
        features = objective.features
        if type(features) is not RadialTorus or features.kernel not in KERNELS.values():
            return f"is compiled for the kernels {' and '.join(KERNELS)} on the torus, not for {features.name}"
        if objective.outer_update != "ridge":
            return "computes VarPro, not two-timescale descent"
        if problem.targets.shape[1] > 1:
            return "takes targets with one output"
        wide = len(problem.student) > _WIDEST
        return f"keeps matrices of M x M, too large for more than {_WIDEST} neurons" if wide else ""

    @classmethod
    def drawback(cls, objective: Objective, problem: Problem) -> str:
        return wide_student(problem)

    @classmethod
    def compilation(cls, objective: Objective, problem: Problem, dtype: str) -> int:
        return 0 if in_cache(_epochs, mentioning=f"(Samples(array({dtype}, 3d") else 20

    @classmethod
    def build(cls, objective: Objective, problem: Problem, *, device: str, dtype: str, tf32: bool) -> "TorusSolver":
        if is_kept(_epochs) and cls.compilation(objective, problem, dtype):
            compile_apart(dtype)
        warm_up(dtype)  # not in the time of the training
        data = problem.inputs.numpy(), problem.targets[:, 0].numpy()
        return cls(objective.features.kernel.name, *data, *objective.constants, dtype)

    def own(self, tensor: torch.Tensor) -> np.ndarray:
        """A float64 copy in the form the other methods take: weights (M, 2) or outer weights (M,)."""
        return tensor.double().numpy().copy()

    def solve(self, weights: np.ndarray) -> np.ndarray:
        """Optimal outer weights (M,) for ``weights (M, 2)``."""
        _check_finite(weights)
        self._enter(weights, np.full(len(weights), self.centre))
        return self._workspace.u[: self._width].copy()

    def reduced(self, weights: np.ndarray) -> Reduced:
        """R(w) = min_u L at ``weights (M, 2)``, its gradient (M, 2), and u (M,).

        The outer weights and the preconditioner of the last state are the start: close states cost least.
        """
        _check_finite(weights)
        with _threads(self._most_threads(len(weights))):
            if self._workspace is None or self._width != len(weights):
                self._enter(weights, np.full(len(weights), self.centre))
            else:
                self._move(weights)
            ws, width = self._workspace, self._width
            risk = _loss(self.samples, ws, width, self.lmbda, self.centre)
            slopes = np.empty((2, len(ws.u)))
            _pull_back(self.samples, ws, width, self.laplace, slopes)
        # dL/dw_j = u_j mean_i(r_i d phi(w_j, x_i) / d w_j) / (lam M)
        gradient = (ws.u * slopes)[:, :width].T / (self.lmbda * width)
        return Reduced(float(risk), gradient, ws.u[:width].copy())

    def advance(self, weights: np.ndarray, outer: np.ndarray, epochs: int) -> np.ndarray:
        """Train ``weights (M, 2)`` and ``outer (M,)`` in place for ``epochs`` epochs; returns the losses (epochs,).

        The state must have optimal outer weights, and has them afterwards. A state other than the one this solver left
        last is gone on from with a new preconditioner.
        """
        losses, epoch = np.full(epochs, np.nan), 0
        if not (np.isfinite(weights).all() and np.isfinite(outer).all()):
            return losses
        if not self._holds(weights, outer):
            self._enter(weights, outer)
        ws = self._workspace
        problem = (self.lmbda, self.centre, self.time_scale, self._tolerance, self._price())
        while epoch < epochs:
            threads, count = self._thread_choice.plan(self._most_threads(self._width), epochs - epoch)
            begin, first, part = time.perf_counter(), epoch, losses[: epoch + count]
            with _threads(threads):
                epoch, ending = _epochs(self.samples, ws, self._width, self.laplace, *problem, part, epoch)
            self._thread_choice.note(threads, epoch - first, time.perf_counter() - begin)
            if ending != _MET:
                self._renew()
            if ending == _MISSED:
                self._solve()
        weights[:], outer[:] = ws.w[: self._width], ws.u[: self._width]
        return losses

    def report(self) -> dict[str, float]:
        """``worst_residual``: the largest |b - A u| / |b| that was accepted; and the effort since the width was set."""
        ws, names = self._workspace, ("solves", "steps", "factorisations", "exact")
        if ws is None:
            return {"worst_residual": 0.0} | dict.fromkeys(names, 0)
        return {"worst_residual": float(ws.worst[0])} | dict(zip(names, map(int, ws.counts[:4]), strict=True))

    def _price(self) -> float:
        """The cost of a preconditioner in conjugate-gradient steps: multiply-adds, those of matrix products faster."""
        width, count = len(self._workspace.u), self.samples.count
        return 10 + (0.1 * count * width**2 + 0.5 * width**3) / (2 * count * width + width**2)

    def _holds(self, weights: np.ndarray, outer: np.ndarray) -> bool:
        ws, width = self._workspace, self._width
        return width == len(weights) and np.array_equal(ws.w[:width], weights) and np.array_equal(ws.u[:width], outer)

    def _enter(self, weights: np.ndarray, outer: np.ndarray) -> None:
        """Take up a state and make its outer weights optimal."""
        width = self._width = len(weights)
        if self._workspace is None or len(self._workspace.u) != -(-width // 4) * 4:
            self._workspace = workspace(len(self.samples.y), width, self.dtype)
        ws = self._workspace
        ws.phi[:, width:], ws.u[width:] = 0.0, 0.0
        ws.w[:width], ws.u[:width] = weights, outer
        ws.counts[_PAST] = 0
        self._evaluate()
        self._renew()
        self._solve()

    def _move(self, weights: np.ndarray) -> None:
        """Optimal outer weights at other ``weights (M, 2)``, with the preconditioner at hand if it does."""
        ws = self._workspace
        ws.w[: self._width] = weights
        ws.counts[_PAST] = 0
        size = self._evaluate()
        steps, met = _conjugate_gradients(self.samples, ws, self._width, self.lmbda, size, self._tolerance)
        if _count(ws, steps, self._price()) or not met:
            self._renew()
        if not met:
            self._solve()

    def _most_threads(self, width: int) -> int:
        """One where there is little to do, else as many as numba has."""
        return 1 if self.samples.count * width <= _SERIAL else get_num_threads()

    def _evaluate(self) -> float:
        """Features, residual and slope at the state; returns |b|."""
        return _evaluate(self.samples, self._workspace, self._width, self.laplace, self.lmbda, self.centre)

    def _gram(self, dtype: str) -> np.ndarray:
        """The upper triangle of A - lam I, (M, M) in Fortran order."""
        ws = self._workspace
        syrk = blas.get_blas_funcs("syrk", dtype=np.dtype(dtype))
        gram = np.zeros((len(ws.u), len(ws.u)), dtype, order="F")
        scale = 1.0 / (self.samples.count * self._width)
        for block in ws.phi:
            gram = syrk(scale, block.astype(dtype, copy=False).T, beta=1.0, c=gram, trans=1, overwrite_c=1)
        return gram

    @one_blas_thread()
    def _renew(self) -> None:
        """The inverse of A at the features at hand, as the preconditioner."""
        ws = self._workspace
        factor = _factored(self._gram(self.dtype).astype(np.float64), self.lmbda)
        inverse, _ = lapack.dpotri(factor, lower=0, overwrite_c=1)
        ws.inverse[:] = np.triu(inverse) + np.triu(inverse, 1).T
        ws.counts[_FACTORISATIONS] += 1
        ws.counts[_AGE:] = 0

    @one_blas_thread()
    def _solve(self) -> None:
        """u <- argmin_u L with a fresh preconditioner at hand; exactly, where conjugate gradients do not do."""
        if self._corrected():
            return
        ws = self._workspace
        ws.counts[_EXACT] += 1
        factor = _factored(self._gram("float64"), self.lmbda)
        ws.u[:] = self.centre
        ws.u[self._width :] = 0.0
        for _ in range(3):  # the second and third refine
            self._evaluate()
            ws.u[:] += lapack.dpotrs(factor, ws.slope, lower=0)[0]
        if not self._corrected():
            raise unsolved(ws.worst[1], self.dtype, self.lmbda)

    def _corrected(self) -> bool:
        """Conjugate gradients from u at the features at hand; whether they met the tolerance."""
        ws = self._workspace
        steps, met = _conjugate_gradients(self.samples, ws, self._width, self.lmbda, self._evaluate(), self._tolerance)
        _count(ws, steps, self._price())
        return met


def _check_finite(weights: np.ndarray) -> None:
    """The raised cosine takes a NaN for a place that no sample sees."""
    if not np.isfinite(weights).all():
        raise FloatingPointError("inner solve: the weights are not finite; try a smaller time scale")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compiled loops in ``count`` threads meanwhile; results do not depend on it."""
    usual = get_num_threads()
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(usual)


def _factored(gram: np.ndarray, lmbda: float) -> np.ndarray:
    """The upper Cholesky factor of gram + ridge I with the least ridge >= lam of a few that can be had."""
    diagonal = np.arange(len(gram))

    def factored(ridge: float) -> np.ndarray | None:
        matrix = gram.copy(order="F")
        matrix[diagonal, diagonal] += ridge
        factor, failed = lapack.dpotrf(matrix, lower=0, clean=1, overwrite_a=1)
        return None if failed else factor

    return with_least_ridge(factored, lmbda, gram[diagonal, diagonal].mean())
