"""An epoch of VarPro as a fixed sequence of operations on tensors that stay where they are, for CUDA graphs.

The outer weights are extrapolated from the last epochs and corrected by conjugate gradients on

    A u = b,    A = phi^T phi / (N M) + lam I,    b = phi^T y / N + lam c,

preconditioned by the inverse of A at an earlier epoch, as in :mod:`varpro.solvers.torus`. Features may be float32;
weights, outer weights, residuals and the preconditioner are float64. :class:`TensorEpoch` is for any feature map and
any number of outputs; :mod:`varpro.solvers.fused` is the same epoch in few kernels for the paper's torus.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from varpro.domains.torus import wrap_torus
from varpro.features import LAPLACE, RAISED_COSINE, FeatureMap, RadialTorus

STRETCH = 16  # epochs that are written down one after the other before the host looks
TINY = 1e-300  # in place of a divisor that is zero, where the numerator is zero too
LOSS, BEFORE, AFTER = 0, 1, 2  # places in the record of an epoch: loss, relative residual before and after its steps


# --- passes over the features ------------------------------------------------------------------------------------


def _times(matrix: torch.Tensor, columns: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out <- matrix columns; by a matrix-vector product for a single column."""
    if columns.shape[1] == 1:
        torch.mv(matrix, columns[:, 0], out=out[:, 0])
        return out
    return torch.mm(matrix, columns, out=out)


class Passes:
    """Features ``(N, M)`` of any feature map, by its own methods; rows are contiguous, as those make them."""

    def __init__(self, feature_map: FeatureMap, inputs: torch.Tensor, width: int) -> None:
        self.feature_map, self.inputs = feature_map, inputs
        self.features = inputs.new_zeros(len(inputs), width)

    def fill(self, weights: torch.Tensor) -> None:
        """features <- phi(w_j, x_i), for float64 ``weights (M, d)``."""
        self.features.copy_(self.feature_map(weights.to(self.inputs.dtype), self.inputs))

    def pull_back(self, weights: torch.Tensor, residual: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        """sum_io r_io u_jo d phi(w_j, x_i) / d w_j: (M, d), at the weights of the last ``fill``."""
        cotangent = residual @ outer.T.to(residual.dtype)
        return self.feature_map.pull_back(weights.to(self.inputs.dtype), self.inputs, self.features, cotangent)


@dataclass(frozen=True)
class _Profile:
    """A radial kernel in place, on h = |wrap(w - x)| / 4 in [0, 1 / sqrt(2)].

    ``value(h, out)`` writes the features and may limit h; ``slope(h, features)`` then turns h into q, such that
    d phi / d w = ``factor`` q offset / 4.
    """

    value: Callable[[torch.Tensor, torch.Tensor], None]
    slope: Callable[[torch.Tensor, torch.Tensor], None]
    factor: float


def _laplace_value(h: torch.Tensor, out: torch.Tensor) -> None:
    h.clamp_min_(1e-30)  # so that the slope is finite at h = 0, where the offset makes it 0
    torch.add(out.new_full((), math.log(8)), h, alpha=-8, out=out).exp_()  # 8 exp(-2 r), r = 4 h


def _laplace_slope(h: torch.Tensor, features: torch.Tensor) -> None:
    torch.div(features, h, out=h)  # g'(r) / r = -2 phi / r


def _cosine_value(h: torch.Tensor, out: torch.Tensor) -> None:
    h.clamp_max_(0.5)  # r = 2, beyond which the kernel is 0
    torch.mul(h, math.pi, out=out).cos_().square_()  # (1 + cos(pi r / 2)) / 2 = cos^2(pi h)


def _cosine_slope(h: torch.Tensor, features: torch.Tensor) -> None:
    h.mul_(2).sinc_()  # g'(r) / r = -(pi^2 / 8) sinc(r / 2)


_PROFILES = {
    LAPLACE: _Profile(_laplace_value, _laplace_slope, factor=-2.0),
    RAISED_COSINE: _Profile(_cosine_value, _cosine_slope, factor=-(math.pi**2) / 2),
}


class RadialPasses(Passes):
    """Features of a radial kernel on the torus in few passes over arrays (N, M), none of them allocated on the way.

    All lengths are in quarters, the period being 4. The offsets and h stay from ``fill`` to ``pull_back``, which uses
    them up.
    """

    def __init__(self, feature_map: RadialTorus, inputs: torch.Tensor, width: int) -> None:
        self.feature_map, self.inputs = feature_map, inputs
        self.profile = _PROFILES[feature_map.kernel]
        self.features, self.h, *self.offsets = (columns(inputs, width) for _ in range(4))
        self.samples = quarters(inputs).to(inputs).T[:, :, None].contiguous()  # (2, N, 1)

    def fill(self, weights):
        places = quarters(weights).to(self.inputs.dtype)
        for axis, offset in enumerate(self.offsets):
            torch.sub(places[:, axis], self.samples[axis], out=offset)
            offset.sub_(torch.round(offset, out=self.h))  # exact where w is close to x; either sign on the seam itself
        torch.hypot(*self.offsets, out=self.h)
        self.profile.value(self.h, self.features)

    def pull_back(self, weights, residual, outer):
        self.profile.slope(self.h, self.features)
        gradient = torch.empty_like(weights)
        product = residual.new_empty(outer.shape)
        for axis, offset in enumerate(self.offsets):
            _times(offset.mul_(self.h).T, residual, out=product)
            torch.sum(product * outer, dim=1, out=gradient[:, axis])
        return gradient.mul_(self.profile.factor)


def quarters(points: torch.Tensor) -> torch.Tensor:
    """wrap(points) / 4 in float64: in [-1/2, 1/2), the period being 1."""
    return wrap_torus(points.double()) / 4


def columns(inputs: torch.Tensor, width: int) -> torch.Tensor:
    """An array (N, M) whose columns are contiguous: there both products with it run along the samples."""
    return inputs.new_zeros(width, len(inputs)).T


def passes_of(feature_map: FeatureMap, inputs: torch.Tensor, width: int) -> Passes:
    """Features of ``width`` neurons at ``inputs (N, d)``, in place where there is a way."""
    in_place = type(feature_map) is RadialTorus and feature_map.kernel in _PROFILES
    return (RadialPasses if in_place else Passes)(feature_map, inputs, width)


# --- an epoch ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochProblem:
    """The data (``inputs (N, d)`` in the precision of the features, ``targets (N, k)`` in float64) and constants."""

    feature_map: FeatureMap
    inputs: torch.Tensor
    targets: torch.Tensor
    lmbda: float
    centre: float
    time_scale: float


class Epoch(ABC):
    """The state of a training at ``width`` neurons, and its epoch: ``begin``, ``step`` any number of times, ``end``.

    ``run`` is the whole. None of these reads a value on the host or sends one to the device, and all arrays stay where
    they are. The state at the start of an epoch and its record go to the rows ``place`` of ``starts (STRETCH, .)`` and
    ``records (STRETCH, 3)``; ``place`` is counted on the device.
    """

    features: torch.Tensor  # (N, M), those of the weights after ``fill`` and after ``begin``

    def __init__(self, problem: EpochProblem, width: int) -> None:
        inputs, targets = problem.inputs, problem.targets
        samples, outputs = targets.shape
        self.problem, self.width, self.samples = problem, width, samples
        shapes = [(width, inputs.shape[1]), *[(width, outputs)] * 3, (samples, outputs)]
        sizes = [math.prod(shape) for shape in shapes]
        self.state = targets.new_zeros(sum(sizes))  # what an epoch starts from, but for the features
        parts = (part.view(shape) for part, shape in zip(self.state.split(sizes), shapes, strict=True))
        self.weights, self.outer, self.earlier, self.earliest, self.residual = parts  # residual = f - y
        # b - A u, p and A p
        self.slope, self.direction, self.image = (targets.new_zeros(width, outputs) for _ in range(3))
        self.inverse = targets.new_zeros(width, width)  # the preconditioner
        self.starts, self.records = (targets.new_zeros(STRETCH, length) for length in (len(self.state), 3))
        self.place = torch.zeros(1, dtype=torch.int64, device=targets.device)

    def run(self, steps: int) -> None:
        """One epoch with ``steps`` steps of conjugate gradients."""
        self.begin()
        for _ in range(steps):
            self.step()
        self.end()

    def rewind(self) -> None:
        """Write down the next epoch in the first row."""
        self.place.zero_()

    @abstractmethod
    def price(self) -> float:
        """The cost of a new preconditioner in steps: an estimate."""

    @abstractmethod
    def fill(self) -> None:
        """The features at the weights, and all else that a gradient at them starts from."""

    @abstractmethod
    def evaluate(self) -> None:
        """f - y, b - A u and |b| at the outer weights, after ``fill``; conjugate gradients start anew."""

    @abstractmethod
    def begin(self) -> None:
        """Loss; step of the weights; features; extrapolated outer weights 3 (u - u') + u'' and their residuals."""

    @abstractmethod
    def step(self) -> None:
        """One step of conjugate gradients; u, b - A u and f - y go along together.

        Nothing moves where the slope is zero already. A curvature that is not positive makes the step, and with it the
        recorded residual, senseless: the host will see that.
        """

    @abstractmethod
    def end(self) -> None:
        """Write down what the host looks at."""

    @abstractmethod
    def relative_residual(self) -> torch.Tensor:
        """The largest |b - A u| / |b| of the outputs."""

    @abstractmethod
    def pull_back(self) -> torch.Tensor:
        """sum_io r_io u_jo d phi(w_j, x_i) / d w_j: (M, d); once a ``fill``."""

    def loss(self) -> torch.Tensor:
        """L = mean r^2 / (2 lam) + mean (u - c)^2 / 2."""
        data, penalty = self.residual.square().mean(), (self.outer - self.problem.centre).square().mean()
        return data / (2 * self.problem.lmbda) + penalty / 2

    def gradient(self) -> torch.Tensor:
        """dL/dw at fixed u, the gradient of the reduced risk (envelope theorem): (M, d); once a ``fill``."""
        return self.pull_back().div_(self.problem.lmbda * self.residual.numel() * self.width)

    @property
    def rate(self) -> float:
        """In the step w <- w - time_scale M dL/dw, the factor of what :meth:`pull_back` returns."""
        return self.problem.time_scale / (self.problem.lmbda * self.residual.numel())


class TensorEpoch(Epoch):
    """The epoch by PyTorch's own operations."""

    def __init__(self, problem: EpochProblem, width: int) -> None:
        super().__init__(problem, width)
        inputs, targets = problem.inputs, problem.targets
        samples, outputs = targets.shape
        self.passes = passes_of(problem.feature_map, inputs, width)
        self.previous, self.size = (targets.new_ones(outputs) for _ in range(2))  # slope . z of the last step; |b|
        self.record = targets.new_zeros(3)
        self.short = {  # in the precision of the features
            "targets": targets.to(inputs.dtype),
            "samples": inputs.new_zeros(samples, outputs),
            "neurons": inputs.new_zeros(width, outputs),
            "sums": inputs.new_zeros(width, outputs),
        }

    @property
    def features(self) -> torch.Tensor:
        """(N, M), those of the weights after ``fill`` and after ``begin``."""
        return self.passes.features

    def price(self) -> float:
        """A step is some twenty kernels, most of them small; a factorisation mostly waits for its own chain of small
        ones."""
        return 10 + self.width / 20

    def fill(self) -> None:
        self.passes.fill(self.weights)

    def begin(self) -> None:
        self.starts.index_copy_(0, self.place, self.state[None])
        self.record[LOSS].copy_(self.loss())
        self._step_weights()
        self.fill()
        torch.sub(self.outer, self.earlier, out=self.image).mul_(3).add_(self.earliest)  # 3 (u - u') + u''
        self.earliest.copy_(self.earlier)
        self.earlier.copy_(self.outer)
        self.outer.copy_(self.image)
        self.evaluate()
        self.record[BEFORE].copy_(self.relative_residual())

    def evaluate(self) -> None:
        problem, features, sums = self.problem, self.features, self.short["sums"]
        self._predict(self.outer, self.residual)
        self.residual.sub_(problem.targets)
        _times(features.T, self._rounded(self.residual), out=sums)
        torch.sub(self.outer, problem.centre, out=self.slope).mul_(-problem.lmbda).sub_(sums, alpha=1 / self.samples)
        _times(features.T, self.short["targets"], out=sums)
        right = torch.mul(sums, 1 / self.samples, out=self.image).add_(problem.lmbda * problem.centre)
        self.size.copy_(right.norm(dim=0)).clamp_min_(TINY)
        self.direction.zero_()
        self.previous.fill_(1.0)

    def step(self) -> None:
        z = _times(self.inverse, self.slope, out=self.image)
        energy = (self.slope * z).sum(dim=0)
        torch.addcmul(z, energy / self.previous, self.direction, out=self.direction)
        torch.clamp_min(energy, TINY, out=self.previous)
        change = self._predict(self.direction, torch.empty_like(self.residual))
        _times(self.features.T, self.short["samples"], out=self.short["sums"])
        torch.mul(self.direction, self.problem.lmbda, out=self.image).add_(self.short["sums"], alpha=1 / self.samples)
        length = energy / (self.direction * self.image).sum(dim=0).clamp_min_(TINY)
        self.outer.addcmul_(length, self.direction)
        self.slope.addcmul_(length, self.image, value=-1)
        self.residual.addcmul_(length, change)

    def end(self) -> None:
        self.record[AFTER].copy_(self.relative_residual())
        self.records.index_copy_(0, self.place, self.record[None])
        self.place.add_(1)

    def relative_residual(self) -> torch.Tensor:
        return (self.slope.norm(dim=0) / self.size).amax()

    def pull_back(self) -> torch.Tensor:
        return self.passes.pull_back(self.weights, self._rounded(self.residual), self.outer)

    def _step_weights(self) -> None:
        """w <- w - time_scale M dL/dw at fixed u: the gradient of the reduced risk (envelope theorem)."""
        moved = self.weights.sub(self.pull_back(), alpha=self.rate)
        self.weights.copy_(self.problem.feature_map.domain.project(moved))

    def _predict(self, outer: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """out <- phi outer / M; it stays in ``short["samples"]`` too."""
        torch.mul(outer, 1 / self.width, out=self.short["neurons"])
        return out.copy_(_times(self.features, self.short["neurons"], out=self.short["samples"]))

    def _rounded(self, residual: torch.Tensor) -> torch.Tensor:
        return self.short["samples"].copy_(residual)
