"""The loop around the epochs: schedule, snapshots, measurements, resume, and stopping at the first bad loss."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import random_problem
from tolerances import EXACT, FLOAT32_STATE, SOLVE

from varpro import cli, ridge
from varpro.features import LAPLACE, RadialTorus, ReLUCircle
from varpro.runs import training
from varpro.solvers.circle import CircleSolver
from varpro.solvers.dense import DenseSolver
from varpro.solvers.torus import TorusSolver
from varpro.teachers import torus_problem

PROBLEM = random_problem(80, 12)


def linear_solver(outer_update="ridge", time_scale=2**-10):
    return CircleSolver(PROBLEM.inputs, PROBLEM.targets, 1e-2, 1.0, time_scale, outer_update)


def dense_solver(outer_update="ridge"):
    inputs, targets = torch.from_numpy(PROBLEM.inputs), torch.from_numpy(PROBLEM.targets)[:, None]
    return DenseSolver(ReLUCircle(), inputs, targets, 1e-2, 1.0, 2**-10, outer_update)


@given(st.integers(1, 40000), st.one_of(st.none(), st.integers(1, 50000)))
def test_schedule(epochs, step):
    plan = training.schedule(epochs, step)
    assert plan.snapshot_epochs[0] == 0
    assert plan.snapshot_epochs[-1] == epochs
    assert (np.diff(plan.snapshot_epochs) > 0).all()
    assert len(plan.snapshot_epochs) <= (1002 if step is None else epochs // step + 2)
    assert plan.distance_epochs.shape == (1001,)
    assert plan.distance_epochs[[0, -1]].tolist() == [0, epochs]
    if step is None and epochs == 32000:
        assert len(plan.snapshot_epochs) == 1001


def test_paper_runs_measure_where_they_keep():
    plan = training.schedule(32000)
    np.testing.assert_array_equal(plan.snapshot_epochs, plan.distance_epochs)
    assert plan.distance_epochs[1] == 32


@pytest.mark.parametrize("make_solver", [linear_solver, dense_solver])
@pytest.mark.parametrize("outer_update", ["ridge", "gradient"])
def test_record_of_a_run(make_solver, outer_update):
    """Every stored state gives the stored loss of its epoch, and measurements see the states they are named for."""
    plan = training.schedule(20, 3)
    seen = {}

    def measure(place, weights):
        seen[place] = weights.copy()
        return {"distance_teacher": float(place)}

    record = training.train(make_solver(outer_update), torch.from_numpy(PROBLEM.weights), plan, measure)
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
    plan = training.schedule(30)
    records = [
        training.train(solver(), torch.from_numpy(PROBLEM.weights), plan) for solver in (linear_solver, dense_solver)
    ]
    torch.testing.assert_close(records[0].loss, records[1].loss, rtol=SOLVE, atol=EXACT)
    torch.testing.assert_close(records[0].weights, records[1].weights)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("make_solver", [linear_solver, dense_solver])
def test_an_interrupted_run_goes_on_to_the_same_numbers(make_solver, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "_CHECKPOINT_SHARE", 1e9)
    plan, start = training.schedule(40, 4), torch.from_numpy(PROBLEM.weights)
    path, config = tmp_path / "run.checkpoint", {"seed": 0}

    def mean_cosine(_, weights):
        return {"d": float(weights[:, 0].mean())}

    def stop_at(limit):
        def measure(place, weights):
            if place == limit:
                raise Interrupted
            return mean_cosine(place, weights)

        return measure

    whole = training.train(make_solver(), start, plan, mean_cosine)
    with pytest.raises(Interrupted):
        training.train(make_solver(), start, plan, stop_at(23), checkpoint=path, config=config)
    assert path.exists()
    with pytest.raises(Interrupted):  # a second sitting must not start over
        training.train(make_solver(), start, plan, stop_at(31), checkpoint=path, config=config)
    calls = []
    resumed = training.train(
        make_solver(),
        start,
        plan,
        lambda place, weights: calls.append(place) or mean_cosine(place, weights),
        checkpoint=path,
        config=config,
    )
    assert calls == list(range(31, 41))
    assert not path.exists()
    for name in ("weights", "outer", "loss", "snapshot_epochs"):
        torch.testing.assert_close(getattr(resumed, name), getattr(whole, name), rtol=0, atol=EXACT)
    torch.testing.assert_close(resumed.measured["d"], whole.measured["d"], rtol=0, atol=EXACT)


def test_the_effort_of_inner_solves_adds_up_over_sittings(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "_CHECKPOINT_SHARE", 1e9)
    problem = torus_problem(RadialTorus(LAPLACE), 0, 300, 16, 64, 100.0)
    path, plan, sittings = tmp_path / "run.checkpoint", training.schedule(40, 4), []

    def sit(stop=None):
        solver = TorusSolver("laplace", problem.inputs.numpy(), problem.targets[:, 0].numpy(), 1e-2, 1.0, 2**-10)
        sittings.append(solver)

        def measure(place, _):
            if place == stop:
                raise Interrupted
            return {"place": place}

        return training.train(solver, problem.student, plan, measure, checkpoint=path, config={})

    with pytest.raises(Interrupted):
        sit(stop=20)
    effort = sit().effort
    assert effort["solves"] >= 40
    assert sittings[1].effort().solves < 40  # the second one alone did not do them all
    assert 0 < effort["residual"] <= 1e-6
    record = training.train(linear_solver(), torch.from_numpy(PROBLEM.weights), training.schedule(3))
    assert record.effort == {}  # no iterations there


def test_a_checkpoint_of_another_run_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    plan, start, path = training.schedule(10), torch.from_numpy(PROBLEM.weights), tmp_path / "run.checkpoint"

    def stop(place, weights):
        if place == 5:
            raise Interrupted
        return {}

    with pytest.raises(Interrupted):
        training.train(linear_solver(), start, plan, stop, checkpoint=path, config={"seed": 0})
    calls = []
    training.train(
        linear_solver(),
        start,
        plan,
        lambda place, _: calls.append(place) or {},
        checkpoint=path,
        config={"seed": 1},
    )
    assert calls == list(range(11))
    path.write_bytes(b"damaged")
    training.train(linear_solver(), start, plan, checkpoint=path, config={"seed": 1})
    assert not path.exists()


def test_a_diverging_run_stops_with_the_epoch_and_leaves_nothing(tmp_path):
    targets = PROBLEM.targets * 1e150
    solver = CircleSolver(PROBLEM.inputs, targets, 1e-2, 1.0, 1.0, "gradient")
    with pytest.raises(FloatingPointError, match=r"not finite at epoch \d+; try a smaller --time_scale"):
        training.train(solver, torch.from_numpy(PROBLEM.weights), training.schedule(5), checkpoint=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_the_cost_is_estimated_once(monkeypatch):
    monkeypatch.setattr(training, "_TIMED_SECONDS", 0.0)
    lines = []
    training.train(linear_solver(), torch.from_numpy(PROBLEM.weights), training.schedule(50), report=lines.append)
    assert len(lines) == 1
    assert "ms an epoch" in lines[0]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (75, "75 s"), (600, "10 min"), (9000, "2.5 h")])
def test_duration(seconds, text):
    assert cli.duration(seconds) == text
