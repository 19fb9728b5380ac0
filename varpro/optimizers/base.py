"""What an optimizer is: an iterator over states that can be stopped, written to a file and resumed.

An optimizer asks its solver for the reduced risk and its gradient and chooses the next weights; the outer weights of a
state are always optimal. Gradient descent at a constant rate is not here: solvers do it in one piece (``advance``).
"""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch

from varpro.optimizers.charts import chart_of
from varpro.problem import Problem
from varpro.solvers.base import Array, Objective, Solver

PATIENCE = 2  # iterations in a row below the tolerance that end a training; a single one may be an unlucky step


class State(NamedTuple):
    """A state of a training: ``weights (M, d)`` and optimal ``outer``, in the solver's form, and their reduced risk.

    ``evaluations`` counts inner solves since the start, rejected steps included; ``seconds`` is the time of them and of
    the steps, without what the caller does between two iterations.
    """

    weights: Array
    outer: Array
    risk: float
    iteration: int
    evaluations: int
    seconds: float


class Optimizer(ABC):
    """A training of ``problem.student`` under way, on the reduced risk of ``solver``, built for ``objective``.

    Iterating gives the states after 1, 2, ... accepted iterations; ``state`` is the last one. ``tolerance`` ends the
    training when ``patience`` iterations in a row change the risk by no more than ``tolerance`` times the risk.
    ``ending`` then says why, in words; it is "" while the training can go on. Raises FloatingPointError where the
    risk is not finite, ValueError for a ``tolerance`` below 0. Trainings are deterministic: one that goes on from a
    ``state_dict`` does as if never stopped.
    """

    name: ClassVar[str]  # of --optimizer
    label: ClassVar[str]  # in sentences and on buttons
    usual_iterations: ClassVar[int]  # that a training is given where nothing is said
    takes_time_scale: ClassVar[bool] = False  # for its steps

    def __init__(
        self,
        solver: Solver[Any],
        objective: Objective,
        problem: Problem,
        *,
        tolerance: float = 0.0,
        patience: int = PATIENCE,
    ) -> None:
        if not tolerance >= 0.0:
            raise ValueError(f"tolerance {tolerance} is not allowed: a number from 0 up")
        self.solver, self.objective, self.problem = solver, objective, problem
        self.chart = chart_of(objective.features.domain)
        self.tolerance, self.patience = tolerance, patience
        self.ending = ""
        self._quiet = 0
        self._evaluations = 0
        begin = time.perf_counter()
        weights = solver.own(problem.student)
        risk, outer = self._start(weights)
        self.state = State(weights, outer, risk, 0, self._evaluations, time.perf_counter() - begin)
        self._check(risk)

    @classmethod
    def obstacle(cls, solver: type[Solver[Any]], objective: Objective, problem: Problem) -> str:
        """ "" where this optimizer can train with ``solver``; else what keeps it, for the user."""
        if objective.outer_update != "ridge":
            return "works on the reduced risk, not on two-timescale descent"
        return ""

    @abstractmethod
    def _start(self, weights: Array) -> tuple[float, Array]:
        """Take up ``weights``; the reduced risk there and the optimal outer weights."""

    @abstractmethod
    def _iterate(self) -> tuple[Array, Array, float] | None:
        """The weights, outer weights and risk after one more accepted iteration; None where no step lowers the risk."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> State:
        if self.ending:
            raise StopIteration
        begin, before = time.perf_counter(), self.state
        found = self._iterate()
        seconds = before.seconds + time.perf_counter() - begin
        if found is None:
            self.ending = "no step lowers the risk any more"
            self.state = before._replace(evaluations=self._evaluations, seconds=seconds)
            raise StopIteration
        weights, outer, risk = found
        self.state = State(weights, outer, risk, before.iteration + 1, self._evaluations, seconds)
        self._check(risk)
        self._quiet = self._quiet + 1 if abs(before.risk - risk) <= self.tolerance * abs(before.risk) else 0
        if self.tolerance > 0.0 and self._quiet >= self.patience:
            self.ending = f"the risk changes by less than {self.tolerance:g} of itself"
        return self.state

    def _check(self, risk: float) -> None:
        if not math.isfinite(risk):
            raise FloatingPointError(f"the risk is not finite at iteration {self.state.iteration}")

    def _reduced(self, coordinates: torch.Tensor) -> tuple[Array, Array, float, torch.Tensor]:
        """Weights, outer weights, risk and the gradient (M, p) at ``coordinates (M, p)``; counted."""
        weights = self.solver.own(self.chart.weights(coordinates))
        reduced = self.solver.reduced(weights)
        self._evaluations += 1
        gradient = torch.as_tensor(reduced.gradient).to(coordinates).contiguous()
        return weights, reduced.outer, float(reduced.risk), self.chart.pull(coordinates, gradient)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs, tensors and numbers only; copies."""
        state = self.state._asdict()
        for name in ("weights", "outer"):
            state[name] = torch.as_tensor(state[name]).clone()
        return {"state": state, "quiet": self._quiet, "ending": self.ending, "own": copy.deepcopy(self._memory())}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state of the same problem that :meth:`state_dict` gave."""
        state = dict(saved["state"])
        for name in ("weights", "outer"):
            state[name] = self.solver.own(state[name])
        self.state = State(**state)
        self._evaluations = self.state.evaluations
        self._quiet, self.ending = saved["quiet"], saved["ending"]
        self._recall(copy.deepcopy(saved["own"]))

    def add_cost(self, evaluations: int, seconds: float) -> None:
        """Count what was spent before this training as part of it."""
        self._evaluations += evaluations
        spent = self.state.evaluations + evaluations, self.state.seconds + seconds
        self.state = self.state._replace(evaluations=spent[0], seconds=spent[1])

    def report(self) -> dict[str, float]:
        """How exact the steps were (names ``worst_...``) and what they took (counts), as a solver's ``report``."""
        return {}

    @abstractmethod
    def _memory(self) -> dict[str, Any]:
        """What an optimizer remembers beside its state: tensors and numbers."""

    @abstractmethod
    def _recall(self, memory: Mapping[str, Any]) -> None:
        """Take up what :meth:`_memory` gave; ``self.state`` is set already."""
