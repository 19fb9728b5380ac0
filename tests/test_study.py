"""The arithmetic of the study of the limit: slopes, times, growth rates, eigenvalues, the answer."""

import math

import numpy as np
import pytest
from conftest import TINY_EPOCHS, pretend_mean_field
from hypothesis import given
from hypothesis import strategies as st
from tolerances import FLOAT32_STATE, STUDY

from varpro import results
from varpro.domains.circle import directions, quantile_directions
from varpro.features import ReLUCircle
from varpro.paper import grid, study
from varpro.solvers.circle import CircleSolver
from varpro.solvers.population import population_tables

ANGLES = np.random.default_rng(0).uniform(-math.pi, math.pi, 40)


@given(st.floats(-3, 3), st.floats(0.1, 10), st.integers(2, 8))
def test_the_slope_of_a_power(exponent, factor, count):
    x = 2.0 ** np.arange(count)
    fit = study.slope(x, factor * x[None] ** exponent)
    np.testing.assert_allclose(fit.value, exponent, rtol=0, atol=STUDY["power"])
    assert math.isnan(fit.margin)


def test_the_interval_is_students():
    """Slopes 0 and 1: mean 1/2, standard error 1/2, quantile 12.7062 of one degree of freedom."""
    x = np.array([1.0, math.e])
    fit = study.slope(x, np.array([[1.0, 1.0], [1.0, math.e]]))
    assert fit.value == pytest.approx(0.5, abs=STUDY["power"])
    assert fit.margin == pytest.approx(12.7062 / 2, rel=STUDY["quantile"])
    assert str(fit) == "0.50 ± 6.35"


def test_slopes_leave_out_what_has_no_logarithm():
    fit = study.slope(np.array([1.0, 2, 4, 8]), np.array([1.0, 2, np.nan, 8]))
    assert fit.value == pytest.approx(1, abs=STUDY["power"])


def test_the_largest_eigenvalue_of_equally_spaced_features():
    """2 / pi^2 is that of the arc-cosine kernel on the circle."""
    found = study.largest_eigenvalue(quantile_directions(256).numpy())
    np.testing.assert_allclose(found, 2 / math.pi**2, rtol=STUDY["eigenvalue"])


def test_the_largest_eigenvalue_is_that_of_many_samples():
    weights = directions(ANGLES)
    angles = (np.arange(4096) + 0.5) * 2 * math.pi / 4096  # E r^2 = 2 in every direction, as for Gaussian inputs
    features = ReLUCircle()(weights, math.sqrt(2) * directions(angles))
    gram = (features.T @ features / len(features) / len(weights)).numpy()
    np.testing.assert_allclose(
        study.largest_eigenvalue(weights.numpy()), np.linalg.eigvalsh(gram)[-1], rtol=STUDY["eigenvalue"]
    )


@given(st.floats(1.02, 1.5))
def test_growth_of_a_geometric_error(factor):
    error = np.exp(np.minimum(math.log(1e-6) + np.arange(2000) * math.log(factor), 20))
    loss = 0.5 + error**2
    np.testing.assert_allclose(study.growth(loss), factor, rtol=STUDY["growth"])
    assert study.growth(0.5 - 0.1 * np.linspace(0, 1, 50)) == 1.0


@pytest.mark.parametrize("share", [0.99, 1.04])
def test_the_outer_step_is_stable_below_the_limit_and_not_above(share):
    """The measured growth is \\|1 - R (Lambda + lam)\\|, for features that do not move."""
    lmbda, weights = 1e-2, quantile_directions(64).numpy()
    largest = study.largest_eigenvalue(weights) + lmbda
    rate = 2 * share / largest
    solver = CircleSolver.from_tables(
        population_tables(directions(ANGLES).numpy()), lmbda, 1.0, 1e-12, "gradient", rate
    )
    outer = solver.solve(weights) + 1e-4
    growth = study.growth(solver.advance(weights, outer, 200))
    np.testing.assert_allclose(growth, max(1, rate * largest - 1), rtol=STUDY["growth of a run"])


def test_gaps_are_taken_at_common_times():
    times = np.array([0, 0.25, 0.5])
    one = study.States(times, np.stack([quantile_directions(8).numpy()] * 3), np.ones((3, 8)))
    other = study.States(times[:2], np.stack([quantile_directions(4).numpy()] * 2), np.ones((2, 4)))
    assert study.gap(one, one, 0.5) == pytest.approx(0, abs=STUDY["gap"])
    assert study.gap(one, other, 0.25) > 0.1
    assert math.isnan(study.gap(one, other, 0.5))


@pytest.fixture
def shortened(tmp_path_factory, monkeypatch):
    """The section at 64 epochs with made-up results."""
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path_factory.mktemp("study")))
    pretend_mean_field()
    monkeypatch.setitem(grid.SECTIONS, "mean-field", grid.mean_field(TINY_EPOCHS))
    monkeypatch.setattr(grid, "EPOCHS", TINY_EPOCHS)


def test_distances_are_found_by_time(shortened):
    (run, *_) = grid.find("mean_field_lambda")[1].runs  # of a finer step
    assert run.time_scale == 2**-13
    found = study.distances_at(run, [0], "projected", [0.03125, 0.0625, 1])[0]
    expected = 1 / run.width + run.lmbda**0.5 * (1 + np.array([0.03125, 0.0625]))
    np.testing.assert_allclose(found[:2], expected, rtol=FLOAT32_STATE)
    assert math.isnan(found[2])


def test_the_answer_is_computed_from_the_results(shortened, monkeypatch):
    monkeypatch.setattr(study, "ANSWER_TIMES", (0.03125, 0.0625))
    text = study.answer()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| as in the paper")]
    expected = 0.02 + 1e-3**0.5 * 1.03125 + 0.025  # mean over six seeds
    assert float(rows[0][1]) == pytest.approx(expected, abs=STUDY["printed"])
    assert "Width 1024, lambda 0.001, mean over seeds 0-5:" in text
    assert text.count("Most of the squared distance") == 2
    assert "goes with the limit they are measured to at t = 0.03125 (43%)" in text
    monkeypatch.setenv("VARPRO_RESULTS", "nowhere")
    assert study.answer() == ""


def test_a_run_that_draws_nothing_has_one_seed():
    for run, seeds in grid.SECTIONS["mean-field"].wanted().items():
        assert not run.deterministic or seeds == [0]
    drawn = grid.find("mean_field_samples")[1].runs
    assert [run.deterministic for run in drawn] == [False] * 5 + [True]


def test_missing_results_are_an_error_with_their_command(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    run = grid.find("mean_field_rates")[1].runs[0]
    with pytest.raises(results.ResultError, match="no such file"):
        study.states(run, 0)
