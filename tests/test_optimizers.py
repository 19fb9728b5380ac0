"""Optimizers on the reduced risk: the same known minima, derivatives, stopping and going on, refusals."""

import io
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from problems import build
from tolerances import EXACT, GRADIENT, NEWTON

from varpro.features import LAPLACE, RAISED_COSINE, RadialTorus, ReLUCircle
from varpro.optimizers.charts import chart_of
from varpro.optimizers.continuation import continued
from varpro.optimizers.lbfgs import LBFGS
from varpro.optimizers.levenberg_marquardt import LevenbergMarquardt, feature_slopes, gauss_newton
from varpro.optimizers.momentum import Momentum
from varpro.problem import Problem, drawn_problem
from varpro.solvers.base import Objective
from varpro.solvers.circle import CircleSolver
from varpro.solvers.dense import DenseSolver
from varpro.solvers.torus import TorusSolver

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = [Momentum, LBFGS, LevenbergMarquardt]
RELU, BUMPS = ReLUCircle(), RadialTorus(RAISED_COSINE)


def objective(features, lmbda=1e-2, time_scale=2**-5):
    return Objective(features, lmbda, 1.0, time_scale, "ridge")


def shifted_teacher(features, width=6, samples=200, shift=0.02):
    """The student is the teacher, moved a little: the least risk is 0, at outer weights 1."""
    teacher = drawn_problem(features, 1, samples, width, 8, 1.0).student
    inputs = torch.randn(samples, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moves = shift * torch.stack([torch.cos(torch.arange(width) * 1.0), torch.sin(torch.arange(width) * 2.0)], dim=1)
    student = features.domain.project(teacher + moves)
    return Problem(inputs, features(teacher, inputs).mean(dim=1, keepdim=True), student, teacher)


CASES = [
    pytest.param(CircleSolver, RELU, id="circle"),
    pytest.param(DenseSolver, RELU, id="dense circle"),
    pytest.param(DenseSolver, BUMPS, id="dense torus"),
    pytest.param(TorusSolver, BUMPS, id="cg torus"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("solver", "features"), CASES)
def test_all_find_the_teacher(solver, features, optimizer):
    problem, goal = shifted_teacher(features), objective(features)
    run = optimizer(build(solver, goal, problem), goal, problem, tolerance=1e-12)
    first = run.state
    *_, last = islice(run, 150)
    assert first.evaluations == 1
    assert last.risk < 1e-3 * first.risk
    assert last.evaluations >= last.iteration > 3
    reduced = run.solver.reduced(last.weights)
    assert last.risk == pytest.approx(reduced.risk, rel=NEWTON["oracle"], abs=NEWTON["least risk"])
    if optimizer is LevenbergMarquardt:
        assert last.risk < NEWTON["least risk"]
        np.testing.assert_allclose(np.asarray(last.outer).ravel(), 1.0, rtol=0, atol=NEWTON["all found"])
        np.testing.assert_allclose(np.asarray(last.weights), problem.teacher, rtol=0, atol=NEWTON["all found"])


@pytest.mark.parametrize("optimizer", [LBFGS, LevenbergMarquardt])
@pytest.mark.parametrize(("solver", "features"), CASES[:3])
def test_the_risk_never_rises(solver, features, optimizer):
    problem, goal = drawn_problem(features, 0, 150, 12, 40, 10.0), objective(features, 1e-3)
    run = optimizer(build(solver, goal, problem), goal, problem)
    risks = [run.state.risk, *(state.risk for state in islice(run, 25))]
    assert len(risks) > 5
    assert (np.diff(risks) < 0).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("solver", "features"), CASES[:3])
def test_a_training_goes_on_from_its_state_dict_as_if_never_stopped(solver, features, optimizer):
    problem, goal = drawn_problem(features, 0, 150, 12, 40, 10.0), objective(features, 1e-3)
    whole = optimizer(build(solver, goal, problem), goal, problem)
    stopped = optimizer(build(solver, goal, problem), goal, problem)
    for _ in islice(stopped, 5):
        pass
    file, saved = io.BytesIO(), stopped.state_dict()
    for _ in islice(stopped, 2):  # what happens later must not reach what was saved
        pass
    torch.save(saved, file)
    file.seek(0)
    resumed = optimizer(build(solver, goal, problem), goal, problem)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    ends = [list(islice(run, count))[-1] for run, count in ((whole, 12), (resumed, 7))]
    assert ends[0].iteration == ends[1].iteration == 12
    assert ends[0].evaluations == ends[1].evaluations
    np.testing.assert_array_equal(np.asarray(ends[0].weights), np.asarray(ends[1].weights))
    np.testing.assert_array_equal(np.asarray(ends[0].outer), np.asarray(ends[1].outer))
    assert ends[1].seconds > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_tolerance_ends_a_training_and_the_reason_is_given(optimizer):
    problem, goal = drawn_problem(RELU, 0, 150, 12, 40, 10.0), objective(RELU, 1e-3)
    run = optimizer(build(CircleSolver, goal, problem), goal, problem, tolerance=0.8)
    states = list(islice(run, 50))
    assert 2 <= len(states) < 50
    assert "0.8" in run.ending
    risks = np.array([state.risk for state in states])
    assert (1 - risks[-2:] / risks[-3:-1] <= 0.8).all()
    assert run.state == states[-1]
    assert next(run, None) is None
    with pytest.raises(ValueError, match="tolerance -1 is not allowed"):
        optimizer(run.solver, goal, problem, tolerance=-1)


@pytest.mark.parametrize("optimizer", [LBFGS, LevenbergMarquardt])
@pytest.mark.parametrize("solver", [CircleSolver, DenseSolver])
def test_a_training_ends_where_no_step_lowers_the_risk(solver, optimizer):
    problem, goal = shifted_teacher(RELU), objective(RELU)
    run = optimizer(build(solver, goal, problem), goal, problem)
    *_, last = islice(run, 300)
    assert run.ending == "no step lowers the risk any more"
    assert run.state.weights is last.weights


def test_a_risk_that_is_not_finite_is_said():
    problem = shifted_teacher(RELU)
    problem = replace(problem, targets=torch.full_like(problem.targets, 1e200))
    with np.errstate(over="ignore"):
        solver = build(CircleSolver, objective(RELU), problem)
    with pytest.raises(FloatingPointError, match="not finite or too large"):
        Momentum(solver, objective(RELU), problem)


@pytest.mark.parametrize("features", [RELU, BUMPS, RadialTorus(LAPLACE)])
def test_charts_pull_gradients_back(features):
    """The derivative of the reduced risk along a coordinate, outside the usual range of coordinates too."""
    problem, goal, step = drawn_problem(features, 0, 60, 5, 20, 10.0), objective(features), 1e-6
    solver, chart = build(DenseSolver, goal, problem), chart_of(features.domain)
    coordinates = chart.coordinates(problem.student) + 7.0
    gradient = chart.pull(coordinates, solver.reduced(chart.weights(coordinates)).gradient)
    for place in np.ndindex(*coordinates.shape):
        risks = []
        for sign in (1, -1):
            moved = coordinates.clone()
            moved[place] += sign * step
            risks.append(solver.reduced(chart.weights(moved)).risk)
        assert gradient[place].item() == pytest.approx((risks[0] - risks[1]) / (2 * step), abs=GRADIENT)


@pytest.mark.parametrize("features", [RELU, BUMPS, RadialTorus(LAPLACE)])
@pytest.mark.parametrize("outputs", [1, 2])
def test_dense_gauss_newton_matrix_is_that_of_the_projected_residuals(features, outputs):
    """Kaufman's Jacobian row by row: the derivative of the residuals at fixed u, less what u could undo."""
    problem, goal = drawn_problem(features, 0, 40, 5, 20, 10.0), objective(features)
    targets = torch.cat([problem.targets, problem.targets.square()], dim=1)[:, :outputs]
    problem = replace(problem, targets=targets)
    outer = build(DenseSolver, goal, problem).reduced(problem.student).outer
    chart = chart_of(features.domain)
    coordinates = chart.coordinates(problem.student)
    width, count = len(coordinates), 40

    def residuals(point, u):
        data = (features(chart.weights(point), problem.inputs) @ u / width - targets) / np.sqrt(
            goal.lmbda * count * outputs
        )
        return torch.cat([data.flatten(), ((u - 1.0) / np.sqrt(width * outputs)).flatten()])

    in_point, in_outer = torch.autograd.functional.jacobian(residuals, (coordinates, outer))
    in_point, in_outer = in_point.reshape(len(in_point), -1), in_outer.reshape(len(in_outer), -1)
    projected = in_point - in_outer @ torch.linalg.lstsq(in_outer, in_point).solution
    expected = projected.T @ projected
    found = gauss_newton(goal, problem.inputs, coordinates, outer)
    np.testing.assert_allclose(found, expected, rtol=0, atol=NEWTON["matrix"] * expected.abs().max().item())


def test_a_gauss_newton_matrix_that_round_off_keeps_away_is_refused_in_one_line():
    """More neurons than samples and next to no penalty: phi^T phi is singular, where the dual solve is not."""
    problem, goal = drawn_problem(RELU, 0, 8, 64, 20, 10.0), objective(RELU, 1e-20)
    coordinates = chart_of(RELU.domain).coordinates(problem.student)
    with pytest.raises(FloatingPointError, match=r"^inner solve: the .* system is not positive definite in float64"):
        gauss_newton(goal, problem.inputs, coordinates, torch.ones(64, 1))


def test_momentum_is_the_recursion_that_it_states():
    problem, goal = drawn_problem(RELU, 0, 150, 12, 40, 10.0), objective(RELU, 1e-3)
    run = Momentum(build(DenseSolver, goal, problem), goal, problem)
    chart, solver = chart_of(RELU.domain), build(DenseSolver, goal, problem)
    point = last = chart.coordinates(problem.student)
    steps = restarts = 0
    for state in islice(run, 60):
        gradient = chart.pull(point, solver.reduced(chart.weights(point)).gradient)
        step = point - len(point) * goal.time_scale * gradient
        if (gradient * (step - last)).sum() > 0:
            steps, restarts = 0, restarts + 1
        point, last = step + steps / (steps + 3) * (step - last), step
        steps += 1
        torch.testing.assert_close(state.weights, chart.weights(point), rtol=0, atol=NEWTON["trajectory"])
    assert restarts > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_stays_as_it_was(optimizer):
    problem, goal = drawn_problem(RELU, 0, 150, 12, 40, 10.0), objective(RELU, 1e-3)
    run = optimizer(build(DenseSolver, goal, problem), goal, problem)
    list(islice(run, 5))
    kept, written = run.state_dict(), io.BytesIO()
    torch.save(kept, written)
    list(islice(run, 5))
    again = io.BytesIO()
    torch.save(kept, again)
    assert written.getvalue() == again.getvalue()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_continuation_takes_a_tenth_and_counts_what_it_spends(optimizer):
    problem, goal, made = drawn_problem(RELU, 0, 150, 12, 40, 10.0), objective(RELU, 1e-3), []

    class Noted(optimizer):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            made.append(self)

    run = continued(Noted, lambda stage: build(CircleSolver, stage, problem), goal, problem)
    np.testing.assert_allclose([each.objective.lmbda for each in made], [0.1, 0.01, 1e-3], rtol=EXACT)
    assert run.state.evaluations == 1 + sum(each.state.evaluations for each in made[:-1])
    assert run.state.seconds > sum(each.state.seconds for each in made[:-1])


def test_a_feature_without_a_derivative_has_slope_zero():
    features = RadialTorus(LAPLACE)
    inputs = torch.tensor([[0.5, 0.25], [0.1, 0.0]], dtype=torch.float64)
    slopes = feature_slopes(objective(features), inputs, inputs[:1].clone())
    assert (slopes[0] == 0).all()
    assert torch.isfinite(slopes).all()
    assert (slopes[1] != 0).all()


def test_linear_and_dense_steps_are_the_same():
    problem, goal = drawn_problem(RELU, 0, 150, 12, 40, 10.0), objective(RELU, 1e-3)
    ends = []
    for solver in (CircleSolver, DenseSolver):
        run = LevenbergMarquardt(build(solver, goal, problem), goal, problem)
        ends.append(list(islice(run, 6)))
    for linear, dense in zip(*ends, strict=True):
        assert linear.evaluations == dense.evaluations
        np.testing.assert_allclose(linear.weights, dense.weights.numpy(), rtol=0, atol=NEWTON["trajectory"])
        assert linear.risk == pytest.approx(dense.risk, rel=NEWTON["trajectory"])


@pytest.mark.parametrize("optimizer", [LBFGS, LevenbergMarquardt])
def test_continuation_counts_what_it_spends_and_trains_at_the_last_lambda(optimizer):
    problem, goal = drawn_problem(RELU, 0, 200, 12, 40, 100.0), objective(RELU, 1e-3)
    run = continued(optimizer, lambda stage: build(CircleSolver, stage, problem), goal, problem)
    assert run.state.iteration == 0
    assert run.state.evaluations > 4
    assert run.solver.lmbda == goal.lmbda
    start = optimizer(run.solver, goal, problem).state
    assert run.state.risk < start.risk
    before = run.state
    state = next(run)
    assert state.evaluations > before.evaluations
    assert state.risk < before.risk


def test_obstacles():
    problem, goal = shifted_teacher(RELU), objective(RELU)
    for optimizer in OPTIMIZERS:
        assert optimizer.obstacle(DenseSolver, goal, problem) == ""
        two_timescale = replace(goal, outer_update="gradient")
        assert "two-timescale" in optimizer.obstacle(CircleSolver, two_timescale, problem)
    wide = replace(problem, student=torch.zeros(1 << 20, 2, dtype=torch.float64))
    assert LevenbergMarquardt.obstacle(CircleSolver, goal, wide) == ""
    assert f"{200 << 20} numbers" in LevenbergMarquardt.obstacle(DenseSolver, goal, wide)
