"""The linear-time solver against dense float64 and extended precision, on ordinary and on awkward problems."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    CircleProblem,
    awkward_problems,
    circle_points,
    clustered_problem,
    dense_solution,
    extended_predictions,
    half_line_problem,
    random_problem,
    reduced_risk,
)
from tolerances import BOUND, EXACT, GRADIENT, PREDICTION, SOLVE, TINY_LOSS, TRAJECTORY

from varpro.features import ReLUCircle
from varpro.relu import folded_keys, predict
from varpro.solvers import circle
from varpro.solvers.dense import DenseSolver

CENTRES = st.sampled_from([0.0, 1.0])
LAMBDAS = st.sampled_from([1e-1, 1e-2, 1e-3, 1e-4])


def linear(problem, lmbda=1e-3, centre=1.0, time_scale=2**-10, outer_update="ridge", outer_rate=1.0):
    return circle.CircleSolver(problem.inputs, problem.targets, lmbda, centre, time_scale, outer_update, outer_rate)


def dense(problem, lmbda=1e-3, centre=1.0, time_scale=2**-10, outer_update="ridge", outer_rate=1.0):
    inputs, targets = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)[:, None]
    constants = lmbda, centre, time_scale, outer_update
    return DenseSolver(ReLUCircle(), inputs, targets, *constants, outer_rate=outer_rate)


def rms(values):
    return np.sqrt(np.mean(np.square(values)))


def folded(problem):
    """Tables and a workspace that holds the neurons of ``problem`` in folded order."""
    tables = circle.sample_tables(problem.inputs, problem.targets)
    space = circle.workspace(len(problem.weights))
    circle._gather(space, problem.weights, np.zeros(len(problem.weights)))
    circle._sort(space)
    circle._moments(tables, space, 0, len(problem.weights))
    return tables, space


@given(awkward_problems())
def test_generators_give_the_gram_matrix(problem):
    tables, space = folded(problem)
    width = len(problem.weights)
    u, v = np.empty((width, 8)), np.empty((width, 8))
    for k in range(width):
        circle._generators(tables, space, k, u[k], v[k])
    phi = problem.features[:, space.ident]
    gram = phi.T @ phi / len(phi)
    semiseparable = np.triu(v @ u.T)  # (j, k) for j <= k
    semiseparable += np.triu(semiseparable, 1).T
    np.fill_diagonal(semiseparable, space.pivot)
    np.testing.assert_allclose(semiseparable, gram, rtol=0, atol=EXACT)
    np.testing.assert_allclose(space.moment, phi.T @ problem.targets / len(phi), rtol=0, atol=EXACT)


@pytest.mark.parametrize("width", [1, 2, 3, 255, 256, 257, 600, 1025])
def test_factor_solves_any_right_hand_side(width):
    """Blocks and halves of every size, on one thread and on two."""
    problem, ridge = random_problem(300, width), 1e-3 * width
    tables, space = folded(problem)
    phi = problem.features[:, space.ident]
    matrix = phi.T @ phi / len(phi) + ridge * np.eye(width)
    right = np.random.default_rng(0).normal(size=width)
    expected = np.linalg.solve(matrix, right)
    circle._factor(tables, space, ridge)
    found = right.copy()
    circle._precondition(space, found)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SOLVE * np.abs(expected).max())
    circle._solve(tables, space, 1e-3, 1.0)
    together = space.u.copy()
    circle._solve_on_two_threads(tables, space, 1e-3, 1.0)
    np.testing.assert_array_equal(space.u, together)


@given(awkward_problems(), LAMBDAS, CENTRES)
def test_solution_is_the_dense_one(problem, lmbda, centre):
    outer = linear(problem, lmbda, centre).solve(problem.weights)
    expected = dense_solution(problem, lmbda, centre)
    np.testing.assert_allclose(outer, expected, rtol=0, atol=10 * SOLVE * max(1, np.abs(expected).max()))


@given(awkward_problems(), st.integers(0, 2**16))
def test_prediction_is_the_dense_one(problem, seed):
    outer = np.random.default_rng(seed).normal(size=len(problem.weights))
    expected = problem.features @ outer / len(outer)
    np.testing.assert_allclose(predict(problem.weights, outer, problem.inputs), expected, rtol=0, atol=EXACT)


@settings(max_examples=40)
@given(awkward_problems(), LAMBDAS, CENTRES, st.sampled_from(["ridge", "gradient"]), st.floats(0.25, 4))
def test_one_epoch_is_the_dense_one(problem, lmbda, centre, outer_update, outer_rate):
    options = {"lmbda": lmbda, "centre": centre, "time_scale": 1e-2 * lmbda, "outer_update": outer_update}
    options["outer_rate"] = outer_rate
    weights, expected_weights = problem.weights.copy(), torch.from_numpy(problem.weights.copy())
    slow, fast = dense(problem, **options), linear(problem, **options)
    outer, expected_outer = fast.solve(weights), slow.solve(expected_weights)
    loss, expected_loss = fast.advance(weights, outer, 1), slow.advance(expected_weights, expected_outer, 1)
    scale = max(1, expected_outer.abs().max().item())
    np.testing.assert_allclose(loss, expected_loss, rtol=SOLVE, atol=SOLVE * scale)
    # a sample exactly on a neuron's edge may count either way in the gradient: compare where there is none
    if np.abs(problem.inputs @ problem.weights.T).min() > 1e-9:
        np.testing.assert_allclose(weights, expected_weights, rtol=0, atol=SOLVE * scale)


@pytest.mark.parametrize("centre", [0.0, 1.0])
@pytest.mark.parametrize("outer_update", ["ridge", "gradient"])
def test_trajectory_is_the_dense_one(centre, outer_update):
    problem = random_problem(700, 96)
    slow = dense(problem, centre=centre, outer_update=outer_update)
    fast = linear(problem, centre=centre, outer_update=outer_update)
    weights, expected_weights = problem.weights.copy(), torch.from_numpy(problem.weights.copy())
    outer, expected_outer = fast.solve(weights), slow.solve(expected_weights)
    losses, expected_losses = fast.advance(weights, outer, 300), slow.advance(expected_weights, expected_outer, 300)
    assert np.abs(weights - problem.weights).max() > 0.02  # it did move
    np.testing.assert_allclose(weights, expected_weights, rtol=0, atol=TRAJECTORY)
    np.testing.assert_allclose(outer, expected_outer[:, 0], rtol=0, atol=TRAJECTORY)
    np.testing.assert_allclose(losses, expected_losses, rtol=TRAJECTORY)


def test_a_wide_student_sorts_by_families():
    """2000 neurons at a large step: the in-place sort gives up and the merge has to give the same trajectory."""
    problem = random_problem(300, 2000)
    options = {"lmbda": 1e-2, "time_scale": 0.1}
    slow, fast = dense(problem, **options), linear(problem, **options)
    weights, expected_weights = problem.weights.copy(), torch.from_numpy(problem.weights.copy())
    outer, expected_outer = fast.solve(weights), slow.solve(expected_weights)
    fast.advance(weights, outer, 20)
    slow.advance(expected_weights, expected_outer, 20)
    np.testing.assert_allclose(weights, expected_weights, rtol=0, atol=TRAJECTORY)


@given(st.integers(1, 300), st.integers(0, 2**16), st.floats(0, 4))
def test_sort_orders_any_neurons_and_keeps_them_whole(width, seed, disorder):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, width)) + disorder * rng.normal(size=width)
    weights, outer = circle_points(angles), rng.normal(size=width)
    space = circle.workspace(width)
    circle._gather(space, weights, outer)
    circle._sort(space)
    assert (np.diff(space.key) >= 0).all()
    assert sorted(space.ident) == list(range(width))
    kept_weights, kept_outer = np.empty_like(weights), np.empty_like(outer)
    circle._scatter(space, kept_weights, kept_outer)
    np.testing.assert_array_equal(kept_weights, weights)
    np.testing.assert_array_equal(kept_outer, outer)


@given(st.floats(0, np.pi, exclude_max=True), st.floats(0, np.pi, exclude_max=True))
def test_keys_increase_with_the_angle(first, second):
    points = np.stack([np.cos([first, second]), np.abs(np.sin([first, second]))], axis=1)
    keys = folded_keys(points)
    assert ((keys >= 0) & (keys <= 2)).all()
    if abs(first - second) > 1e-14:
        assert (keys[0] < keys[1]) == (first < second)


def test_gradient_is_that_of_the_reduced_risk():
    problem = random_problem(60, 7)
    lmbda, centre, step = 1e-2, 1.0, 1e-6
    tables, space = folded(problem)
    circle._solve(tables, space, lmbda, centre)
    circle._half_plane_sums(tables, space, space.u, 1.0)
    gradient = np.empty((7, 2))
    gradient[space.ident] = space.u[:, None] * space.half / (lmbda * 7)
    for neuron in range(7):
        for axis in range(2):
            risks = []
            for sign in (1, -1):
                weights = problem.weights.copy()
                weights[neuron, axis] += sign * step
                risks.append(reduced_risk(dataclasses.replace(problem, weights=weights), lmbda, centre))
            assert gradient[neuron, axis] == pytest.approx((risks[0] - risks[1]) / (2 * step), abs=GRADIENT)


@pytest.mark.parametrize("outer_update", ["ridge", "gradient"])
def test_a_rotated_problem_gives_rotated_weights(outer_update):
    problem = random_problem(200, 30)
    cos, sin = np.cos(2.3), np.sin(2.3)
    turn = np.array([[cos, sin], [-sin, cos]])
    turned = dataclasses.replace(problem, inputs=problem.inputs @ turn, weights=problem.weights @ turn)
    ends = []
    for each in (problem, turned):
        solver, weights = linear(each, outer_update=outer_update), each.weights.copy()
        outer = solver.solve(weights)
        solver.advance(weights, outer, 50)
        ends.append((weights, outer))
    np.testing.assert_allclose(ends[0][0] @ turn, ends[1][0], rtol=0, atol=SOLVE)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=0, atol=SOLVE)


def test_permuted_neurons_give_permuted_weights():
    problem = random_problem(200, 30)
    order = np.random.default_rng(1).permutation(30)
    solver = linear(problem)
    weights, permuted = problem.weights.copy(), problem.weights[order].copy()
    outer, permuted_outer = solver.solve(weights), solver.solve(permuted)
    solver.advance(weights, outer, 50)
    linear(problem).advance(permuted, permuted_outer, 50)
    np.testing.assert_allclose(weights[order], permuted, rtol=0, atol=SOLVE)
    np.testing.assert_allclose(outer[order], permuted_outer, rtol=0, atol=SOLVE)


@given(LAMBDAS)
def test_student_equal_to_teacher_costs_nothing_with_the_unbiased_penalty(lmbda):
    problem = random_problem(300, 40)
    targets = predict(problem.weights, np.ones(40), problem.inputs)
    solver = linear(dataclasses.replace(problem, targets=targets), lmbda, centre=1.0)
    outer = solver.solve(problem.weights)
    np.testing.assert_allclose(outer, 1, rtol=0, atol=SOLVE)
    weights = problem.weights.copy()
    assert 0 <= solver.advance(weights, outer, 1)[0] < EXACT
    np.testing.assert_allclose(weights, problem.weights, rtol=0, atol=SOLVE)


@settings(max_examples=30)
@given(awkward_problems(), LAMBDAS)
def test_unbiased_risk_lies_between_zero_and_that_of_unit_outer_weights(problem, lmbda):
    solver = linear(problem, lmbda, centre=1.0)
    weights = problem.weights.copy()
    loss = solver.advance(weights, solver.solve(weights), 1)[0]
    residual = problem.features.mean(axis=1) - problem.targets
    assert loss >= 0
    unit = np.mean(residual**2) / (2 * lmbda)
    assert loss - unit <= SOLVE * unit


def test_tiny_losses_are_summed_over_the_samples():
    """Near the teacher the short form of the loss would be all cancellation."""
    problem = random_problem(500, 64)
    targets = predict(problem.weights, 1 + 1e-7 * np.cos(np.arange(64.0)), problem.inputs)
    problem = dataclasses.replace(problem, targets=targets)
    solver, weights = linear(problem, lmbda=1e-3), problem.weights.copy()
    loss = solver.advance(weights, np.ones(64), 1)[0]
    residual = problem.features.mean(axis=1) - targets
    assert loss == pytest.approx(np.mean(residual**2) / 2e-3, rel=TINY_LOSS)


@pytest.mark.parametrize("lmbda", [1e-1, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(random_problem(300, 50), id="spread"),
        pytest.param(random_problem(10, 60), id="few samples"),
        pytest.param(random_problem(1, 40), id="one sample"),
        pytest.param(random_problem(50, 1), id="one neuron"),
        *(
            pytest.param(clustered_problem(300, 50, spread), id=f"clusters {spread:g}")
            for spread in (1e-2, 1e-4, 1e-6, 1e-8, 0.0)
        ),
        pytest.param(half_line_problem(100, 50), id="half-line"),
    ],
)
def test_predictions_against_extended_precision(problem, lmbda):
    for centre in (0.0, 1.0):
        solver = linear(problem, lmbda, centre)
        outer = solver.solve(problem.weights)
        bound = solver.report()["worst_bound"]
        assert solver.caution() == ""  # none is due in this range
        expected = extended_predictions(problem, lmbda, centre)
        error = rms(predict(problem.weights, outer, problem.inputs) - expected)
        assert error <= PREDICTION * rms(expected)
        unit = rms(problem.targets) + centre * np.sqrt(np.mean(np.sum(problem.inputs**2, axis=1)))
        assert error <= BOUND * ((2 * bound + 1e-14) * unit)


def test_the_error_bound_is_reached_where_the_eigenvalue_is_lambda():
    problem = random_problem(60, 7)
    tables, space = folded(problem)
    phi = problem.features[:, space.ident]
    values, vectors = np.linalg.eigh(phi.T @ phi / (60 * 7))
    lmbda, away = values[3], 1e-3 * vectors[:, 3]
    circle._solve(tables, space, lmbda, 1.0)
    space.u[:] += away
    circle._half_plane_sums(tables, space, space.u, 1.0)
    bound = circle._error_bound(tables, lmbda, 1.0, circle._reductions(tables, space, lmbda, 1.0)[2])
    unit = rms(problem.targets) + np.sqrt(np.mean(np.sum(problem.inputs**2, axis=1)))
    assert bound * unit == pytest.approx(rms(phi @ away / 7), rel=GRADIENT)


def test_neurons_find_their_place_among_many_samples_of_nearly_one_angle():
    rng = np.random.default_rng(0)
    angles = np.concatenate([1 + 1e-6 * rng.uniform(size=200), rng.uniform(-np.pi, np.pi, 20)])
    neurons = circle_points(1 + np.pi / 2 + 1e-6 * rng.uniform(size=30))  # whose edges are among them
    tables, space = folded(CircleProblem(circle_points(angles), rng.normal(size=220), neurons))
    np.testing.assert_array_equal(space.below, np.searchsorted(tables.keys, space.key))
    assert len(set(space.below)) > 10


@pytest.mark.parametrize("lmbda", [1e-10, 1e-13, 1e-16])
def test_hopeless_solves_warn_or_are_right_and_are_always_finite(lmbda):
    for problem in (random_problem(300, 50), clustered_problem(10, 60, 1e-4), half_line_problem(20, 30)):
        solver = linear(problem, lmbda)
        outer = solver.solve(problem.weights)
        assert np.isfinite(outer).all()
        expected = extended_predictions(problem, lmbda, 1.0)
        error = rms(predict(problem.weights, outer, problem.inputs) - expected) / rms(expected)
        if error > PREDICTION:
            assert f"lambda {lmbda:g}" in solver.caution()
            assert solver.report()["worst_bound"] > PREDICTION
