"""The torus R^2 / (4 Z)^2: wrapping, seeded draws, distance (paper, Appendix B)."""

import math

import numpy as np
import torch

from varpro.cli import number
from varpro.distances import TorusMeasure
from varpro.domains.base import Domain, Draws, discard_network_initialisation
from varpro.domains.circle import bump_cdf, bump_sampler

TORUS_MODES = ((-1.0, 0.0), (1.0, 1.0))  # of Appendix B; half of the mass each


def torus_bump_density(coordinates: np.ndarray, gamma: float) -> np.ndarray:
    """Density b of one bump at 0 at ``coordinates`` (any shape), of period 4, over which it integrates to 1.

    b(s) = sqrt(1 + gamma) / (4 (1 + gamma sin^2(pi s / 4)))
    """
    sine = np.sin(np.pi * np.asarray(coordinates, dtype=np.float64) / 4)
    return math.sqrt(1 + gamma) / (4 * (1 + gamma * sine**2))


def torus_bump_cdf(coordinates: np.ndarray, gamma: float) -> np.ndarray:
    """Integral of b from -2 to ``coordinates``, any real numbers."""
    return bump_cdf(np.pi * np.asarray(coordinates, dtype=np.float64) / 2, gamma)


def wrap_torus(points: torch.Tensor) -> torch.Tensor:
    """The points of [-2, 2)^d that stand for ``points`` on the torus R^d / (4 Z)^d."""
    return torch.remainder(points + 2, 4) - 2


def lattice(count: int) -> torch.Tensor:
    """``count`` evenly spread points (count, 2), float64: of the lattices (j, g j mod count), the one of widest mesh.

    All points of a lattice have the same surroundings. From 32 points on, their least distance is at least 89 % of
    4.298 / sqrt(count), that of hexagons, which no lattice on the torus exceeds.
    """
    j = np.arange(count)
    # the shortest step of a lattice has a component of no more than sqrt(2 / sqrt(3) count) mesh widths
    near = np.arange(1, min(count, math.isqrt(2 * count) + 2))
    images = np.outer(np.arange(count), near)
    squares = near**2 + np.minimum(images % count, -images % count) ** 2
    step = int(squares.min(axis=1).argmax()) if len(near) else 0
    steps = np.stack([j, step * j % count], axis=1)
    return torch.from_numpy(-2 + (steps + 0.5) * (4 / count))


class Torus(Domain):
    """Points of [-2, 2)^2, opposite sides being the same. Distances are |wrap(x - y)|."""

    name, dimension = "torus", 2
    shape_parameter = "shape of the teacher law: 0 is uniform, inf (or -1) is two Diracs"

    def project(self, points: torch.Tensor) -> torch.Tensor:
        return wrap_torus(points)

    def canonical_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        return wrap_torus(inputs)  # in float64, before whole periods cost digits

    def measure(self, points: np.ndarray, masses: np.ndarray | None = None) -> TorusMeasure:
        return TorusMeasure(points, masses)

    def spread(self, count: int) -> torch.Tensor:
        return lattice(count)

    def gamma(self, text: str) -> float:
        value = number(text)
        if math.isnan(value):
            raise ValueError("a number from 0 up, or inf")
        return math.inf if value < 0 else value

    def draws(self, seed: int, samples: int, student_width: int, teacher_width: int, gamma: float) -> Draws:
        """The draws of the paper's torus runs (Appendix B), in the same order as those of the circle.

        Each coordinate of the teacher is a bump of width gamma, scaled to [-2, 2); neurons with even index then move by
        (-1, 0), those with odd index by (1, 1). gamma = infinity leaves the two modes alone: T = 2. The law is
        [b(x + 1) b(y) + b(x - 1) b(y - 1)] / 2 with b of :func:`torus_bump_density`.
        """
        numpy_stream = np.random.RandomState(seed)
        torch_stream = torch.Generator().manual_seed(seed)
        if math.isinf(gamma):
            teacher_width = 2
            spread = np.zeros((2, 2))
        else:
            spread = np.stack([bump_sampler(numpy_stream.rand(teacher_width), gamma) for _ in range(2)], axis=1)
        teacher = torch.from_numpy(spread) * (2 / math.pi)
        for k, mode in enumerate(TORUS_MODES):
            teacher[k::2] += torch.tensor(mode, dtype=torch.float64)
        discard_network_initialisation(teacher_width, torch_stream)
        inputs = torch.randn(samples, 2, dtype=torch.float32, generator=torch_stream)
        discard_network_initialisation(student_width, torch_stream)
        student = 2 * (2 * torch.rand(student_width, 2, dtype=torch.float32, generator=torch_stream) - 1)
        return Draws(wrap_torus(teacher), inputs.double(), student.double())


TORUS: Torus = Torus()
