"""The epoch on the paper's torus in 4 + 4 s Triton kernels, s being the steps of conjugate gradients.

For the radial kernels of Appendix B and one output; the same epoch as :class:`varpro.solvers.epochs.TensorEpoch`, which
is for everything else. Offsets and radii are computed where they are needed, from 2 M + 2 N coordinates, and never
stored: an epoch writes phi once and reads it 1 + 2 s times.

A kernel whose programs own neurons loops over all samples, one whose programs own samples over all neurons. A number
that all programs need, such as s . z, is left as one part a program, and each program of the next kernel adds up the
parts in the same order: no atomics, the same bits in every run. Products are in the precision of the features, sums
over tiles in float64.

    move        own neurons   loss; gradient, step and wrap of w; u <- 3 (u - u') + u''; the state before is kept
    fill        own samples   phi; f - y
    slope       own neurons   b - A u, with phi^T (f - y) and phi^T y in one pass; |b - A u|^2 and |b|^2
    energy      own neurons   z = P s; s . z
    direct      own samples   p <- z + (s . z / last s . z) p; phi p / M
    curve       own neurons   q = A p; p . q
    correct     both          u, s and f - y along p
    conclude    one program   the record of the epoch

Several seeds would be a leading dimension of every grid. They are not here: the number of steps, what is taken back and
when a preconditioner is made anew are decided for each run by itself.

This module imports triton, which not every machine with PyTorch has; :mod:`varpro.solvers.graphs` imports it where it
is there and a device is to use it. With TRITON_INTERPRET=1 the kernels run on the CPU, slowly, for tests.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
from triton import language as tl

from varpro.features import LAPLACE, RAISED_COSINE, RadialTorus
from varpro.solvers.epochs import TINY, Epoch, EpochProblem, columns, quarters

_KERNELS = {LAPLACE: 0, RAISED_COSINE: 1}
_LAMBDA, _CENTRE, _RATE = (tl.constexpr(place) for place in range(3))  # in ``constants``
_TINY = tl.constexpr(TINY)
_PI = tl.constexpr(3.141592653589793)
_OPTIONS = {"enable_fp_fusion": True}  # said because triton's default is about to change


# --- geometry ----------------------------------------------------------------------------------------------------


@triton.jit
def _quarters(points):
    """wrap(points) / 4, in [-1/2, 1/2)."""
    turns = points * 0.25
    return turns - tl.floor(turns + 0.5)


@triton.jit
def _floor_at(values, least):
    """max(values, least), NaN where ``values`` are NaN, which the maximum of a GPU is not."""
    return tl.where(values < least, least, values)


@triton.jit
def _offsets(first, second, x, y):
    """The offset w - x in quarters, (BM, BN) by coordinate, and h = |offset|, from places of neurons and samples."""
    across = first[:, None] - x[None, :]
    across -= tl.floor(across + 0.5)  # exact where w is close to x; either sign on the seam itself
    along = second[:, None] - y[None, :]
    along -= tl.floor(along + 0.5)
    h = _floor_at(tl.sqrt(across * across + along * along), tl.abs(across))
    return across, along, _floor_at(h, tl.abs(along))  # two floors, for squares that underflow


@triton.jit
def _value(h, KERNEL: tl.constexpr):
    """g(r) at r = 4 h."""
    if KERNEL == 0:
        value = 8 * tl.exp(-8 * h)
    else:
        cosine = tl.cos(h * _PI)
        value = tl.where(h >= 0.5, 0.0, cosine * cosine)  # (1 + cos(pi r / 2)) / 2
    return value


@triton.jit
def _slope(h, KERNEL: tl.constexpr):
    """4 g'(r) / r at r = 4 h, finite at 0: d phi / d w is this times the offset in quarters."""
    h = _floor_at(h, 1e-30)
    if KERNEL == 0:
        slope = -16 * tl.exp(-8 * h) / h
    else:
        slope = tl.where(h >= 0.5, 0.0, (-_PI * _PI / 2) * tl.sin(h * (2 * _PI)) / (h * (2 * _PI)))
    return slope


@triton.jit
def _pull_back(first, second, samples, residuals, N, KERNEL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """sum_i r_i d phi(w_j, x_i) / d w_j of neurons at (``first``, ``second``), by coordinate."""
    kind = samples.dtype.element_ty
    first = _quarters(first).to(kind)
    second = _quarters(second).to(kind)
    sum_across = tl.zeros((BM,), tl.float64)
    sum_along = tl.zeros((BM,), tl.float64)
    for start in range(0, N, BN):
        i = start + tl.arange(0, BN)
        here = i < N
        residual = tl.load(residuals + i, mask=here, other=0.0).to(kind)
        x = tl.load(samples + i, mask=here, other=0.0)
        y = tl.load(samples + N + i, mask=here, other=0.0)
        across, along, h = _offsets(first, second, x, y)
        force = _slope(h, KERNEL) * residual[None, :]
        sum_across += tl.sum(force * across, axis=1).to(tl.float64)
        sum_along += tl.sum(force * along, axis=1).to(tl.float64)
    return sum_across, sum_along


@triton.jit
def _total(parts, P, BP: tl.constexpr):
    """The sum of ``P`` parts, in the same order in every program."""
    place = tl.arange(0, BP)
    return tl.sum(tl.load(parts + place, mask=place < P, other=0.0), axis=0)


# --- kernels -----------------------------------------------------------------------------------------------------
# state: w (M, 2), u, u', u'' (M,), f - y (N,), one after the other. Capital sizes are numbers, B... those of tiles.


@triton.jit
def _gradient(state, samples, gradient, M, N, KERNEL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """sum_i r_i u_j d phi(w_j, x_i) / d w_j: (M, 2)."""
    j = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = j < M
    first = tl.load(state + 2 * j, mask=inside, other=0.0)
    second = tl.load(state + 2 * j + 1, mask=inside, other=0.0)
    outer = tl.load(state + 2 * M + j, mask=inside, other=0.0)
    across, along = _pull_back(first, second, samples, state + 5 * M, N, KERNEL, BM, BN)
    tl.store(gradient + 2 * j, outer * across, mask=inside)
    tl.store(gradient + 2 * j + 1, outer * along, mask=inside)


@triton.jit
def _move(
    state,
    samples,
    starts,
    place,
    losses,
    constants,
    M,
    N,
    KERNEL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """w <- wrap(w - rate u sum_i r_i d phi / d w), extrapolated u; the state before and the parts of its loss."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    row = starts + tl.load(place) * (5 * M + N)
    squares = tl.full((), 0.0, tl.float64)
    for start in range(program * BN, N, programs * BN):
        i = start + tl.arange(0, BN)
        here = i < N
        residual = tl.load(state + 5 * M + i, mask=here, other=0.0)
        tl.store(row + 5 * M + i, residual, mask=here)
        squares += tl.sum(residual * residual, axis=0)
    tl.store(losses + program, squares)

    j = program * BM + tl.arange(0, BM)
    inside = j < M
    first = tl.load(state + 2 * j, mask=inside, other=0.0)  # all is read before the sums, and written after them
    second = tl.load(state + 2 * j + 1, mask=inside, other=0.0)
    outer = tl.load(state + 2 * M + j, mask=inside, other=0.0)
    earlier = tl.load(state + 3 * M + j, mask=inside, other=0.0)
    earliest = tl.load(state + 4 * M + j, mask=inside, other=0.0)
    excess = tl.where(inside, outer - tl.load(constants + _CENTRE), 0.0)
    tl.store(losses + programs + program, tl.sum(excess * excess, axis=0))

    across, along = _pull_back(first, second, samples, state + 5 * M, N, KERNEL, BM, BN)
    rate = tl.load(constants + _RATE) * outer
    tl.store(row + 2 * j, first, mask=inside)
    tl.store(row + 2 * j + 1, second, mask=inside)
    tl.store(row + 2 * M + j, outer, mask=inside)
    tl.store(row + 3 * M + j, earlier, mask=inside)
    tl.store(row + 4 * M + j, earliest, mask=inside)
    tl.store(state + 2 * j, 4 * _quarters(first - rate * across), mask=inside)
    tl.store(state + 2 * j + 1, 4 * _quarters(second - rate * along), mask=inside)
    tl.store(state + 2 * M + j, 3 * (outer - earlier) + earliest, mask=inside)
    tl.store(state + 3 * M + j, outer, mask=inside)
    tl.store(state + 4 * M + j, earlier, mask=inside)


@triton.jit
def _fill(
    state,
    samples,
    targets,
    features,
    M,
    N,
    PREDICT: tl.constexpr,
    KERNEL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """phi at w; with PREDICT also the residual phi u / M - y."""
    kind = samples.dtype.element_ty
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    here = i < N
    x = tl.load(samples + i, mask=here, other=0.0)
    y = tl.load(samples + N + i, mask=here, other=0.0)
    outputs = tl.zeros((BN,), tl.float64)
    for start in range(0, M, BM):
        j = start + tl.arange(0, BM)
        inside = j < M
        first = _quarters(tl.load(state + 2 * j, mask=inside, other=0.0)).to(kind)
        second = _quarters(tl.load(state + 2 * j + 1, mask=inside, other=0.0)).to(kind)
        _across, _along, h = _offsets(first, second, x, y)
        value = _value(h, KERNEL)
        tl.store(features + j.to(tl.int64)[:, None] * N + i[None, :], value, mask=inside[:, None] & here[None, :])
        if PREDICT:
            outer = (tl.load(state + 2 * M + j, mask=inside, other=0.0) / M).to(kind)
            outputs += tl.sum(value * outer[:, None], axis=0).to(tl.float64)
    if PREDICT:
        tl.store(state + 5 * M + i, outputs - tl.load(targets + i, mask=here, other=0.0), mask=here)


@triton.jit
def _slopes(
    state,
    features,
    targets,
    slope,
    direction,
    last,
    sizes,
    constants,
    M,
    N,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """b - A u, |b - A u|^2 and |b|^2; conjugate gradients start anew."""
    kind = features.dtype.element_ty
    program = tl.program_id(0)
    j = program * BM + tl.arange(0, BM)
    inside = j < M
    rows = features + j.to(tl.int64)[:, None] * N
    of_residual = tl.zeros((BM,), tl.float64)
    of_targets = tl.zeros((BM,), tl.float64)
    for start in range(0, N, BN):
        i = start + tl.arange(0, BN)
        here = i < N
        value = tl.load(rows + i[None, :], mask=inside[:, None] & here[None, :], other=0.0)
        residual = tl.load(state + 5 * M + i, mask=here, other=0.0).to(kind)
        target = tl.load(targets + i, mask=here, other=0.0).to(kind)
        of_residual += tl.sum(value * residual[None, :], axis=1).to(tl.float64)
        of_targets += tl.sum(value * target[None, :], axis=1).to(tl.float64)
    lmbda = tl.load(constants + _LAMBDA)
    centre = tl.load(constants + _CENTRE)
    outer = tl.load(state + 2 * M + j, mask=inside, other=0.0)
    found = tl.where(inside, lmbda * (centre - outer) - of_residual / N, 0.0)
    right = tl.where(inside, lmbda * centre + of_targets / N, 0.0)
    tl.store(slope + j, found, mask=inside)
    tl.store(direction + j, tl.zeros((BM,), tl.float64), mask=inside)
    tl.store(sizes + program, tl.sum(found * found, axis=0))
    tl.store(sizes + tl.num_programs(0) + program, tl.sum(right * right, axis=0))
    if program == 0:
        tl.store(last, 1.0)


@triton.jit
def _energy(inverse, slope, z, energies, M, BM: tl.constexpr, BN: tl.constexpr):
    """z = P s, and s . z."""
    program = tl.program_id(0)
    j = program * BM + tl.arange(0, BM)
    inside = j < M
    rows = inverse + j.to(tl.int64)[:, None] * M
    total = tl.zeros((BM,), tl.float64)
    for start in range(0, M, BN):
        other = start + tl.arange(0, BN)
        there = other < M
        tile = tl.load(rows + other[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        total += tl.sum(tile * tl.load(slope + other, mask=there, other=0.0)[None, :], axis=1)
    tl.store(z + j, total, mask=inside)
    tl.store(energies + program, tl.sum(total * tl.load(slope + j, mask=inside, other=0.0), axis=0))


@triton.jit
def _direct(
    features,
    z,
    direction,
    new_direction,
    last,
    energies,
    change,
    M,
    N,
    P,
    BP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """p <- z + (s . z / last s . z) p, and phi p / M. The old p stays meanwhile: other programs read it."""
    kind = features.dtype.element_ty
    program = tl.program_id(0)
    i = program * BN + tl.arange(0, BN)
    here = i < N
    growth = _total(energies, P, BP) / tl.load(last)
    outputs = tl.zeros((BN,), tl.float64)
    for start in range(0, M, BM):
        j = start + tl.arange(0, BM)
        inside = j < M
        tile = features + j.to(tl.int64)[:, None] * N + i[None, :]
        value = tl.load(tile, mask=inside[:, None] & here[None, :], other=0.0)
        old = tl.load(direction + j, mask=inside, other=0.0)
        new = tl.load(z + j, mask=inside, other=0.0) + growth * old
        if program == 0:
            tl.store(new_direction + j, new, mask=inside)
        outputs += tl.sum(value * (new / M).to(kind)[:, None], axis=0).to(tl.float64)
    tl.store(change + i, outputs, mask=here)


@triton.jit
def _curve(
    features,
    change,
    new_direction,
    image,
    curvatures,
    constants,
    M,
    N,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """q = A p = lam p + phi^T (phi p / M) / N, and p . q."""
    kind = features.dtype.element_ty
    program = tl.program_id(0)
    j = program * BM + tl.arange(0, BM)
    inside = j < M
    rows = features + j.to(tl.int64)[:, None] * N
    total = tl.zeros((BM,), tl.float64)
    for start in range(0, N, BN):
        i = start + tl.arange(0, BN)
        here = i < N
        value = tl.load(rows + i[None, :], mask=inside[:, None] & here[None, :], other=0.0)
        total += tl.sum(value * tl.load(change + i, mask=here, other=0.0).to(kind)[None, :], axis=1).to(tl.float64)
    direction = tl.load(new_direction + j, mask=inside, other=0.0)
    found = tl.load(constants + _LAMBDA) * direction + tl.where(inside, total, 0.0) / N
    tl.store(image + j, found, mask=inside)
    tl.store(curvatures + program, tl.sum(direction * found, axis=0))


@triton.jit
def _correct(
    state,
    slope,
    direction,
    new_direction,
    image,
    change,
    last,
    energies,
    curvatures,
    M,
    N,
    P,
    BP: tl.constexpr,
    B: tl.constexpr,
):
    """u, b - A u and f - y along p, as far as the least L on that line."""
    program = tl.program_id(0)
    k = program * B + tl.arange(0, B)
    energy = _total(energies, P, BP)
    length = energy / _floor_at(_total(curvatures, P, BP), _TINY)
    inside = k < M
    new = tl.load(new_direction + k, mask=inside, other=0.0)
    outer = tl.load(state + 2 * M + k, mask=inside, other=0.0)
    left = tl.load(slope + k, mask=inside, other=0.0) - length * tl.load(image + k, mask=inside, other=0.0)
    tl.store(state + 2 * M + k, outer + length * new, mask=inside)
    tl.store(slope + k, left, mask=inside)
    tl.store(direction + k, new, mask=inside)
    here = k < N
    residual = tl.load(state + 5 * M + k, mask=here, other=0.0)
    moved = residual + length * tl.load(change + k, mask=here, other=0.0)
    tl.store(state + 5 * M + k, moved, mask=here)
    if program == 0:
        tl.store(last, _floor_at(energy, _TINY))


@triton.jit
def _conclude(
    slope,
    losses,
    sizes,
    constants,
    records,
    place,
    M,
    N,
    P,
    BP: tl.constexpr,
    B: tl.constexpr,
):
    """Loss and relative residuals of the epoch into its row; the next epoch has the next one."""
    number = tl.load(place)
    squares = tl.full((), 0.0, tl.float64)
    for start in range(0, M, B):
        j = start + tl.arange(0, B)
        left = tl.load(slope + j, mask=j < M, other=0.0)
        squares += tl.sum(left * left, axis=0)
    size = _floor_at(tl.sqrt(_total(sizes + P, P, BP)), _TINY)
    data = _total(losses, P, BP) / N / (2 * tl.load(constants + _LAMBDA))
    row = records + 3 * number
    tl.store(row, data + _total(losses + P, P, BP) / M / 2)
    tl.store(row + 1, tl.sqrt(_total(sizes, P, BP)) / size)
    tl.store(row + 2, tl.sqrt(squares) / size)
    tl.debug_barrier()  # all threads have read the number
    tl.store(place, number + 1)


# --- the epoch ---------------------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """Sizes of tiles, powers of two: neurons and samples of a program that owns neurons, and of one that owns samples.

    The first are chosen such that there are up to 512 programs, whose parts every program of a next kernel adds up, and
    2048 places in a tile; the second such that a program's rows of phi are whole lines of memory. Not tuned yet.
    """

    neurons: int
    along: int  # samples that a program with such neurons takes at a time
    samples: int
    across: int  # neurons that a program with such samples takes at a time


def blocks(width: int, samples: int, itemsize: int) -> Blocks:
    """The tiles for ``width`` neurons and ``samples``, with features of so many bytes."""
    neurons = triton.next_power_of_2(triton.cdiv(width, 512))
    along = min(max(2048 // neurons, 16), triton.next_power_of_2(samples))
    return Blocks(neurons, along, 128 // itemsize, min(256, triton.next_power_of_2(width)))


class FusedEpoch(Epoch):
    """The epoch by the kernels above."""

    def __init__(self, problem: EpochProblem, width: int) -> None:
        super().__init__(problem, width)
        inputs, targets, samples = problem.inputs, problem.targets, self.samples
        self.kernel = _KERNELS[problem.feature_map.kernel]
        self.features = columns(inputs, width)
        self.points = quarters(inputs).to(inputs).T.contiguous()  # (2, N)
        self.constants = targets.new_tensor([problem.lmbda, problem.centre, self.rate])
        self.blocks = blocks(width, samples, inputs.element_size())
        self.programs = triton.cdiv(width, self.blocks.neurons)
        self.parts = {"P": self.programs, "BP": triton.next_power_of_2(self.programs)}
        # sums of (f - y)^2 and of (u - c)^2; |b - A u|^2 and |b|^2; s . z; p . q
        self.losses, self.sizes = (targets.new_zeros(2, self.programs) for _ in range(2))
        self.energies, self.curvatures = (targets.new_zeros(self.programs) for _ in range(2))
        self.last = targets.new_ones(1)  # s . z of the last step
        self.z, self.new_direction = (targets.new_zeros(width) for _ in range(2))
        self.change = targets.new_zeros(samples)  # phi p / M

    @staticmethod
    def computes(problem: EpochProblem) -> bool:
        """Whether the kernels are for ``problem``."""
        of = problem.feature_map
        return type(of) is RadialTorus and of.kernel in _KERNELS and problem.targets.shape[1] == 1

    def price(self) -> float:
        """A step is four kernels: less than half of what it is by tensors."""
        return 25 + self.width / 8

    def fill(self) -> None:
        self._fill(predict=False)

    def begin(self) -> None:
        self._own_neurons(
            _move,
            self.state,
            self.points,
            self.starts,
            self.place,
            self.losses,
            self.constants,
            self.width,
            self.samples,
            KERNEL=self.kernel,
        )
        self.evaluate()

    def evaluate(self) -> None:
        self._fill(predict=True)
        self._own_neurons(
            _slopes,
            self.state,
            self.features,
            self.problem.targets,
            self.slope,
            self.direction,
            self.last,
            self.sizes,
            self.constants,
            self.width,
            self.samples,
        )

    def step(self) -> None:
        self._own_neurons(_energy, self.inverse, self.slope, self.z, self.energies, self.width)
        self._own_samples(
            _direct,
            self.features,
            self.z,
            self.direction,
            self.new_direction,
            self.last,
            self.energies,
            self.change,
            self.width,
            self.samples,
            **self.parts,
        )
        self._own_neurons(
            _curve,
            self.features,
            self.change,
            self.new_direction,
            self.image,
            self.curvatures,
            self.constants,
            self.width,
            self.samples,
        )
        self._launch(
            _correct,
            triton.cdiv(max(self.width, self.samples), 256),
            self.state,
            self.slope,
            self.direction,
            self.new_direction,
            self.image,
            self.change,
            self.last,
            self.energies,
            self.curvatures,
            self.width,
            self.samples,
            **self.parts,
            B=256,
        )

    def end(self) -> None:
        self._launch(
            _conclude,
            1,
            self.slope,
            self.losses,
            self.sizes,
            self.constants,
            self.records,
            self.place,
            self.width,
            self.samples,
            **self.parts,
            B=min(1024, triton.next_power_of_2(self.width)),
        )

    def relative_residual(self) -> torch.Tensor:
        return self.slope.norm() / self.sizes[1].sum().sqrt().clamp_min(TINY)

    def pull_back(self) -> torch.Tensor:
        gradient = torch.empty_like(self.weights)
        sizes = self.width, self.samples
        self._own_neurons(_gradient, self.state, self.points, gradient, *sizes, KERNEL=self.kernel)
        return gradient

    def _fill(self, *, predict: bool) -> None:
        self._own_samples(
            _fill,
            self.state,
            self.points,
            self.problem.targets,
            self.features,
            self.width,
            self.samples,
            PREDICT=predict,
            KERNEL=self.kernel,
        )

    def _own_neurons(self, kernel: Callable, *arguments: torch.Tensor | int, **constants: int) -> None:
        tile = {"BM": self.blocks.neurons, "BN": self.blocks.along}
        self._launch(kernel, self.programs, *arguments, **constants, **tile)

    def _own_samples(self, kernel: Callable, *arguments: torch.Tensor | int, **constants: int) -> None:
        tile = {"BM": self.blocks.across, "BN": self.blocks.samples, "num_warps": 8}
        self._launch(kernel, triton.cdiv(self.samples, self.blocks.samples), *arguments, **constants, **tile)

    def _launch(self, kernel: Callable, programs: int, *arguments: torch.Tensor | int, **constants: int) -> None:
        device = self.state.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[(programs,)](*arguments, **constants, **_OPTIONS)
