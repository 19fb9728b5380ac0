"""The circle S^1: teacher law, seeded draws, projection (paper, Section 6.1).

The law nu_gamma on angles is a 2:1 mixture of the same bump at 0 and at 0.4 pi. Each bump is the image of the
uniform law under ``psi = atan2(sin theta, sqrt(1 + gamma) cos theta)``, ``angle = 2 psi``, so density, cdf and
sampler are all in closed form. gamma = 0 is the uniform law; gamma -> infinity gives two Diracs.
"""

import math

import numpy as np
import torch

from varpro.distances import CircleMeasure
from varpro.domains.base import Domain, Draws, Law, bounded_number, discard_network_initialisation

_LAW_CELLS = 1 << 16  # that stand for the law itself; their error is of order 1 / cells^2
MAX_GAMMA = 1e8  # beyond, the cdf has too few digits between the bumps (and a bump is 4e-4 wide)
SECOND_BUMP = 0.4 * math.pi  # angle of the lighter bump
BUMP_MASSES = (2.0 / 3.0, 1.0 / 3.0)


def wrap_angle(angles: np.ndarray) -> np.ndarray:
    """Angles (radians, any shape) reduced to [-pi, pi)."""
    wrapped = np.mod(np.asarray(angles, dtype=np.float64) + math.pi, 2 * math.pi) - math.pi
    return np.where(wrapped >= math.pi, -math.pi, wrapped)  # mod can round up to 2 pi


def circle_density(angles: np.ndarray, gamma: float) -> np.ndarray:
    """Density of nu_gamma at ``angles`` (radians, any shape); it integrates to 1 over a period 2 pi.

    nu(x) = sqrt(1 + gamma) / (3 pi) [1 / (1 + gamma sin^2(x/2)) + (1/2) / (1 + gamma sin^2((x - 0.4 pi)/2))]
    """
    angles = np.asarray(angles, dtype=np.float64)
    bumps = (
        mass * math.sqrt(1 + gamma) / (2 * math.pi) / (1 + gamma * np.sin((angles - centre) / 2) ** 2)
        for mass, centre in zip(BUMP_MASSES, (0.0, SECOND_BUMP), strict=True)
    )
    return sum(bumps, np.zeros_like(angles))


def circle_cdf(angles: np.ndarray, gamma: float) -> np.ndarray:
    """Cumulative mass of nu_gamma from -pi to ``angles``; any real angle: N(x + 2 pi) = N(x) + 1, N(-pi) = 0."""
    angles = np.asarray(angles, dtype=np.float64)
    bumps = (
        mass * (bump_cdf(angles - centre, gamma) - bump_cdf(np.asarray(-math.pi - centre), gamma))
        for mass, centre in zip(BUMP_MASSES, (0.0, SECOND_BUMP), strict=True)
    )
    return sum(bumps, np.zeros_like(angles))


def bump_cdf(angles: np.ndarray, gamma: float) -> np.ndarray:
    """1/2 + atan(sqrt(1 + gamma) tan(x/2)) / pi, continued over whole turns."""
    turns = np.floor((angles + math.pi) / (2 * math.pi))
    half = (angles - 2 * math.pi * turns) / 2  # in [-pi/2, pi/2)
    return turns + 0.5 + np.arctan2(math.sqrt(1 + gamma) * np.sin(half), np.cos(half)) / math.pi


def bump_sampler(uniform: np.ndarray, gamma: float) -> np.ndarray:
    """Angles in [-pi, pi) of one bump at 0 from ``uniform`` draws on [0, 1), same shape."""
    theta = 2 * math.pi * uniform - math.pi
    half = np.arctan2(np.sin(theta), math.sqrt(1 + gamma) * np.cos(theta))
    return wrap_angle(2 * half)


def circle_teacher_angles(uniform: np.ndarray, gamma: float) -> np.ndarray:
    """Angles (T,) of a sample of nu_gamma from ``uniform`` draws (T,) on [0, 1).

    Every neuron with index 1, 4, 7, ... (one third) belongs to the bump at 0.4 pi.
    """
    angles = bump_sampler(uniform, gamma)
    angles[1::3] += SECOND_BUMP
    return wrap_angle(angles)


def directions(angles: np.ndarray) -> torch.Tensor:
    """Unit vectors (T, 2), float64, at ``angles`` (T,) in radians."""
    angles = np.asarray(angles, dtype=np.float64)
    return torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=-1))


def quantile_directions(count: int) -> torch.Tensor:
    """The quantiles (j + 1/2) / M of the uniform law: M equally spaced unit vectors (M, 2), float64."""
    return directions(-math.pi + 2 * math.pi * (np.arange(count) + 0.5) / count)


class Circle(Domain):
    """Unit vectors of R^2. Distances are chords."""

    name, dimension = "circle", 2
    shape_parameter = "shape of the teacher law: 0 is uniform, large is close to two Diracs"

    def project(self, points: torch.Tensor) -> torch.Tensor:
        scaled = points / points.abs().amax(dim=1, keepdim=True)  # squares of these cannot overflow
        return scaled / scaled.norm(dim=1, keepdim=True)

    def tangent(self, weights: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return vectors - (vectors * weights).sum(dim=1, keepdim=True) / weights.square().sum(1, keepdim=True) * weights

    def measure(self, points: np.ndarray, masses: np.ndarray | None = None) -> CircleMeasure:
        return CircleMeasure(points, masses)

    def law(self, gamma: float) -> Law:
        edges = np.linspace(-math.pi, math.pi, _LAW_CELLS + 1)
        masses = np.diff(circle_cdf(edges, gamma))
        centres = directions((edges[1:] + edges[:-1]) / 2)
        return Law(lambda angles: circle_density(angles, gamma), centres, torch.from_numpy(masses / masses.sum()))

    def spread(self, count: int) -> torch.Tensor:
        return quantile_directions(count)

    def gamma(self, text: str) -> float:
        return bounded_number(text, MAX_GAMMA)

    def draws(self, seed: int, samples: int, student_width: int, teacher_width: int, gamma: float) -> Draws:
        """The draws of the paper's circle runs: seed s here is seed s there.

        Two private generators stand in for the global ones of ``torch.manual_seed(seed)`` and
        ``numpy.random.seed(seed)``; they give the same numbers and leave the caller's random state alone. The order
        matters, and so do the draws that are thrown away: the original built two networks whose default
        initialisation consumed them.
        """
        numpy_stream = np.random.RandomState(seed)
        torch_stream = torch.Generator().manual_seed(seed)
        teacher = directions(circle_teacher_angles(numpy_stream.rand(teacher_width), gamma))
        discard_network_initialisation(teacher_width, torch_stream)
        inputs = torch.randn(samples, 2, dtype=torch.float32, generator=torch_stream)
        discard_network_initialisation(student_width, torch_stream)
        student = torch.randn(student_width, 2, dtype=torch.float32, generator=torch_stream)
        student = student / student.norm(dim=1, keepdim=True)  # in float32, as the original did
        return Draws(teacher, inputs.double(), torch.nn.functional.normalize(student.double(), dim=1))


CIRCLE: Circle = Circle()
