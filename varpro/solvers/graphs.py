"""VarPro training on CUDA without a host synchronisation per epoch: captured graphs and warm conjugate gradients.

An epoch (:mod:`varpro.solvers.epochs`) reads nothing on the host, so that on CUDA it is captured once for every number
of conjugate-gradient steps and replayed by one launch. On the paper's torus it is one of few fused kernels.

How many steps an epoch needs cannot be asked on the way. So the number is fixed for a stretch of up to 16 epochs, every
epoch writes down the relative residual it ended with, and the host looks at the end of the stretch: the epochs from the
first one on that missed the tolerance are taken back and made again with more steps or a new preconditioner. Nothing is
kept unchecked. A look is a copy of a few numbers and some arithmetic on them.
"""

import math
import os
import shutil
import sysconfig
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import torch

from varpro import capture
from varpro.features import FeatureMap
from varpro.problem import Problem
from varpro.ridge import matrix_products
from varpro.solvers.base import RESIDUAL, Objective, Reduced, Solver, unsolved, wide_student, with_least_ridge
from varpro.solvers.epochs import AFTER, LOSS, STRETCH, TINY, Epoch, EpochProblem, TensorEpoch

_MARGIN = 4.0  # steps are planned for a residual this much smaller, since epochs differ
_LEAST_GAIN = 0.9  # factor on the residual that all steps of an epoch together are taken to have gained, at least
_FIRST_STRETCH = 2  # epochs between two looks of the host after a new preconditioner or a failure
_FIRST_STEPS = 6  # of a new state
_FRESH_STEPS = 2  # that suffice while the preconditioner is new
_STEPS = 40  # conjugate-gradient steps in an epoch, at most
_SETTLING = 8  # times that the solve at a new state is restarted, at most
_WIDEST = 20000  # neurons; a new preconditioner holds six matrices M x M in float64, 19 GB
_WARM_UPS = 3  # epochs before the first capture

_Record = list[list[float]]  # of some epochs: loss, relative residual before and after the steps of each


def triton_works() -> bool:
    """Whether triton is here, with what it builds its launchers by: a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return find_spec("triton") is not None and compiler is not None and headers.exists()


def epoch_of(problem: EpochProblem) -> type[Epoch]:
    """The kind of epoch for ``problem``: fused kernels where they compute it, on CUDA if triton works; else tensors."""
    if problem.targets.device.type != "cuda" or not triton_works():
        return TensorEpoch
    from varpro.solvers.fused import FusedEpoch  # here, since triton is not everywhere

    return FusedEpoch if FusedEpoch.computes(problem) else TensorEpoch


class GraphSolver(Solver[torch.Tensor]):
    """The ``cg`` solver on CUDA: VarPro for any feature map and any number k of outputs.

    ``inputs (N, d)`` fix the device and the precision of the features; ``targets (N, k)``; ``lmbda > 0``; ``centre`` is
    the penalty centre c; ``time_scale`` is the learning rate of the weights per neuron. Every inner solve leaves
    |b - A u| <= 1e-6 |b| in float32 and 1e-10 |b| in float64, for every output. TF32 is off throughout. The
    preconditioner is M x M: for M far above N the dual form of the dense solver costs less. ``kind`` is how an epoch is
    computed, by default :func:`epoch_of`; the report counts those by fused kernels.
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
        *,
        kind: type[Epoch] | None = None,
    ) -> None:
        self.problem = EpochProblem(feature_map, inputs, targets.double().contiguous(), lmbda, centre, time_scale)
        self.kind = kind or epoch_of(self.problem)
        self._dtype = str(inputs.dtype).removeprefix("torch.")
        self._tolerance = RESIDUAL[self._dtype]
        self._epoch: Epoch | None = None
        self._graphs: dict[int, Callable[[], None]] = {}  # a whole epoch, by its number of steps
        self._memory = capture.Memory()  # of all of them
        self._steps, self._stretch = _FIRST_STEPS, _FIRST_STRETCH
        self._excess = 0  # steps beyond _FRESH_STEPS in the epochs since the preconditioner was made
        self._worst = 0.0  # largest |b - A u| / |b| that was accepted
        self._counts = dict.fromkeys(("epochs", "steps", "factorisations", "repeated", "fused"), 0)

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
        data = problem.inputs.to(device, getattr(torch, dtype)), problem.targets.to(device)
        if torch.device(device).type == "cuda":  # what is compiled and made once is not in the time of the training
            once = cls(objective.features, *data, *objective.constants)
            with suppress(FloatingPointError):  # who trains will see
                once.solve(once.own(problem.student))
        return cls(objective.features, *data, *objective.constants)

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
            epoch.fill()  # the gradient used up what the next epoch starts from
        return Reduced(risk, problem.feature_map.domain.tangent(weights, gradient), epoch.outer.clone())

    def advance(self, weights: torch.Tensor, outer: torch.Tensor, epochs: int) -> torch.Tensor:
        """Train ``weights (M, d)`` and ``outer (M, k)`` in place; returns the losses (epochs,), float64, on the CPU.

        The state must have optimal outer weights, and has them afterwards. A state other than the one this solver left
        last is gone on from with a new preconditioner. Losses are NaN from the first state on that is not finite.
        """
        losses = torch.full((epochs,), math.nan, dtype=torch.float64)
        with matrix_products(tf32=False):
            if not self._holds(weights, outer):
                self._enter(weights, outer)
            done = 0
            while done < epochs:
                record, good = self._attempt(min(self._stretch, epochs - done))
                losses[done : done + good] = losses.new_tensor([epoch[LOSS] for epoch in record[:good]])
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
        """``worst_residual``: the largest |b - A u| / |b| that was accepted; and the effort so far."""
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
            self._epoch = self.kind(self.problem, len(weights))
            self._graphs.clear()
            self._memory = capture.Memory()
            self._set(weights, outer)
            if weights.device.type == "cuda":
                self._warm_up()
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
        except FloatingPointError:  # may have left outer weights that are not finite: start from the centre
            self._set(weights, torch.full_like(self._epoch.outer, self.problem.centre))
            self._renew()
            self._settle()
        for past in (self._epoch.earlier, self._epoch.earliest):
            past.copy_(self._epoch.outer)

    def _set(self, weights: torch.Tensor, outer: torch.Tensor) -> None:
        epoch = self._epoch
        epoch.weights.copy_(weights)
        epoch.outer.copy_(outer)
        epoch.fill()
        epoch.evaluate()

    def _warm_up(self) -> None:
        """All that an epoch launches, as a capture demands; the state is arbitrary afterwards."""
        with capture.aside(self.problem.targets.device):
            for _ in range(_WARM_UPS):
                self._epoch.rewind()
                self._epoch.run(1)

    def _run(self, steps: int) -> Callable[[], None]:
        """A whole epoch with so many steps."""
        if steps not in self._graphs:
            action = partial(self._epoch.run, steps)
            self._graphs[steps] = capture.captured(self.problem.targets.device, action, memory=self._memory)[0]
        return self._graphs[steps]

    def _settle(self) -> None:
        """u <- argmin_u L at the features at hand, with the preconditioner at hand."""
        epoch = self._epoch
        for round_ in range(1, _SETTLING + 1):
            for _ in range(_FIRST_STEPS):
                epoch.step()
            epoch.evaluate()
            residual = epoch.relative_residual().item()
            if residual <= self._tolerance:
                self._count(residual=residual, steps=round_ * _FIRST_STEPS)
                return
        raise unsolved(residual, self._dtype, self.problem.lmbda)

    def _attempt(self, length: int) -> tuple[_Record, int]:
        """Make ``length`` epochs; returns their record and how many of the first ones are sound.

        This is the one place where training waits for the device.
        """
        run = self._run(self._steps)
        self._epoch.rewind()
        for _ in range(length):
            run()
        record = self._epoch.records[:length].tolist()
        sound = (math.isfinite(epoch[LOSS]) and epoch[AFTER] <= self._tolerance for epoch in record)
        return record, sum(1 for _ in takewhile(bool, sound))

    def _account(self, record: _Record) -> None:
        """Book the epochs of ``record``, all sound."""
        length = len(record)
        worst = max((epoch[AFTER] for epoch in record), default=0.0)
        self._count(residual=worst, epochs=length, steps=length * self._steps)
        self._excess += length * max(0, self._steps - _FRESH_STEPS)

    def _plan(self, record: _Record) -> None:
        """Steps and length of the next stretch after one that was sound, and a new preconditioner where it pays."""
        self._steps = self._needed(record)
        self._stretch = min(2 * self._stretch, STRETCH)
        if self._renewal_pays():
            self._renew()

    def _take_back(self, good: int, made: int) -> None:
        """Go back to the state after the first ``good`` of ``made`` epochs; the next one failed."""
        self._count(repeated=made - good)
        self._epoch.state.copy_(self._epoch.starts[good])
        self._epoch.fill()
        self._stretch = 1

    def _more_steps(self, failed: list[float]) -> bool:
        """Plan more steps for an epoch with the record ``failed``; False where a preconditioner costs less."""
        more = max(self._steps + 1, self._needed([failed]))
        if not all(map(math.isfinite, failed)) or more > min(self._epoch.price() + _FIRST_STEPS, _STEPS):
            return False
        self._steps = more
        return True

    def _epoch_by_hand(self) -> float:
        """One epoch with a preconditioner made in the midst of it; returns its loss, NaN where the state is not finite.

        Raises FloatingPointError where the inner solve fails even so.
        """
        epoch = self._epoch
        loss = epoch.loss().item()
        epoch.rewind()
        epoch.begin()
        if not (math.isfinite(loss) and epoch.weights.isfinite().all()):
            return math.nan
        self._renew()
        self._settle()
        self._count(epochs=1)
        self._steps = _FIRST_STEPS
        return loss

    def _needed(self, record: _Record) -> int:
        """Steps that would do for every epoch of ``record``, if each step lowered the residual by the same factor."""
        needed = 1.0
        for _, before, after in record:
            if math.isfinite(before) and math.isfinite(after):
                gain = min(max(after / max(before, TINY), TINY), _LEAST_GAIN)
                wanted = math.log(max(before * _MARGIN / self._tolerance, 1.0))
                needed = max(needed, wanted / (-math.log(gain) / self._steps))
        return min(math.ceil(needed), _STEPS)

    def _renewal_pays(self) -> bool:
        """Whether the steps beyond those that a new preconditioner would need have cost as much as one.

        Steps grow about linearly with its age; then this is the cheapest moment.
        """
        return self._excess > self._epoch.price()

    def _renew(self) -> None:
        """The inverse of A at the features at hand, as the preconditioner."""
        features = self._epoch.features
        gram = (features.T @ features).double().div_(features.numel())
        self._epoch.inverse.copy_(torch.cholesky_inverse(_factored(gram, self.problem.lmbda)))
        self._count(factorisations=1)
        self._excess = 0
        self._stretch = _FIRST_STRETCH

    def _count(self, *, residual: float = 0.0, **more: int) -> None:
        self._worst = max(self._worst, residual)
        if self.kind is not TensorEpoch:
            more["fused"] = more.get("epochs", 0)
        for name, value in more.items():
            self._counts[name] += value


def _factored(gram: torch.Tensor, lmbda: float) -> torch.Tensor:
    """The lower Cholesky factor of gram + ridge I with the least ridge >= lam of a few that can be had."""

    def factored(ridge: float) -> torch.Tensor | None:
        matrix = gram.clone()
        matrix.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return None if failed.item() else factor

    return with_least_ridge(factored, lmbda, gram.diagonal().mean().item())
