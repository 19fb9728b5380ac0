"""Feature maps phi(w, x): values, derivative in w, and the network that they make.

A new feature map is a subclass with two short methods and the name of its domain. Every experiment takes it: the
solvers that cannot compute it say so, and ``dense`` always can.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from varpro.domains.base import Domain
from varpro.domains.circle import CIRCLE
from varpro.domains.torus import TORUS, wrap_torus
from varpro.relu import predict

_ROWS = 256  # samples whose features of a whole network are held at a time


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
        """f(x_i) = (1/M) sum_j u_j phi(w_j, x_i): (N,), in memory O(M + N); outer weights u (M,) are 1 by default."""
        blocks = (self(weights, block) for block in inputs.split(_ROWS))
        return torch.cat([(phi if outer is None else phi * outer).mean(dim=1) for phi in blocks])


class ReLUCircle(FeatureMap):
    """phi(w, x) = max(w . x, 0), w on the unit circle S^1, x in R^2 (paper, Section 6.1)."""

    name, domain = "relu_circle", CIRCLE

    def __call__(self, weights, inputs):
        return torch.relu(inputs @ weights.T)

    def pull_back(self, weights, inputs, features, cotangent):
        return (cotangent * (features > 0)).T @ inputs

    def predict(self, weights, inputs, outer=None):
        """In O((N + M) log (N + M)), float64 on the CPU."""
        outer = weights.new_ones(len(weights)) if outer is None else outer
        return torch.from_numpy(predict(weights.numpy(), outer.numpy(), inputs.numpy()))


class SquaredReLUCircle(FeatureMap):
    """phi(w, x) = max(w . x, 0) + max(w . x, 0)^2 on the circle: features that see every harmonic of a measure.

    max(w . x, 0) sees the even harmonics and the first one; the square adds the odd ones (docs/limit.md, 6). The
    feature operator is injective, as the paper's theorem on the ultra-fast limit assumes.
    """

    name, domain = "squared_relu_circle", CIRCLE

    def __call__(self, weights, inputs):
        linear = torch.relu(inputs @ weights.T)
        return linear + linear * linear

    def pull_back(self, weights, inputs, features, cotangent):
        product = inputs @ weights.T
        return (cotangent * (product > 0) * (1 + 2 * product)).T @ inputs


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


class RadialTorus(FeatureMap):
    """phi(w, x) = g(|wrap(w - x)|) on the torus R^2 / (4 Z)^2 (paper, Appendix B)."""

    domain = TORUS

    def __init__(self, kernel: RadialKernel) -> None:
        self.kernel = kernel
        self.name = f"torus_{kernel.name}"

    def __call__(self, weights, inputs):
        return self.kernel.value(_offsets(weights, inputs).norm(dim=2))

    def pull_back(self, weights, inputs, features, cotangent):
        offsets = _offsets(weights, inputs)  # d phi / d w = g'(r) offset / r
        return torch.einsum("nm,nmd->md", cotangent * self.kernel.slope(offsets.norm(dim=2)), offsets)


def _offsets(weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """wrap(w_j - x_i): (N, M, d)."""
    return wrap_torus(weights[None] - inputs[:, None])
