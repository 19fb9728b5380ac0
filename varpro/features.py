"""Feature maps phi(w, x): values, derivative in w, projection to the domain, and the domain's uniform law.

A new feature map is a subclass with four short methods; every solver but ``linear`` works with it as it is.
"""

from abc import ABC, abstractmethod

import torch


class FeatureMap(ABC):
    """phi(w, x) for ``weights (M, d)`` and ``inputs (N, d)``, both on the same device and of the same dtype."""

    name: str
    dimension: int

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

    name = "relu_circle"
    dimension = 2

    def features(self, weights, inputs):
        return torch.relu(inputs @ weights.T)

    def pull_back(self, weights, inputs, features, cotangent):
        return (cotangent * (features > 0)).T @ inputs

    def project(self, weights):
        return weights / weights.norm(dim=1, keepdim=True)

    def uniform(self, count, generator=None):
        return self.project(torch.randn(count, 2, dtype=torch.float32, generator=generator))
