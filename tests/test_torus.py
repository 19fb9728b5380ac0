"""The compiled solver on the torus against dense float64 formulas: kernels, gradient, inner solve, trajectories."""

import numpy as np
import pytest
import torch
from numba import njit
from problems import drawn, formula, relative_residual, system, wrap
from tolerances import EXACT, EXPONENTIAL, FEATURE, FLOAT32, FOLLOWS, GRADIENT, OUTER, RESIDUAL, SOLVE, TRAJECTORY

from varpro.features import LAPLACE, RADIAL_KERNELS, RadialTorus
from varpro.problem import drawn_problem
from varpro.solvers import torus
from varpro.solvers.base import Objective
from varpro.solvers.dense import DenseSolver
from varpro.solvers.torus import KERNELS, TorusSolver

LMBDA, TIME_SCALE = 1e-3, 2**-10
kernels = pytest.mark.parametrize("kernel", KERNELS)
precisions = pytest.mark.parametrize("dtype", ["float32", "float64"])


def reduced_risk(kernel, inputs, targets, weights, centre=1.0):
    outer = np.linalg.solve(*system(kernel, inputs, targets, weights, centre))
    residual = formula(kernel, weights, inputs) @ outer / len(outer) - targets
    return np.mean(residual**2) / (2 * LMBDA) + np.mean((outer - centre) ** 2) / 2


def features(solver):
    """The features (N, M) that the solver holds."""
    blocked = solver._workspace.phi.transpose(1, 0, 2)
    return blocked.reshape(blocked.shape[0], -1)[: solver._width, : solver.samples.count].T


def gradient(solver, weights, time_scale):
    """M dL/dw of the reduced risk, read off one epoch."""
    moved, outer = weights.copy(), solver.solve(weights)
    solver.advance(moved, outer, 1)
    return wrap(weights - moved) / time_scale


@njit
def _laplace_values(r, out):
    for i in range(r.shape[0]):
        out[i] = torus._laplace(r[i])


@precisions
def test_exponential(dtype):
    r = np.linspace(0, 40, 100_001).astype(dtype)
    found = np.empty_like(r)
    _laplace_values(r, found)
    assert np.max(np.abs(found / (8 * np.exp(-2 * r.astype(np.longdouble))) - 1)) < EXPONENTIAL[dtype]
    assert found[0] == 8


@precisions
def test_no_number_comes_of_none(dtype):
    """Whatever bits the NaN has: 2^k is made of them."""
    bits, sign = {"float32": (np.uint32, 31), "float64": (np.uint64, 63)}[dtype]
    quiet = np.array(np.nan, dtype).view(bits)
    nan = np.array([quiet | bits(payload) | bits(s << sign) for payload in range(1024) for s in (0, 1)]).view(dtype)
    found = np.zeros_like(nan)
    _laplace_values(nan, found)
    assert np.isnan(found).all()


@precisions
def test_rows_begin_at_cache_lines(dtype):
    """Where they do not, nothing but speed is lost, and nobody would notice."""
    space = torus.workspace(blocks=3, width=5, dtype=dtype)
    assert space.phi.shape == (3, 8, 128)
    assert space.phi.dtype == dtype
    assert all(row.ctypes.data % 64 == 0 for block in space.phi for row in block)


@precisions
@kernels
def test_features_at_the_seam_and_at_a_neuron(kernel, dtype):
    inputs, targets, weights = drawn(kernel)
    inputs[:4] = [[2, 2], [-2, 1.5], [6, -2], [3.5, -4.5]]
    weights[:3] = [[-2, -2], [1.999, -1.999], inputs[10]]
    inputs, weights = inputs.astype(np.float32).astype(np.float64), weights.astype(np.float32).astype(np.float64)
    solver = TorusSolver(kernel, inputs, targets, LMBDA, 1.0, TIME_SCALE, dtype)
    solver.solve(weights)
    expected = formula(kernel, weights, inputs)
    assert np.max(np.abs(features(solver) - expected)) < FEATURE[dtype] * expected.max()


@kernels
def test_gradient_against_finite_differences(kernel):
    inputs, targets, weights = drawn(kernel)
    found = gradient(TorusSolver(kernel, inputs, targets, LMBDA, 1.0, 1e-3, "float64"), weights, 1e-3)
    step = 1e-5
    for j, axis in [(0, 0), (7, 1), (29, 0)]:
        away = np.zeros_like(weights)
        away[j, axis] = step
        risks = [reduced_risk(kernel, inputs, targets, weights + sign * away) for sign in (1, -1)]
        expected = len(weights) * (risks[0] - risks[1]) / (2 * step)
        assert found[j, axis] == pytest.approx(expected, rel=GRADIENT, abs=GRADIENT * np.abs(found).max())


@precisions
@kernels
def test_gradient_at_a_sample_is_finite(kernel, dtype):
    inputs, targets, weights = drawn(kernel)
    weights[0], weights[1] = inputs[0], inputs[1] + 4
    solver = TorusSolver(kernel, inputs, targets, LMBDA, 1.0, TIME_SCALE, dtype)
    outer = solver.solve(weights)
    assert np.all(np.isfinite(solver.advance(weights, outer, 3)))
    assert np.all(np.isfinite(weights))
    assert np.all(np.isfinite(outer))


@precisions
@kernels
@pytest.mark.parametrize("centre", [0.0, 1.0])
@pytest.mark.parametrize(("samples", "width"), [(300, 30), (1, 1), (129, 5), (40, 90)])
def test_inner_solve_against_a_dense_one(kernel, samples, width, centre, dtype):
    inputs, targets, weights = drawn(kernel, samples, width)
    outer = TorusSolver(kernel, inputs, targets, LMBDA, centre, TIME_SCALE, dtype).solve(weights)
    expected = np.linalg.solve(*system(kernel, inputs, targets, weights, centre))
    phi = formula(kernel, weights, inputs) / width
    error = np.linalg.norm(phi @ (outer - expected)) / np.linalg.norm(phi @ expected)
    assert error < {"float32": FLOAT32, "float64": 10 * SOLVE}[dtype]


@kernels
def test_trajectory_against_the_dense_solver(kernel):
    inputs, targets, weights = drawn(kernel)
    solver = TorusSolver(kernel, inputs, targets, LMBDA, 1.0, TIME_SCALE, "float64")
    solver._tolerance = 1e-13  # what the usual one leaves grows beyond comparison in 50 epochs
    feature_map = RadialTorus(RADIAL_KERNELS[kernel])
    data = torch.from_numpy(inputs), torch.from_numpy(targets)[:, None]
    dense = DenseSolver(feature_map, *data, LMBDA, 1.0, TIME_SCALE, "ridge")
    w, dense_w = weights.copy(), torch.from_numpy(weights.copy())
    u, dense_u = solver.solve(w), dense.solve(dense_w)
    losses, dense_losses = solver.advance(w, u, 50), dense.advance(dense_w, dense_u, 50).numpy()
    assert np.max(np.abs(wrap(w - weights))) > 1e-3
    np.testing.assert_allclose(losses, dense_losses, rtol=FOLLOWS)
    assert np.max(np.abs(wrap(w - dense_w.numpy()))) < FOLLOWS


def test_float32_features_follow_float64():
    inputs, targets, weights = drawn("laplace", 1000, 64)
    losses = []
    for dtype in ("float32", "float64"):
        solver = TorusSolver("laplace", inputs, targets, LMBDA, 1.0, TIME_SCALE, dtype)
        w = weights.copy()
        losses.append(solver.advance(w, solver.solve(w), 50))
    np.testing.assert_allclose(losses[0], losses[1], rtol=FLOAT32)


@kernels
def test_translation_on_the_torus(kernel):
    inputs, targets, weights = drawn(kernel)
    shift = np.array([1.25, -3.5])
    runs = []
    for x, start in ((inputs, weights), (inputs + shift, wrap(weights + shift))):
        solver = TorusSolver(kernel, x, targets, LMBDA, 1.0, TIME_SCALE, "float64")
        solver._tolerance = 1e-13
        w = start.copy()
        runs.append((solver.advance(w, solver.solve(w), 20), w))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=FOLLOWS)
    assert np.max(np.abs(wrap(runs[0][1] + shift - runs[1][1]))) < FOLLOWS


@precisions
@kernels
def test_every_epoch_meets_the_residual(kernel, dtype):
    inputs, targets, weights = drawn(kernel, 1000, 64)
    solver = TorusSolver(kernel, inputs, targets, LMBDA, 1.0, TIME_SCALE, dtype)
    outer = solver.solve(weights)
    for _ in range(60):
        solver.advance(weights, outer, 1)
        assert relative_residual(kernel, inputs, targets, weights, outer) < RESIDUAL[dtype]
    assert solver.report()["worst_residual"] < RESIDUAL[dtype]


def test_a_new_preconditioner_where_neurons_move():
    inputs, targets, weights = drawn("laplace", 1000, 64)
    made = []
    for time_scale in (0.0, 2**-6):
        solver = TorusSolver("laplace", inputs, targets, LMBDA, 1.0, time_scale)
        w = weights.copy()
        outer = solver.solve(w)
        solver.advance(w, outer, 100)
        assert relative_residual("laplace", inputs, targets, w, outer) < RESIDUAL["float32"]
        made.append(solver.report()["factorisations"])
    assert made[0] == 1
    assert made[1] > 1


def test_missed_solves_are_made_anew(monkeypatch):
    inputs, targets, weights = drawn("laplace", 300, 30)
    solver = TorusSolver("laplace", inputs, targets, LMBDA, 1.0, 1e-3, "float64")
    outer = solver.solve(weights)
    solver._workspace.inverse[:] = np.diag(np.geomspace(1, 1e12, len(solver._workspace.u)))  # of no use
    solver.advance(weights, outer, 1)
    assert solver.report()["factorisations"] == 2
    assert relative_residual("laplace", inputs, targets, weights, outer) < RESIDUAL["float64"]
    monkeypatch.setattr(solver, "_renew", lambda: None)
    solver._workspace.inverse[:] = np.diag(np.geomspace(1, 1e12, len(solver._workspace.u)))
    solver.advance(weights, outer, 1)
    assert solver.report()["exact"] == 1
    assert relative_residual("laplace", inputs, targets, weights, outer) < RESIDUAL["float64"]


def test_what_cannot_be_solved_is_an_error():
    inputs, targets, weights = drawn("laplace")
    weights[0, 0] = np.nan
    with pytest.raises(FloatingPointError):
        TorusSolver("laplace", inputs, targets, LMBDA, 1.0, TIME_SCALE).solve(weights)
    with pytest.raises(ValueError, match="gauss"):
        TorusSolver("gauss", inputs, targets, LMBDA, 1.0, TIME_SCALE)


@pytest.mark.parametrize(
    ("samples", "lmbda", "said"),
    [((8, 7), 1e-3, r"inputs \(8, 2\) with targets \(7,\) are not allowed"), ((8, 8), -1.0, "lmbda: -1.0 is not")],
)
def test_data_and_constants_that_are_none(samples, lmbda, said):
    inputs, targets = np.zeros((samples[0], 2)), np.zeros(samples[1])
    with pytest.raises(ValueError, match=said):
        TorusSolver("laplace", inputs, targets, lmbda, 1.0, TIME_SCALE)


def test_a_student_whose_matrices_do_not_fit_is_refused(monkeypatch):
    features = RadialTorus(LAPLACE)
    problem = drawn_problem(features, 0, 100, 40, 64, 100.0)
    objective = Objective(features, LMBDA, 1.0, TIME_SCALE, "ridge")
    assert TorusSolver.obstacle(objective, problem) == ""
    monkeypatch.setattr(torus, "_WIDEST", 39)
    assert "too large for more than 39 neurons" in TorusSolver.obstacle(objective, problem)


def test_where_no_sample_is_seen_the_outer_weights_are_those_of_the_penalty():
    """b = 0: the best u is 0, also from a state that was another."""
    inputs, targets = np.array([[-1.9, -1.9], [-1.8, -1.9]]), np.ones(2)
    seen, unseen = np.array([[-1.9, -1.9]]), np.array([[0.1, 0.1]])
    solver = TorusSolver("cos", inputs, targets, LMBDA, 0.0, TIME_SCALE, "float64")
    assert solver.report()["worst_residual"] == 0.0
    assert abs(solver.reduced(seen).outer[0]) > 0.1
    reduced = solver.reduced(unseen)
    assert reduced.outer[0] == 0.0
    assert reduced.risk == pytest.approx(1 / (2 * LMBDA), rel=EXACT)
    assert np.isnan(solver.advance(unseen * np.nan, reduced.outer, 2)).all()


def test_the_same_every_time_however_divided(monkeypatch):
    inputs, targets, weights = drawn("laplace", 1000, 64)
    runs = []
    for parts, serial in (([40], torus._SERIAL), ([40], 0), ([1, 9, 30], 0)):
        monkeypatch.setattr(torus, "_SERIAL", serial)  # 0: one thread and several by turns
        solver = TorusSolver("laplace", inputs, targets, LMBDA, 1.0, TIME_SCALE)
        w = weights.copy()
        outer = solver.solve(w)
        losses = np.concatenate([solver.advance(w, outer, epochs) for epochs in parts])
        runs.append((losses, w, outer))
    for run in runs[1:]:
        for first, second in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first, second)


def test_one_solver_takes_up_other_states():
    inputs, targets, weights = drawn("laplace")
    solver = TorusSolver("laplace", inputs, targets, LMBDA, 1.0, TIME_SCALE, "float64")
    for width in (30, 29, 30, 8):
        w = weights[:width].copy()
        outer = solver.solve(w)
        expected = np.linalg.solve(*system("laplace", inputs, targets, w))
        np.testing.assert_allclose(outer, expected, rtol=OUTER)
        other = weights[-width:].copy()
        outer = np.linalg.solve(*system("laplace", inputs, targets, other))
        losses = solver.advance(other, outer, 1)
        assert losses[0] == pytest.approx(reduced_risk("laplace", inputs, targets, weights[-width:]), rel=TRAJECTORY)


def test_a_diverging_run_ends_with_nan():
    inputs, targets, weights = drawn("laplace")
    solver = TorusSolver("laplace", inputs, targets, LMBDA, 1.0, np.inf)
    losses = solver.advance(weights, solver.solve(weights), 5)
    assert np.isnan(losses[-1])


def test_own_copies_in_float64():
    tensor = torch.ones(3, 2)
    inputs, targets, _ = drawn("laplace")
    owned = TorusSolver("laplace", inputs, targets, LMBDA, 1.0, TIME_SCALE).own(tensor)
    owned[:] = 2
    assert owned.dtype == np.float64
    assert float(tensor.sum()) == pytest.approx(6, rel=EXACT)


def test_few_steps_and_few_factors_are_enough():
    """The extrapolation in time and the choice of when to make a new preconditioner are worth their code."""
    inputs, targets, weights = drawn("laplace", 1000, 64)
    solver = TorusSolver("laplace", inputs, targets, LMBDA, 1.0, TIME_SCALE)
    outer = solver.solve(weights)
    solver.advance(weights, outer, 200)
    before = solver.report()
    solver.advance(weights, outer, 400)
    after = solver.report()
    assert after["steps"] - before["steps"] < 3.5 * 400  # 3.1 measured
    assert 3 <= after["factorisations"] - before["factorisations"] <= 30  # 12 measured
    assert after["exact"] == 0
