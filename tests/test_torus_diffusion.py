"""The ultra-fast diffusion on the torus as numerics, and distances to its densities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import solve_ivp
from scipy.linalg import eigh
from tolerances import EXACT
from tolerances import TORUS_DIFFUSION as TOLERANCE

from varpro.diffusion import multigrid, torus
from varpro.diffusion.circle import solve_diffusion
from varpro.diffusion.snapshots import choose_snapshots, density_at
from varpro.diffusion.torus import SIDE, TorusDiffusion, TorusTeacher, solve_torus_diffusion
from varpro.distances import TorusDensity, TorusMeasure
from varpro.domains.torus import torus_bump_density
from varpro.runs import limits

EPOCHS = [0, 1, 1, 32, 1000, 5000, 10000, 32000]
GAMMAS = [1.0, 100.0, 1000.0]
POSITIVE = st.floats(0.01, 1)


def l1_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first - second).mean(axis=(-2, -1)) * SIDE**2


def centres(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) * SIDE / n - SIDE / 2


def smooth_teacher(n: int) -> TorusTeacher:
    """A teacher without any symmetry."""
    x, y = np.meshgrid(centres(n) * math.pi / 2, centres(n) * math.pi / 2, indexing="ij")
    return TorusTeacher.of_density(np.exp(np.sin(x + 0.3) + 0.7 * np.cos(y - x) + 0.5 * np.sin(2 * y)))


def flux_matrix(teacher: TorusTeacher) -> np.ndarray:
    """A (n^2, n^2), column by column from differences written with np.roll."""
    n = len(teacher.cells)
    unit = np.eye(n * n).reshape(n * n, n, n)
    total = np.zeros_like(unit)
    for axis, faces in ((1, teacher.faces_x), (2, teacher.faces_y)):
        flux = faces * (unit - np.roll(unit, 1, axis))
        total += flux - np.roll(flux, -1, axis)
    return total.reshape(n * n, n * n).T * (n / SIDE) ** 2


def assert_sound(solution: TorusDiffusion) -> None:
    """Mass 1, positive, energy above its minimum 1/2 and smaller after every step."""
    n = len(solution.grid)
    mass = solution.density.sum(axis=(1, 2)) * (SIDE / n) ** 2
    assert np.abs(mass - 1).max() < TOLERANCE["mass"]
    assert solution.density.min() > 0
    change, seen = np.diff(solution.energy), solution.energy[:-1] > 0.5 + 1e-12
    assert np.all(change <= 0)
    assert np.all(change[seen] < 0)  # until the digits of the energy are gone
    assert solution.energy[-1] >= 0.5
    assert np.all(np.diff(solution.times) > 0)
    assert solution.energy.shape == solution.times.shape == (solution.steps + 1,)


# ---- the pieces ----


@pytest.mark.parametrize("n", [4, 9, 12, 32])
@pytest.mark.parametrize("stiffness", [1e-3, 1.0])
def test_linear_solve_against_a_dense_matrix(n, stiffness):
    teacher = TorusTeacher.of_law(30.0, n)
    rng = np.random.default_rng(n)
    shift, right = rng.uniform(0.5, 2, (n, n)), rng.normal(size=(n, n))
    scale = stiffness * (n / SIDE) ** 2
    grids = multigrid.make_grids(scale * teacher.faces_x, scale * teacher.faces_y)
    found, iterations = multigrid.solve_shifted(grids, shift, right, 1e-12 * np.abs(right).sum(), 50)
    dense = np.diag(shift.ravel()) + stiffness * flux_matrix(teacher)
    expected = np.linalg.solve(dense, right.ravel()).reshape(n, n)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE["linear solve"] * np.abs(expected).max())
    assert iterations < 30


def test_iterations_do_not_grow_with_the_grid():
    needed = []
    for n in (16, 32, 64, 128):
        teacher = TorusTeacher.of_law(10.0, n)
        grids = multigrid.make_grids(teacher.faces_x * (n / SIDE) ** 2, teacher.faces_y * (n / SIDE) ** 2)
        right = np.random.default_rng(n).normal(size=(n, n))
        needed.append(multigrid.solve_shifted(grids, teacher.cells, right, 1e-8 * np.abs(right).sum(), 50)[1])
    assert max(needed) <= min(needed) + 3 < 15


def test_the_v_cycle_is_symmetric_positive_definite():
    n = 12
    teacher = TorusTeacher.of_law(100.0, n)
    grids = multigrid.make_grids(teacher.faces_x, teacher.faces_y)
    factor = multigrid._prepare(grids, teacher.cells)
    matrix = np.empty((n * n, n * n))
    for k in range(n * n):
        grids.work[multigrid.RIGHT_SIDE, : n * n] = np.eye(n * n)[k]
        multigrid._v_cycle(grids, factor)
        matrix[k] = grids.work[multigrid.SOLUTION, : n * n]
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=TOLERANCE["linear solve"] * np.abs(matrix).max())
    assert np.linalg.eigvalsh(matrix).min() > 0


@pytest.mark.parametrize("gamma", [0.0, 1.0, 100.0])
def test_teacher_has_the_averages_of_the_law(gamma):
    n, h = 12, SIDE / 12
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x = (centres(n)[:, None] + nodes * h / 2).ravel()
    left = centres(n) - h / 2

    def law(x, y):
        first = np.outer(torus_bump_density(x + 1, gamma), torus_bump_density(y, gamma))
        return (first + np.outer(torus_bump_density(x - 1, gamma), torus_bump_density(y - 1, gamma))) / 2

    def averaged(values, axis):
        split = np.moveaxis(values, axis, -1)
        return np.moveaxis(split.reshape(*split.shape[:-1], n, -1) @ weights / 2, -1, axis)

    teacher = TorusTeacher.of_law(gamma, n)
    np.testing.assert_allclose(teacher.cells, averaged(averaged(law(x, x), 0), 1), rtol=TOLERANCE["average"])
    np.testing.assert_allclose(teacher.faces_x, averaged(law(left, x), 1), rtol=TOLERANCE["average"])
    np.testing.assert_allclose(teacher.faces_y, averaged(law(x, left), 0), rtol=TOLERANCE["average"])
    assert abs(teacher.cells.mean() * SIDE**2 - 1) < TOLERANCE["mass"]


# ---- invariants ----


@pytest.mark.parametrize("gamma", GAMMAS)
def test_mass_positivity_and_energy(gamma):
    solution = solve_torus_diffusion(gamma, EPOCHS, grid_size=32)
    assert_sound(solution)
    assert solution.density.shape == (len(EPOCHS), 32, 32)
    np.testing.assert_array_equal(solution.density[0], 1 / 16)
    np.testing.assert_array_equal(solution.density[1], solution.density[2])
    np.testing.assert_array_equal(solution.snapshot_epochs, EPOCHS)
    np.testing.assert_array_equal(solution.grid, centres(32))
    assert solution.times[-1] == 32000 * 2**-10


@given(
    teacher=arrays(np.float64, (8, 8), elements=POSITIVE),
    start=arrays(np.float64, (8, 8), elements=POSITIVE),
    epochs=st.lists(st.integers(0, 3000), min_size=1, max_size=4).map(sorted),
)
@settings(max_examples=30, deadline=None)
def test_any_teacher_from_any_start_is_sound(teacher, start, epochs):
    solution = solve_torus_diffusion(TorusTeacher.of_density(teacher), epochs, rtol=1e-3, start=start)
    assert_sound(solution)


@given(st.floats(-4, 4).map(lambda power: 10**power), arrays(np.float64, (6, 6), elements=POSITIVE))
@settings(max_examples=30, deadline=None)
def test_a_stage_of_any_length_has_its_one_solution(tau, base):
    teacher = smooth_teacher(6)
    grids = multigrid.make_grids(teacher.faces_x * 2.25, teacher.faces_y * 2.25)  # 1/h^2
    problem = torus._Problem(teacher.cells, grids, (SIDE / 6) ** 2, 1e-5)
    base = base / base.mean() / 16 - teacher.cells
    solved, (deviation, excess, rate), _ = torus._solve_stage(problem, base, tau, np.zeros((6, 6)), 1e-13)
    assert solved
    density = teacher.cells + deviation
    assert density.min() > 0
    assert abs(density.mean() * 16 - 1) < TOLERANCE["mass"]
    within = TOLERANCE["stage"] / min(tau, 1)
    np.testing.assert_allclose(rate.ravel(), flux_matrix(teacher) @ excess.ravel(), rtol=0, atol=within)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_teacher_is_stationary(gamma):
    cells = TorusTeacher.of_law(gamma, 32).cells
    solution = solve_torus_diffusion(gamma, EPOCHS, grid_size=32, start=cells)
    np.testing.assert_allclose(solution.density, np.tile(cells, (len(EPOCHS), 1, 1)), rtol=TOLERANCE["stationary"])


def test_uniform_teacher_stays_uniform():
    solution = solve_torus_diffusion(0, EPOCHS, grid_size=16)
    np.testing.assert_allclose(solution.density, 1 / 16, rtol=TOLERANCE["stationary"])


def test_long_time_limit_is_the_teacher():
    solution = solve_torus_diffusion(100.0, [200_000], grid_size=16)
    assert l1_distance(solution.density[0], TorusTeacher.of_law(100.0, 16).cells) < TOLERANCE["converged"]


def test_swapped_axes_and_whole_cells():
    teacher, epochs = smooth_teacher(16), [32, 1000]
    plain = solve_torus_diffusion(teacher, epochs, rtol=1e-6).density
    swapped = TorusTeacher(teacher.cells.T.copy(), teacher.faces_y.T.copy(), teacher.faces_x.T.copy())
    found = solve_torus_diffusion(swapped, epochs, rtol=1e-6).density
    np.testing.assert_allclose(found, plain.transpose(0, 2, 1), rtol=TOLERANCE["symmetric"])
    moved = TorusTeacher(*(np.roll(a, (3, 5), (0, 1)) for a in (teacher.cells, teacher.faces_x, teacher.faces_y)))
    found = solve_torus_diffusion(moved, epochs, rtol=1e-6).density
    np.testing.assert_allclose(found, np.roll(plain, (3, 5), (1, 2)), rtol=TOLERANCE["symmetric"])


def test_point_symmetry_of_the_law():
    # (x, y) -> (-x, 1 - y) swaps the modes.
    density = solve_torus_diffusion(100.0, [32, 1000], grid_size=32, rtol=1e-6).density
    np.testing.assert_allclose(np.roll(density[:, ::-1, ::-1], 8, axis=2), density, rtol=TOLERANCE["symmetric"])


def test_snapshots_do_not_change_the_solution():
    every = solve_torus_diffusion(100.0, np.linspace(0, 3200, 101).astype(int), grid_size=16)
    few = solve_torus_diffusion(100.0, every.snapshot_epochs[[3, 50, 100]], grid_size=16)
    np.testing.assert_array_equal(few.density, every.density[[3, 50, 100]])
    assert few.steps == every.steps


def test_a_snapshot_continues_the_run():
    whole = solve_torus_diffusion(10.0, [1500, 3000], grid_size=16)
    rest = solve_torus_diffusion(10.0, [1500], grid_size=16, start=whole.density[0])
    assert l1_distance(rest.density[0], whole.density[1]) < TOLERANCE["restart"]


def test_progress_reaches_one():
    seen = []
    solution = solve_torus_diffusion(10.0, [0, 500], grid_size=8, progress=seen.append)
    assert len(seen) == solution.steps
    assert seen == sorted(seen)
    assert seen[-1] == 1


# ---- measured orders ----


def test_second_order_in_the_cells():
    def density(n):
        fine = solve_torus_diffusion(3.0, [32, 1000], grid_size=n, rtol=1e-7).density
        return fine.reshape(2, 8, n // 8, 8, n // 8).mean(axis=(2, 4))

    exact = (4 * density(128) - density(64)) / 3
    errors = np.array([l1_distance(density(n), exact) for n in (8, 16, 32)])
    orders = np.log2(errors[:-1] / errors[1:])
    assert orders.min() > 1.8
    assert errors[-1].max() < TOLERANCE["second order"]


def problem_and_state(rtol: float = 1e-9) -> tuple[torus._Problem, torus._State]:
    """A small problem, a little after its start."""
    teacher = smooth_teacher(8)
    grids = multigrid.make_grids(teacher.faces_x * 4, teacher.faces_y * 4)  # 1/h^2
    problem = torus._Problem(teacher.cells, grids, 0.25, rtol)
    start = solve_torus_diffusion(teacher, [1], time_scale=0.1, rtol=1e-8).density[0]
    return problem, torus._initial_state(problem, start)


def advanced(problem: torus._Problem, state: torus._State, end: float, steps: int) -> torus._State:
    for _ in range(steps):
        solved, state, _, _ = torus._step(problem, state, end / steps)
        assert solved
    return state


def test_second_order_in_the_time_step():
    problem, state = problem_and_state()
    exact = advanced(problem, state, 1.0, 1024).deviation
    errors = [l1_distance(advanced(problem, state, 1.0, k).deviation, exact) for k in (16, 32, 64)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert orders.min() > 1.9
    assert orders.max() < 2.3


def test_error_estimate_and_interpolant_are_of_third_order():
    problem, state = problem_and_state()
    estimates, errors = [], []
    for size in (0.02, 0.01, 0.005):
        trial = torus._attempt(state, size, problem)
        estimates.append(trial.error)
        density = torus._between(torus.Step(0.0, size, trial), 0.4, problem.cells)
        exact = problem.cells + advanced(problem, state, 0.4 * size, 64).deviation
        errors.append(l1_distance(density, exact))
    assert np.log2(np.divide(estimates[:-1], estimates[1:])).min() > 2.7
    assert np.log2(np.divide(errors[:-1], errors[1:])).min() > 2.7  # h^3 in one step is h^2 in all


@pytest.mark.parametrize("gamma", [1.0, 100.0])
def test_error_follows_the_tolerance(gamma):
    """Second order, steps as rtol^(1/3); the reference adds less than a hundredth."""
    exact = solve_torus_diffusion(gamma, EPOCHS, grid_size=32, rtol=1e-8).density
    for rtol in (1e-4, 1e-5):
        found = solve_torus_diffusion(gamma, EPOCHS, grid_size=32, rtol=rtol).density
        assert l1_distance(found, exact).max() < TOLERANCE["time"] * rtol ** (2 / 3)


def test_interpolation_stays_positive_where_the_cubic_is_not():
    cells = np.full((2, 2), 1 / 16)
    state = torus._State(np.zeros((2, 2)), np.zeros((2, 2)), np.array([[1.0, -1], [-1, 1]]), np.zeros((2, 2)), 0.0)
    trial = torus.Trial(0.0, True, state, state, 0)
    density = torus._between(torus.Step(0.0, 1.0, trial), 0.25, cells)
    np.testing.assert_array_equal(density, cells)


# ---- answers from elsewhere ----


@pytest.mark.parametrize("axis", [0, 1])
def test_a_teacher_of_one_coordinate_gives_the_solution_on_the_circle(axis):
    # x = pi s / 2 for s in [-2, 2): t_circle = (pi/2)^2 t_torus, and a density per radian becomes pi/2 as much.
    n, epochs = 128, [32, 300, 1000]
    circle = solve_diffusion(10.0, [0, *epochs], grid_size=n, rtol=1e-7, start=centres(1024) * math.pi / 2)
    average = solve_diffusion(10.0, [400_000], grid_size=n).density[0]  # the teacher's
    cells = np.repeat(average[:, None], n, axis=1)
    cells = cells if axis == 0 else cells.T
    teacher = TorusTeacher.of_density(cells)
    found = solve_torus_diffusion(teacher, epochs, time_scale=2**-10 * 4 / math.pi**2, rtol=1e-6).density
    assert np.ptp(found, axis=2 - axis).max() < TOLERANCE["symmetric"]
    profile = found.sum(axis=2 - axis) * SIDE / n  # per unit of s
    distance = np.abs(profile - math.pi / 2 * circle.density[1:]).mean(axis=1) * SIDE
    assert distance.max() < TOLERANCE["circle"]


def test_decay_rate_near_the_teacher():
    # f = F (1 + p) obeys F d_t p = -A p for small p, so along the slowest mode the energy falls as exp(-2 lambda t).
    teacher = smooth_teacher(8)
    values, vectors = eigh(flux_matrix(teacher), np.diag(teacher.cells.ravel()))
    mode = vectors[:, 1].reshape(8, 8)
    start = teacher.cells * (1 + 1e-3 * mode / np.abs(mode).max())
    solution = solve_torus_diffusion(teacher, [1000], time_scale=2e-3 / values[1], rtol=1e-9, start=start)
    problem_energy = solution.energy[[0, -1]] - 0.5
    rate = np.log(problem_energy[0] / problem_energy[1]) / (2 * solution.times[-1])
    assert rate == pytest.approx(values[1], rel=TOLERANCE["decay rate"])


def test_agreement_with_a_stiff_solver():
    teacher = smooth_teacher(16)
    matrix, times = flux_matrix(teacher), np.array([32, 1000, 5000]) * 2**-10

    def flow(_time, f):
        return matrix @ (teacher.cells.ravel() / f)

    def jacobian(_time, f):
        return -matrix * (teacher.cells.ravel() / f**2)

    start = np.full(256, 1 / 16)
    reference = solve_ivp(flow, (0, times[-1]), start, "BDF", times, jac=jacobian, rtol=1e-8, atol=1e-11)
    assert reference.success
    found = solve_torus_diffusion(teacher, [32, 1000, 5000], rtol=1e-7).density
    assert l1_distance(found, reference.y.T.reshape(3, 16, 16)).max() < TOLERANCE["stiff reference"]


# ---- arguments ----


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gamma": math.inf}, "gamma must be between 0 and 10000, not inf"),
        ({"gamma": -1.0}, "gamma must be between"),
        ({"gamma": math.nan}, "gamma must be between"),
        ({"snapshot_epochs": []}, "snapshot_epochs must be a sequence of integers"),
        ({"snapshot_epochs": [3, 2]}, "3 is followed by 2"),
        ({"time_scale": 0.0}, "time_scale must be"),
        ({"rtol": 1.0}, "rtol must be"),
        ({"grid_size": 3}, "grid_size must be an integer, at least 4"),
        ({"grid_size": 34}, "odd number up to 15 times a power of two"),
        ({"start": np.ones((8, 4))}, "start must be square"),
        ({"start": np.ones((4, 4))}, "start must have the shape of the grid"),
        ({"start": np.eye(8)}, "start must be finite and above 0"),
    ],
)
def test_arguments_out_of_range(changed, message):
    with pytest.raises(ValueError, match=message):
        solve_torus_diffusion(**{"gamma": 1.0, "snapshot_epochs": [1], "grid_size": 8} | changed)


def test_own_teacher_is_checked():
    with pytest.raises(ValueError, match="the teacher density must be finite and above 0"):
        TorusTeacher.of_density(np.eye(8))
    with pytest.raises(ValueError, match="must be square"):
        TorusTeacher.of_density(np.ones(8))


# ---- snapshots ----


def test_cubics_in_the_logarithm_are_interpolated_exactly():
    epochs = np.array([0, 1, 5, 9, 20, 50])
    place = np.log1p(epochs)[:, None, None]
    field = np.arange(1.0, 5).reshape(2, 2)
    density = 9 + field * place**3 - place
    for epoch in (0, 3, 7, 33, 49, 50):
        s = math.log1p(epoch)
        np.testing.assert_allclose(density_at(density, epochs, epoch), 9 + field * s**3 - s, rtol=EXACT)
    with pytest.raises(ValueError, match=r"epoch must be between 0 and 50, .* not 51"):
        density_at(density, epochs, 51)


def test_density_between_snapshots_keeps_mass_and_sign():
    epochs = np.array([0, 1, 2, 3])
    density = np.array([[[1.0, 1]], [[0.001, 1.999]], [[0.001, 1.999]], [[1.0, 1]]])
    found = density_at(density, epochs, 1.5)
    np.testing.assert_allclose(found, [[0.001, 1.999]], rtol=EXACT)


def test_chosen_snapshots_are_better_than_equal_steps():
    epochs = np.arange(0, 8001, 40)
    density = solve_torus_diffusion(30.0, epochs, grid_size=16).density
    worst = []
    for kept in (choose_snapshots(density, epochs, 24), np.linspace(0, 200, 24).astype(int)):
        assert len(kept) == 24
        assert (kept[0], kept[-1]) == (0, 200)
        between = [density_at(density[kept], epochs[kept], epoch) for epoch in epochs]
        worst.append(l1_distance(np.array(between), density).max())
    assert worst[0] < worst[1] / 3
    np.testing.assert_array_equal(choose_snapshots(density, epochs, 500), np.arange(201))


def test_distances_between_the_snapshots_that_are_kept(monkeypatch):
    """A limit's file holds few of many epochs; its distances are those of the whole solution at each of them."""
    monkeypatch.setattr(limits, "_TORUS_SNAPSHOTS", 24)
    epochs = np.arange(0, 2001, 10)
    few = limits._solve_on_torus(10.0, epochs, grid_size=16, time_scale=2**-10)
    whole = solve_torus_diffusion(10.0, epochs, grid_size=16).density
    points = TorusMeasure(np.random.default_rng(0).uniform(-2, 2, (50, 2)))
    kept = few["snapshot_epochs"].tolist()
    between = [place for place in range(5, 200, 20) if epochs[place] not in kept]
    assert len(few["density"]) == 24
    assert len(between) > 5
    for place in between:
        found = limits.TORUS_DIFFUSION.measure(few, int(epochs[place])).energy_distance(points)
        expected = TorusDensity(whole[place]).energy_distance(points)
        assert found == pytest.approx(expected, abs=TOLERANCE["between snapshots"])


# ---- distances ----


def lattice(n: int) -> np.ndarray:
    return np.stack(np.meshgrid(centres(n), centres(n), indexing="ij"), axis=-1).reshape(-1, 2)


def law_at(points: np.ndarray, gamma: float) -> np.ndarray:
    """The law of Appendix B at ``points (n, 2)``."""
    x, y = points.T
    first = torus_bump_density(x + 1, gamma) * torus_bump_density(y, gamma)
    return (first + torus_bump_density(x - 1, gamma) * torus_bump_density(y - 1, gamma)) / 2


def test_potential_against_the_direct_sum():
    # Points of a 768^2 lattice, weighted by the law. Its error of order h^2 leaves when extrapolated; that of order
    # h^3, from the kink at the place itself, is small where the place is a corner between cells.
    places = np.random.default_rng(0).integers(-500, 500, (20, 2)) / 96
    found = TorusDensity(TorusTeacher.of_law(10.0, 96).cells)
    sums = []
    for n in (384, 768):
        law = TorusMeasure(lattice(n), law_at(lattice(n), 10.0))
        sums.append(np.array([TorusMeasure(place[None]).mean_distance(law) for place in places]))
    direct = sums[1] + (sums[1] - sums[0]) / 3
    potential = np.array([found.mean_distance(TorusMeasure(place[None])) for place in places])
    np.testing.assert_allclose(potential, direct, rtol=0, atol=TOLERANCE["potential"])


def test_potential_is_of_fourth_order():
    points = TorusMeasure(np.random.default_rng(1).uniform(-2, 2, (50, 2)))
    exact = TorusDensity(TorusTeacher.of_law(5.0, 256).cells)
    pairs = [TorusDensity(TorusTeacher.of_law(5.0, n).cells) for n in (16, 32)]
    for read in (lambda law: law.mean_distance(points), lambda law: law.self_distance):
        first, second = (abs(read(law) - read(exact)) for law in pairs)
        assert second < first / 8
        assert first / 8 < TOLERANCE["fourth order"]


def test_uniform_density_has_the_known_mean_distance():
    # The mean of |z| over the square [0, 2]^2.
    expected = 2 * (math.sqrt(2) + math.asinh(1)) / 3
    for n in (6, 9, 32):
        found = TorusDensity(np.ones((n, n)))
        np.testing.assert_allclose(found.potential, expected, rtol=TOLERANCE["law"])
        assert found.self_distance == pytest.approx(expected, rel=TOLERANCE["law"])


@given(arrays(np.float64, (8, 8), elements=POSITIVE), st.integers(0, 7), st.integers(0, 7), st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_distance_is_invariant_under_whole_cells_and_swapped_axes(density, i, j, seed):
    points = np.random.default_rng(seed).uniform(-2, 2, (5, 2))
    plain = TorusDensity(density)
    moved = TorusDensity(np.roll(density, (i, j), (0, 1)))
    found = moved.mean_distance(TorusMeasure(points + np.array([i, j]) * SIDE / 8))
    expected = plain.mean_distance(TorusMeasure(points))
    assert found == pytest.approx(expected, abs=TOLERANCE["law"])
    assert TorusDensity(density.T).mean_distance(TorusMeasure(points[:, ::-1])) == pytest.approx(
        expected, abs=TOLERANCE["law"]
    )
    assert moved.self_distance == pytest.approx(plain.self_distance, abs=TOLERANCE["law"])


@pytest.mark.parametrize("cells", [8, 9])
def test_the_distance_to_itself_does_not_depend_on_the_order_of_the_axes(cells):
    density = np.random.default_rng(0).uniform(0.1, 1, (cells, cells))
    found, turned = TorusDensity(density).self_distance, TorusDensity(density.T).self_distance
    assert turned == pytest.approx(found, abs=TOLERANCE["law"])


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**16))
def test_masses_of_points_are_repetitions(first, second, seed):
    rng = np.random.default_rng(seed)
    points, other = rng.uniform(-5, 5, (first, 2)), rng.uniform(-5, 5, (second, 2))
    counts = rng.integers(1, 4, first)
    weighted, repeated = TorusMeasure(points, 7.0 * counts), TorusMeasure(np.repeat(points, counts, axis=0))
    for read in (lambda measure: measure.mean_distance(TorusMeasure(other)), lambda measure: measure.self_distance):
        assert read(weighted) == pytest.approx(read(repeated), abs=TOLERANCE["law"])


def test_distance_of_points_on_a_lattice_to_their_density():
    # Equal masses at the centres of cells against the density of the cells: nearly the same law.
    density = np.kron(np.array([[1, 2], [3, 1]]), np.ones((16, 16)))
    points = TorusMeasure(lattice(32), density.ravel())
    assert TorusDensity(density).energy_distance(points) < 0.05
    assert TorusDensity(np.ones((32, 32))).energy_distance(points) > 0.1


def test_density_must_be_square():
    with pytest.raises(ValueError, match=r"must be square, \(n, n\) with n >= 6, not \(8, 9\)"):
        TorusDensity(np.ones((8, 9)))
