"""Feature maps: derivatives on the circle, and the harmonics that they see there and on the torus."""

import math

import numpy as np
import pytest
import torch
from scipy.special import j0
from tolerances import EXACT, GRADIENT, KERNEL

from varpro.features import LAPLACE, RADIAL_KERNELS, RAISED_COSINE, ReLUCircle, SquaredReLUCircle, harmonics


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


def frequencies(last: int) -> np.ndarray:
    """|k| for k in [0, last]^2."""
    return np.hypot(*np.meshgrid(np.arange(last + 1), np.arange(last + 1)))


def test_harmonics_of_the_raised_cosine_are_a_hankel_transform():
    """It ends before the square does: (2 pi / 16) int_0^2 g(r) J_0(pi |k| r / 2) r dr."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    radii = nodes + 1
    values = weights * radii * RAISED_COSINE.value(torch.from_numpy(radii)).numpy()
    expected = np.pi / 8 * j0(np.pi / 2 * frequencies(24)[..., None] * radii) @ values
    np.testing.assert_allclose(harmonics(RAISED_COSINE, 24), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kernel", RADIAL_KERNELS.values(), ids=lambda kernel: kernel.name)
def test_harmonics_are_those_of_the_kernel_on_a_fine_grid(kernel):
    """The midpoint rule, whose error is that of the cone of the Laplace kernel at 0: 6 h^3 of the area 16."""
    cells = 512
    places = (np.arange(cells) + 0.5) * (4 / cells) - 2
    values = kernel.value(torch.from_numpy(np.hypot(places[:, None], places))).numpy()
    waves = np.cos(np.pi / 2 * np.outer(np.arange(9), places))
    expected = waves @ values @ waves.T / cells**2
    np.testing.assert_allclose(harmonics(kernel, 8), expected, rtol=0, atol=0.01 * KERNEL)  # of size 1 at most


def test_no_low_harmonic_is_invisible_on_the_torus():
    """The Laplace kernel is positive on all of them; the raised cosine changes its sign and falls faster."""
    laplace, cosine = (harmonics(kernel, 24) for kernel in (LAPLACE, RAISED_COSINE))
    assert laplace.min() > 1e-5
    assert np.abs(cosine).min() > 1e-9
    assert (cosine < 0).any()
    outer = frequencies(24) >= 12
    assert (np.abs(cosine) / laplace)[outer].max() < 0.05
