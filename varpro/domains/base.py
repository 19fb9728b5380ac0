"""What a domain offers. A new one is one file with a subclass; its feature maps name it as theirs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from varpro.cli import number


@dataclass(frozen=True)
class Draws:
    """The random numbers of one run, float64 on the CPU.

    ``teacher (T, d)`` and ``student (M, d)``, the initial weights, lie on the domain; ``inputs (N, d)``.
    """

    teacher: torch.Tensor
    inputs: torch.Tensor
    student: torch.Tensor


class Measure(Protocol):
    """A weighted point set that knows its energy distance to another one of its kind."""

    def energy_distance(self, other: Any) -> float:
        """D = sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|) >= 0."""


@dataclass(frozen=True)
class Law:
    """The law of a teacher of infinitely many neurons: its density, and points with masses that stand for it.

    ``density`` takes angles in radians; ``points (n, d)`` and ``masses (n,)`` that sum to 1.
    """

    density: Callable[[np.ndarray], np.ndarray]
    points: torch.Tensor
    masses: torch.Tensor


class Domain(ABC):
    """The set that weights lie in, with the learning problem that is drawn on it."""

    name: str
    dimension: int  # d, of weights and of inputs
    shape_parameter = "shape of the teacher law: 0 is uniform"  # what --gamma means here

    @abstractmethod
    def project(self, points: torch.Tensor) -> torch.Tensor:
        """The point of the domain that stands for each row of ``points (n, d)``: (n, d)."""

    @abstractmethod
    def draws(self, seed: int, samples: int, student_width: int, teacher_width: int, gamma: float) -> Draws:
        """The random numbers of a run, all from ``seed``; the global generators are left alone."""

    @abstractmethod
    def measure(self, points: np.ndarray, masses: np.ndarray | None = None) -> Measure:
        """``points (n, d)`` with ``masses (n,)``, non-negative and divided by their sum (default: equal)."""

    def law(self, gamma: float) -> Law | None:
        """The teacher's law itself, for a teacher of infinitely many neurons; None where it is not at hand.

        It belongs to :meth:`draws`: who overrides one overrides both.
        """
        return None

    def spread(self, count: int) -> torch.Tensor | None:
        """``count`` evenly spread points (count, d), float64, a start without chance; None where there are none."""
        return None

    def canonical_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """The user's ``inputs (N, d)`` in the form in which they lose the fewest digits."""
        return inputs

    def tangent(self, weights: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The part of ``vectors (M, d)`` that is tangential to the domain at ``weights (M, d)``: all if flat."""
        return vectors

    def gamma(self, text: str) -> float:
        """The parser of ``--gamma``. Raises ValueError with what is allowed."""
        return bounded_number(text, most=math.inf)


def bounded_number(text: str, most: float) -> float:
    """A finite number from 0 to ``most``. Raises ValueError with what is allowed."""
    value = number(text)
    if not (0 <= value <= most and math.isfinite(value)):
        raise ValueError("a number from 0 up" if math.isinf(most) else f"a number from 0 to {most:g}")
    return value


def discard_network_initialisation(width: int, stream: torch.Generator) -> None:
    """Use up what the default initialisation of a network of ``width`` neurons on R^2 draws from ``stream``.

    The runs behind the published curves built two networks before they replaced their weights.
    """
    torch.randn(width, 2, dtype=torch.float32, generator=stream)
    torch.nn.init.kaiming_uniform_(torch.empty(1, width, dtype=torch.float32), a=math.sqrt(5), generator=stream)
