"""The ultra-fast diffusion as numerics: invariants, orders, and answers known from elsewhere."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import solve_ivp
from scipy.linalg import eigh
from scipy.sparse import csc_matrix
from tolerances import DIFFUSION as TOLERANCE

from varpro.diffusion import circle as diffusion
from varpro.diffusion.circle import solve_diffusion
from varpro.domains.circle import circle_cdf, circle_density

EPOCHS = [0, 1, 1, 32, 1000, 5000, 10000, 32000]
GAMMAS = [1.0, 10.0, 100.0, 1e4]
PUBLISHED = Path(__file__).parents[1] / "published" / "density_evolution.csv"


def uniform_nodes(n: int) -> np.ndarray:
    return np.linspace(-math.pi, math.pi, n, endpoint=False)


def teacher_averages(gamma: float, cells: int) -> np.ndarray:
    """Cell averages of nu, (cells,)."""
    edges = np.linspace(-math.pi, math.pi, cells + 1)
    return np.diff(circle_cdf(edges, gamma)) * cells / (2 * math.pi)


def teacher_quantiles(gamma: float, levels: np.ndarray) -> np.ndarray:
    """X with N(X) = levels, by bisection; levels in [-1, 2)."""
    low, high = np.full(levels.shape, -3 * math.pi), np.full(levels.shape, 5 * math.pi)
    for _ in range(60):
        middle = (low + high) / 2
        below = circle_cdf(middle, gamma) < levels
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def l1_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first - second).mean(axis=-1) * 2 * math.pi


def assert_sound(solution: diffusion.Diffusion) -> None:
    """Mass 1, positive, X increasing, energy above its minimum 1/2 and smaller after every step."""
    mass = solution.density.sum(axis=1) * 2 * math.pi / solution.grid.size
    assert np.abs(mass - 1).max() < TOLERANCE["mass"]
    assert solution.density.min() > 0
    assert np.all(np.diff(solution.positions) > 0)
    assert np.ptp(solution.positions) < 2 * math.pi
    change, seen = np.diff(solution.energy), solution.energy[:-1] > 0.5 + 1e-12
    assert np.all(change <= 0)
    assert np.all(change[seen] < 0)  # until the digits of F - 1/2 are gone
    assert solution.energy[-1] >= 0.5
    assert np.all(np.diff(solution.times) > 0)
    assert solution.energy.shape == solution.times.shape == (solution.steps + 1,)


# ---- the pieces ----


@pytest.mark.parametrize("gamma", [0.0, *GAMMAS])
def test_scalar_law_is_that_of_the_teachers(gamma):
    angles = np.random.default_rng(0).uniform(-9, 9, 500)
    density, slope, cdf = np.array([diffusion._law(x, diffusion._teacher(gamma)) for x in angles]).T
    np.testing.assert_allclose(density, circle_density(angles, gamma), rtol=TOLERANCE["law"])
    scale = np.abs(slope).max()
    shift = 1e-5 / math.sqrt(1 + gamma)  # a small part of the width of a bump
    difference = (circle_density(angles + shift, gamma) - circle_density(angles - shift, gamma)) / (2 * shift)
    np.testing.assert_allclose(slope, difference, rtol=0, atol=TOLERANCE["law slope"] * scale)
    expected = circle_cdf(angles, gamma)
    np.testing.assert_allclose(cdf - cdf[0], expected - expected[0], rtol=0, atol=TOLERANCE["law"])


@pytest.mark.parametrize("n", [8, 9, 40])
@pytest.mark.parametrize("gamma", [0.0, 10.0])
def test_linear_solve_against_a_dense_matrix(n, gamma):
    x = uniform_nodes(n) + 0.2 * np.sin(uniform_nodes(n))

    def rate(x):
        state = diffusion._evaluate(x, diffusion._teacher(gamma))
        return state.density * state.curvature

    shift = 1e-5
    jacobian = np.stack([(rate(x + e) - rate(x - e)) / (2 * shift) for e in shift * np.eye(n)], axis=1)
    right = np.random.default_rng(n).normal(size=n)
    expected = np.linalg.solve(np.eye(n) - 0.05 * jacobian, right)
    definite, inverse, lower, row = diffusion._factor(diffusion._evaluate(x, diffusion._teacher(gamma)), 0.05)
    assert definite
    solution = diffusion._solve(inverse, lower, row, right)
    np.testing.assert_allclose(
        solution, expected, rtol=TOLERANCE["linear solve"], atol=0.01 * TOLERANCE["linear solve"]
    )


def test_indefinite_matrix_is_reported():
    state = diffusion._evaluate(uniform_nodes(32), diffusion._teacher(10.0))
    bent = state._replace(curvature=1e6 * np.sign(state.slope))  # makes nu' Y_ss, a term of J_ii, large
    assert not diffusion._factor(bent, 1.0)[0]


@given(arrays(np.float64, 30, elements=st.floats(1e-6, 1)), st.floats(-1, 1), st.integers(8, 50))
@settings(max_examples=50, deadline=None)
def test_cells_of_any_increasing_levels_have_positive_mass(gaps, shift, cells):
    y = shift + np.cumsum(gaps / gaps.sum())
    levels = circle_cdf(np.linspace(-math.pi, math.pi, cells + 1), 10.0)
    masses = diffusion._cell_masses(y, levels)
    assert masses.min() > 0
    assert abs(masses.sum() - 1) < TOLERANCE["mass"]


def test_interpolation_stays_increasing_where_the_curve_is_not():
    state = diffusion._evaluate(uniform_nodes(16), diffusion._teacher(1.0))
    after = diffusion._evaluate(state.x + 0.01, diffusion._teacher(1.0))
    wild = 1e3 * (-1.0) ** np.arange(16)
    between = diffusion._interpolate(state, after.y, wild, wild, 1.0, 0.25)
    np.testing.assert_allclose(between, 0.75 * state.y + 0.25 * after.y, rtol=TOLERANCE["rounding"])


# ---- invariants ----


@pytest.mark.parametrize("gamma", GAMMAS)
def test_mass_positivity_order_and_energy(gamma):
    solution = solve_diffusion(gamma, EPOCHS, grid_size=512)
    assert_sound(solution)
    assert solution.density.shape == (len(EPOCHS), 512)
    np.testing.assert_allclose(solution.density[0], 1 / (2 * math.pi), rtol=TOLERANCE["stationary"])
    np.testing.assert_array_equal(solution.density[1], solution.density[2])
    np.testing.assert_array_equal(solution.snapshot_epochs, EPOCHS)
    nodes = uniform_nodes(512) + math.pi / 512
    np.testing.assert_allclose(solution.grid, nodes, rtol=0, atol=TOLERANCE["rounding"])
    assert solution.times[-1] == 32000 * 2**-10


@given(
    gamma=st.floats(-3, 4).map(lambda power: 10**power),
    grid_size=st.integers(8, 200),
    epochs=st.lists(st.integers(0, 2000), min_size=1, max_size=5).map(sorted),
    gaps=arrays(np.float64, 24, elements=st.floats(0.05, 1)),
)
@settings(max_examples=30, deadline=None)
def test_any_problem_from_any_start_is_sound(gamma, grid_size, epochs, gaps):
    start = 2 * math.pi * np.cumsum(gaps / gaps.sum()) - 4
    assert_sound(solve_diffusion(gamma, epochs, grid_size=grid_size))
    assert_sound(solve_diffusion(gamma, epochs, grid_size=grid_size, start=start))


def test_uniform_teacher_stays_uniform():
    solution = solve_diffusion(0, EPOCHS, grid_size=256)
    np.testing.assert_allclose(solution.density, 1 / (2 * math.pi), rtol=TOLERANCE["stationary"])
    assert np.ptp(solution.energy) == 0


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shift", [0.0, 0.3, -0.77])
def test_teacher_is_stationary_wherever_its_quantiles_begin(gamma, shift):
    start = teacher_quantiles(gamma, np.arange(300) / 300 + shift)
    solution = solve_diffusion(gamma, EPOCHS, grid_size=256, start=start)
    expected = np.tile(teacher_averages(gamma, 256), (len(EPOCHS), 1))
    np.testing.assert_allclose(solution.density, expected, rtol=TOLERANCE["stationary"])
    assert abs(solution.energy[0] - 0.5) < TOLERANCE["rounding"]


@pytest.mark.parametrize(("gamma", "epochs"), [(1.0, 200_000), (10.0, 200_000), (100.0, 400_000)])
def test_long_time_limit_is_the_teacher(gamma, epochs):
    solution = solve_diffusion(gamma, [epochs], grid_size=256)
    assert l1_distance(solution.density[0], teacher_averages(gamma, 256)) < TOLERANCE["converged"]


def test_snapshots_do_not_change_the_solution():
    every = solve_diffusion(100.0, np.linspace(0, 3200, 1001).astype(int), grid_size=128)
    few = solve_diffusion(100.0, every.snapshot_epochs[[3, 100, 1000]], grid_size=128)
    np.testing.assert_array_equal(few.density, every.density[[3, 100, 1000]])
    assert few.steps == every.steps < 1000


def test_last_positions_continue_the_run():
    whole = solve_diffusion(10.0, [3000], grid_size=256)
    half = solve_diffusion(10.0, [1500], grid_size=256)
    rest = solve_diffusion(10.0, [1500], grid_size=256, start=half.positions)
    assert l1_distance(rest.density, whole.density)[0] < TOLERANCE["restart"]


def test_progress_reaches_one():
    seen = []
    solution = solve_diffusion(10.0, [0, 500], grid_size=64, progress=seen.append)
    assert len(seen) == solution.steps
    assert seen == sorted(seen)
    assert seen[-1] == 1


# ---- measured orders ----


def test_second_order_in_the_nodes():
    def density(n):
        return solve_diffusion(100.0, [32, 1000], grid_size=128, rtol=1e-8, start=uniform_nodes(n)).density

    exact, sizes = density(4096), [256, 512, 1024]
    errors = np.array([l1_distance(density(n), exact) for n in sizes])  # (3, 2)
    orders = np.log2(errors[:-1] / errors[1:])
    assert orders.min() > 1.8
    assert errors[-1].max() < TOLERANCE["1024 nodes"]


def fixed_steps(x: np.ndarray, gamma: float, end: float, steps: int) -> diffusion._State:
    state = diffusion._evaluate(x, diffusion._teacher(gamma))
    for _ in range(steps):
        state = diffusion._rosenbrock_step(state, end / steps, diffusion._teacher(gamma))[1]
    return state


def test_second_order_in_the_time_step():
    exact = fixed_steps(uniform_nodes(128), 10.0, 1.0, 8192).y
    errors = [np.abs(fixed_steps(uniform_nodes(128), 10.0, 1.0, k).y - exact).max() for k in (128, 256, 512)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert orders.min() > 1.9
    assert orders.max() < 2.3


def test_interpolant_is_as_accurate_as_the_step():
    start = fixed_steps(uniform_nodes(128), 10.0, 0.5, 1024)
    errors = []
    for size in (0.08, 0.04, 0.02):
        _, after, k1, k2, _ = diffusion._rosenbrock_step(start, size, diffusion._teacher(10.0))
        between = diffusion._interpolate(start, after.y, k1, k2, size, 0.4)
        errors.append(np.abs(between - fixed_steps(start.x, 10.0, 0.4 * size, 512).y).max())
    assert np.log2(np.divide(errors[:-1], errors[1:])).min() > 2.7  # h^3 in one step is h^2 in all


def test_error_follows_the_tolerance():
    exact = solve_diffusion(100.0, EPOCHS, grid_size=256, rtol=1e-9).density
    for rtol in (1e-4, 1e-5, 1e-6):
        distance = l1_distance(solve_diffusion(100.0, EPOCHS, grid_size=256, rtol=rtol).density, exact)
        assert distance.max() < 0.1 * rtol ** (2 / 3)  # second order, steps as rtol^(1/3); half of this is seen


# ---- answers from elsewhere ----


def finite_volume_densities(gamma: float, times: np.ndarray, cells: int) -> np.ndarray:
    """Cell averages (len(times), cells) of d_t mu = - (1/2) d_x (mu d_x (nu/mu)^2), in the density itself."""
    width = 2 * math.pi / cells
    nu = teacher_averages(gamma, cells)

    def flow(_time, mu):
        flux = (mu + np.roll(mu, 1)) / 2 * np.diff((nu / mu) ** 2, prepend=(nu[-1] / mu[-1]) ** 2) / (2 * width)
        return (flux - np.roll(flux, -1)) / width  # flux: through the left edge of the cell

    near = np.abs(np.subtract.outer(np.arange(cells), np.arange(cells)))
    pattern = csc_matrix((near <= 1) | (near == cells - 1))
    start = np.full(cells, 1 / (2 * math.pi))
    tight = {"rtol": 1e-8, "atol": 1e-10}
    solution = solve_ivp(flow, (0, times[-1]), start, "BDF", times, jac_sparsity=pattern, **tight)
    assert solution.success
    return solution.y.T


def test_agreement_with_finite_volumes():
    epochs = np.array([32, 300, 1000, 5000])
    fine = finite_volume_densities(10.0, epochs * 2**-10, 512).reshape(4, 256, 2).mean(axis=2)
    coarse = finite_volume_densities(10.0, epochs * 2**-10, 256)
    extrapolated = (4 * fine - coarse) / 3
    solution = solve_diffusion(10.0, epochs, grid_size=256, rtol=1e-7, start=uniform_nodes(2048))
    assert l1_distance(solution.density, extrapolated).max() < TOLERANCE["finite volumes"]


@pytest.mark.parametrize("gamma", [1.0, 10.0, 100.0])
def test_decay_rate_near_the_teacher(gamma):
    # Near nu, y = Y - s obeys d_t y = nu(X(s))^2 y_ss: along the slowest mode F - 1/2 falls as exp(-2 lambda t).
    n, levels = 256, np.arange(256) / 256
    nu = circle_density(teacher_quantiles(gamma, levels), gamma)
    laplacian = n**2 * (2 * np.eye(n) - np.roll(np.eye(n), 1, axis=0) - np.roll(np.eye(n), -1, axis=0))
    values, vectors = eigh(nu[:, None] * laplacian * nu, subset_by_index=[0, 1])
    assert abs(values[0]) < 1e-6 * values[1]  # the shift of s
    mode = nu * vectors[:, 1]
    start = teacher_quantiles(gamma, levels + 1e-3 * mode / np.abs(n * np.diff(mode)).max())
    solution = solve_diffusion(gamma, [int(5 / values[1] * 2**10)], grid_size=n, rtol=1e-10, start=start)
    rate = -np.polyfit(solution.times, np.log(solution.energy - 0.5), 1)[0]
    assert rate == pytest.approx(2 * values[1], rel=TOLERANCE["decay rate"])


def test_published_densities():
    with PUBLISHED.open() as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    epochs = [0, 100, 1000, 5000, 10000]
    solution = solve_diffusion(100.0, epochs)
    for epoch, density in zip(epochs, solution.density, strict=True):
        curve = [row for row in rows if row["panel"] == "left" and row["series"].startswith(f"i={epoch} ")]
        angles = np.array([float(row["iteration"]) for row in curve])
        published = np.array([float(row["value"]) for row in curve])
        assert len(curve) > 1
        np.testing.assert_allclose(np.interp(angles, solution.grid, density), published, rtol=TOLERANCE["published"])


# ---- refusals ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": -1.0}, "gamma .* -1.0"),
        ({"gamma": math.nan}, "gamma .* nan"),
        ({"gamma": math.inf}, "gamma .* inf"),
        ({"gamma": 1e9}, "gamma .* 1000000000.0"),
        ({"time_scale": 0.0}, "time_scale .* 0.0"),
        ({"time_scale": math.nan}, "time_scale .* nan"),
        ({"grid_size": 7}, "grid_size .* 7"),
        ({"grid_size": 64.5}, "grid_size .* 64.5"),
        ({"rtol": 0.0}, "rtol .* 0.0"),
        ({"snapshot_epochs": []}, r"snapshot_epochs .* \[\]"),
        ({"snapshot_epochs": [0.5]}, r"snapshot_epochs .* \[0.5\]"),
        ({"snapshot_epochs": [-3, 5]}, "snapshot_epochs .* -3"),
        ({"snapshot_epochs": [0, 10, 5]}, "snapshot_epochs .* 10 is followed by 5"),
        ({"start": np.zeros(20)}, "start must increase"),
        ({"start": np.linspace(0, 7, 20)}, "start .* one turn"),
        ({"start": np.array([0.0, math.nan])}, "start .* finite"),
    ],
)
def test_invalid_arguments_are_named(change, message):
    arguments = {"gamma": 1.0, "snapshot_epochs": [0, 1], "grid_size": 32} | change
    with pytest.raises(ValueError, match=message):
        solve_diffusion(**arguments)
