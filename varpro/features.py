"""Feature maps phi(w, x): values, derivative in w, and the network that they make.

A new feature map is a subclass with two short methods, a ``name`` and a ``domain``. Every experiment takes it: the
solvers that cannot compute it say so, and ``dense`` can where the samples are finite.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from varpro.domains.base import Domain
from varpro.domains.circle import CIRCLE, Circle
from varpro.domains.torus import TORUS, Torus, wrap_torus
from varpro.relu import predict

_ROWS = 256  # samples whose features of a whole network are held at a time
_NODES = 48  # of a quadrature of smooth functions


class FeatureMap(ABC):
    """phi(w, x) for ``weights (M, d)`` and ``inputs (N, d)``, both on the same device and of the same dtype."""

    name: str
    domain: Domain  # of the weights

    @abstractmethod
    def __call__(self, weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """phi(w_j, x_i): (N, M)."""

    @abstractmethod
    def pull_back(
        self, weights: torch.Tensor, inputs: torch.Tensor, features: torch.Tensor, cotangent: torch.Tensor
    ) -> torch.Tensor:
        """sum_i cotangent_ij d phi(w_j, x_i) / d w_j: (M, d), from ``features`` and ``cotangent``, both (N, M)."""

    def predict(self, weights: torch.Tensor, inputs: torch.Tensor, outer: torch.Tensor | None = None) -> torch.Tensor:
        """f(x_i) = (1/M) sum_j u_j phi(w_j, x_i): (N,), in memory O(M + N); outer weights u (M,) are 1 by default.

        Raises ValueError where ``outer`` has another shape.
        """
        _check_outer(weights, outer)
        blocks = (self(weights, block) for block in inputs.split(_ROWS))
        return torch.cat([(phi if outer is None else phi * outer).mean(dim=1) for phi in blocks])


def _check_outer(weights: torch.Tensor, outer: torch.Tensor | None) -> None:
    if outer is not None and outer.shape != (len(weights),):
        raise ValueError(f"outer {tuple(outer.shape)} is not allowed with {len(weights)} neurons: ({len(weights)},)")


def _check_name(domain: Domain, usual: Domain) -> None:
    """Raises ValueError where ``domain`` has the name of the ``usual`` one, for whose its results would be taken."""
    if domain.name == usual.name and domain is not usual:
        raise ValueError(f"a domain with the name {usual.name!r} is not allowed: a name of its own")


class ReLUCircle(FeatureMap):
    """phi(w, x) = max(w . x, 0), w on the unit circle S^1, x in R^2 (paper, Section 6.1).

    ``domain`` may be a circle with another law of the teacher's neurons, under a name of its own. Raises ValueError
    where it has the name of the usual one, under which results of that would be taken for its own.
    """

    name, domain = "relu_circle", CIRCLE

    def __init__(self, domain: Circle | None = None) -> None:
        if domain is not None:
            _check_name(domain, CIRCLE)
            self.domain, self.name = domain, f"relu_{domain.name}"

    def __call__(self, weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return torch.relu(inputs @ weights.T)

    def pull_back(
        self, weights: torch.Tensor, inputs: torch.Tensor, features: torch.Tensor, cotangent: torch.Tensor
    ) -> torch.Tensor:
        return (cotangent * (features > 0)).T @ inputs

    def predict(self, weights: torch.Tensor, inputs: torch.Tensor, outer: torch.Tensor | None = None) -> torch.Tensor:
        """In O((N + M) log (N + M)), float64 on the CPU."""
        if type(self) is not ReLUCircle:  # a subclass may have features of its own
            return super().predict(weights, inputs, outer)
        _check_outer(weights, outer)
        outer = weights.new_ones(len(weights)) if outer is None else outer
        return torch.from_numpy(predict(weights.numpy(), outer.numpy(), inputs.numpy()))


class SquaredReLUCircle(FeatureMap):
    """phi(w, x) = max(w . x, 0) + max(w . x, 0)^2 on the circle: features that see every harmonic of a measure.

    max(w . x, 0) sees the even harmonics and the first one; the square adds the odd ones (docs/limit.md, 6). The
    feature operator is injective, as the paper's theorem on the ultra-fast limit assumes.
    """

    name, domain = "squared_relu_circle", CIRCLE

    def __call__(self, weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        linear = torch.relu(inputs @ weights.T)
        return linear + linear * linear

    def pull_back(
        self, weights: torch.Tensor, inputs: torch.Tensor, features: torch.Tensor, cotangent: torch.Tensor
    ) -> torch.Tensor:
        product = inputs @ weights.T
        return (cotangent * (product > 0) * (1 + 2 * product)).T @ inputs


@dataclass(frozen=True)
class RadialKernel:
    """A radial profile g: ``value(r)`` and ``slope(r)`` = g'(r) / r, finite at r = 0; r is a tensor of radii >= 0.

    ``label`` is its name in figures, ``name`` by default.
    """

    name: str
    value: Callable[[torch.Tensor], torch.Tensor]
    slope: Callable[[torch.Tensor], torch.Tensor]
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)


_SCALE = 0.5  # s of the Laplace kernel

LAPLACE = RadialKernel(
    "laplace",  # g(r) = (2 / s^2) exp(-r / s); no derivative at r = 0, where 0 stands for it
    value=lambda r: (2 / _SCALE**2) * torch.exp(-r / _SCALE),
    slope=lambda r: torch.where(r > 0, (-2 / _SCALE**3) * torch.exp(-r / _SCALE) / r.clamp_min(1e-30), 0.0),
    label="Laplace",
)
RAISED_COSINE = RadialKernel(
    "cos",  # g(r) = (1 + cos(pi r / 2)) / 2 for r <= 2, 0 beyond
    value=lambda r: (1 + torch.cos(math.pi / 2 * r.clamp_max(2.0))) / 2,
    slope=lambda r: torch.where(r < 2, -(math.pi**2) / 8 * torch.sinc(r / 2), 0.0),
    label="raised cosine",
)
RADIAL_KERNELS = {kernel.name: kernel for kernel in (LAPLACE, RAISED_COSINE)}


def harmonics(kernel: RadialKernel, last: int) -> np.ndarray:
    """c_k = (1/16) int g(|z|) cos(pi k_1 z_1 / 2) cos(pi k_2 z_2 / 2) dz over [-2, 2)^2: (last + 1, last + 1), k >= 0.

    With f = sum_k f_k exp(i pi k . w / 2) the density of a measure of neurons, its signal int g(|w - x|) f(w) dw / 16
    has the harmonics c_k f_k: what has c_k = 0 is not seen. Gauss quadrature in polar coordinates of the eighth of the
    square where z_1 > z_2 > 0, on either side of r = 2, where the raised cosine ends.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES + 2 * last)  # two or more to a half-wave
    nodes, weights = (nodes + 1) / 2, weights / 2
    angle = np.pi / 4 * nodes[:, None]
    pieces = [2 * nodes + 0 * angle, 2 + (2 / np.cos(angle) - 2) * nodes]  # radii; z_1 = 2 is where r = 2 / cos
    lengths = [2 + 0 * angle, 2 / np.cos(angle) - 2]
    found = np.zeros((last + 1, last + 1))
    for radius, length in zip(pieces, lengths, strict=True):
        measure = np.pi / 4 * weights[:, None] * weights * length * radius
        values = (measure * kernel.value(torch.from_numpy(radius)).numpy()).ravel()
        orders = np.pi / 2 * np.arange(last + 1)
        first, second = (np.cos(np.outer(orders, radius * turn)) for turn in (np.cos(angle), np.sin(angle)))
        found += (first * values) @ second.T
    return (found + found.T) / 4  # four quarters of two eighths, over the area 16


class RadialTorus(FeatureMap):
    """phi(w, x) = g(|wrap(w - x)|) on the torus R^2 / (4 Z)^2 (paper, Appendix B).

    ``domain`` may be one with another law, under a name of its own. Raises ValueError where that is the usual one's.
    """

    def __init__(self, kernel: RadialKernel, domain: Torus | None = None) -> None:
        self.kernel, self.domain = kernel, TORUS if domain is None else domain
        _check_name(self.domain, TORUS)
        self.name = f"{self.domain.name}_{kernel.name}"

    def __call__(self, weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return self.kernel.value(_offsets(weights, inputs).norm(dim=2))

    def pull_back(
        self, weights: torch.Tensor, inputs: torch.Tensor, features: torch.Tensor, cotangent: torch.Tensor
    ) -> torch.Tensor:
        offsets = _offsets(weights, inputs)  # d phi / d w = g'(r) offset / r
        return torch.einsum("nm,nmd->md", cotangent * self.kernel.slope(offsets.norm(dim=2)), offsets)


def _offsets(weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """wrap(w_j - x_i): (N, M, d)."""
    return wrap_torus(weights[None] - inputs[:, None])
