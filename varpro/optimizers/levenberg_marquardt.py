"""Levenberg-Marquardt on the reduced risk: linear time on the circle, dense matrices elsewhere (docs/second_order.md).

The damped Gauss-Newton step is taken in the weights and the outer weights together; the outer weights are then
optimised exactly. In the weights this is the variable-projection step of Kaufman (1975).
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from varpro.optimizers.base import PATIENCE, Optimizer
from varpro.optimizers.charts import chart_of
from varpro.problem import Problem
from varpro.ridge import not_definite
from varpro.solvers import circle_newton
from varpro.solvers.base import Array, Objective, Solver
from varpro.solvers.circle import CircleSolver
from varpro.solvers.circle_newton import CircleNewton

_MOST_ENTRIES = 1 << 27  # of the dense Jacobian, 1 GB


class LevenbergMarquardt(Optimizer):
    """One accepted step an iteration; the risk falls in each.

    The damping starts at ``damping`` times the rms gradient of the risk per neuron. A step that lowers the risk by a
    fifth or more divides it by ``slow_decay``, one that lowers it by less by ``decay``, one that does not lower it
    multiplies it by 4 (S10). So the training stays close to the flow while that makes progress. With 0.01, 5 and 5 it
    is at a given risk sooner.

    States hold ``weights (M, d)`` and ``outer (M,)``, or ``(M, k)`` where the targets are (N, k). The other arguments
    are those of :class:`varpro.optimizers.base.Optimizer`.
    """

    name, label, usual_iterations = "lm", "Levenberg-Marquardt", 100

    def __init__(
        self,
        solver: Solver[Any],
        objective: Objective,
        problem: Problem,
        *,
        damping: float = circle_newton.FIRST_DAMPING,
        slow_decay: float = circle_newton.SLOW_DECAY,
        decay: float = circle_newton.DECAY,
        tolerance: float = 0.0,
        patience: int = PATIENCE,
    ) -> None:
        self._first_damping, self._decays = damping, (slow_decay, decay)
        super().__init__(solver, objective, problem, tolerance=tolerance, patience=patience)

    @classmethod
    def obstacle(cls, solver: type[Solver[Any]], objective: Objective, problem: Problem) -> str:
        coordinates = chart_of(objective.features.domain).coordinates(problem.student)  # (M, p)
        entries = 0 if solver in _STEPS else problem.samples * coordinates.numel()
        if entries > _MOST_ENTRIES:
            return (
                f"needs a matrix of {entries:.0f} numbers without the linear solver; allowed: at most {_MOST_ENTRIES}"
            )
        return super().obstacle(solver, objective, problem)

    def _start(self, weights: Array) -> tuple[float, Array]:
        self._steps = _STEPS.get(type(self.solver), _DenseSteps)(self, weights)
        self._damping = 0.0
        return self._steps.risk, self._steps.outer

    def _iterate(self) -> tuple[Array, Array, float] | None:
        return self._steps.iterate()

    def report(self) -> dict[str, float]:
        return self._steps.report()

    def _memory(self) -> dict[str, Any]:
        return {"damping": self._damping, **self._steps.memory()}

    def _recall(self, memory: Mapping[str, Any]) -> None:
        self._damping = memory["damping"]
        self._steps.recall(memory)


class _LinearSteps:
    """Steps on the circle, compiled."""

    def __init__(self, run: LevenbergMarquardt, weights: Array) -> None:
        self.run, self.newton = run, CircleNewton(cast("CircleSolver", run.solver))
        self.risk, _, self.outer = self.newton.solver.reduced(np.asarray(weights))
        run._evaluations += 1

    def iterate(self) -> tuple[Array, Array, float] | None:
        run = self.run
        weights, outer = np.array(run.state.weights), np.array(run.state.outer)
        done = self.newton.advance(weights, outer, 1, run._damping, run._first_damping, *run._decays)
        run._damping = done.damping
        run._evaluations += done.evaluations
        return None if done.ending == circle_newton.STATIONARY else (weights, outer, float(done.risks[-1]))

    def report(self) -> dict[str, float]:
        return self.newton.report()

    def memory(self) -> dict[str, Any]:
        return {}  # all is in the state

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Nothing to do."""


class _DenseSteps:
    """Steps with explicit matrices for any feature map: O(N (p M)^2 + (p M)^3) for p coordinates a neuron."""

    def __init__(self, run: LevenbergMarquardt, weights: Array) -> None:
        self.run = run
        self._take(run.chart.coordinates(torch.as_tensor(weights)))
        self.inputs = run.problem.data[0].to(self.coordinates)

    def _take(self, coordinates: torch.Tensor) -> None:
        self.coordinates = coordinates
        _, self.outer, self.risk, self.gradient = self.run._reduced(coordinates)  # outer (M,) or (M, k)

    def iterate(self) -> tuple[Array, Array, float] | None:
        run, width = self.run, len(self.coordinates)
        matrix = gauss_newton(run.objective, self.inputs, self.coordinates, self.outer)
        descent = -self.gradient.reshape(-1)
        size = width * descent.norm().item() / math.sqrt(width)
        if run._damping == 0.0:
            run._damping = run._first_damping * size
        for _ in range(circle_newton.TRIALS if size > 0.0 else 0):
            damped = matrix.clone()
            damped.diagonal().add_(run._damping / width)
            factor, failed = torch.linalg.cholesky_ex(damped)
            expected = math.inf
            if not failed:
                step = torch.cholesky_solve(descent[:, None], factor)[:, 0]
                expected = 0.5 * torch.dot(step, descent).item()
                move = step.clamp(-run.chart.longest, run.chart.longest)
                weights, outer, risk, gradient = run._reduced(self.coordinates + move.view_as(self.coordinates))
                if risk < self.risk:
                    run._damping = circle_newton.damping_after(run._damping, self.risk, risk, *run._decays)
                    self.coordinates = self.coordinates + move.view_as(self.coordinates)
                    self.outer, self.risk, self.gradient = outer, risk, gradient
                    return weights, outer, risk
            run._damping *= circle_newton.GROWTH
            if expected <= circle_newton.LEAST_FALL * self.risk:
                break
        return None

    def report(self) -> dict[str, float]:
        return {}

    def memory(self) -> dict[str, Any]:
        return {"coordinates": self.coordinates}

    def recall(self, memory: Mapping[str, Any]) -> None:
        evaluations = self.run._evaluations
        self._take(memory["coordinates"].to(self.coordinates))
        self.run._evaluations = evaluations


def gauss_newton(objective: Objective, inputs: torch.Tensor, coordinates: torch.Tensor, outer: Array) -> torch.Tensor:
    """The Gauss-Newton matrix (p M, p M) of the reduced risk in ``coordinates (M, p)``, u eliminated (S4).

    ``inputs (N, d)`` float64; ``outer (M,)`` or ``(M, k)`` must be optimal. Entry (p j + q, p l + r) belongs to
    coordinate q of neuron j and r of neuron l. Raises FloatingPointError where round-off leaves u undetermined.
    """
    (width, parts), count = coordinates.shape, len(inputs)
    outer = torch.as_tensor(outer).to(coordinates).reshape(width, -1)
    chart = chart_of(objective.features.domain)
    features = objective.features(chart.weights(coordinates), inputs)
    slopes = feature_slopes(objective, inputs, coordinates).reshape(count, width * parts)
    gram = features.T @ features
    gram.diagonal().add_(objective.lmbda * count * width)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed.item():
        raise not_definite(features, objective.lmbda)
    seen = torch.linalg.solve_triangular(factor, features.T @ slopes, upper=False)
    unseen = slopes.T @ slopes - seen.T @ seen  # of the slopes, what a change of u cannot undo
    products = (outer @ outer.T).repeat_interleave(parts, dim=0).repeat_interleave(parts, dim=1)
    return unseen.mul_(products).div_(objective.lmbda * width**2 * count * outer.shape[1])


def feature_slopes(objective: Objective, inputs: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """d phi_j(x_i) / d coordinate q of neuron j: (N, M, p); 0 where a feature has no derivative."""
    chart = chart_of(objective.features.domain)

    def features(point: torch.Tensor) -> torch.Tensor:
        return objective.features(chart.weights(point), inputs)

    slopes = []
    for part in range(coordinates.shape[1]):
        direction = torch.zeros_like(coordinates)
        direction[:, part] = 1.0
        slopes.append(torch.func.jvp(features, (coordinates,), (direction,))[1].nan_to_num(0.0))
    return torch.stack(slopes, dim=2)


# Solvers with steps of their own.
_STEPS: dict[type[Solver[Any]], type[_LinearSteps | _DenseSteps]] = {CircleSolver: _LinearSteps}
