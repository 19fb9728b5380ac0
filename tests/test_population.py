"""Infinite data on the circle against closed-form kernels, large finite data, and quadrature."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import get_num_threads, set_num_threads
from problems import build, circle_points
from tolerances import EXACT, GRADIENT, GRID, POPULATION, SOLVE

from varpro.domains.circle import CIRCLE, circle_density, quantile_directions
from varpro.features import ReLUCircle
from varpro.problem import drawn_problem
from varpro.relu import predict
from varpro.solvers import circle
from varpro.solvers.base import Objective
from varpro.solvers.circle import CircleSolver
from varpro.solvers.population import population_tables


def arc_cosine_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """E max(w . x, 0) max(v . x, 0) = (sin t + (pi - t) cos t) / 2 pi at the angle t between them (Cho, Saul 2009)."""
    cosine = first @ second.T
    sine = np.abs(np.outer(first[:, 0], second[:, 1]) - np.outer(first[:, 1], second[:, 0]))
    return (sine + (math.pi - np.arctan2(sine, cosine)) * cosine) / (2 * math.pi)


def solver(tables, lmbda=1e-3, centre=1.0, time_scale=2**-10, outer_update="ridge"):
    return CircleSolver.from_tables(tables, lmbda, centre, time_scale, outer_update)


def random_points(count: int, seed: int) -> np.ndarray:
    return circle_points(np.random.default_rng(seed).uniform(-math.pi, math.pi, count))


def density(angles: np.ndarray) -> np.ndarray:
    return circle_density(angles, 100.0)


def dense_solution(weights, teacher, outer, lmbda, centre):
    """u, and the risk min_u L, from the kernel: (M,) and a number."""
    width, count = len(weights), len(teacher)
    gram = arc_cosine_kernel(weights, weights)
    moments = arc_cosine_kernel(weights, teacher) @ outer / count
    u = np.linalg.solve(gram / width + lmbda * np.eye(width), moments + lmbda * centre)
    square = outer @ arc_cosine_kernel(teacher, teacher) @ outer / count**2
    residual = u @ gram @ u / width**2 - 2 * u @ moments / width + square
    return u, residual / (2 * lmbda) + np.mean((u - centre) ** 2) / 2


_EIGHTHS = st.integers(-8, 8).map(lambda k: k * math.pi / 4)
_ANGLES = st.lists(st.one_of(_EIGHTHS, st.floats(-math.pi, math.pi)), min_size=1, max_size=20).map(np.array)


@given(_ANGLES, _ANGLES, st.integers(0, 2**16))
def test_generators_give_the_arc_cosine_kernel(student, teacher, seed):
    student, teacher = circle_points(student), circle_points(teacher)
    width, outer = len(student), np.random.default_rng(seed).normal(size=len(teacher))
    tables, space = population_tables(teacher, outer), circle.workspace(len(student))
    circle._gather(space, student, np.zeros(width))
    circle._sort(space)
    circle._moments(tables, space, 0, width)
    u, v = np.empty((width, 8)), np.empty((width, 8))
    for k in range(width):
        circle._generators(tables, space, k, u[k], v[k])
    gram = np.triu(v @ u.T)
    gram += np.triu(gram, 1).T
    np.fill_diagonal(gram, space.pivot)
    ordered = student[space.ident]
    np.testing.assert_allclose(gram, arc_cosine_kernel(ordered, ordered), rtol=0, atol=EXACT)
    expected = arc_cosine_kernel(ordered, teacher) @ outer / len(teacher)
    np.testing.assert_allclose(space.moment, expected, rtol=0, atol=EXACT)
    square = outer @ arc_cosine_kernel(teacher, teacher) @ outer / len(teacher) ** 2
    assert tables.totals[4] == pytest.approx(square, abs=EXACT)


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.sampled_from([1e-1, 1e-3, 1e-4]), st.sampled_from([0.0, 1.0]))
def test_solution_and_risk_are_those_of_the_kernel(seed, lmbda, centre):
    student, teacher = random_points(30, seed), random_points(7, seed + 1)
    outer = np.random.default_rng(seed).normal(size=7)
    found = solver(population_tables(teacher, outer), lmbda, centre)
    u, risk = dense_solution(student, teacher, outer, lmbda, centre)
    np.testing.assert_allclose(found.solve(student), u, rtol=0, atol=SOLVE * max(1, np.abs(u).max()))
    assert found.reduced(student).risk == pytest.approx(risk, rel=SOLVE)


def test_gradient_is_that_of_the_reduced_risk():
    student, teacher = random_points(7, 0), random_points(5, 1)
    gradient = solver(population_tables(teacher), 1e-2).reduced(student).gradient
    for j in range(7):
        tangent, risks = np.array([-student[j, 1], student[j, 0]]), []
        for turn in (1e-6, -1e-6):
            moved = student.copy()
            moved[j] = math.cos(turn) * student[j] + math.sin(turn) * tangent
            risks.append(dense_solution(moved, teacher, np.ones(5), 1e-2, 1.0)[1])
        assert gradient[j] @ tangent == pytest.approx((risks[0] - risks[1]) / 2e-6, abs=GRADIENT)


@pytest.mark.parametrize("outer_update", ["ridge", "gradient"])
def test_student_equal_to_teacher_stays(outer_update):
    teacher = random_points(40, 0)
    found, weights = solver(population_tables(teacher), outer_update=outer_update), teacher.copy()
    outer = found.solve(weights)
    np.testing.assert_allclose(outer, 1, rtol=0, atol=SOLVE)
    assert 0 <= found.advance(weights, outer, 10)[-1] < EXACT
    np.testing.assert_allclose(weights, teacher, rtol=0, atol=SOLVE)


def test_equally_spaced_inputs_agree_to_quadrature_accuracy():
    """N inputs of radius sqrt 2 at equal angles: an integrand with kinks leaves O(1 / N^2)."""
    student, teacher = random_points(50, 0), random_points(20, 1)
    exact = solver(population_tables(teacher)).solve(student)
    errors = []
    for count in (4096, 65536):
        inputs = math.sqrt(2) * quantile_directions(count).numpy()
        finite = CircleSolver(inputs, predict(teacher, np.ones(20), inputs), 1e-3, 1.0, 2**-10, "ridge")
        errors.append(np.abs(finite.solve(student) - exact).max())
    assert errors[1] < POPULATION["quadrature"]
    assert errors[0] > 50 * errors[1]


def test_large_samples_approach_the_limit_at_the_monte_carlo_rate():
    student, teacher = random_points(20, 0), random_points(9, 1)
    exact = solver(population_tables(teacher), 1e-2, 0.0).solve(student)
    counts, errors = np.array([256, 4096, 65536]), []
    rng = np.random.default_rng(2)
    for count in counts:
        squares = []
        for _ in range(12):
            inputs = rng.normal(size=(count, 2))
            finite = CircleSolver(inputs, predict(teacher, np.ones(9), inputs), 1e-2, 0.0, 2**-10, "ridge")
            squares.append(np.mean((finite.solve(student) - exact) ** 2))
        errors.append(math.sqrt(np.mean(squares)))
    assert np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(-0.5, abs=POPULATION["rate"])


def test_a_density_is_the_limit_of_its_quantiles():
    grid = np.linspace(-math.pi, math.pi, (1 << 16) + 1)
    middles = (grid[1:] + grid[:-1]) / 2  # weighted neurons: a midpoint rule, O(1 / T^2)
    student = random_points(40, 0)
    exact = solver(population_tables(density))
    weighted = solver(population_tables(circle_points(middles), 2 * math.pi * density(middles)))
    u, v = exact.solve(student), weighted.solve(student)
    np.testing.assert_allclose(v, u, rtol=0, atol=POPULATION["midpoints"])
    first, second = student.copy(), student.copy()
    np.testing.assert_allclose(
        weighted.advance(second, v, 50), exact.advance(first, u, 50), rtol=POPULATION["midpoints"]
    )
    np.testing.assert_allclose(second, first, rtol=0, atol=POPULATION["midpoints"])


@pytest.mark.parametrize("teacher", [density, random_points(9, 1)], ids=["density", "neurons"])
def test_risk_without_cancellation_is_the_same(teacher):
    """The quadrature that stands in for the short form where the risk is tiny."""
    tables, student = population_tables(teacher), random_points(30, 0)
    short, direct = both_mean_squares(tables, student, 1 + 0.3 * np.arange(30.0))
    assert direct == pytest.approx(short, rel=SOLVE)


def moments(tables, student, outer):
    space = circle.workspace(len(student))
    circle._gather(space, student, outer)
    circle._sort(space)
    circle._moments(tables, space, 0, len(student))
    return space


def both_mean_squares(tables, student, outer):
    space = moments(tables, student, outer)
    circle._half_plane_sums(tables, space, space.u, 1.0)
    return circle._reductions(tables, space, 1e-3, 1.0)[0], circle._population_mean_square(tables, space)


def test_tiny_risks_keep_their_digits():
    teacher = random_points(30, 0)
    tilt = 1e-9 * np.cos(np.arange(30.0))
    _, direct = both_mean_squares(population_tables(teacher), teacher, 1 + tilt)
    expected = tilt @ arc_cosine_kernel(teacher, teacher) @ tilt / 900
    assert direct == pytest.approx(expected, rel=POPULATION["tiny risk"], abs=0)


def test_input_moments_are_integrals():
    """(F13) of the rows that the neurons write, xx, xy and yy for either sign."""
    space = moments(population_tables(random_points(9, 1)), random_points(30, 0), np.ones(30))
    for place, (x, y) in enumerate(space.v):
        angles = np.linspace(0, math.atan2(y, x), 40961)
        e = np.stack([np.sin(angles), -np.cos(angles)], axis=1)
        mean = np.trapezoid(e[:, :, None] * e[:, None, :], angles, axis=0) / math.pi
        expected = mean[[0, 0, 1], [0, 1, 1]]
        np.testing.assert_allclose(space.rows[place + 1, :6], np.tile(expected, 2), rtol=0, atol=GRID / 100)


@pytest.mark.parametrize(
    ("teacher", "outer", "message"),
    [
        (np.ones(3), None, r"\(T, 2\), not .* \(3,\)"),
        (2 * np.eye(2), None, "unit vectors"),
        (np.eye(2), np.ones(3), r"outer must have shape \(2,\), not \(3,\)"),
        (lambda a: a * np.nan, None, "not finite"),
        (lambda a: np.full_like(a, 0.5), None, r"integrates to 3\.14159 over the circle, allowed is 1"),
    ],
)
def test_invalid_teachers_are_named(teacher, outer, message):
    with pytest.raises(ValueError, match=message):
        population_tables(teacher, outer)


def test_infinite_data_of_a_finite_teacher():
    problem = drawn_problem(ReLUCircle(), 0, math.inf, 12, 40, 10.0)
    found = build(CircleSolver, Objective(ReLUCircle(), 1e-2, 1.0, 2**-10, "ridge"), problem)
    drawn = CIRCLE.draws(0, 4096, 12, 40, 10.0)
    student = drawn.student.numpy()
    _, risk = dense_solution(student, drawn.teacher.numpy(), np.ones(40), 1e-2, 1.0)
    assert found.reduced(student).risk == pytest.approx(risk, rel=SOLVE)


@pytest.mark.parametrize("width", [2, 3, 257, 600])
def test_the_halves_of_a_solve_wait_for_what_both_need(width):
    """The first of them ahead of the second, in a workspace that nobody has used."""
    tables, points, found = population_tables(random_points(20, 1)), random_points(width, 2), []
    usual = get_num_threads()
    set_num_threads(1)
    try:
        for solve in (circle._solve, circle._solve_on_two_threads):
            space = circle.workspace(width)
            space.rows[:] = np.nan
            circle._gather(space, points, np.zeros(width))
            circle._sort(space)
            solve(tables, space, 1e-3, 1.0)
            found.append(space.u.copy())
    finally:
        set_num_threads(usual)
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(*found)
