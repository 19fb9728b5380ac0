"""Feature maps on the circle: derivatives, and the harmonics that they see."""

import math

import numpy as np
import pytest
import torch
from tolerances import EXACT, GRADIENT, KERNEL

from varpro.features import ReLUCircle, SquaredReLUCircle


@pytest.mark.parametrize("feature_map", [ReLUCircle(), SquaredReLUCircle()], ids=lambda each: each.name)
def test_pull_back_against_finite_differences(feature_map):
    rng = np.random.default_rng(0)
    weights, inputs = torch.from_numpy(rng.normal(size=(5, 2))), torch.from_numpy(rng.normal(size=(30, 2)))
    cotangent = torch.from_numpy(rng.normal(size=(30, 5)))
    found = feature_map.pull_back(weights, inputs, feature_map(weights, inputs), cotangent)
    for j in range(5):
        for axis in range(2):
            shift = torch.zeros(5, 2, dtype=torch.float64)
            shift[j, axis] = 1e-6
            change = feature_map(weights + shift, inputs) - feature_map(weights - shift, inputs)
            expected = (cotangent * change).sum().item() / 2e-6
            assert found[j, axis].item() == pytest.approx(expected, abs=GRADIENT)


def kernel_coefficients(feature_map, count: int) -> np.ndarray:
    """Fourier coefficients 0 to ``count`` of E phi(w, x) phi(v, x) in the angle between w and v, x ~ N(0, I_2).

    phi(w, (r, 0)) has coefficients h_k(r), a polynomial of r; E r^n is taken by Gauss-Laguerre quadrature in r^2 / 2.
    """
    angles = 2 * math.pi * np.arange(8192) / 8192
    weights = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    nodes, masses = np.polynomial.laguerre.laggauss(40)
    inputs = torch.from_numpy(np.stack([np.sqrt(2 * nodes), np.zeros(40)], axis=1))
    spectra = np.fft.rfft(feature_map(weights, inputs).numpy(), axis=1).real[:, : count + 1] / 8192
    return masses @ spectra**2


def test_relu_is_blind_to_odd_harmonics_above_the_first():
    coefficients = kernel_coefficients(ReLUCircle(), 20)
    k = np.arange(0, 21, 2)
    np.testing.assert_allclose(coefficients[k], 2 / (math.pi * (k**2 - 1)) ** 2, rtol=KERNEL)
    assert coefficients[1] == pytest.approx(2 / 16, rel=KERNEL)
    assert coefficients[3::2].max() < EXACT


def test_the_square_makes_every_harmonic_visible():
    coefficients = kernel_coefficients(SquaredReLUCircle(), 20)
    k = np.arange(3, 21, 2)
    np.testing.assert_allclose(coefficients[k], 8 * (2 / (math.pi * k * (k**2 - 4))) ** 2, rtol=10 * KERNEL)
    assert coefficients.min() > 1e-8
