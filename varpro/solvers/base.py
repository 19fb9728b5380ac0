"""What a solver of the inner problem offers. A new one is one file with a subclass, and its place in ``choose``."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from varpro.features import FeatureMap
from varpro.problem import Problem
from varpro.ridge import check_centre, check_lambda

Array = np.ndarray | torch.Tensor
Factor = TypeVar("Factor", bound=Array)
Own = TypeVar("Own", bound=Array)  # of the two, the form that a solver takes

_OUTER_UPDATES = "ridge", "gradient"


def check_constants(lmbda: float, centre: float, outer_update: str) -> None:
    """Raises ValueError, with what is allowed, where the inner problem or the step of u is none."""
    check_lambda(lmbda)
    check_centre(centre)
    if outer_update not in _OUTER_UPDATES:
        raise ValueError(f"outer_update: {outer_update!r} is not allowed: {' or '.join(_OUTER_UPDATES)}")


@dataclass(frozen=True)
class Objective:
    """The loss L of docs/definitions.md, section 1, and the descent on it.

    ``outer_update`` is ``"ridge"`` (VarPro: u solves the inner problem at every epoch) or ``"gradient"`` (two-timescale
    descent: one gradient step of u at rate ``outer_rate`` times lam M). Raises ValueError for any other, where
    ``lmbda`` is not a finite number above 0, and where ``centre`` is not one number.
    """

    features: FeatureMap
    lmbda: float
    centre: float
    time_scale: float
    outer_update: str
    outer_rate: float = 1.0

    def __post_init__(self) -> None:
        check_constants(self.lmbda, self.centre, self.outer_update)

    @property
    def constants(self) -> tuple[float, float, float]:
        """lam, c and the time scale."""
        return self.lmbda, self.centre, self.time_scale


class Reduced(NamedTuple):
    """The reduced risk R(w) = min_u L(w, u) at some weights, ``gradient (M, d)`` = dR/dw and u = ``outer``.

    The gradient is the one of L in w with u held at its optimum (envelope theorem), tangential to the domain.
    """

    risk: float
    gradient: Array
    outer: Array


class Solver(ABC, Generic[Own]):
    """The inner problem of one data set, and the training epochs that go with it.

    Weights and outer weights come in a solver's own form, arrays or tensors, which :meth:`own` makes.
    """

    takes_infinite_data: ClassVar[bool] = False
    name: ClassVar[str]  # of --solver; solvers of one name share no device
    devices: ClassVar[tuple[str, ...]]  # the preferred one first
    dtypes: ClassVar[tuple[str, ...]]  # likewise
    takes_tf32: ClassVar[bool] = False  # for products of float32 matrices on CUDA

    @classmethod
    @abstractmethod
    def obstacle(cls, objective: Objective, problem: Problem) -> str:
        """ "" where this solver computes exactly ``objective`` on ``problem``; else what keeps it, for the user."""

    @classmethod
    def drawback(cls, objective: Objective, problem: Problem) -> str:
        """Why another solver is the better choice for ``problem``, though this one computes it; "" if it is not."""
        return ""

    @classmethod
    def warning(cls, objective: Objective, dtype: str) -> str:
        """One line for the user, before a training, where ``dtype`` is too little for ``objective``, else ""."""
        return ""

    @classmethod
    def compilation(cls, objective: Objective, problem: Problem, dtype: str) -> int:
        """Seconds, about, that compiling will take on this machine now; 0 where nothing is left to compile."""
        return 0

    @classmethod
    @abstractmethod
    def build(cls, objective: Objective, problem: Problem, *, device: str, dtype: str, tf32: bool) -> "Solver[Any]":
        """The solver of ``problem``, ready to train, on ``device`` in the precision ``dtype``; ``tf32`` where it takes
        that format."""

    @abstractmethod
    def own(self, tensor: torch.Tensor) -> Own:
        """A copy of ``tensor`` in the form that the other methods take."""

    @abstractmethod
    def solve(self, weights: Own) -> Own:
        """argmin_u L at ``weights (M, d)``: (M,) or (M, k). Raises FloatingPointError where it cannot be had."""

    @abstractmethod
    def reduced(self, weights: Own) -> Reduced:
        """The reduced risk at ``weights (M, d)`` with its gradient. Raises FloatingPointError as :meth:`solve` does."""

    @abstractmethod
    def advance(self, weights: Own, outer: Own, epochs: int) -> Own:
        """Train ``weights (M, d)`` and ``outer`` in place by gradient descent; returns the losses (epochs,), float64.

        For VarPro the state must have optimal outer weights, and has them afterwards. Losses are NaN from the first
        state on that is not finite.
        """

    def report(self) -> dict[str, float]:
        """How exact the inner solves were (names ``worst_...``) and what they took (counts), so far."""
        return {}

    def caution(self) -> str:
        """One line for the user where the inner solves were less exact than promised, else ""."""
        return ""


_WIDE = 8  # neurons per sample beyond which the dual form of the dense solver is faster than conjugate gradients


def wide_student(problem: Problem) -> str:
    """The drawback of solvers whose preconditioner is an M x M matrix; "" where it is none."""
    wide = len(problem.student) > _WIDE * problem.samples
    return "its preconditioner is larger than the dual system" if wide else ""


_RIDGE_GROWTH, _RIDGE_LIMIT = 100.0, 1e3  # from one ridge to the next; the largest, in units of the diagonal
RESIDUAL = {"float32": 5e-7, "float64": 5e-11}  # |b - A u| / |b| of conjugate gradients; half of what is promised


def unsolved(residual: float, dtype: str, lmbda: float) -> FloatingPointError:
    """The error of conjugate gradients that end above their tolerance."""
    return FloatingPointError(
        f"inner solve: the relative residual stays at {residual:.1e} in {dtype} at lambda {lmbda:g}; use float64 or a "
        "larger lambda"
    )


def with_least_ridge(factored: Callable[[float], Factor | None], lmbda: float, diagonal: float) -> Factor:
    """``factored(ridge)`` with the first ridge of lam, 100 lam, ... with which it is not None: a preconditioner.

    ``diagonal`` is the mean of the diagonal of its matrix. Raises FloatingPointError after the largest that can help.
    """
    ridge = lmbda
    while ridge <= lmbda + _RIDGE_LIMIT * diagonal:
        factor = factored(ridge)
        if factor is not None:
            return factor
        ridge *= _RIDGE_GROWTH
    raise FloatingPointError("inner solve: the features are not finite")


def merged(earlier: Mapping[str, float], report: Mapping[str, float]) -> dict[str, float]:
    """The report of two parts of a run, by the names of the second: the larger of every ``worst_...``, the sum of every
    count."""
    return {
        name: max(value, earlier.get(name, 0)) if name.startswith("worst_") else value + earlier.get(name, 0)
        for name, value in report.items()
    }
