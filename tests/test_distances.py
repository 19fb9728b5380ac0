"""Energy distance on the circle against the double sum, and its known values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import circle_points
from tolerances import EXACT, GRID

from varpro import distances
from varpro.distances import CircleMeasure, EuclideanMeasure, TorusMeasure

ANGLES = st.lists(st.floats(-10, 10), min_size=1, max_size=30)


def double_sum(x, y, p, q):
    """sqrt of 2 E|X - Y| - E|X - X'| - E|Y - Y'| over all pairs, squared."""

    def mean(a, b, m, n):
        return (np.linalg.norm(a[:, None] - b[None], axis=2) * m[:, None] * n).sum()

    return 2 * mean(x, y, p, q) - mean(x, x, p, p) - mean(y, y, q, q)


@given(ANGLES, ANGLES, st.integers(0, 2**16))
def test_is_the_double_sum(first, second, seed):
    x, y = circle_points(np.array(first)), circle_points(np.array(second))
    masses = np.random.default_rng(seed).random(len(y)) + 0.01
    found = CircleMeasure(x).energy_distance(CircleMeasure(y, masses))
    expected = double_sum(x, y, np.full(len(x), 1 / len(x)), masses / masses.sum())
    assert found**2 == pytest.approx(expected, abs=10 * EXACT)


def test_in_any_dimension_it_is_the_double_sum_in_blocks(monkeypatch):
    monkeypatch.setattr(distances, "_PAIRS", 24)  # three rows at a time, the last block smaller
    rng = np.random.default_rng(0)
    x, y, p, q = rng.normal(size=(10, 3)), rng.normal(size=(8, 3)), rng.random(10), rng.random(8)
    found = EuclideanMeasure(x, p).energy_distance(EuclideanMeasure(y, q))
    assert found**2 == pytest.approx(double_sum(x, y, p / p.sum(), q / q.sum()), abs=10 * EXACT)


@given(st.floats(-np.pi, np.pi), st.floats(-np.pi, np.pi))
def test_two_diracs(first, second):
    chord = 2 * abs(math.sin((first - second) / 2))
    found = CircleMeasure(np.array([first])).energy_distance(CircleMeasure(np.array([second])))
    assert found**2 == pytest.approx(2 * chord, abs=EXACT)


@given(ANGLES, ANGLES, st.floats(-7, 7))
def test_symmetric_and_invariant_under_rotation(first, second, turn):
    x, y = np.array(first), np.array(second)
    found = CircleMeasure(x).energy_distance(CircleMeasure(y)) ** 2
    assert CircleMeasure(y).energy_distance(CircleMeasure(x)) ** 2 == pytest.approx(found, abs=10 * EXACT)
    turned = CircleMeasure(x + turn).energy_distance(CircleMeasure(y + turn)) ** 2
    assert turned == pytest.approx(found, abs=10 * EXACT)


@given(ANGLES)
def test_zero_between_equal_measures(angles):
    x = np.array(angles)
    masses = np.full(2 * len(x), 0.5)  # every point split in two
    assert CircleMeasure(x).energy_distance(CircleMeasure(np.repeat(x, 2), masses)) ** 2 < 10 * EXACT


def test_a_dirac_and_the_uniform_law():
    """E chord = 4/pi between uniform points, and from any point to a uniform one."""
    grid = CircleMeasure(np.linspace(-np.pi, np.pi, 4096, endpoint=False))
    found = CircleMeasure(np.array([0.3])).energy_distance(grid)
    assert found == pytest.approx(math.sqrt(4 / np.pi), abs=GRID)


@pytest.mark.parametrize("measure", [CircleMeasure, TorusMeasure, EuclideanMeasure])
@pytest.mark.parametrize(
    ("points", "masses", "said"),
    [
        (np.zeros((5, 2)), np.ones(1), r"masses \(1,\) are not allowed for 5 points: \(5,\)"),
        (np.zeros((5, 2)), np.ones((5, 1)), r"masses \(5, 1\) are not allowed"),
        (np.zeros((5, 2)), np.zeros(5), "one of them above 0"),
        (np.zeros((2, 2)), np.array([2.0, -1.0]), "finite numbers >= 0"),
        (np.zeros((2, 2)), np.array([1.0, np.nan]), "finite numbers >= 0"),
        (np.zeros((2, 2)), np.array([1.0, np.inf]), "finite numbers >= 0"),
        (np.zeros((0, 2)), None, r"points \(0, 2\) are not allowed"),
        (np.zeros((2, 2, 2)), None, r"points \(2, 2, 2\) are not allowed"),
    ],
)
def test_refuses_what_is_no_measure(measure, points, masses, said):
    with pytest.raises(ValueError, match=said):
        measure(points, masses)
