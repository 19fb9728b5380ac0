"""The training loop: snapshots, measurements, progress, checkpoint and resume; the solver does the epochs.

State number e is the pair of weights and outer weights after e epochs; for VarPro its outer weights are optimal for its
weights, and loss[e] is the risk of state e.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from varpro import results
from varpro.cli import duration
from varpro.solvers.circle import CircleSolver
from varpro.solvers.dense import DenseSolver
from varpro.solvers.graphs import GraphSolver
from varpro.solvers.torus import TorusSolver

MEASUREMENTS = 1001  # epochs at which distances are taken (docs/definitions.md, 2)
_SNAPSHOTS = 1000  # about this many snapshots by default
_TIMED_SECONDS = 1.0  # of training, before its cost is estimated; what is shorter needs no estimate
_CHECKPOINT_SECONDS = 30.0
_CHECKPOINT_SHARE = 0.05  # of the running time, at most, goes into checkpoints

Solver = CircleSolver | DenseSolver | TorusSolver | GraphSolver
Measure = Callable[[int, np.ndarray], Mapping[str, float]]


@dataclass(frozen=True)
class Schedule:
    """Which states are kept and which are measured, all counted in epochs from 0 to ``epochs``."""

    epochs: int
    snapshot_epochs: np.ndarray  # (S,) increasing
    distance_epochs: np.ndarray  # (1001,) non-decreasing, int(linspace(0, epochs, 1001))


def schedule(epochs: int, saving_step: int | None = None) -> Schedule:
    """Every ``saving_step``-th state (default: about 1000 in all) and always the last; 1001 measurements."""
    step = saving_step or math.ceil(epochs / _SNAPSHOTS)
    kept = np.unique(np.append(np.arange(0, epochs + 1, step), epochs))
    return Schedule(epochs, kept, np.linspace(0, epochs, MEASUREMENTS).astype(np.int64))


@dataclass
class Training:
    """The record of a run: ``weights (S, M, d)`` and ``outer (S, M)`` or ``(S, M, k)``, float32; ``loss (epochs,)``."""

    snapshot_epochs: torch.Tensor
    weights: torch.Tensor
    outer: torch.Tensor
    loss: torch.Tensor
    measured: dict[str, torch.Tensor] = field(default_factory=dict)
    effort: dict[str, float] = field(default_factory=dict)  # of iterative inner solves: largest residual, and counts
    elapsed: float = 0.0  # seconds of training, measurements included, over all sittings


def train(
    solver: Solver,
    weights: torch.Tensor,
    plan: Schedule,
    measure: Measure | None = None,
    *,
    checkpoint: Path | None = None,
    config: Mapping[str, object] | None = None,
    progress: bool = False,
    label: str = "",
    report: Callable[[str], None] | None = None,
) -> Training:
    """Train ``weights (M, d)`` on ``solver`` through ``plan``.

    ``measure`` is called at the distance epochs with their number among the distinct ones and the weights (M, d) in
    float64, and returns named values. With ``checkpoint`` the state is kept there about twice a minute and a later call
    with the same ``config`` goes on from it. ``report`` receives one line with the estimated cost. Raises
    FloatingPointError with the number of the epoch where the loss stops being finite.
    """
    measure_epochs, inverse = np.unique(plan.distance_epochs, return_inverse=True)
    run = _Run(solver, weights, plan, measure, measure_epochs)
    if checkpoint is not None:
        run.resume(checkpoint, config)
    events = np.union1d(plan.snapshot_epochs, measure_epochs)
    bar = tqdm(total=plan.epochs, initial=run.epoch, desc=label, unit="epoch", disable=not progress)
    saver = _Checkpoints(checkpoint, config)
    with bar:
        if run.epoch == 0:
            run.record()
        start = None
        for event in events[events > run.epoch]:
            first = run.epoch
            run.advance(int(event))
            bar.update(int(event) - first)
            if start is None:  # the first stretch may have compiled
                start, timed_from = time.perf_counter(), run.epoch
            elif report is not None and time.perf_counter() - start > _TIMED_SECONDS:
                report(_estimate(run, (time.perf_counter() - start) / (run.epoch - timed_from)))
                report = None
            saver.offer(run)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return run.finish(inverse)


class _Run:
    """The state of a training and its record so far."""

    def __init__(self, solver, weights, plan, measure, measure_epochs) -> None:
        self.solver, self.plan, self.measure = solver, plan, measure
        self.measure_epochs = measure_epochs
        self.weights = solver.own(weights)
        self.outer = solver.project(self.weights)
        self.epoch, self.elapsed = 0, 0.0
        self.effort_before: dict[str, float] = {}  # in earlier sittings
        outer_shape = tuple(self.outer.shape) if self.outer.ndim > 1 and self.outer.shape[1] > 1 else (len(weights),)
        snapshots = len(plan.snapshot_epochs)
        self.kept_weights = torch.empty((snapshots, *weights.shape), dtype=torch.float32)
        self.kept_outer = torch.empty((snapshots, *outer_shape), dtype=torch.float32)
        self.loss = torch.empty(plan.epochs, dtype=torch.float64)
        self.measured: dict[str, torch.Tensor] = {}

    def record(self) -> None:
        weights = torch.as_tensor(self.weights).cpu()
        place = np.searchsorted(self.plan.snapshot_epochs, self.epoch)
        if self.plan.snapshot_epochs[place] == self.epoch:
            self.kept_weights[place] = weights
            self.kept_outer[place] = torch.as_tensor(self.outer).cpu().reshape(self.kept_outer[place].shape)
        place = int(np.searchsorted(self.measure_epochs, self.epoch))
        if self.measure is not None and self.measure_epochs[place] == self.epoch:
            for name, value in self.measure(place, weights.double().numpy()).items():
                self._measurements(name)[place] = value

    def _measurements(self, name: str) -> torch.Tensor:
        return self.measured.setdefault(name, torch.empty(len(self.measure_epochs), dtype=torch.float64))

    def advance(self, event: int) -> None:
        begin = time.perf_counter()
        losses = torch.as_tensor(self.solver.advance(self.weights, self.outer, event - self.epoch))
        bad = torch.nonzero(~torch.isfinite(losses))
        if len(bad):
            raise FloatingPointError(
                f"the loss is not finite at epoch {self.epoch + int(bad[0])}; try a smaller --time_scale"
            )
        self.loss[self.epoch : event] = losses
        self.epoch = event
        self.record()
        self.elapsed += time.perf_counter() - begin

    def resume(self, path: Path, config) -> None:
        """Go on from a checkpoint of the same configuration; any other is ignored and will be overwritten."""
        try:
            saved = results.load(path)
        except results.ResultError:
            return
        if saved.get("config") != config:
            return
        self.epoch, self.elapsed = saved["epoch"], saved["elapsed"]
        self.weights = self.solver.own(saved["state_weights"])
        self.outer = self.solver.own(saved["state_outer"])
        for name, whole in (("weights", self.kept_weights), ("outer", self.kept_outer), ("loss", self.loss)):
            whole[: len(saved[name])] = saved[name]
        if isinstance(self.solver, CircleSolver):
            self.solver.achieved[:] = np.maximum(self.solver.achieved, saved["achieved"])
        self.effort_before = saved["effort"]
        for name, values in saved["measured"].items():
            self._measurements(name)[: len(values)] = values

    def checkpoint(self, config) -> dict:
        kept = int(np.searchsorted(self.plan.snapshot_epochs, self.epoch, side="right"))
        taken = int(np.searchsorted(self.measure_epochs, self.epoch, side="right"))
        return {
            "config": config,
            "epoch": self.epoch,
            "elapsed": self.elapsed,
            "achieved": list(map(float, getattr(self.solver, "achieved", ()))),
            "effort": self.effort(),
            "state_weights": torch.as_tensor(self.weights),
            "state_outer": torch.as_tensor(self.outer),
            "weights": self.kept_weights[:kept],
            "outer": self.kept_outer[:kept],
            "loss": self.loss[: self.epoch],
            "measured": {name: values[:taken] for name, values in self.measured.items()},
        }

    def effort(self) -> dict[str, float]:
        """What the inner solves took and how exact they were, over all sittings; {} where a solver keeps no account."""
        if not hasattr(self.solver, "effort"):
            return {}
        before = self.effort_before
        return {
            name: max(value, before.get(name, 0)) if name == "residual" else value + before.get(name, 0)
            for name, value in self.solver.effort()._asdict().items()
        }

    def finish(self, inverse: np.ndarray) -> Training:
        measured = {name: values[torch.from_numpy(inverse)] for name, values in self.measured.items()}
        epochs = torch.from_numpy(self.plan.snapshot_epochs)
        return Training(epochs, self.kept_weights, self.kept_outer, self.loss, measured, self.effort(), self.elapsed)


class _Checkpoints:
    """Writes a checkpoint now and then, so that writing stays a small share of the time."""

    def __init__(self, path: Path | None, config) -> None:
        self.path, self.config = path, config
        self.next = time.perf_counter() + _CHECKPOINT_SECONDS

    def offer(self, run: _Run) -> None:
        begin = time.perf_counter()
        if self.path is None or begin < self.next:
            return
        results.save(self.path, run.checkpoint(self.config))
        cost = time.perf_counter() - begin
        self.next = begin + max(_CHECKPOINT_SECONDS, cost / _CHECKPOINT_SHARE)


def _estimate(run: _Run, seconds_per_epoch: float) -> str:
    left = seconds_per_epoch * (run.plan.epochs - run.epoch)
    size = 4 * (run.kept_weights.numel() + run.kept_outer.numel()) + 8 * run.plan.epochs
    return (
        f"{seconds_per_epoch * 1e3:.3g} ms an epoch, about {duration(left)} to go; "
        f"the result will take {size / 1e6:.3g} MB"
    )
