"""The unknowns that an optimizer works with: coordinates (M, p) of the neurons, float64 tensors without constraints."""

from typing import Protocol

import torch

from varpro.domains.base import Domain
from varpro.domains.circle import Circle


class Chart(Protocol):
    """Coordinates of weights. The natural inner product of two vectors of coordinates is (1/M) sum_jq a_jq b_jq."""

    longest: float  # step of one coordinate that is no longer small, the most that a damped step may move it

    def coordinates(self, weights: torch.Tensor) -> torch.Tensor:
        """Coordinates (M, p) of ``weights (M, d)``."""

    def weights(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Weights (M, d), differentiable; coordinates outside the usual range are fine."""

    def pull(self, coordinates: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient (M, p) in the coordinates, from ``gradient (M, d)`` in the weights."""


class Angles:
    """Neurons of the unit circle by their angle in radians, p = 1."""

    longest = 1.0

    def coordinates(self, weights: torch.Tensor) -> torch.Tensor:
        """atan2(w_2, w_1): (M, 1)."""
        weights = weights.double()
        return torch.atan2(weights[:, 1], weights[:, 0])[:, None]

    def weights(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(cos theta, sin theta): (M, 2)."""
        return torch.cat([torch.cos(coordinates), torch.sin(coordinates)], dim=1)

    def pull(self, coordinates: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The component along the unit tangent."""
        tangent = torch.cat([-torch.sin(coordinates), torch.cos(coordinates)], dim=1)
        return (gradient.double() * tangent).sum(dim=1, keepdim=True)


class Projected:
    """Any domain by the weights themselves, p = d; the projection to the domain must be differentiable."""

    longest = 0.5  # on the torus an eighth of a period

    def __init__(self, domain: Domain) -> None:
        self.project = domain.project

    def coordinates(self, weights: torch.Tensor) -> torch.Tensor:
        """The weights: (M, d)."""
        return weights.double().clone()

    def weights(self, coordinates: torch.Tensor) -> torch.Tensor:
        """project(coordinates): (M, d)."""
        return self.project(coordinates)

    def pull(self, coordinates: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The derivative of the projection, transposed, times ``gradient``."""
        pull_back = torch.func.vjp(self.project, coordinates)[1]
        return pull_back(gradient.to(coordinates))[0]


def chart_of(domain: Domain) -> Chart:
    """Angles on the circle, else the weights themselves."""
    return Angles() if isinstance(domain, Circle) else Projected(domain)
