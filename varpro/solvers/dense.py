"""The ``dense`` solver: any feature map, any number of outputs, any device, by matrices (paper, Section 2)."""

import torch

from varpro.features import FeatureMap
from varpro.problem import Problem
from varpro.ridge import loss, matrix_products, not_definite, predict, solve, solve_unchecked
from varpro.solvers.base import Objective, Reduced, Solver, check_constants

_FLOAT32_LAMBDA = 1e-5  # there float32 runs are 1e-4 off in the weights after 60 epochs


class DenseSolver(Solver[torch.Tensor]):
    """Training by dense matrices, any feature map, any number k of outputs: the ``dense`` solver.

    ``inputs (N, d)`` and ``targets (N, k)`` fix dtype and device. The other arguments are those of
    :class:`varpro.solvers.circle.CircleSolver`, and so is the meaning of its methods, on tensors. With ``tf32``
    products of float32 matrices on CUDA may take that format. Raises ValueError as that class does.
    """

    name, devices, dtypes, takes_tf32 = "dense", ("cuda", "cpu"), ("float32", "float64"), True

    def __init__(
        self,
        feature_map: FeatureMap,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        lmbda: float,
        centre: float,
        time_scale: float,
        outer_update: str,
        *,
        outer_rate: float = 1.0,
        tf32: bool = False,
    ) -> None:
        check_constants(lmbda, centre, outer_update)
        if targets.ndim != 2:
            raise ValueError(f"targets {tuple(targets.shape)} are not allowed: (N, k)")
        self.feature_map, self.inputs, self.targets = feature_map, inputs, targets
        self.lmbda, self.centre, self.time_scale = lmbda, centre, time_scale
        self.outer_update, self.outer_rate, self.tf32 = outer_update, outer_rate, tf32

    @classmethod
    def obstacle(cls, objective: Objective, problem: Problem) -> str:
        return ""

    @classmethod
    def warning(cls, objective: Objective, dtype: str) -> str:
        if dtype != "float32" or objective.lmbda >= _FLOAT32_LAMBDA:
            return ""
        return f"float32 loses digits at --lambda {objective.lmbda:g}; below {_FLOAT32_LAMBDA:g} use --dtype float64"

    @classmethod
    def build(cls, objective: Objective, problem: Problem, *, device: str, dtype: str, tf32: bool) -> "DenseSolver":
        place = {"dtype": getattr(torch, dtype), "device": device}
        inputs, targets = (tensor.to(**place) for tensor in problem.data)
        constants = *objective.constants, objective.outer_update
        return cls(objective.features, inputs, targets, *constants, outer_rate=objective.outer_rate, tf32=tf32)

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in the dtype and on the device of the data."""
        return tensor.to(self.inputs, copy=True)

    def solve(self, weights: torch.Tensor) -> torch.Tensor:
        """Optimal outer weights (M, k) for ``weights (M, d)``."""
        with matrix_products(tf32=self.tf32):
            return self._solved(self.feature_map(weights, self.inputs))

    def reduced(self, weights: torch.Tensor) -> Reduced:
        """R(w) = min_u L at ``weights (M, d)``, its gradient (M, d), and u (M, k)."""
        with matrix_products(tf32=self.tf32):
            features = self.feature_map(weights, self.inputs)
            outer = self._solved(features)
            risk = loss(features, self.targets, outer, self.lmbda, self.centre)
            descent = self._weight_gradient(weights, outer, features, predict(features, outer) - self.targets)
        return Reduced(risk.item(), self.feature_map.domain.tangent(weights, descent / len(weights)), outer)

    def advance(self, weights: torch.Tensor, outer: torch.Tensor, epochs: int) -> torch.Tensor:
        """Train ``weights (M, d)`` and ``outer (M, k)`` in place; returns the losses (epochs,), float64, on the CPU.

        The host waits for the device at the end only; there FloatingPointError is raised where an inner solve failed.
        """
        losses = torch.empty(epochs, dtype=torch.float64, device=weights.device)
        failures = torch.zeros(epochs, dtype=torch.bool, device=weights.device)
        with matrix_products(tf32=self.tf32):
            features = self.feature_map(weights, self.inputs)
            for epoch in range(epochs):
                losses[epoch] = loss(features, self.targets, outer, self.lmbda, self.centre)
                residual = predict(features, outer) - self.targets
                descent = self._weight_gradient(weights, outer, features, residual)
                if self.outer_update == "gradient":
                    outer.sub_(self.outer_rate * self._outer_gradient(outer, features, residual))
                weights.copy_(self.feature_map.domain.project(weights - self.time_scale * descent))
                features = self.feature_map(weights, self.inputs)
                if self.outer_update == "ridge":
                    solution, failed = solve_unchecked(features, self.targets, self.lmbda, self.centre)
                    outer.copy_(solution)
                    failures[epoch] = (failed != 0) & weights.isfinite().all()  # else the loss will say it
        if failures.any():
            raise not_definite(features, self.lmbda)
        return losses.cpu()

    def _solved(self, features: torch.Tensor) -> torch.Tensor:
        """argmin_u L (M, k) at ``features (N, M)``. Raises FloatingPointError where it cannot be had."""
        outer = solve(features, self.targets, self.lmbda, self.centre)
        if not outer.isfinite().all():
            dtype = str(outer.dtype).removeprefix("torch.")
            raise FloatingPointError(f"inner solve: numbers are not finite in {dtype}; use float64 or smaller targets")
        return outer

    def _weight_gradient(
        self, weights: torch.Tensor, outer: torch.Tensor, features: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        """M dL/dw at fixed u: the gradient of the reduced risk where u is optimal (envelope theorem)."""
        cotangent = (residual @ outer.T) / (self.lmbda * residual.numel())
        gradient = self.feature_map.pull_back(weights, self.inputs, features, cotangent)
        if gradient.shape != weights.shape:  # it might be broadcast, and train something else
            found, expected = tuple(gradient.shape), tuple(weights.shape)
            raise ValueError(f"pull_back of {self.feature_map.name} returns {found}; allowed: the weights' {expected}")
        return gradient

    def _outer_gradient(self, outer: torch.Tensor, features: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """lam M dL/du = (phi^T r / N + lam (u - c)) / k: the two-timescale step of the outer weights."""
        outputs = residual.shape[1]
        return (features.T @ residual / len(residual) + self.lmbda * (outer - self.centre)) / outputs
