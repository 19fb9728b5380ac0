"""The training loop: snapshots, measurements, progress, checkpoint and resume; the solver does the epochs.

State number e is the pair of weights and outer weights after e epochs; for VarPro its outer weights are optimal for its
weights, and loss[e] is the risk of state e.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from varpro.cli import duration
from varpro.runs.bookkeeping import Checkpoint, Report, StopSignals, Watch
from varpro.runs.schedule import Schedule
from varpro.solvers.base import Solver, merged

STATE_VERSION = 2  # of what a checkpoint holds; to be counted up where that changes
_STRETCH_SECONDS = 0.5  # of epochs between two looks at signals and clock, about
_LARGEST = float(np.finfo(np.float32).max)  # of what a result can hold

Measurement = Callable[[int, np.ndarray], Mapping[str, float]]


@dataclass
class Training:
    """The record of a run: ``weights (S, M, d)`` and ``outer (S, M)`` or ``(S, M, k)``, float32; ``loss (epochs,)``."""

    snapshot_epochs: torch.Tensor
    weights: torch.Tensor
    outer: torch.Tensor
    loss: torch.Tensor
    measured: dict[str, torch.Tensor] = field(default_factory=dict)
    inner_solves: dict[str, float] = field(default_factory=dict)  # Solver.report, over all sittings
    elapsed: float = 0.0  # seconds of training, measurements included, over all sittings


def train(
    solver: Solver,
    weights: torch.Tensor,
    plan: Schedule,
    measure: Measurement | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    label: str = "",
    report: Report | None = None,
) -> Training:
    """Train ``weights (M, d)`` with ``solver`` through ``plan``.

    ``measure`` is called at the distance epochs with their number among the distinct ones and the weights (M, d) in
    float64, and returns named values. With ``checkpoint`` the state is kept there now and then, and a later call goes
    on from it; the caller removes it. ``report`` receives one line with the estimated cost.

    Raises FloatingPointError with the epoch where the loss stops being finite or the state too large to be kept; the
    last sound state is in the checkpoint then. Raises Stopped after SIGTERM or SIGINT, with the state likewise.
    """
    run = _Run(solver, weights, plan, measure)
    state = checkpoint.restore() if checkpoint is not None else None
    if state is not None:
        run.restore(state)
    events = np.union1d(plan.snapshot_epochs, plan.measured_epochs)
    watch = Watch(report, run.estimate)

    def keep() -> None:
        if checkpoint is not None:
            checkpoint.write(run.state())

    bar = tqdm(total=plan.epochs, initial=run.epoch, desc=label, unit="epoch", disable=not progress)
    with bar, StopSignals() as signals:
        if run.epoch == 0:
            run.record()
        while run.epoch < plan.epochs:
            first = run.epoch
            try:
                run.advance(int(events[np.searchsorted(events, run.epoch, side="right")]))
            except FloatingPointError:
                if run.epoch > 0:
                    keep()
                raise
            bar.update(run.epoch - first)
            watch.look(run.epoch, run.elapsed)
            if checkpoint is not None and run.epoch < plan.epochs:
                checkpoint.offer(run.state)
            signals.check(keep)
    return run.finish()


class _Run:
    """The state of a training and its record so far."""

    def __init__(self, solver: Solver, weights: torch.Tensor, plan: Schedule, measure: Measurement | None) -> None:
        self.solver, self.plan, self.measure = solver, plan, measure
        self.weights = solver.own(weights)
        self.outer = solver.solve(self.weights)
        self.epoch, self.elapsed = 0, 0.0
        self.pace = 0.0  # seconds an epoch, lately
        self.earlier: dict[str, float] = {}  # report of the sittings before
        outer_shape = tuple(self.outer.shape) if self.outer.ndim > 1 and self.outer.shape[1] > 1 else (len(weights),)
        snapshots = len(plan.snapshot_epochs)
        self.kept_weights = torch.empty((snapshots, *weights.shape), dtype=torch.float32)
        self.kept_outer = torch.empty((snapshots, *outer_shape), dtype=torch.float32)
        self.loss = torch.empty(plan.epochs, dtype=torch.float64)
        self.measured: dict[str, torch.Tensor] = {}

    def record(self) -> None:
        """Keep and measure the state at hand, if the plan says so."""
        weights = torch.as_tensor(self.weights).cpu()
        place = np.searchsorted(self.plan.snapshot_epochs, self.epoch)
        if self.plan.snapshot_epochs[place] == self.epoch:
            self.kept_weights[place] = weights
            self.kept_outer[place] = torch.as_tensor(self.outer).cpu().reshape(self.kept_outer[place].shape)
        measured = self.plan.measured_epochs
        place = int(np.searchsorted(measured, self.epoch))
        if self.measure is not None and measured[place] == self.epoch:
            for name, value in self.measure(place, weights.double().numpy()).items():
                self._measurements(name)[place] = value

    def _measurements(self, name: str) -> torch.Tensor:
        return self.measured.setdefault(name, torch.empty(len(self.plan.measured_epochs), dtype=torch.float64))

    def advance(self, event: int) -> None:
        """Train to epoch ``event``, or for about half a second where that comes first.

        Raises FloatingPointError, with the state as it was before, where the new one is not sound.
        """
        begin = time.perf_counter()
        stretch = math.ceil(_STRETCH_SECONDS / self.pace) if self.pace else 1
        end = min(event, self.epoch + max(1, stretch))
        before = self._copied()
        losses = torch.as_tensor(self.solver.advance(self.weights, self.outer, end - self.epoch))
        fault = self._fault(losses)
        if fault:
            self.weights, self.outer = before
            raise FloatingPointError(f"{fault}; try a smaller --time_scale")
        self.loss[self.epoch : end] = losses
        epochs, self.epoch = end - self.epoch, end
        if end == event:
            self.record()
        spent = time.perf_counter() - begin
        self.pace = spent / epochs
        self.elapsed += spent

    def _copied(self) -> tuple:
        return tuple(value.clone() if torch.is_tensor(value) else value.copy() for value in (self.weights, self.outer))

    def _fault(self, losses: torch.Tensor) -> str:
        bad = torch.nonzero(~torch.isfinite(losses))
        if len(bad):
            return f"the loss is not finite at epoch {self.epoch + int(bad[0])}"
        for name, value in (("weights", self.weights), ("outer weights", self.outer)):
            if not torch.as_tensor(value).abs().max() <= _LARGEST:
                grown = f", with a loss of {losses[-1]:.1e}" if len(losses) else ""
                return f"the {name} have left the range of float32 by epoch {self.epoch + len(losses)}{grown}"
        return ""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.epoch, self.elapsed = state["epoch"], state["elapsed"]
        self.weights = self.solver.own(state["state_weights"])
        self.outer = self.solver.own(state["state_outer"])
        for name, whole in (("weights", self.kept_weights), ("outer", self.kept_outer), ("loss", self.loss)):
            whole[: len(state[name])] = state[name]
        self.earlier = state["inner_solves"]
        for name, values in state["measured"].items():
            self._measurements(name)[: len(values)] = values

    def state(self) -> dict[str, Any]:
        """All that a later sitting needs."""
        kept = int(np.searchsorted(self.plan.snapshot_epochs, self.epoch, side="right"))
        taken = int(np.searchsorted(self.plan.measured_epochs, self.epoch, side="right"))
        return {
            "epoch": self.epoch,
            "elapsed": self.elapsed,
            "inner_solves": self.inner_solves(),
            "state_weights": torch.as_tensor(self.weights),
            "state_outer": torch.as_tensor(self.outer),
            "weights": self.kept_weights[:kept],
            "outer": self.kept_outer[:kept],
            "loss": self.loss[: self.epoch],
            "measured": {name: values[:taken] for name, values in self.measured.items()},
        }

    def inner_solves(self) -> dict[str, float]:
        return merged(self.earlier, self.solver.report())

    def estimate(self, seconds_per_epoch: float) -> str:
        left = seconds_per_epoch * (self.plan.epochs - self.epoch)
        size = 4 * (self.kept_weights.numel() + self.kept_outer.numel()) + 8 * self.plan.epochs
        return (
            f"{seconds_per_epoch * 1e3:.3g} ms an epoch, about {duration(left)} to go; "
            f"the result will take {size / 1e6:.3g} MB"
        )

    def finish(self) -> Training:
        inverse = torch.from_numpy(np.searchsorted(self.plan.measured_epochs, self.plan.distance_epochs))
        measured = {name: values[inverse] for name, values in self.measured.items()}
        epochs = torch.from_numpy(self.plan.snapshot_epochs)
        return Training(
            epochs, self.kept_weights, self.kept_outer, self.loss, measured, self.inner_solves(), self.elapsed
        )
