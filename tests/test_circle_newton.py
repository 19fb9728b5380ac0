"""Linear-time Gauss-Newton steps on the circle against explicit Jacobians and dense solves."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import awkward_problems, circle_points, clustered_problem, random_problem
from tolerances import EXACT, GRADIENT, NEWTON

from varpro.relu import predict
from varpro.solvers import circle, circle_newton
from varpro.solvers.circle_newton import CircleNewton

LAMBDAS = st.sampled_from([1e-1, 1e-3])
DAMPINGS = st.sampled_from([1.0, 1e-2, 1e-4])


def prepared(problem, outer):
    """Tables, a workspace with the neurons of ``problem`` and ``outer`` in folded order, and a Newton space."""
    tables, width = circle.sample_tables(problem.inputs, problem.targets), len(problem.weights)
    space = circle.workspace(width)
    circle._gather(space, problem.weights, outer)
    circle._sort(space)
    circle._moments(tables, space, 0, width)
    return tables, space, circle_newton.newton_space(width)


def jacobian(tables, space, lmbda):
    """d r / d (turn, outer weight) of every neuron in folded order: (N + M, 2 M) (S2).

    Which samples are active is decided by the order of the keys, as in the solver: on the edge either answer is right.
    """
    width, count = len(space.u), len(tables.y)
    below = np.arange(count)[:, None] < space.below
    upper, positive = tables.sign[:, None] > 0, space.pos > 0.5
    active = np.where(positive, below != upper, below == upper)
    inputs = tables.sign[:, None] * tables.z
    weights = np.where(positive, 1.0, -1.0)[:, None] * space.v
    tangents = np.stack([-weights[:, 1], weights[:, 0]], axis=1)
    whole = np.zeros((count + width, 2 * width))
    whole[:count, 0::2] = space.u * active * (inputs @ tangents.T) / (width * np.sqrt(lmbda * count))
    whole[:count, 1::2] = active * (inputs @ weights.T) / (width * np.sqrt(lmbda * count))
    whole[count:, 1::2] = np.eye(width) / np.sqrt(width)
    return whole


def dense_matrix(tables, space, lmbda, damping):
    """lam M^2 (J^T J + diag(damping / M, 0)): (2 M, 2 M)."""
    width, slopes = len(space.u), jacobian(tables, space, lmbda)
    matrix = slopes.T @ slopes
    matrix[0::2, 0::2] += damping / width * np.eye(width)
    return lmbda * width**2 * matrix


def solver(problem, lmbda=1e-3, centre=1.0):
    return circle.CircleSolver(problem.inputs, problem.targets, lmbda, centre, 2**-10, "ridge")


def test_jacobian_is_that_of_the_residuals():
    problem, lmbda, step = random_problem(40, 7), 1e-2, 1e-6
    outer = np.random.default_rng(0).normal(size=7)
    tables, space, _ = prepared(problem, outer)
    angles = np.arctan2(problem.weights[:, 1], problem.weights[:, 0])[space.ident]

    def residuals(change):
        weights = circle_points(angles + change[0::2])
        u = outer[space.ident] + change[1::2]
        prediction = np.maximum(tables.sign[:, None] * tables.z @ weights.T, 0) @ u / 7
        return np.concatenate([(prediction - tables.y) / np.sqrt(lmbda * 40), (u - 1.0) / np.sqrt(7)])

    differences = [(residuals(step * e) - residuals(-step * e)) / (2 * step) for e in np.eye(14)]
    np.testing.assert_allclose(jacobian(tables, space, lmbda), np.transpose(differences), rtol=0, atol=GRADIENT)


@given(awkward_problems(), st.integers(0, 2**16))
def test_generators_and_products_give_the_gauss_newton_matrix(problem, seed):
    rng, width, lmbda, damping = np.random.default_rng(seed), len(problem.weights), 1e-2, 0.3
    tables, space, ns = prepared(problem, rng.normal(size=width))
    expected = dense_matrix(tables, space, lmbda, damping)
    ridges = np.tile([lmbda * width * damping, lmbda * width], width)
    ns.block.resize((2, 2 * width, 8), refcheck=False)
    circle_newton._pair_generators(tables, space, ns, 0, 0, width)
    semiseparable = np.triu(ns.block[0] @ ns.met.T)
    semiseparable += np.triu(semiseparable, 1).T
    np.testing.assert_allclose(np.diag(semiseparable), ns.pivot, rtol=0, atol=EXACT * width)
    np.testing.assert_allclose(semiseparable + np.diag(ridges), expected, rtol=0, atol=EXACT * width**2)
    x = rng.normal(size=2 * width)
    circle_newton._times_gauss_newton(tables, space, ns, x, ridges[0], ridges[1])
    np.testing.assert_allclose(ns.image, expected @ x, rtol=0, atol=EXACT * width**2)


def step_and_error(problem, lmbda, damping, seed=0):
    """The bound and the refinements of a step for a random right-hand side, and its true relative energy error."""
    rng, width = np.random.default_rng(seed), len(problem.weights)
    tables, space, ns = prepared(problem, rng.normal(size=width))
    ns.right[:] = rng.normal(size=2 * width)
    bound, refinements = circle_newton._solve_step(tables, space, ns, lmbda, damping)
    matrix = dense_matrix(tables, space, lmbda, damping).astype(np.longdouble)
    expected = np.linalg.solve(matrix.astype(np.float64), ns.right)
    for _ in range(3):  # refined in extended precision
        expected = expected + np.linalg.solve(matrix.astype(np.float64), (ns.right - matrix @ expected).astype(float))
    error = ns.step - expected
    return bound, refinements, float(np.sqrt(error @ matrix @ error / (expected @ matrix @ expected)))


@given(awkward_problems(), LAMBDAS, DAMPINGS, st.integers(0, 2**16))
def test_step_is_the_dense_one_and_its_error_bound_holds(problem, lmbda, damping, seed):
    bound, _, error = step_and_error(problem, lmbda, damping, seed)
    assert bound <= circle_newton._STEP_TOLERANCE
    assert error - 2 * bound <= NEWTON["rounding"] * (1 / (lmbda * damping))


@pytest.mark.parametrize("width", [1, 2, 3, 127, 128, 129, 255, 256, 257])
def test_step_is_the_dense_one_at_every_width(width):
    """Blocks and halves of every size."""
    bound, _, error = step_and_error(random_problem(300, width), 1e-3, 1e-2)
    assert error - 2 * bound <= NEWTON["rounding"] * 1e5
    assert error < NEWTON["step"]


@pytest.mark.parametrize("spread", [1e-2, 1e-6, 0.0])
@pytest.mark.parametrize("least_ridge", [1e-9, 1e-11])
def test_steps_with_little_damping(spread, least_ridge):
    bound, _, error = step_and_error(clustered_problem(300, 50, spread), 1e-4, least_ridge / 1e-4)
    assert bound <= circle_newton._tolerated(least_ridge)
    assert error - 2 * bound <= NEWTON["rounding"] * (1 / least_ridge)


def test_a_step_is_refined_where_the_factor_is_wrong():
    """The factor is that of a larger damping: conjugate gradients have to make up for it."""
    problem, lmbda, damping = random_problem(300, 80), 1e-3, 1e-3
    rng = np.random.default_rng(0)
    tables, space, ns = prepared(problem, rng.normal(size=80))
    ns.right[:] = rng.normal(size=160)
    ns.step[:] = ns.right
    circle_newton._factor_pairs(tables, space, ns, 80 * lmbda * 1e-1, 80 * lmbda)
    circle_newton._precondition_step(ns, ns.step)
    wrong = ns.step.copy()
    asked = 1e-8
    bound, rounds = circle_newton._refine_step(tables, space, ns, 80 * lmbda * damping, 80 * lmbda, asked)
    expected = np.linalg.solve(dense_matrix(tables, space, lmbda, damping), ns.right)
    assert np.abs(wrong - expected).max() > 0.1 * np.abs(expected).max()
    assert rounds > 1
    assert bound <= asked
    np.testing.assert_allclose(ns.step, expected, rtol=0, atol=NEWTON["refined"] * np.abs(expected).max())


@settings(max_examples=30)
@given(awkward_problems(), LAMBDAS, st.sampled_from([0.0, 1.0]))
def test_the_risk_falls_in_every_iteration_and_outer_weights_stay_optimal(problem, lmbda, centre):
    linear = solver(problem, lmbda, centre)
    weights = problem.weights.copy()
    outer = linear.solve(weights)
    newton = CircleNewton(linear)
    done = newton.advance(weights, outer, 8)
    assert (np.diff(done.risks) < 0).all()
    np.testing.assert_allclose(np.hypot(*weights.T), 1.0, rtol=0, atol=EXACT)
    np.testing.assert_allclose(outer, linear.solve(weights), rtol=0, atol=NEWTON["outer"] * np.abs(outer).max())
    assert linear.reduced(weights).risk == pytest.approx(done.risks[-1], rel=NEWTON["risk"], abs=EXACT)


def test_one_call_is_many_calls():
    """The damping carries over, and nothing else is remembered."""
    problem = random_problem(300, 60)
    ends = []
    for pieces in ([12], [1] * 12, [5, 7]):
        weights, damping = problem.weights.copy(), 0.0
        outer, newton = solver(problem).solve(weights), CircleNewton(solver(problem))
        for piece in pieces:
            damping = newton.advance(weights, outer, piece, damping).damping
        ends.append((weights, outer))
    for weights, outer in ends[1:]:
        np.testing.assert_array_equal(weights, ends[0][0])
        np.testing.assert_array_equal(outer, ends[0][1])


def test_the_damping_starts_and_decays_as_asked():
    problem = random_problem(300, 60)
    linear = solver(problem)
    found = []
    for first, decay in ((1e-2, 5.0), (1e-2, 1.5), (1.0, 5.0)):
        weights = problem.weights.copy()
        outer = linear.solve(weights)
        done = CircleNewton(linear).advance(weights, outer, 1, first_damping=first, slow_decay=decay)
        assert done.evaluations == 1
        assert done.risks[1] < 0.8 * done.risks[0]
        found.append((done.damping, weights))
    assert found[0][0] * 5.0 == pytest.approx(found[1][0] * 1.5, rel=EXACT)
    assert found[2][0] == pytest.approx(100 * found[0][0], rel=EXACT)
    np.testing.assert_array_equal(found[0][1], found[1][1])
    moved = [np.abs(weights - problem.weights).max() for _, weights in found]
    assert moved[2] < moved[0]


def test_the_damping_falls_fast_where_the_risk_does_not():
    """After a step that takes less than a fifth off the risk, and after no other."""
    problem = random_problem(300, 60)
    weights, damping, shares = problem.weights.copy(), 0.1, []
    outer, newton = solver(problem).solve(weights), CircleNewton(solver(problem))
    for _ in range(12):
        done = newton.advance(weights, outer, 1, damping)
        used = damping * 4.0 ** (done.evaluations - 1)  # rejected steps have raised it
        shares.append((1 - done.risks[1] / done.risks[0], used / done.damping))
        damping = done.damping
    falls, decays = np.array(shares).T
    np.testing.assert_allclose(decays, np.where(falls >= 0.2, 1.5, 5.0), rtol=EXACT)
    assert len(set(np.round(decays, 6))) == 2


def test_a_student_that_is_the_teacher_stays():
    problem = random_problem(300, 40)
    targets = predict(problem.weights, np.ones(40), problem.inputs)
    linear = solver(dataclasses.replace(problem, targets=targets))
    weights = problem.weights.copy()
    done = CircleNewton(linear).advance(weights, linear.solve(weights), 5)
    assert 0 <= done.risks[-1] < EXACT
    np.testing.assert_allclose(weights, problem.weights, rtol=0, atol=NEWTON["found"])


def test_a_moved_teacher_is_found_again_and_the_end_is_said():
    """Quadratic convergence to risk 0, then no step can lower the risk."""
    problem = random_problem(400, 12, seed=3)
    targets = predict(problem.weights, np.ones(12), problem.inputs)
    angles = np.arctan2(problem.weights[:, 1], problem.weights[:, 0]) + 0.02 * np.cos(np.arange(12.0))
    linear = solver(dataclasses.replace(problem, targets=targets))
    weights = circle_points(angles)
    outer, newton = linear.solve(weights), CircleNewton(linear)
    done = newton.advance(weights, outer, 60)
    assert done.ending == circle_newton.STATIONARY
    assert done.risks[-1] < NEWTON["zero risk"]
    np.testing.assert_allclose(outer, 1.0, rtol=0, atol=NEWTON["found"])
    np.testing.assert_allclose(weights, problem.weights, rtol=0, atol=NEWTON["found"])
    assert newton.report()["worst_step_bound"] <= circle_newton._STEP_TOLERANCE


def test_targets_that_are_not_finite_are_said():
    problem = random_problem(30, 5)
    with np.errstate(invalid="ignore"):
        linear = solver(dataclasses.replace(problem, targets=np.full(30, np.inf)))
    weights = problem.weights.copy()
    done = CircleNewton(linear).advance(weights, np.ones(5), 3)
    assert done.ending == circle_newton.NOT_FINITE
    np.testing.assert_array_equal(weights, problem.weights)
