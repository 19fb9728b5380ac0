"""The inner ridge solve for any feature matrix, and the risk it leaves (paper, Section 2).

    L(u) = (1 / (2 lam)) mean_{i,k} (phi u / M - y)^2 + (1/2) mean_{j,k} (u - c)^2

Writing u = c + delta turns every penalty centre into the centred problem with targets y - phi c / M: where u is
close to c nothing cancels, and a student equal to its teacher gets u = 1 to the last bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from varpro.features import FeatureMap


@contextmanager
def matrix_products(*, tf32: bool) -> Iterator[None]:
    """Whether products of float32 matrices on CUDA may round their factors to TF32 (10 bits) meanwhile."""
    matmul = torch.backends.cuda.matmul
    usual, matmul.fp32_precision = matmul.fp32_precision, "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = usual


def predict(features: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """f = phi u / M: (N, k) from ``features (N, M)`` and ``outer (M, k)``."""
    return features @ outer / features.shape[1]


def solve(features: torch.Tensor, targets: torch.Tensor, lmbda: float, centre: float) -> torch.Tensor:
    """argmin_u L: (M, k), for ``features (N, M)`` and ``targets (N, k)``, by Cholesky in the smaller of N and M.

    Primal: (phi^T phi / (N M) + lam I) delta = phi^T (y - phi c / M) / N.
    Dual, for M > N: (phi phi^T / (N M) + lam I) a = (y - phi c / M) / N, delta = phi^T a.
    Raises FloatingPointError where the matrix is not positive definite in this precision.
    """
    outer, failed = solve_unchecked(features, targets, lmbda, centre)
    if failed.item():
        raise _not_definite(features, lmbda)
    return outer


def solve_unchecked(
    features: torch.Tensor, targets: torch.Tensor, lmbda: float, centre: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`solve` returns, and a scalar on the device that is not zero where it would raise: nothing waits."""
    samples, width = features.shape
    residual = (targets - centre * features.mean(dim=1, keepdim=True)) / samples
    dual = width > samples
    gram = features @ features.T if dual else features.T @ features
    gram.div_(samples * width).diagonal().add_(lmbda)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if dual:
        return centre + features.T @ torch.cholesky_solve(residual, factor), failed
    return centre + torch.cholesky_solve(features.T @ residual, factor), failed


def _not_definite(features: torch.Tensor, lmbda: float) -> FloatingPointError:
    size = min(features.shape)
    return FloatingPointError(
        f"inner solve: the {size} x {size} system is not positive definite in "
        f"{str(features.dtype).removeprefix('torch.')} at lambda {lmbda:g}; use float64 or a larger lambda"
    )


def loss(
    features: torch.Tensor, targets: torch.Tensor, outer: torch.Tensor, lmbda: float, centre: float
) -> torch.Tensor:
    """L(u), a scalar in the dtype of the features."""
    data = (predict(features, outer) - targets).square().mean()
    return data / (2 * lmbda) + (outer - centre).square().mean() / 2


class DenseRoute:
    """Training by dense matrices, any feature map, any number k of outputs: the ``dense`` solver.

    ``inputs (N, d)`` and ``targets (N, k)`` fix dtype and device. The other arguments are those of
    :class:`varpro.circle.LinearRoute`, and so is the meaning of its methods, on tensors. With ``tf32`` products of
    float32 matrices on CUDA may take that format.
    """

    name = "dense"

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
        tf32: bool = False,
    ) -> None:
        self.feature_map, self.inputs, self.targets = feature_map, inputs, targets
        self.lmbda, self.centre, self.time_scale = lmbda, centre, time_scale
        self.outer_update, self.tf32 = outer_update, tf32

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in the dtype and on the device of the data."""
        return tensor.to(self.inputs, copy=True)

    def project(self, weights: torch.Tensor) -> torch.Tensor:
        """Optimal outer weights (M, k) for ``weights (M, d)``."""
        with matrix_products(tf32=self.tf32):
            return solve(self.feature_map.features(weights, self.inputs), self.targets, self.lmbda, self.centre)

    def advance(self, weights: torch.Tensor, outer: torch.Tensor, epochs: int) -> torch.Tensor:
        """Train ``weights (M, d)`` and ``outer (M, k)`` in place; returns the losses (epochs,), float64, on the CPU.

        The host waits for the device at the end only; there FloatingPointError is raised where an inner solve failed.
        """
        losses = torch.empty(epochs, dtype=torch.float64, device=weights.device)
        failures = torch.zeros(epochs, dtype=torch.bool, device=weights.device)
        with matrix_products(tf32=self.tf32):
            features = self.feature_map.features(weights, self.inputs)
            for epoch in range(epochs):
                losses[epoch] = loss(features, self.targets, outer, self.lmbda, self.centre)
                residual = predict(features, outer) - self.targets
                descent = self._weight_gradient(weights, outer, features, residual)
                if self.outer_update == "gradient":
                    outer.sub_(self._outer_gradient(outer, features, residual))
                weights.copy_(self.feature_map.project(weights - self.time_scale * descent))
                features = self.feature_map.features(weights, self.inputs)
                if self.outer_update == "ridge":
                    solution, failed = solve_unchecked(features, self.targets, self.lmbda, self.centre)
                    outer.copy_(solution)
                    failures[epoch] = failed
        if failures.any():
            raise _not_definite(features, self.lmbda)
        return losses.cpu()

    def _weight_gradient(self, weights, outer, features, residual):
        """M dL/dw at fixed u: the gradient of the reduced risk where u is optimal (envelope theorem)."""
        cotangent = (residual @ outer.T) / (self.lmbda * residual.numel())
        return self.feature_map.pull_back(weights, self.inputs, features, cotangent)

    def _outer_gradient(self, outer, features, residual):
        """lam M dL/du = (phi^T r / N + lam (u - c)) / k: the two-timescale step of the outer weights."""
        outputs = residual.shape[1]
        return (features.T @ residual / len(residual) + self.lmbda * (outer - self.centre)) / outputs
