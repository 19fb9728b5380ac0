"""The loop around the epochs: schedule, snapshots, measurements, resume, and stopping at the first bad loss."""

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import random_problem
from tolerances import EXACT, FLOAT32_STATE, RESIDUAL, ROUNDED, SOLVE

from varpro import cli, results, ridge
from varpro.features import LAPLACE, RadialTorus, ReLUCircle
from varpro.problem import drawn_problem
from varpro.runs import bookkeeping, training
from varpro.runs.bookkeeping import Checkpoint
from varpro.runs.descent import GradientDescent
from varpro.runs.schedule import schedule
from varpro.solvers.circle import CircleSolver
from varpro.solvers.dense import DenseSolver
from varpro.solvers.torus import TorusSolver

PROBLEM = random_problem(80, 12)


def linear_solver(outer_update="ridge", time_scale=2**-10):
    return CircleSolver(PROBLEM.inputs, PROBLEM.targets, 1e-2, 1.0, time_scale, outer_update)


def train(solver, plan, measure=None, start=None, **keywords):
    start = torch.from_numpy(PROBLEM.weights) if start is None else start
    return training.train(GradientDescent(solver, start), plan, measure, **keywords)


def dense_solver(outer_update="ridge"):
    inputs, targets = torch.from_numpy(PROBLEM.inputs), torch.from_numpy(PROBLEM.targets)[:, None]
    return DenseSolver(ReLUCircle(), inputs, targets, 1e-2, 1.0, 2**-10, outer_update)


@given(st.integers(1, 40000), st.one_of(st.none(), st.integers(1, 50000)))
def test_schedule(epochs, step):
    plan = schedule(epochs, step)
    assert plan.snapshot_epochs[0] == 0
    assert plan.snapshot_epochs[-1] == epochs
    assert (np.diff(plan.snapshot_epochs) > 0).all()
    assert len(plan.snapshot_epochs) <= (1002 if step is None else epochs // step + 2)
    assert plan.distance_epochs.shape == (1001,)
    assert plan.distance_epochs[[0, -1]].tolist() == [0, epochs]
    if step is None and epochs == 32000:
        assert len(plan.snapshot_epochs) == 1001


def test_paper_runs_measure_where_they_keep():
    plan = schedule(32000)
    np.testing.assert_array_equal(plan.snapshot_epochs, plan.distance_epochs)
    assert plan.distance_epochs[1] == 32


@pytest.mark.parametrize("make_solver", [linear_solver, dense_solver])
@pytest.mark.parametrize("outer_update", ["ridge", "gradient"])
def test_record_of_a_run(make_solver, outer_update):
    """Every stored state gives the stored loss of its epoch, and measurements see the states they are named for."""
    plan = schedule(20, 3)
    seen = {}

    def measure(place, weights):
        seen[place] = weights.copy()
        return {"distance_teacher": float(place)}

    record = train(make_solver(outer_update), plan, measure)
    assert record.snapshot_epochs.tolist() == [0, 3, 6, 9, 12, 15, 18, 20]
    assert record.weights.shape == (8, 12, 2)
    assert record.outer.shape == (8, 12)
    assert record.loss.shape == (20,)
    targets = torch.from_numpy(PROBLEM.targets)[:, None]
    for place, epoch in enumerate(record.snapshot_epochs[:-1].tolist()):
        features = torch.relu(torch.from_numpy(PROBLEM.inputs) @ record.weights[place].double().T)
        loss = ridge.loss(features, targets, record.outer[place].double()[:, None], 1e-2, 1.0)
        assert loss.item() == pytest.approx(record.loss[epoch].item(), abs=FLOAT32_STATE)
    assert sorted(seen) == list(range(21))
    np.testing.assert_allclose(seen[9], record.weights[3], rtol=0, atol=FLOAT32_STATE)
    assert record.measured["distance_teacher"].tolist() == plan.distance_epochs.tolist()


def test_solvers_give_the_same_record():
    plan = schedule(30)
    records = [train(solver(), plan) for solver in (linear_solver, dense_solver)]
    torch.testing.assert_close(records[0].loss, records[1].loss, rtol=SOLVE, atol=EXACT)
    torch.testing.assert_close(records[0].weights, records[1].weights, rtol=ROUNDED, atol=ROUNDED)


class Interrupted(Exception):
    pass


def checkpoint(path, config=None, seconds=0.0, **keywords):
    return Checkpoint(path, config or {"seed": 0}, training.STATE_VERSION, seconds=seconds, share=1e9, **keywords)


def stop_at(limit):
    """A measurement that is interrupted at the place ``limit``."""

    def measure(place, weights):
        if place == limit:
            raise Interrupted
        return {"d": float(weights[:, 0].mean())}

    return measure


@pytest.mark.parametrize("make_solver", [linear_solver, dense_solver])
def test_an_interrupted_run_goes_on_to_the_same_bits(make_solver, tmp_path):
    plan, path = schedule(40, 4), tmp_path / "run.checkpoint"
    whole = train(make_solver(), plan, stop_at(None))
    with pytest.raises(Interrupted):
        train(make_solver(), plan, stop_at(23), checkpoint=checkpoint(path))
    assert path.exists()
    with pytest.raises(Interrupted):  # a second process must not start over
        train(make_solver(), plan, stop_at(31), checkpoint=checkpoint(path))
    calls = []

    def measure(place, weights):
        calls.append(place)
        return stop_at(None)(place, weights)

    kept = results.load(path)
    kept["state"]["elapsed"] = kept["state"]["descent"]["seconds"] = 1e6
    kept["state"]["cost"]["seconds"][:] = torch.arange(len(kept["state"]["cost"]["seconds"]))
    results.save(path, kept)
    resumed = train(make_solver(), plan, measure, checkpoint=checkpoint(path))
    assert calls == list(range(31, 41))
    assert resumed.elapsed > 1e6
    assert resumed.cost["seconds"][:3].tolist() == [0, 1, 2]
    assert resumed.cost["seconds"][-1] > 1e6
    assert path.exists()  # until the result is on disk
    for name in ("weights", "outer", "loss", "snapshot_epochs"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert torch.equal(resumed.measured["d"], whole.measured["d"])


def test_the_report_of_inner_solves_adds_up_over_processes(tmp_path):
    problem = drawn_problem(RadialTorus(LAPLACE), 0, 300, 16, 64, 100.0)
    path, plan, processes = tmp_path / "run.checkpoint", schedule(40, 4), []

    def sit(stop=None):
        solver = TorusSolver("laplace", problem.inputs.numpy(), problem.targets[:, 0].numpy(), 1e-2, 1.0, 2**-10)
        processes.append(solver)
        return training.train(
            GradientDescent(solver, problem.student), plan, stop_at(stop), checkpoint=checkpoint(path)
        )

    with pytest.raises(Interrupted):
        sit(stop=20)
    found = sit().report
    assert found["solves"] >= 40
    assert processes[1].report()["solves"] < 40  # the second one alone did not do them all
    assert 0 < found["worst_residual"] <= RESIDUAL["float32"]
    assert train(dense_solver(), schedule(3)).report == {}


def test_a_checkpoint_of_another_run_is_not_used(tmp_path):
    plan, path = schedule(10), tmp_path / "run.checkpoint"
    with pytest.raises(Interrupted):
        train(linear_solver(), plan, stop_at(5), checkpoint=checkpoint(path))
    lines = []
    for other in ({"config": {"seed": 1}}, {}):
        again = checkpoint(path, **other, report=lines.append)
        assert (again.restore() is None) == bool(other)
    older = Checkpoint(path, {"seed": 0}, training.STATE_VERSION - 1, report=lines.append)
    assert older.restore() is None
    path.write_bytes(b"damaged")
    assert checkpoint(path, report=lines.append).restore() is None
    assert [line.partition(str(path))[2] for line in lines[:2]] == [" has seed = 0, not 1", " is of another version"]
    assert "not a file of tensors" in lines[2]
    train(linear_solver(), plan, checkpoint=checkpoint(path))  # writes its own over it
    assert checkpoint(path).restore()["epoch"] == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_the_state_of_the_last_epochs(number, tmp_path):
    plan, path = schedule(40, 4), tmp_path / "run.checkpoint"
    before = signal.getsignal(number)

    def measure(place, _):
        if place == 17:
            os.kill(os.getpid(), number)
        return {}

    with pytest.raises(cli.Stopped) as stopped:
        train(linear_solver(), plan, measure, checkpoint=checkpoint(path, seconds=1e9))
    assert stopped.value.exit_code == 128 + number
    assert checkpoint(path).restore()["epoch"] == 17
    assert signal.getsignal(number) is before


def test_a_diverging_run_stops_with_the_epoch_and_leaves_nothing(tmp_path):
    targets = PROBLEM.targets * 1e150
    solver = CircleSolver(PROBLEM.inputs, targets, 1e-2, 1.0, 1.0, "gradient")
    with pytest.raises(FloatingPointError, match=r"not finite at epoch \d+; try a smaller --time_scale"):
        train(
            solver,
            schedule(5),
            checkpoint=checkpoint(tmp_path / "c", seconds=1e9),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_outgrows_its_file_keeps_the_last_sound_state(tmp_path):
    """Two-timescale descent beyond its stability limit: the loss is finite long after the state fits no float32."""
    path = tmp_path / "c"
    solver = CircleSolver(PROBLEM.inputs * 30, PROBLEM.targets, 1e-2, 1.0, 2**-10, "gradient")
    with pytest.raises(FloatingPointError, match=r"the outer weights have left the range of float32 by epoch \d+"):
        train(
            solver,
            schedule(200),
            checkpoint=checkpoint(path, seconds=1e9),
        )
    state = checkpoint(path).restore()
    assert state["epoch"] > 0
    assert state["descent"]["seconds"] > 0
    for tensor in (state["loss"], *(part[name] for part in (state, state["descent"]) for name in ("weights", "outer"))):
        assert torch.isfinite(tensor).all()


class NoWayBack(GradientDescent):
    """Fails after three epochs, and then at the state before, too, as an ill-conditioned inner solve may."""

    done = 0

    def advance(self, epochs):
        losses = super().advance(epochs)
        self.done += epochs
        if self.done > 3:
            raise FloatingPointError("inner solve: stuck; use float64")
        return losses

    def restore(self, state):
        raise FloatingPointError("inner solve: stuck; use float64")


def test_a_descent_that_cannot_go_back_still_names_the_epoch_and_keeps_its_last_sound_state(tmp_path):
    plan, start = schedule(50), torch.from_numpy(PROBLEM.weights)
    with pytest.raises(FloatingPointError, match=r"^epoch [1-3]: inner solve: stuck; use float64$"):
        training.train(NoWayBack(linear_solver(), start), plan, checkpoint=checkpoint(tmp_path / "c", seconds=1e9))
    kept = checkpoint(tmp_path / "c").restore()
    same = GradientDescent(linear_solver(), start)
    same.advance(kept["epoch"])
    assert torch.equal(kept["descent"]["weights"], torch.as_tensor(same.weights))
    with pytest.raises(FloatingPointError, match=rf"^epoch {kept['epoch']}: inner solve: stuck"):
        training.train(NoWayBack(linear_solver(), start), plan, checkpoint=checkpoint(tmp_path / "c", seconds=1e9))


class Breaks(GradientDescent):
    """Epoch 8, the one after state 7, cannot be made: its loss is NaN, or it raises."""

    done, raises = 0, False

    def state(self):
        return super().state() | {"done": self.done}

    def restore(self, state):
        super().restore(state)
        self.done = state["done"]

    def advance(self, epochs):
        losses = super().advance(epochs)
        if self.raises and self.done + epochs > 7:
            raise FloatingPointError("inner solve: stuck")
        losses[max(7 - self.done, 0) :] = torch.nan
        self.done += epochs
        return losses


@pytest.mark.parametrize(
    ("raises", "says"), [(False, "^the loss is not finite at epoch 7; try "), (True, "^epoch 8: inner solve: stuck$")]
)
def test_the_epoch_that_failed_is_named(raises, says):
    descent = Breaks(linear_solver(), torch.from_numpy(PROBLEM.weights))
    descent.raises = raises
    with pytest.raises(FloatingPointError, match=says):
        training.train(descent, schedule(50, 50))


def test_the_cost_is_estimated_once(monkeypatch):
    monkeypatch.setattr(bookkeeping, "_TIMED_SECONDS", 0.0)
    lines = []
    train(linear_solver(), schedule(50), report=lines.append)
    assert len(lines) == 1
    assert "ms an epoch" in lines[0]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (75, "75 s"), (600, "10 min"), (9000, "2.5 h")])
def test_duration(seconds, text):
    assert cli.duration(seconds) == text
