"""Nesterov's accelerated gradient descent on the reduced risk, with the step of plain gradient descent.

Nesterov, A method for solving the convex programming problem with convergence rate O(1/k^2), 1983; restarts by the
gradient: O'Donoghue and Candes, Adaptive restart for accelerated gradient schemes, 2015.
"""

from collections.abc import Mapping
from typing import Any

import torch

from varpro.optimizers.base import Optimizer
from varpro.solvers.base import Array


class Momentum(Optimizer):
    """x_k+1 = y_k - M time_scale dR/dy_k, y_k+1 = x_k+1 + i / (i + 3) (x_k+1 - x_k), i steps after the last restart.

    The states are the extrapolated points y, where the gradient is taken: one evaluation an iteration. The momentum
    starts anew where it points uphill. The risk may rise now and then.
    """

    name, label, usual_iterations = "momentum", "Nesterov's momentum", 2000
    takes_time_scale = True

    def _start(self, weights: Array) -> tuple[float, Array]:
        coordinates = self.chart.coordinates(torch.as_tensor(weights))
        self._point = self._last = coordinates  # y and x
        self._steps = 0
        _, outer, risk, self._gradient = self._reduced(coordinates)
        return risk, outer

    def _iterate(self) -> tuple[Array, Array, float]:
        step = self._point - len(self._point) * self.objective.time_scale * self._gradient
        if torch.sum(self._gradient * (step - self._last)) > 0:
            self._steps = 0
        self._point = step + self._steps / (self._steps + 3) * (step - self._last)
        self._last = step
        self._steps += 1
        weights, outer, risk, self._gradient = self._reduced(self._point)
        return weights, outer, risk

    def _memory(self) -> dict[str, Any]:
        return {"point": self._point, "last": self._last, "gradient": self._gradient, "steps": self._steps}

    def _recall(self, memory: Mapping[str, Any]) -> None:
        names = "point", "last", "gradient"
        self._point, self._last, self._gradient = (memory[name].to(self._point) for name in names)
        self._steps = memory["steps"]
