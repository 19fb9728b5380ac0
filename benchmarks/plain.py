"""The loop that most people would write: the yardstick of the speed tables.

PyTorch, float32, autograd, LU solve, the data in one tensor, all cores.
"""

import torch


class PlainLoop:
    """VarPro (``outer_update="ridge"``) or two-timescale descent (``"gradient"``) with ReLU features on the circle."""

    def __init__(self, inputs, targets, weights, lmbda, centre, time_scale, outer_update) -> None:
        self.inputs, self.targets, self.weights = inputs.float(), targets.float(), weights.float()
        self.lmbda, self.centre, self.time_scale = lmbda, centre, time_scale
        self.ridge = outer_update == "ridge"
        self.outer = self._solve(torch.relu(self.inputs @ self.weights.T))

    def epoch(self) -> None:
        """One epoch: features, solve (or not), loss and gradients by autograd, steps, projection."""
        width = len(self.weights)
        weights = self.weights.requires_grad_()
        features = torch.relu(self.inputs @ weights.T)
        outer = self._solve(features.detach()) if self.ridge else self.outer.requires_grad_()
        residual = features @ outer / width - self.targets
        loss = residual.square().mean() / (2 * self.lmbda) + (outer - self.centre).square().mean() / 2
        gradients = torch.autograd.grad(loss, (weights,) if self.ridge else (weights, outer))
        with torch.no_grad():
            moved = weights - width * self.time_scale * gradients[0]
            self.weights = moved / moved.norm(dim=1, keepdim=True)
            self.outer = outer if self.ridge else outer - self.lmbda * width * gradients[1]
            self.loss = loss.item()

    def _solve(self, features: torch.Tensor) -> torch.Tensor:
        samples, width = features.shape
        matrix = features.T @ features / (samples * width) + self.lmbda * torch.eye(width)
        return torch.linalg.solve(matrix, features.T @ self.targets / samples + self.lmbda * self.centre)
