"""Teacher law in closed form, and the draws that make seed s here seed s of the paper."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import CURVE, EXACT, GRID, PINNED, QUADRATURE, SEQUENCE

from varpro.distances import CircleMeasure
from varpro.domains import circle
from varpro.domains.circle import CIRCLE
from varpro.features import ReLUCircle, SquaredReLUCircle
from varpro.paper import grid, published
from varpro.problem import drawn_problem, problem_from_tensors

GAMMAS = st.floats(0.0, 1e4)


@given(GAMMAS)
def test_density_integrates_to_one(gamma):
    # the trapezoidal rule on a period converges like exp(-n / sqrt(gamma))
    angles = np.linspace(-np.pi, np.pi, 1 << 14, endpoint=False)
    assert circle.circle_density(angles, gamma).mean() * 2 * np.pi == pytest.approx(1, abs=QUADRATURE)


@given(GAMMAS, st.floats(-20.0, 20.0))
def test_cdf_grows_by_one_in_a_turn_and_by_the_density_elsewhere(gamma, angle):
    turn = circle.circle_cdf(angle + 2 * np.pi, gamma) - circle.circle_cdf(angle, gamma)
    assert turn == pytest.approx(1, abs=EXACT)
    middle, weights = np.polynomial.legendre.leggauss(20)
    width = 1e-3
    mass = (circle.circle_density(angle + width * (middle + 1) / 2, gamma) * weights).sum() * width / 2
    step = circle.circle_cdf(angle + width, gamma) - circle.circle_cdf(angle, gamma)
    assert step == pytest.approx(mass, abs=EXACT)


def test_cdf_starts_at_zero():
    assert circle.circle_cdf(-np.pi, 100.0) == pytest.approx(0, abs=EXACT)


@settings(max_examples=20)
@given(GAMMAS)
def test_sampler_follows_the_law(gamma):
    uniform = (np.arange(3 * 4096) * 0.6180339887498949) % 1  # equidistributed, the same in each third
    angles = np.sort(circle.circle_teacher_angles(uniform, gamma))
    steps = np.arange(1, len(angles) + 1) / len(angles)
    assert np.abs(circle.circle_cdf(angles, gamma) - steps).max() < SEQUENCE


def test_published_densities():
    curves = published.table("gamma_densities")
    for gamma in grid.GAMMAS:
        curve = curves["single", "density_target", f"gamma={gamma:g}", "solid"]
        ours = circle.circle_density(curve.x, gamma)
        assert np.abs(ours / curve.y - 1).max() < CURVE


def test_draws_are_those_of_the_global_generators():
    """The recipe of the paper's runs, step by step, with the global generators it used."""
    seed, width, samples, teacher_width, gamma = 3, 32, 64, 48, 100.0
    ours = CIRCLE.draws(seed, samples, width, teacher_width, gamma)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.randn(teacher_width, 2)
        torch.nn.Linear(teacher_width, 1, bias=False)
        inputs = torch.randn(samples, 2)
        torch.randn(width, 2)
        torch.nn.Linear(width, 1, bias=False)
        student = torch.nn.functional.normalize(torch.randn(width, 2), dim=1)
    uniform = np.random.RandomState(seed).rand(teacher_width)
    assert torch.equal(ours.inputs, inputs.double())
    torch.testing.assert_close(ours.student, student.double(), rtol=0, atol=PINNED)
    np.testing.assert_array_equal(ours.teacher, circle.directions(circle.circle_teacher_angles(uniform, gamma)))


FIRST_NUMBERS = {
    "teacher": [[0.9980159, 0.0629626], [-0.5035004, 0.863995]],
    "inputs": [[-1.089005, -0.9528482], [0.1688316, 0.0145679]],
    "student": [[-0.1147208, 0.9933978], [-0.9300538, -0.3674231]],
}


def test_first_numbers_of_seed_0():
    draws = CIRCLE.draws(0, 4096, 1024, 4096, 100.0)
    for name, expected in FIRST_NUMBERS.items():
        torch.testing.assert_close(
            getattr(draws, name)[:2].double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=PINNED
        )


def test_drawing_leaves_the_callers_random_state_alone():
    torch.manual_seed(11)
    np.random.seed(11)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(11)
    np.random.seed(11)
    CIRCLE.draws(0, 8, 8, 8, 1.0)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])


def test_targets_are_the_mean_over_the_teacher():
    problem = drawn_problem(ReLUCircle(), 0, samples=50, student_width=8, teacher_width=40, gamma=10.0)
    dense = torch.relu(problem.inputs @ problem.teacher.T).mean(dim=1, keepdim=True)
    torch.testing.assert_close(problem.targets, dense, rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": None}, "no tensor 'inputs'"),
        ({"inputs": torch.ones(5, 3)}, "'inputs' has shape (5, 3); allowed: (N, 2)"),
        ({"targets": torch.ones(4)}, "'targets' has 4 rows and 'inputs' 5"),
        ({"targets": torch.full((5,), math.nan)}, "'targets' is not a dense tensor of finite real numbers"),
        ({"targets": "no"}, "'targets' is not a dense tensor of finite real numbers"),
        ({"student_weights": torch.zeros(2, 2)}, "zero vector"),
        ({"student_weights": torch.ones(2)}, "'student_weights' has shape (2,)"),
    ],
)
def test_users_tensors_are_checked(change, message):
    tensors = {"inputs": torch.ones(5, 2), "targets": torch.ones(5)} | change
    with pytest.raises(ValueError, match="^.*" + message.replace("(", r"\(").replace(")", r"\)")):
        problem_from_tensors(tensors, CIRCLE, lambda _: torch.eye(2))


def test_users_tensors_are_taken_as_they_are():
    tensors = {"inputs": torch.randn(5, 2), "targets": torch.randn(5, 3), "student_weights": 2 * torch.eye(2)}
    problem = problem_from_tensors(tensors, CIRCLE, lambda _: torch.eye(2))
    assert problem.teacher is None
    assert torch.equal(problem.student, torch.eye(2, dtype=torch.float64))
    assert torch.equal(problem.targets, tensors["targets"].double())


@pytest.mark.parametrize("features", [ReLUCircle(), SquaredReLUCircle()], ids=lambda each: each.name)
def test_the_law_stands_for_infinitely_many_neurons(features):
    """Targets, start and distance, against a fine quadrature of the density."""
    problem, usual = drawn_problem(features, 0, 64, 8, math.inf, 100.0), CIRCLE.draws(0, 64, 8, 4096, 100.0)
    assert torch.equal(problem.inputs, usual.inputs)
    assert torch.equal(problem.student, usual.student)
    angles = np.linspace(-math.pi, math.pi, 1 << 14, endpoint=False)
    masses = circle.circle_density(angles, 100.0) * (2 * math.pi / len(angles))
    expected = features(circle.directions(angles), problem.inputs) @ torch.from_numpy(masses)
    torch.testing.assert_close(problem.targets[:, 0], expected, rtol=0, atol=GRID)
    student = CircleMeasure(usual.student.numpy())
    found = problem.teacher_measure(CIRCLE).energy_distance(student)
    assert found == pytest.approx(CircleMeasure(angles, masses).energy_distance(student), abs=GRID)
