"""The training loop: snapshots, measurements, progress, checkpoint and resume; the descent does the epochs.

State number e is the pair of weights and outer weights after e epochs; for VarPro its outer weights are optimal for its
weights, and loss[e] is the risk of state e.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from varpro.cli import duration
from varpro.runs.bookkeeping import Checkpoint, Report, StopSignals, Watch
from varpro.runs.descent import Descent
from varpro.runs.schedule import Schedule
from varpro.solvers.base import merged

STATE_VERSION = 4  # of what a checkpoint holds; to be counted up where that changes
_STRETCH_SECONDS = 0.5  # of epochs between two looks at signals and clock, about
REMEDY = "a smaller --time_scale"
_LARGEST = float(np.finfo(np.float32).max)  # of what a result can hold

Measurement = Callable[[int, np.ndarray], Mapping[str, float]]


@dataclass
class Training:
    """The record of a run: ``weights (S, M, d)`` and ``outer (S, M)`` or ``(S, M, k)``, float32; ``loss (epochs,)``.

    ``epochs`` is the length of the plan, or less where the training ended before; then ``ending`` says why.
    """

    snapshot_epochs: torch.Tensor
    distance_epochs: torch.Tensor
    weights: torch.Tensor
    outer: torch.Tensor
    loss: torch.Tensor
    measured: dict[str, torch.Tensor] = field(default_factory=dict)
    cost: dict[str, torch.Tensor] = field(default_factory=dict)  # (S,) seconds, and evaluations with an optimizer
    report: dict[str, float] = field(default_factory=dict)  # Descent.report, over all processes
    ending: str = ""
    elapsed: float = 0.0  # seconds of training, measurements included, over all processes


def train(
    descent: Descent,
    plan: Schedule,
    measure: Measurement | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    signals: StopSignals | None = None,
    progress: bool = False,
    label: str = "",
    report: Report | None = None,
    remedy: str = REMEDY,
) -> Training:
    """Take ``descent`` through ``plan``.

    ``measure`` is called at the distance epochs with their number among the distinct ones and the weights (M, d) in
    float64, and returns named values. With ``checkpoint`` the state is kept there now and then, and a later call goes
    on from it; the caller removes it. ``signals`` are those of a caller who takes care of them already. ``report``
    receives lines for the user, with the estimated cost; ``remedy`` is what to try where numbers grow without bound.

    Raises FloatingPointError with the epoch where the loss stops being finite or the state too large to be kept; the
    last sound state is in the checkpoint then. Raises Stopped after a signal, with the state likewise.
    """
    run = _Run(descent, plan, measure, remedy)
    state = checkpoint.restore() if checkpoint is not None else None
    if state is not None:
        run.restore(state)
        if report is not None:
            report(f"goes on after epoch {run.epoch} of {plan.epochs}")
    events = np.union1d(plan.snapshot_epochs, plan.measured_epochs)
    watch = Watch(report, run.estimate)

    def keep() -> None:
        if checkpoint is not None:
            checkpoint.write(run.state())

    bar = tqdm(total=plan.epochs, initial=run.epoch, desc=label, unit="epoch", disable=not progress)
    with bar, StopSignals() if signals is None else nullcontext(signals) as signals:
        if run.epoch == 0:
            run.record()
        while run.epoch < plan.epochs and not descent.ending:
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

    def __init__(self, descent: Descent, plan: Schedule, measure: Measurement | None, remedy: str = REMEDY) -> None:
        self.descent, self.plan, self.measure, self.remedy = descent, plan, measure, remedy
        self.epoch, self.elapsed = 0, 0.0
        self.epoch_seconds = 0.0  # seconds an epoch, lately
        self.earlier: dict[str, float] = {}  # report of the processes before
        self.sound: Mapping[str, Any] | None = None  # the descent's last state, while it cannot go back to it
        width, outer = len(descent.weights), descent.outer
        outer_shape = tuple(outer.shape) if outer.ndim > 1 and outer.shape[1] > 1 else (width,)
        snapshots = len(plan.snapshot_epochs)
        self.kept_weights = torch.empty((snapshots, *descent.weights.shape), dtype=torch.float32)
        self.kept_outer = torch.empty((snapshots, *outer_shape), dtype=torch.float32)
        self.loss = torch.empty(plan.epochs, dtype=torch.float64)
        self.measured: dict[str, torch.Tensor] = {}
        self.cost = {name: torch.empty(snapshots, dtype=torch.float64) for name in descent.cost()}

    def record(self, *, last: bool = False) -> None:
        """Keep and measure the state at hand, if the plan says so, or if it is the ``last``."""
        weights = torch.as_tensor(self.descent.weights).cpu()
        place = int(np.searchsorted(self.plan.snapshot_epochs, self.epoch))
        if last or self.plan.snapshot_epochs[place] == self.epoch:
            self.kept_weights[place] = weights
            self.kept_outer[place] = torch.as_tensor(self.descent.outer).cpu().reshape(self.kept_outer[place].shape)
            for name, value in self.descent.cost().items():
                self.cost[name][place] = value
        measured = self.plan.measured_epochs
        place = int(np.searchsorted(measured, self.epoch))
        if self.measure is not None and (last or measured[place] == self.epoch):
            for name, value in self.measure(place, weights.double().numpy()).items():
                self._measurements(name)[place] = value

    def _measurements(self, name: str) -> torch.Tensor:
        return self.measured.setdefault(name, torch.empty(len(self.plan.measured_epochs), dtype=torch.float64))

    def advance(self, event: int) -> None:
        """Train to epoch ``event``, or for about half a second where that comes first, or to the end.

        Raises FloatingPointError with the epoch whose new state is not sound; the state is the one before it then.
        """
        begin = time.perf_counter()
        stretch = math.ceil(_STRETCH_SECONDS / self.epoch_seconds) if self.epoch_seconds else 1
        epochs = min(event - self.epoch, max(1, stretch))
        before = self.descent.state()
        try:
            losses = self.descent.advance(epochs)
            fault = self._fault(losses)
        except FloatingPointError as error:  # of the solver, with a hint
            fault = f"epoch {self.epoch + 1}: {error}"
        if fault:
            self.sound = before
            self._go_back(before)
            self.sound = None
            if epochs == 1:
                raise FloatingPointError(fault)
            for _ in range(epochs):  # the state that was sound last is within this stretch
                self.advance(self.epoch + 1)
            return
        self.loss[self.epoch : self.epoch + len(losses)] = losses
        self.epoch += len(losses)
        if self.epoch == event or self.descent.ending:
            self.record(last=bool(self.descent.ending))
        spent = time.perf_counter() - begin
        self.epoch_seconds = spent / max(1, len(losses))
        self.elapsed += spent

    def _fault(self, losses: torch.Tensor) -> str:
        bad = torch.nonzero(~torch.isfinite(losses))
        if len(bad):
            return f"the loss is not finite at epoch {self.epoch + int(bad[0])}; try {self.remedy}"
        for name, value in (("weights", self.descent.weights), ("outer weights", self.descent.outer)):
            if not torch.as_tensor(value).abs().max() <= _LARGEST:
                grown = f", with a loss of {losses[-1]:.1e}" if len(losses) else ""
                when = f"by epoch {self.epoch + len(losses)}{grown}"
                return f"the {name} have left the range of float32 {when}; try {self.remedy}"
        return ""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.epoch, self.elapsed = state["epoch"], state["elapsed"]
        self._go_back(state["descent"])
        for name, whole in (("weights", self.kept_weights), ("outer", self.kept_outer), ("loss", self.loss)):
            whole[: len(state[name])] = state[name]
        self.earlier = state["report"]
        for name, values in state["measured"].items():
            self._measurements(name)[: len(values)] = values
        for name, values in state["cost"].items():
            self.cost[name][: len(values)] = values

    def _go_back(self, state: Mapping[str, Any]) -> None:
        try:
            self.descent.restore(state)
        except FloatingPointError as error:  # of an inner solve, with a hint
            raise FloatingPointError(f"epoch {self.epoch}: {error}") from None

    def state(self) -> dict[str, Any]:
        """All that a later process needs."""
        kept, taken = self._lengths()
        return {
            "epoch": self.epoch,
            "elapsed": self.elapsed,
            "report": self.report(),
            "descent": self.descent.state() if self.sound is None else self.sound,
            "weights": self.kept_weights[:kept],
            "outer": self.kept_outer[:kept],
            "loss": self.loss[: self.epoch],
            "measured": {name: values[:taken] for name, values in self.measured.items()},
            "cost": {name: values[:kept] for name, values in self.cost.items()},
        }

    def _lengths(self) -> tuple[int, int]:
        """How many snapshots and how many measurements have been made; the last state has both where it is the end."""
        plan, ended = self.plan, bool(self.descent.ending)
        kept, measured = (
            int(np.searchsorted(epochs, self.epoch, side="left" if ended else "right")) + ended
            for epochs in (plan.snapshot_epochs, plan.measured_epochs)
        )
        return kept, measured

    def report(self) -> dict[str, float]:
        return merged(self.earlier, self.descent.report())

    def estimate(self, seconds_per_epoch: float) -> str:
        left = seconds_per_epoch * (self.plan.epochs - self.epoch)
        size = 4 * (self.kept_weights.numel() + self.kept_outer.numel()) + 8 * self.plan.epochs
        return (
            f"{seconds_per_epoch * 1e3:.3g} ms an epoch, about {duration(left)} to go; "
            f"the result will take {size / 1e6:.3g} MB"
        )

    def finish(self) -> Training:
        kept, _ = self._lengths()
        distance_epochs = np.minimum(self.plan.distance_epochs, self.epoch)
        inverse = torch.from_numpy(np.searchsorted(self.plan.measured_epochs, distance_epochs))
        return Training(
            torch.from_numpy(np.minimum(self.plan.snapshot_epochs[:kept], self.epoch)),
            torch.from_numpy(distance_epochs),
            self.kept_weights[:kept],
            self.kept_outer[:kept],
            self.loss[: self.epoch],
            {name: values[inverse] for name, values in self.measured.items()},
            {name: values[:kept] for name, values in self.cost.items()},
            self.report(),
            self.descent.ending,
            self.elapsed,
        )
