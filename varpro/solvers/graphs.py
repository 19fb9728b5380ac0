"""VarPro training on CUDA without a host synchronisation per epoch: captured graphs and warm conjugate gradients.

The outer weights are extrapolated from the last epochs and corrected by conjugate gradients on

    A u = b,    A = phi^T phi / (N M) + lam I,    b = phi^T y / N + lam c,

preconditioned by the inverse of A at an earlier epoch, as in :mod:`varpro.solvers.torus`. An epoch is a fixed sequence
of tensor operations on buffers that stay where they are, so that on CUDA it is captured once and replayed. Features may
be float32; weights, outer weights, residuals and the preconditioner are float64.

How many steps an epoch needs cannot be asked on the way. So the number is fixed for a stretch of up to 16 epochs, every
epoch writes down the relative residual it ended with, and the host looks at the end of the stretch: the epochs from the
first one on that missed the tolerance are taken back and made again with more steps or a new preconditioner. Nothing is
kept unchecked. A look is a copy of a few numbers and some arithmetic on them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

import torch

from varpro.domains.torus import wrap_torus
from varpro.features import LAPLACE, RAISED_COSINE, FeatureMap, RadialTorus
from varpro.problem import Problem
from varpro.ridge import matrix_products
from varpro.solvers.base import Objective, Reduced, Solver, wide_student

_TOLERANCE = {torch.float32: 5e-7, torch.float64: 5e-11}  # |b - A u| / |b|; half of what is promised
_MARGIN = 4.0  # steps are planned for a residual this much smaller, since epochs differ
_LEAST_GAIN = 0.9  # factor on the residual that all steps of an epoch together are taken to have gained, at least
_STRETCH = 16  # epochs between two looks of the host, at most
_FIRST_STRETCH = 2  # after a new preconditioner or a failure
_FIRST_STEPS = 6  # after a state is taken up
_FRESH_STEPS = 2  # that suffice while the preconditioner is new
_STEPS = 40  # conjugate-gradient steps in an epoch, at most
_SETTLING = 8  # times that the solve at a new state is restarted, at most
_RIDGE_GROWTH = 100.0  # factor on the ridge of a preconditioner that could not be factored ...
_RIDGE_LIMIT = 1e3  # ... up to this times the mean diagonal
_WIDEST = 20000  # neurons; a new preconditioner holds six matrices M x M in float64, 19 GB
_TINY = 1e-300  # in place of a divisor that is zero, where the numerator is zero too
_LOSS, _BEFORE, _AFTER = 0, 1, 2  # places in the record of an epoch: loss, relative residual before and after its steps


# --- passes over the features ------------------------------------------------------------------------------------


def _times(matrix: torch.Tensor, columns: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out <- matrix columns; by a matrix-vector product for a single column."""
    if columns.shape[1] == 1:
        torch.mv(matrix, columns[:, 0], out=out[:, 0])
        return out
    return torch.mm(matrix, columns, out=out)


class _Passes:
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


class _RadialPasses(_Passes):
    """Features of a radial kernel on the torus in few passes over arrays (N, M), none of them allocated on the way.

    All lengths are in quarters, the period being 4. The offsets and h stay from ``fill`` to ``pull_back``, which uses
    them up.
    """

    def __init__(self, feature_map: RadialTorus, inputs: torch.Tensor, width: int) -> None:
        self.feature_map, self.inputs = feature_map, inputs
        self.profile = _PROFILES[feature_map.kernel]
        self.features, self.h, *self.offsets = (_columns(inputs, width) for _ in range(4))
        self.samples = (wrap_torus(inputs.double()) / 4).to(inputs).T[:, :, None].contiguous()  # (2, N, 1)

    def fill(self, weights):
        places = (wrap_torus(weights) / 4).to(self.inputs.dtype)
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


def _columns(inputs: torch.Tensor, width: int) -> torch.Tensor:
    """An array (N, M) whose columns are contiguous: there both products with it run along the samples."""
    return inputs.new_zeros(width, len(inputs)).T


def _passes(feature_map: FeatureMap, inputs: torch.Tensor, width: int) -> _Passes:
    in_place = type(feature_map) is RadialTorus and feature_map.kernel in _PROFILES
    return (_RadialPasses if in_place else _Passes)(feature_map, inputs, width)


# --- an epoch ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """The data (``inputs (N, d)`` in the precision of the features, ``targets (N, k)`` in float64) and constants."""

    feature_map: FeatureMap
    inputs: torch.Tensor
    targets: torch.Tensor
    lmbda: float
    centre: float
    time_scale: float


_Record = list[list[float]]  # of some epochs: loss, relative residual before and after the steps of each


class _Epoch:
    """The state and the arrays of one epoch, and its three parts: ``begin``, ``step`` any number of times, ``end``.

    None of the three reads a value on the host or sends one to the device, and all arrays stay where they are.
    """

    def __init__(self, problem: _Problem, width: int) -> None:
        inputs, targets = problem.inputs, problem.targets
        samples, outputs = targets.shape
        self.problem, self.width, self.samples = problem, width, samples
        self.passes = _passes(problem.feature_map, inputs, width)
        shapes = [(width, inputs.shape[1]), *[(width, outputs)] * 3, (samples, outputs)]
        sizes = [math.prod(shape) for shape in shapes]
        self.state = targets.new_zeros(sum(sizes))  # what an epoch starts from, but for the features
        parts = (part.view(shape) for part, shape in zip(self.state.split(sizes), shapes, strict=True))
        self.weights, self.outer, self.earlier, self.earliest, self.residual = parts  # residual = f - y
        # b - A u, p and A p
        self.slope, self.direction, self.image = (targets.new_zeros(width, outputs) for _ in range(3))
        self.inverse = targets.new_zeros(width, width)  # the preconditioner
        self.previous, self.size = (targets.new_ones(outputs) for _ in range(2))  # slope . z of the last step; |b|
        self.record = targets.new_zeros(3)
        self.short = {  # in the precision of the features
            "targets": targets.to(inputs.dtype),
            "samples": inputs.new_zeros(samples, outputs),
            "neurons": inputs.new_zeros(width, outputs),
            "sums": inputs.new_zeros(width, outputs),
        }

    def begin(self) -> None:
        """Loss; step of the weights; features; extrapolated outer weights and their residuals."""
        self.record[_LOSS].copy_(self.loss())
        self._step_weights()
        self.passes.fill(self.weights)
        torch.sub(self.outer, self.earlier, out=self.image).mul_(3).add_(self.earliest)  # 3 (u - u') + u''
        self.earliest.copy_(self.earlier)
        self.earlier.copy_(self.outer)
        self.outer.copy_(self.image)
        self.evaluate()
        self.record[_BEFORE].copy_(self.relative_residual())

    def evaluate(self) -> None:
        """f - y, b - A u and |b| at the outer weights; conjugate gradients start anew."""
        problem, features, sums = self.problem, self.passes.features, self.short["sums"]
        self._predict(self.outer, self.residual)
        self.residual.sub_(problem.targets)
        _times(features.T, self._rounded(self.residual), out=sums)
        torch.sub(self.outer, problem.centre, out=self.slope).mul_(-problem.lmbda).sub_(sums, alpha=1 / self.samples)
        _times(features.T, self.short["targets"], out=sums)
        right = torch.mul(sums, 1 / self.samples, out=self.image).add_(problem.lmbda * problem.centre)
        self.size.copy_(right.norm(dim=0)).clamp_min_(_TINY)
        self.direction.zero_()
        self.previous.fill_(1.0)

    def step(self) -> None:
        """One step of conjugate gradients; u, b - A u and f - y go along together.

        Nothing moves where the slope is zero already. A curvature that is not positive makes the step, and with it the
        recorded residual, senseless: the host will see that.
        """
        z = _times(self.inverse, self.slope, out=self.image)
        energy = (self.slope * z).sum(dim=0)
        torch.addcmul(z, energy / self.previous, self.direction, out=self.direction)
        torch.clamp_min(energy, _TINY, out=self.previous)
        change = self._predict(self.direction, torch.empty_like(self.residual))
        _times(self.passes.features.T, self.short["samples"], out=self.short["sums"])
        torch.mul(self.direction, self.problem.lmbda, out=self.image).add_(self.short["sums"], alpha=1 / self.samples)
        length = energy / (self.direction * self.image).sum(dim=0).clamp_min_(_TINY)
        self.outer.addcmul_(length, self.direction)
        self.slope.addcmul_(length, self.image, value=-1)
        self.residual.addcmul_(length, change)

    def end(self) -> None:
        """Write down the relative residual."""
        self.record[_AFTER].copy_(self.relative_residual())

    def _predict(self, outer: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """out <- phi outer / M; it stays in ``short["samples"]`` too."""
        torch.mul(outer, 1 / self.width, out=self.short["neurons"])
        return out.copy_(_times(self.passes.features, self.short["neurons"], out=self.short["samples"]))

    def _rounded(self, residual: torch.Tensor) -> torch.Tensor:
        return self.short["samples"].copy_(residual)

    def loss(self) -> torch.Tensor:
        """L = mean r^2 / (2 lam) + mean (u - c)^2 / 2."""
        data, penalty = self.residual.square().mean(), (self.outer - self.problem.centre).square().mean()
        return data / (2 * self.problem.lmbda) + penalty / 2

    def gradient(self) -> torch.Tensor:
        """dL/dw at fixed u, the gradient of the reduced risk (envelope theorem): (M, d); once a ``fill``."""
        descent = self.passes.pull_back(self.weights, self._rounded(self.residual), self.outer)
        return descent.div_(self.problem.lmbda * self.residual.numel() * self.width)

    def _step_weights(self) -> None:
        """w <- w - time_scale M dL/dw at fixed u: the gradient of the reduced risk (envelope theorem)."""
        problem = self.problem
        descent = self.passes.pull_back(self.weights, self._rounded(self.residual), self.outer)
        rate = problem.time_scale / (problem.lmbda * self.residual.numel())
        self.weights.copy_(problem.feature_map.domain.project(self.weights.sub(descent, alpha=rate)))

    def relative_residual(self) -> torch.Tensor:
        """The largest |b - A u| / |b| of the outputs."""
        return (self.slope.norm(dim=0) / self.size).amax()


def _replayed(actions: tuple[Callable[[], None], ...], device: torch.device) -> list[Callable[[], None]]:
    """The actions as captured graphs on CUDA; as they are elsewhere.

    To be captured they are run a few times: their state is arbitrary afterwards. A failed capture is an error: epochs
    that are not captured are several times slower, and none of these actions should fail.
    """
    return [_captured(action, device) for action in actions] if device.type == "cuda" else list(actions)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream that warms up and captures: libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream(device)


def _captured(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """``action`` as one graph launch. It is run three times on a side stream before, as capture demands."""
    with torch.cuda.device(device):
        usual, side = torch.cuda.current_stream(), _side_stream(device)
        side.wait_stream(usual)
        with torch.cuda.stream(side):
            for _ in range(3):
                action()
        usual.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=side):
                action()
        finally:
            torch.cuda.set_stream(usual)  # torch 2.11 leaves the other one current where a capture fails
    return graph.replay


# --- for callers -------------------------------------------------------------------------------------------------


class GraphSolver(Solver[torch.Tensor]):
    """The ``cg`` solver on CUDA: VarPro for any feature map and any number k of outputs.

    ``inputs (N, d)`` fix the device and the precision of the features; ``targets (N, k)``; ``lmbda > 0``; ``centre`` is
    the penalty centre c; ``time_scale`` is the learning rate of the weights per neuron. Every inner solve leaves
    |b - A u| <= 1e-6 |b| in float32 and 1e-10 |b| in float64, for every output. TF32 is off throughout. The
    preconditioner is M x M: for M far above N the dual form of the dense solver costs less.
    """

    name, devices, dtypes = "cg", ("cuda",), ("float32", "float64")

    def __init__(
        self,
        feature_map: FeatureMap,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        lmbda: float,
        centre: float,
        time_scale: float,
    ) -> None:
        self.problem = _Problem(feature_map, inputs, targets.double(), lmbda, centre, time_scale)
        self._tolerance = _TOLERANCE[inputs.dtype]
        self._epoch: _Epoch | None = None
        self._steps, self._stretch = _FIRST_STEPS, _FIRST_STRETCH
        self._excess = 0  # steps beyond _FRESH_STEPS in the epochs since the preconditioner was made
        self._worst = 0.0  # largest |b - A u| / |b| that was accepted
        self._counts = dict.fromkeys(("epochs", "steps", "factorisations", "repeated"), 0)

    @classmethod
    def obstacle(cls, objective: Objective, problem: Problem) -> str:
        if objective.outer_update != "ridge":
            return "computes VarPro, not two-timescale descent"
        wide = len(problem.student) > _WIDEST
        return (
            f"keeps matrices of M x M for its preconditioner, too large for more than {_WIDEST} neurons" if wide else ""
        )

    @classmethod
    def drawback(cls, objective: Objective, problem: Problem) -> str:
        return wide_student(problem)

    @classmethod
    def build(cls, objective: Objective, problem: Problem, *, device: str, dtype: str, tf32: bool) -> "GraphSolver":
        inputs = problem.inputs.to(device, getattr(torch, dtype))
        return cls(objective.features, inputs, problem.targets.to(device), *objective.constants)

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        """A float64 copy on the device of the data."""
        return tensor.to(self.problem.targets, copy=True)

    def solve(self, weights: torch.Tensor) -> torch.Tensor:
        """Optimal outer weights (M, k) for ``weights (M, d)``.

        Raises FloatingPointError where they cannot be had in this precision.
        """
        with matrix_products(tf32=False):
            self._enter(weights, self.problem.targets.new_full((len(weights), self._outputs), self.problem.centre))
        return self._epoch.outer.clone()

    def reduced(self, weights: torch.Tensor) -> Reduced:
        """R(w) = min_u L at ``weights (M, d)``, its gradient (M, d), and u (M, k), all float64.

        The outer weights and the preconditioner of the last state are the start: close states cost least.
        """
        problem = self.problem
        with matrix_products(tf32=False):
            if self._epoch is None or self._epoch.width != len(weights):
                self._enter(weights, problem.targets.new_full((len(weights), self._outputs), problem.centre))
            else:
                self._move(weights)
            epoch = self._epoch
            risk, gradient = epoch.loss().item(), epoch.gradient()
            epoch.passes.fill(epoch.weights)  # the gradient used up what the next epoch starts from
        return Reduced(risk, problem.feature_map.domain.tangent(weights, gradient), epoch.outer.clone())

    def advance(self, weights: torch.Tensor, outer: torch.Tensor, epochs: int) -> torch.Tensor:
        """Train ``weights (M, d)`` and ``outer (M, k)`` in place; returns the losses (epochs,), float64, on the CPU.

        The state must have optimal outer weights, and has them afterwards. A state other than the one this solver left
        last is taken up with a new preconditioner. Losses are NaN from the first state on that is not finite.
        """
        losses = torch.full((epochs,), math.nan, dtype=torch.float64)
        with matrix_products(tf32=False):
            if not self._holds(weights, outer):
                self._enter(weights, outer)
            done = 0
            while done < epochs:
                record, good = self._attempt(min(self._stretch, epochs - done))
                losses[done : done + good] = losses.new_tensor([epoch[_LOSS] for epoch in record[:good]])
                done += good
                self._account(record[:good])
                if good == len(record):
                    self._plan(record)
                    continue
                self._take_back(good, len(record))
                if self._more_steps(record[good]):
                    continue
                loss = self._epoch_by_hand()
                if not math.isfinite(loss):
                    break
                losses[done] = loss
                done += 1
        weights.copy_(self._epoch.weights)
        outer.copy_(self._epoch.outer)
        return losses

    def report(self) -> dict[str, float]:
        """``worst_residual``: the largest |b - A u| / |b| that was accepted; and the effort of the epochs so far."""
        return {"worst_residual": self._worst} | self._counts

    @property
    def _outputs(self) -> int:
        return self.problem.targets.shape[1]

    def _holds(self, weights: torch.Tensor, outer: torch.Tensor) -> bool:
        epoch = self._epoch
        return (
            epoch is not None
            and epoch.weights.shape == weights.shape
            and torch.equal(epoch.weights, weights)
            and torch.equal(epoch.outer, outer)
        )

    def _enter(self, weights: torch.Tensor, outer: torch.Tensor) -> None:
        """Take up a state and make its outer weights optimal."""
        if self._epoch is None or self._epoch.width != len(weights):
            epoch = self._epoch = _Epoch(self.problem, len(weights))
            self._set(weights, outer)
            self._begin, self._step, self._end = _replayed((epoch.begin, epoch.step, epoch.end), weights.device)
            self._record = epoch.record.new_zeros(_STRETCH, len(epoch.record))
            self._starts = epoch.state.new_zeros(_STRETCH, len(epoch.state))
        self._set(weights, outer)
        self._renew()
        self._settle()
        for past in (self._epoch.earlier, self._epoch.earliest):
            past.copy_(self._epoch.outer)
        self._steps = _FIRST_STEPS

    def _move(self, weights: torch.Tensor) -> None:
        """Optimal outer weights at other ``weights (M, d)``, with the preconditioner at hand if it does."""
        self._set(weights, self._epoch.outer.clone())
        try:
            self._settle()
        except FloatingPointError:
            self._renew()
            self._settle()
        for past in (self._epoch.earlier, self._epoch.earliest):
            past.copy_(self._epoch.outer)

    def _set(self, weights: torch.Tensor, outer: torch.Tensor) -> None:
        epoch = self._epoch
        epoch.weights.copy_(weights)
        epoch.outer.copy_(outer)
        epoch.passes.fill(epoch.weights)
        epoch.evaluate()

    def _settle(self) -> tuple[float, int]:
        """u <- argmin_u L at the features at hand, with a fresh preconditioner; returns the residual and the steps."""
        epoch = self._epoch
        for round_ in range(1, _SETTLING + 1):
            for _ in range(_FIRST_STEPS):
                self._step()
            epoch.evaluate()
            residual = epoch.relative_residual().item()
            if residual <= self._tolerance:
                return residual, round_ * _FIRST_STEPS
        dtype = str(self.problem.inputs.dtype).removeprefix("torch.")
        raise FloatingPointError(
            f"inner solve: the relative residual stays at {residual:.1e} in {dtype} at lambda "
            f"{self.problem.lmbda:g}; use float64 or a larger lambda"
        )

    def _attempt(self, length: int) -> tuple[_Record, int]:
        """Make ``length`` epochs; returns their record and how many of the first ones are sound.

        This is the one place where training waits for the device.
        """
        epoch = self._epoch
        for number in range(length):
            self._starts[number].copy_(epoch.state)
            self._begin()
            for _ in range(self._steps):
                self._step()
            self._end()
            self._record[number].copy_(epoch.record)
        record = self._record[:length].tolist()
        sound = (math.isfinite(epoch[_LOSS]) and epoch[_AFTER] <= self._tolerance for epoch in record)
        return record, sum(1 for _ in takewhile(bool, sound))

    def _account(self, record: _Record) -> None:
        """Book the epochs of ``record``, all sound."""
        length = len(record)
        worst = max((epoch[_AFTER] for epoch in record), default=0.0)
        self._count(residual=worst, epochs=length, steps=length * self._steps)
        self._excess += length * max(0, self._steps - _FRESH_STEPS)

    def _plan(self, record: _Record) -> None:
        """Steps and length of the next stretch after one that was sound, and a new preconditioner where it pays."""
        self._steps = self._needed(record)
        self._stretch = min(2 * self._stretch, _STRETCH)
        if self._renewal_pays():
            self._renew()

    def _take_back(self, good: int, made: int) -> None:
        """Go back to the state after the first ``good`` of ``made`` epochs; the next one failed."""
        self._count(repeated=made - good)
        self._epoch.state.copy_(self._starts[good])
        self._epoch.passes.fill(self._epoch.weights)
        self._stretch = 1

    def _more_steps(self, failed: list[float]) -> bool:
        """Plan more steps for an epoch with the record ``failed``; False where a preconditioner costs less."""
        more = max(self._steps + 1, self._needed([failed]))
        if not all(map(math.isfinite, failed)) or more > min(self._price() + _FIRST_STEPS, _STEPS):
            return False
        self._steps = more
        return True

    def _epoch_by_hand(self) -> float:
        """One epoch with a preconditioner made in the midst of it; returns its loss, NaN where the state is not finite.

        Raises FloatingPointError where the inner solve fails even so.
        """
        epoch = self._epoch
        self._begin()
        loss = epoch.record[_LOSS].item()
        if not (math.isfinite(loss) and epoch.weights.isfinite().all()):
            return math.nan
        self._renew()
        residual, steps = self._settle()
        self._count(residual=residual, epochs=1, steps=steps)
        self._steps = _FIRST_STEPS
        return loss

    def _needed(self, record: _Record) -> int:
        """Steps that would do for every epoch of ``record``, if each step lowered the residual by the same factor."""
        needed = 1.0
        for _, before, after in record:
            if math.isfinite(before) and math.isfinite(after):
                gain = min(max(after / max(before, _TINY), _TINY), _LEAST_GAIN)
                wanted = math.log(max(before * _MARGIN / self._tolerance, 1.0))
                needed = max(needed, wanted / (-math.log(gain) / self._steps))
        return min(math.ceil(needed), _STEPS)

    def _renewal_pays(self) -> bool:
        """Whether the steps beyond those that a new preconditioner would need have cost as much as one.

        Steps grow about linearly with its age; then this is the cheapest moment.
        """
        return self._excess > self._price()

    def _price(self) -> float:
        """The cost of a preconditioner in steps: an estimate.

        A step is some twenty kernels, most of them small; a factorisation mostly waits for its own chain of small ones.
        """
        return 10 + self._epoch.width / 20

    def _renew(self) -> None:
        """The inverse of A at the features at hand, as the preconditioner."""
        features = self._epoch.passes.features
        gram = (features.T @ features).double().div_(features.numel())
        self._epoch.inverse.copy_(torch.cholesky_inverse(_factored(gram, self.problem.lmbda)))
        self._count(factorisations=1)
        self._excess = 0
        self._stretch = _FIRST_STRETCH

    def _count(self, *, residual: float = 0.0, **more: int) -> None:
        self._worst = max(self._worst, residual)
        for name, value in more.items():
            self._counts[name] += value


def _factored(gram: torch.Tensor, lmbda: float) -> torch.Tensor:
    """The lower Cholesky factor of gram + ridge I with the least ridge >= lam of a few that can be had."""
    ridge, limit = lmbda, lmbda + _RIDGE_LIMIT * gram.diagonal().mean().item()
    while ridge <= limit:
        matrix = gram.clone()
        matrix.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed.item():
            return factor
        ridge *= _RIDGE_GROWTH
    raise FloatingPointError("inner solve: the features are not finite")
