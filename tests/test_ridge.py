"""The dense solver: known answers, primal = dual, gradients against finite differences of the reduced risk."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import awkward_problems, dense_solution, random_problem, reduced_risk
from tolerances import EXACT, FLOAT32, GRADIENT, SOLVE

from varpro import ridge
from varpro.domains.base import Domain
from varpro.domains.circle import CIRCLE
from varpro.features import FeatureMap, ReLUCircle
from varpro.solvers.dense import DenseSolver

LAMBDAS = st.sampled_from([1e-1, 1e-3, 1e-5])
CENTRES = st.sampled_from([0.0, 1.0, -0.5])


def tensors(problem):
    return torch.from_numpy(problem.features), torch.from_numpy(problem.targets)[:, None]


def solver(problem, lmbda=1e-2, centre=1.0, outer_update="ridge", features=None, time_scale=2**-10):
    inputs, targets = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)[:, None]
    return DenseSolver(features or ReLUCircle(), inputs, targets, lmbda, centre, time_scale, outer_update)


@given(awkward_problems(), LAMBDAS, CENTRES)
def test_solve_is_the_normal_equations(problem, lmbda, centre):
    """More neurons than samples take the dual form, fewer the primal: both must give the same u."""
    features, targets = tensors(problem)
    expected = dense_solution(problem, lmbda, centre)
    found = ridge.solve(features, targets, lmbda, centre)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * SOLVE * max(1, np.abs(expected).max()))


def test_primal_and_dual_agree_where_one_turns_into_the_other():
    problem = random_problem(40, 40)
    features, targets = tensors(problem)
    primal = ridge.solve(features, targets, 1e-3, 1.0)
    wider = torch.cat([features, torch.zeros(40, 1)], dim=1)  # a dead neuron: 41 > 40 takes the dual form
    scaled = ridge.solve(wider * 41 / 40, targets, 1e-3 * 41 / 40, 1.0)  # the same problem, with M = 41
    assert scaled[-1].item() == pytest.approx(1, abs=EXACT)
    torch.testing.assert_close(scaled[:-1], primal, rtol=0, atol=SOLVE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [20, 200])
@pytest.mark.parametrize("lmbda", [1e-1, 1e-3, 1e-5])
def test_student_equal_to_teacher_has_unit_outer_weights(dtype, width, lmbda):
    features = torch.from_numpy(random_problem(100, width).features).to(dtype)
    outer = ridge.solve(features, features.mean(dim=1, keepdim=True), lmbda, 1.0)
    assert torch.equal(outer, torch.ones_like(outer))


def test_many_outputs_are_solved_apart():
    problem = random_problem(50, 10)
    features, _ = tensors(problem)
    targets = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = ridge.solve(features, targets, 1e-2, 1.0)
    apart = [ridge.solve(features, targets[:, [k]], 1e-2, 1.0) for k in range(3)]
    torch.testing.assert_close(together, torch.cat(apart, dim=1), rtol=0, atol=EXACT)


def test_solution_is_the_minimum_of_the_loss():
    problem = random_problem(50, 10)
    features, targets = tensors(problem)
    outer = ridge.solve(features, targets, 1e-2, 1.0)
    least = ridge.loss(features, targets, outer, 1e-2, 1.0)
    assert least.item() == pytest.approx(reduced_risk(problem, 1e-2, 1.0), abs=EXACT)
    for seed in range(5):
        other = outer + 1e-3 * torch.randn(10, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert ridge.loss(features, targets, other, 1e-2, 1.0) > least


def test_float32_is_close_to_float64():
    problem = random_problem(500, 64)
    features, targets = tensors(problem)
    exact = ridge.predict(features, ridge.solve(features, targets, 1e-3, 1.0))
    single = ridge.predict(features.float(), ridge.solve(features.float(), targets.float(), 1e-3, 1.0))
    assert (single - exact).norm() <= FLOAT32 * exact.norm()


def test_a_matrix_that_is_not_positive_definite_is_refused():
    features = torch.ones(30, 20, dtype=torch.float32)
    with pytest.raises(FloatingPointError, match=r"20 x 20 system.*float32.*1e-12.*float64"):
        ridge.solve(features, torch.ones(30, 1), 1e-12, 0.0)


def test_a_solve_that_fails_during_training_is_an_error():
    """It is found at the end of the stretch, without a look in every epoch."""
    problem = random_problem(30, 20)
    data = torch.from_numpy(problem.inputs).float(), torch.from_numpy(problem.targets).float()[:, None]
    model = DenseSolver(ReLUCircle(), *data, 1e-12, 0.0, 2**-10, "ridge")
    weights = torch.ones(20, 2) / 2**0.5  # all features alike: the matrix has rank 1
    with pytest.raises(FloatingPointError, match=r"20 x 20 system.*float32.*1e-12.*float64"):
        model.advance(weights, torch.zeros(20, 1), 5)


def test_moments_of_low_rank_are_solved_where_round_off_makes_them_indefinite():
    """8 samples, 40 neurons, and squares 1e17 times lambda: Cholesky fails, the dual system says what is right."""
    features = 1e7 * torch.randn(8, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).abs()
    targets = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moments = ridge.moments(features, targets, 0.0)
    assert ridge.solve_moments_unchecked(*moments, 1e-3, 0.0)[1] != 0
    at_ones = ridge.moments(features, features.mean(dim=1, keepdim=True), 1.0)  # what is left of its targets is 0
    assert torch.equal(ridge.solve_moments(*at_ones, 1e-3, 1.0), torch.ones(40, 1, dtype=torch.float64))
    found = ridge.predict(features, ridge.solve_moments(*moments, 1e-3, 0.0))
    expected = ridge.predict(features, ridge.solve(features, targets, 1e-3, 0.0))
    assert (found - expected).norm() <= FLOAT32 * expected.norm()
    with pytest.raises(FloatingPointError, match="not finite"):
        ridge.solve_moments(moments[0] * torch.nan, moments[1], 1e-3, 0.0)


@pytest.mark.parametrize("centre", [0.0, 1.0])
@pytest.mark.parametrize("width", [10, 70])
def test_moments_say_all_of_the_problem(centre, width):
    features, targets = tensors(random_problem(50, width))
    found = ridge.solve_moments(*ridge.moments(features, targets, centre), 1e-2, centre)
    torch.testing.assert_close(found, ridge.solve(features, targets, 1e-2, centre), rtol=0, atol=10 * SOLVE)


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_holds_within_a_call_only(tf32, monkeypatch):
    seen, problem = [], random_problem(30, 5)
    usual = torch.backends.cuda.matmul.fp32_precision
    data = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)[:, None]
    model = DenseSolver(ReLUCircle(), *data, 1e-2, 0.0, 2**-10, "ridge", tf32=tf32)
    monkeypatch.setattr(model, "_weight_gradient", lambda w, *_: seen.append(_allowed()) or torch.zeros_like(w))
    weights = torch.from_numpy(problem.weights)
    model.advance(weights, model.solve(weights), 2)
    assert seen == [tf32, tf32]
    assert torch.backends.cuda.matmul.fp32_precision == usual


def _allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_weight_gradient_is_that_of_the_reduced_risk(centre):
    """Envelope theorem: with u optimal, no derivative of u is needed."""
    problem, lmbda, step = random_problem(60, 6), 1e-2, 1e-6
    model = solver(problem, lmbda, centre)
    weights = torch.from_numpy(problem.weights)
    features = model.feature_map(weights, model.inputs)
    outer = model.solve(weights)
    gradient = model._weight_gradient(weights, outer, features, ridge.predict(features, outer) - model.targets) / 6
    for neuron in range(6):
        for axis in range(2):
            shifted = [problem.weights.copy(), problem.weights.copy()]
            shifted[0][neuron, axis] += step
            shifted[1][neuron, axis] -= step
            risks = [reduced_risk(dataclasses.replace(problem, weights=w), lmbda, centre) for w in shifted]
            assert gradient[neuron, axis].item() == pytest.approx((risks[0] - risks[1]) / (2 * step), abs=GRADIENT)


def test_gradients_are_those_of_autograd_for_many_outputs():
    problem, lmbda, centre = random_problem(40, 8), 1e-2, 1.0
    targets = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = DenseSolver(ReLUCircle(), torch.from_numpy(problem.inputs), targets, lmbda, centre, 1.0, "gradient")
    weights = torch.from_numpy(problem.weights).requires_grad_()
    outer = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    features = model.feature_map(weights, model.inputs)
    ridge.loss(features, targets, outer, lmbda, centre).backward()
    with torch.no_grad():
        residual = ridge.predict(features, outer) - targets
        descent = model._weight_gradient(weights, outer, features, residual)
        outer_descent = model._outer_gradient(outer, features, residual)
    torch.testing.assert_close(descent, 8 * weights.grad, rtol=0, atol=SOLVE)  # eta_w = M time_scale
    torch.testing.assert_close(outer_descent, lmbda * 8 * outer.grad, rtol=0, atol=SOLVE)  # eta_u = lam M


def test_two_timescale_descent_approaches_varpro_as_the_weights_slow_down():
    """The same stretch of time with ever smaller weight steps: the outer weights keep up better and better."""
    problem, time, gaps = random_problem(80, 12), 0.02, []
    for steps in (20, 200, 2000):
        ends = []
        for outer_update in ("ridge", "gradient"):
            model = solver(problem, 0.5, 1.0, outer_update, time_scale=time / steps)
            weights = torch.from_numpy(problem.weights.copy())
            outer = model.solve(weights)
            model.advance(weights, outer, steps)
            ends.append(weights)
        gaps.append((ends[0] - ends[1]).abs().max().item())
    assert gaps[1] < 0.3 * gaps[0]
    assert gaps[2] < 0.3 * gaps[1]


class Plane(Domain):
    """R^2: nothing to project; there is no law of a teacher."""

    name, dimension = "plane", 2

    def project(self, points):
        return points

    def draws(self, *_):
        raise NotImplementedError

    measure = draws


class Cosine(FeatureMap):
    """phi(w, x) = cos(w . x): a feature map that a reader might add."""

    name, domain = "cosine", Plane()

    def __call__(self, weights, inputs):
        return torch.cos(inputs @ weights.T)

    def pull_back(self, weights, inputs, features, cotangent):
        return (-cotangent * torch.sin(inputs @ weights.T)).T @ inputs


def test_another_feature_map_trains_as_it_is():
    problem = random_problem(100, 10)
    model = solver(problem, features=Cosine(), time_scale=2**-8)
    weights = torch.from_numpy(problem.weights.copy())
    losses = model.advance(weights, model.solve(weights), 30)
    assert (losses[1:] < losses[:-1]).all()


def test_students_of_the_circle_are_uniform_and_projected():
    points = CIRCLE.draws(0, 1, 4000, 1, 0.0).student
    torch.testing.assert_close(points.norm(dim=1), torch.ones(4000, dtype=torch.float64), rtol=0, atol=EXACT)
    assert points.mean(dim=0).norm() < 0.05  # 3 standard deviations of the mean
    torch.testing.assert_close(CIRCLE.project(5 * points), points, rtol=0, atol=EXACT)
