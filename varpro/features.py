"""Feature maps phi(w, x): values, derivative in w, projection to the domain, and the domain's uniform law.

A new feature map is a subclass with four short methods; every solver but ``linear`` works with it as it is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch


class FeatureMap(ABC):
    """phi(w, x) for ``weights (M, d)`` and ``inputs (N, d)``, both on the same device and of the same dtype."""

    name: str
    domain: str  # "circle" or "torus": which draws, distances and fast solver an experiment has

    @abstractmethod
    def features(self, weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """phi(w_j, x_i): (N, M)."""

    @abstractmethod
    def pull_back(
        self, weights: torch.Tensor, inputs: torch.Tensor, features: torch.Tensor, cotangent: torch.Tensor
    ) -> torch.Tensor:
        """sum_i cotangent_ij d phi(w_j, x_i) / d w_j: (M, d), from ``features`` and ``cotangent``, both (N, M)."""

    @abstractmethod
    def project(self, weights: torch.Tensor) -> torch.Tensor:
        """The point of the domain that stands for each row of ``weights (M, d)``: (M, d)."""

    @abstractmethod
    def uniform(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """``count`` draws (count, d), float32 on the CPU, of the uniform law of the domain."""


class ReLUCircle(FeatureMap):
    """phi(w, x) = max(w . x, 0), w on the unit circle S^1, x in R^2 (paper, Section 6.1)."""

    name, domain = "relu_circle", "circle"

    def features(self, weights, inputs):
        return torch.relu(inputs @ weights.T)

    def pull_back(self, weights, inputs, features, cotangent):
        return (cotangent * (features > 0)).T @ inputs

    def project(self, weights):
        scaled = weights / weights.abs().amax(dim=1, keepdim=True)  # squares of these cannot overflow
        return scaled / scaled.norm(dim=1, keepdim=True)

    def uniform(self, count, generator=None):
        return self.project(torch.randn(count, 2, dtype=torch.float32, generator=generator))


@dataclass(frozen=True)
class RadialKernel:
    """A radial profile g: ``value(r)`` and ``slope(r)`` = g'(r) / r, finite at r = 0; r is a tensor of radii >= 0."""

    name: str
    value: Callable[[torch.Tensor], torch.Tensor]
    slope: Callable[[torch.Tensor], torch.Tensor]


_SCALE = 0.5  # s of the Laplace kernel

LAPLACE = RadialKernel(
    "laplace",  # g(r) = (2 / s^2) exp(-r / s); no derivative at r = 0, where 0 stands for it
    value=lambda r: (2 / _SCALE**2) * torch.exp(-r / _SCALE),
    slope=lambda r: torch.where(r > 0, (-2 / _SCALE**3) * torch.exp(-r / _SCALE) / r.clamp_min(1e-30), 0.0),
)
RAISED_COSINE = RadialKernel(
    "cos",  # g(r) = (1 + cos(pi r / 2)) / 2 for r <= 2, 0 beyond
    value=lambda r: (1 + torch.cos(math.pi / 2 * r.clamp_max(2.0))) / 2,
    slope=lambda r: torch.where(r < 2, -(math.pi**2) / 8 * torch.sinc(r / 2), 0.0),
)
RADIAL_KERNELS = {kernel.name: kernel for kernel in (LAPLACE, RAISED_COSINE)}


def wrap_torus(points: torch.Tensor) -> torch.Tensor:
    """The points of [-2, 2)^d that stand for ``points`` on the torus R^d / (4 Z)^d."""
    return torch.remainder(points + 2, 4) - 2


class RadialTorus(FeatureMap):
    """phi(w, x) = g(|wrap(w - x)|) on the torus R^2 / (4 Z)^2 (paper, Appendix B)."""

    domain = "torus"

    def __init__(self, kernel: RadialKernel) -> None:
        self.kernel = kernel
        self.name = f"torus_{kernel.name}"

    def features(self, weights, inputs):
        return self.kernel.value(_offsets(weights, inputs).norm(dim=2))

    def pull_back(self, weights, inputs, features, cotangent):
        offsets = _offsets(weights, inputs)  # d phi / d w = g'(r) offset / r
        return torch.einsum("nm,nmd->md", cotangent * self.kernel.slope(offsets.norm(dim=2)), offsets)

    def project(self, weights):
        return wrap_torus(weights)

    def uniform(self, count, generator=None):
        return 2 * (2 * torch.rand(count, 2, dtype=torch.float32, generator=generator) - 1)


def _offsets(weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """wrap(w_j - x_i): (N, M, d)."""
    return wrap_torus(weights[None] - inputs[:, None])
