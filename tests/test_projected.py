"""The projected diffusion as numerics: its discrete gradient flow, invariants, orders, and known cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EXACT
from tolerances import PROJECTED as TOLERANCE

from varpro.diffusion import projected
from varpro.diffusion.circle import solve_diffusion
from varpro.diffusion.projected import harmonics, solve_projected
from varpro.domains.circle import circle_cdf, circle_density

EPOCHS = [0, 1, 1, 32, 1000, 5000, 32000]


def l1_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first - second).mean(axis=-1) * 2 * math.pi


def coarse(density: np.ndarray, cells: int) -> np.ndarray:
    return density.reshape(*density.shape[:-1], cells, -1).mean(axis=-1)


def bumps(angles: np.ndarray) -> np.ndarray:
    return circle_density(angles, 10.0)


def bent_state(m: int) -> tuple[np.ndarray, np.ndarray, projected._Law]:
    """Nodes and shares off every symmetry, shares with and without extrema, and a teacher."""
    x = math.pi * np.arange(m) / m - math.pi
    share = 0.5 + 0.3 * np.cos(math.pi * np.arange(m) / m + 0.3) + 0.02 * np.sin(1 + 10 * np.arange(m) / m)
    return x + 0.03 * np.sin(2 * x) + 0.01 * np.cos(4 * x), share, projected._gamma_law(10.0)


def central_differences(function, z: np.ndarray) -> np.ndarray:
    shift = 1e-6 * np.eye(z.size)
    return np.stack([(function(z + e) - function(z - e)) / 2e-6 for e in shift], axis=-1)


# ---- the pieces ----


@pytest.mark.parametrize("m", [8, 9, 24])
def test_derivatives_against_finite_differences(m):
    x, share, law = bent_state(m)
    z = np.concatenate([x, share])
    state = projected._evaluate(x, share, law)
    local, by_c, c_by = projected._derivatives(state)
    matrix = by_c @ c_by
    for row, column, values in local:
        np.add.at(matrix, (row, column), values)
    expected = central_differences(lambda z: projected._evaluate(z[:m], z[m:], law).rate, z)
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=TOLERANCE["derivatives"] * np.abs(expected).max())
    expected = central_differences(lambda z: projected._evaluate(z[:m], z[m:], law).c, z)
    np.testing.assert_allclose(c_by, expected, rtol=0, atol=TOLERANCE["derivatives"] * np.abs(expected).max())


def test_flow_descends_the_discrete_energy():
    m = 24
    x, share, law = bent_state(m)
    gradient = central_differences(lambda z: projected._evaluate(z[:m], z[m:], law).excess, np.concatenate([x, share]))
    rate = projected._evaluate(x, share, law).rate
    np.testing.assert_allclose(rate[:m], -m * gradient[:m], rtol=0, atol=TOLERANCE["derivatives"])
    assert rate @ gradient < 0
    assert rate[m:] @ gradient[m:] < 0  # and so does either part


@pytest.mark.parametrize("m", [8, 9, 40])
def test_linear_solve_against_a_dense_matrix(m):
    x, share, law = bent_state(m)
    state = projected._evaluate(x, share, law)
    local, by_c, c_by = projected._derivatives(state)
    matrix = np.eye(2 * m) - 0.01 * by_c @ c_by
    for row, column, values in local:
        np.add.at(matrix, (row, column), -0.01 * values)
    right = np.random.default_rng(m).normal(size=2 * m)
    found = projected._Matrix(state, 0.01).solve(right)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=0, atol=TOLERANCE["linear solve"])


def test_outer_weights_solve_the_projected_problem():
    """u f and the teacher have the same even harmonics and the same first one, and u is 1 plus such harmonics."""
    solution = solve_projected(10.0, [0, 300], grid_size=1024)
    grid = solution.grid
    teacher = harmonics(grid, np.diff(circle_cdf(np.linspace(-math.pi, math.pi, 1025), 10.0)), 8)
    for density, outer in zip(solution.density, solution.outer, strict=True):
        seen = harmonics(grid, outer * density * 2 * math.pi / 1024, 8)
        gap = np.abs(seen - teacher)
        assert gap[[0, 1, 2, 4, 6, 8]].max() < TOLERANCE["harmonics"]
        assert gap[[3, 5]].min() > 100 * TOLERANCE["harmonics"]
        assert np.abs(harmonics(grid, outer / 1024, 9)[3::2]).max() < TOLERANCE["harmonics"]


def test_harmonics_of_points():
    angles, masses = np.array([0.3, -2.0, 9.0]), np.array([0.5, -1.0, 2.0])
    expected = [np.sum(masses * np.exp(-1j * k * angles)) for k in range(12)]
    assert np.abs(harmonics(angles, masses, 11) - expected).max() < EXACT


# ---- invariants ----


def assert_sound(solution: projected.ProjectedDiffusion) -> None:
    cells = solution.grid.size
    assert np.abs(solution.density.sum(axis=1) * 2 * math.pi / cells - 1).max() < TOLERANCE["mass"]
    assert solution.density.min() > 0
    change, seen = np.diff(solution.energy), solution.energy[:-1] > 1e-12
    assert np.all(change[seen] < 0)
    assert np.all(np.diff(solution.times) > 0)
    assert solution.energy.shape == solution.times.shape == (solution.steps + 1,)


@pytest.mark.parametrize("gamma", [1.0, 100.0])
def test_mass_positivity_and_energy(gamma):
    solution = solve_projected(gamma, EPOCHS, grid_size=128)
    assert_sound(solution)
    np.testing.assert_allclose(solution.density[0], 1 / (2 * math.pi), rtol=TOLERANCE["mass"])
    np.testing.assert_array_equal(solution.density[1], solution.density[2])
    assert solution.times[-1] == 32000 * 2**-10


@given(
    gamma=st.floats(-2, 2).map(lambda power: 10**power),
    grid_size=st.integers(8, 40).map(lambda half: 2 * half),
    tilt=st.floats(-0.6, 0.6),
    place=st.floats(-4, 4),
)
@settings(max_examples=4)
def test_any_start_is_sound(gamma, grid_size, tilt, place):
    def start(angles):
        return 1 + tilt * np.cos(angles - place) + 0.3 * np.sin(3 * angles)

    assert_sound(solve_projected(gamma, [0, 100], grid_size=grid_size, start=start))


def test_progress_reaches_one():
    seen = []
    solution = solve_projected(10.0, [0, 50], grid_size=64, progress=seen.append)
    assert len(seen) == solution.steps
    assert seen[-1] == 1


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_turned_problem_has_the_turned_solution(quarter):
    """Where the circle is cut and folded does not matter."""
    straight = solve_projected(bumps, [100, 1000], grid_size=128, rtol=1e-6)
    turned = solve_projected(lambda a: bumps(a - quarter * math.pi / 2), [100, 1000], grid_size=128, rtol=1e-6)
    expected = np.roll(straight.density, 32 * quarter, axis=1)
    assert l1_distance(turned.density, expected).max() < TOLERANCE["turned"]
    expected = np.roll(straight.outer, 32 * quarter, axis=1)
    assert np.abs(turned.outer - expected).max() < 10 * TOLERANCE["turned"]


@pytest.mark.parametrize("hidden", [0.0, 0.04])
def test_densities_with_the_visible_harmonics_of_the_teacher_stay(hidden):
    """The teacher, and the teacher with invisible harmonics 3 and 5: what moves is of second order in the grid."""

    def start(angles):
        return bumps(angles) + hidden * np.cos(3 * angles) - hidden / 2 * np.sin(5 * angles)

    assert start(np.linspace(-4, 4, 500)).min() > 0
    moved = []
    for cells in (64, 128, 256):
        solution = solve_projected(10.0, [0, 20000], grid_size=cells, start=start)
        moved.append(l1_distance(solution.density[1], solution.density[0]))
        assert solution.energy[0] < TOLERANCE["hidden"]
        assert np.abs(solution.outer - 1).max() < 0.05
    assert moved[-1] < TOLERANCE["stationary"]
    assert min(np.log2(np.divide(moved[:-1], moved[1:]))) > 1.8


def test_the_end_has_the_visible_harmonics_of_the_teacher_only():
    solution = solve_projected(10.0, [200_000], grid_size=256)
    edges = np.linspace(-math.pi, math.pi, 257)
    teacher = harmonics(solution.grid, np.diff(circle_cdf(edges, 10.0)), 5)
    gap = np.abs(harmonics(solution.grid, solution.density[0] * 2 * math.pi / 256, 5) - teacher)
    assert gap[[0, 1, 2, 4]].max() < TOLERANCE["end"]
    assert gap[3] > 50 * TOLERANCE["end"]
    assert np.abs(solution.outer - 1).max() < TOLERANCE["end"]


# ---- measured orders ----


def test_second_order_in_the_grid_before_the_shock():
    exact = coarse(solve_projected(10.0, [100, 300], grid_size=1024, rtol=1e-7).density, 64)
    errors = []
    for cells in (64, 128, 256):
        found = coarse(solve_projected(10.0, [100, 300], grid_size=cells, rtol=1e-7).density, 64)
        errors.append(l1_distance(found, exact))
    assert np.log2(np.divide(errors[:-1], errors[1:])).min() > 1.7


def end(state, time, steps, law):
    """The state after ``steps`` equal ones in ``time``."""
    for _ in range(steps):
        state = projected._rosenbrock_step(state, time / steps, law)[0]
    return state


def test_error_estimate_and_interpolant_are_of_third_order():
    law = projected._gamma_law(10.0)
    start = end(projected._evaluate(*projected._first_state(None, 64), law), 0.02, 40, law)
    estimates, errors = [], []
    for size in (0.01, 0.005, 0.0025):
        after, k1, k2, error = projected._rosenbrock_step(start, size, law)
        step = projected.Step(0.0, size, projected.Trial(error, True, start, after, (k1, k2)))
        errors.append(np.abs(projected._between(step, 0.4, law).x - end(start, 0.4 * size, 64, law).x).max())
        estimates.append(error)
    for each in (estimates, errors):
        assert np.log2(np.divide(each[:-1], each[1:])).min() > 2.5


def test_second_order_in_the_time_step():
    law = projected._gamma_law(10.0)
    start = end(projected._evaluate(*projected._first_state(None, 64), law), 0.02, 40, law)
    exact = end(start, 0.1, 640, law)
    errors = []
    for steps in (10, 20, 40):
        found = end(start, 0.1, steps, law)
        errors.append([np.abs(found.x - exact.x).max(), np.abs(found.share - exact.share).mean()])
    assert np.log2(np.divide(errors[:-1], errors[1:])).min() > 1.7


# ---- answers from elsewhere ----


def test_a_teacher_of_period_pi_gives_the_plain_diffusion():
    """f and teacher stay even: folded and unfolded, x = 2 theta, this is the plain diffusion four times as fast."""
    epochs = [0, 32, 250, 2000]
    solution = solve_projected(lambda a: circle_density(2 * a, 10.0), epochs, grid_size=256, rtol=1e-5)
    plain = solve_diffusion(10.0, [4 * epoch for epoch in epochs], grid_size=128, rtol=1e-5)
    assert l1_distance(solution.density[:, 64:192], plain.density).max() < TOLERANCE["plain"]
    assert l1_distance(solution.density[:, 128:], solution.density[:, :128]).max() < TOLERANCE["mass"]


def test_cell_averages_and_functions_are_the_same_teacher():
    averages = np.diff(circle_cdf(np.linspace(-math.pi, math.pi, 513), 10.0))  # not normalised
    by_gamma = solve_projected(10.0, [500], grid_size=128)
    for teacher in (averages, bumps):
        found = solve_projected(teacher, [500], grid_size=128)
        assert l1_distance(found.density, by_gamma.density)[0] < TOLERANCE["same teacher"]


def test_a_grid_too_coarse_for_the_teacher_is_reported():
    with pytest.raises(RuntimeError, match=r"no step is short enough at time .* grid_size"):
        solve_projected(1e4, [32000], grid_size=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": -1.0}, "gamma .* -1.0"),
        ({"teacher": np.sin}, "teacher must be finite and positive"),
        ({"teacher": np.ones((8, 8))}, r"teacher .* \(8, 8\)"),
        ({"start": np.zeros(64)}, "start must be finite and positive"),
        ({"grid_size": 65}, "grid_size .* 65"),
        ({"grid_size": 14}, "grid_size .* 14"),
        ({"snapshot_epochs": []}, r"snapshot_epochs .* \[\]"),
        ({"rtol": 0.0}, "rtol .* 0.0"),
    ],
)
def test_invalid_arguments_are_named(change, message):
    arguments = {"teacher": 1.0, "snapshot_epochs": [0, 1], "grid_size": 32} | change
    with pytest.raises(ValueError, match=message):
        solve_projected(**arguments)
