"""The ways down that the training loop knows: gradient descent by the solver itself, and an optimizer's iterations."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch

from varpro.optimizers.base import Optimizer
from varpro.solvers.base import Array, Solver


class Descent(ABC):
    """A training under way. Its state has the number of its epoch, which the loop counts."""

    ending = ""  # why the training is over before its last epoch, in words; "" while it can go on

    @property
    @abstractmethod
    def weights(self) -> Array:
        """(M, d), in the solver's form."""

    @property
    @abstractmethod
    def outer(self) -> Array:
        """(M,) or (M, k), in the solver's form."""

    @abstractmethod
    def advance(self, epochs: int) -> torch.Tensor:
        """Go on for ``epochs``, fewer where the training ends; returns the loss of the state before each, float64."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs: copies, tensors and numbers only."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned, of this training or of one in an earlier process."""

    @abstractmethod
    def report(self) -> dict[str, float]:
        """How exact inner solves and steps were (names ``worst_...``), and what they took (counts)."""

    def cost(self) -> dict[str, float]:
        """What the state at hand took so far: seconds, and evaluations where these are not its epoch and one more."""
        return {}


class GradientDescent(Descent):
    """Plain gradient descent at a constant rate, many epochs in one call of the solver."""

    def __init__(self, solver: Solver[Any], weights: torch.Tensor) -> None:
        self._solver = solver
        begin = time.perf_counter()
        self._weights = solver.own(weights)
        self._outer = solver.solve(self._weights)
        self._seconds = time.perf_counter() - begin

    @property
    def weights(self) -> Array:
        return self._weights

    @property
    def outer(self) -> Array:
        return self._outer

    def advance(self, epochs: int) -> torch.Tensor:
        begin = time.perf_counter()
        losses = torch.as_tensor(self._solver.advance(self._weights, self._outer, epochs))
        self._seconds += time.perf_counter() - begin
        return losses

    def state(self) -> dict[str, Any]:
        weights, outer = (torch.as_tensor(value).clone() for value in (self._weights, self._outer))
        return {"weights": weights, "outer": outer, "seconds": self._seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._weights, self._outer = self._solver.own(state["weights"]), self._solver.own(state["outer"])
        self._seconds = state["seconds"]

    def report(self) -> dict[str, float]:
        return self._solver.report()

    def cost(self) -> dict[str, float]:
        return {"seconds": self._seconds}


class Iterations(Descent):
    """The iterations of an optimizer on the reduced risk."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def weights(self) -> Array:
        return self._optimizer.state.weights

    @property
    def outer(self) -> Array:
        return self._optimizer.state.outer

    def advance(self, epochs: int) -> torch.Tensor:
        risks = [self._optimizer.state.risk]
        risks += [state.risk for state in islice(self._optimizer, epochs)]
        self.ending = self._optimizer.ending
        return torch.tensor(risks[:-1], dtype=torch.float64)

    def state(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state)
        self.ending = self._optimizer.ending

    def report(self) -> dict[str, float]:
        return {**self._optimizer.solver.report(), **self._optimizer.report()}

    def cost(self) -> dict[str, float]:
        state = self._optimizer.state
        return {"evaluations": state.evaluations, "seconds": state.seconds}
