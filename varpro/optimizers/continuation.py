"""Continuation in lambda: train at large lambda first, where the risk is smoother, and go down from there."""

from collections.abc import Callable

import torch

from varpro.optimizers.base import Optimizer


def continued(
    start: Callable[[float, torch.Tensor, float], Optimizer],
    weights: torch.Tensor,
    lmbda: float,
    first: float = 0.1,
    leave: float = 0.5,
) -> tuple[Optimizer, int, float]:
    """An optimizer at ``lmbda`` from where optimizers at first, first/10, ... > ``lmbda`` left off.

    ``start(lmbda, weights, tolerance)`` makes an optimizer. Every larger lambda is left as soon as one iteration lowers
    the risk by no more than ``leave`` of itself. Also returns the evaluations and the seconds spent so far.
    """
    evaluations, seconds, stage = 0, 0.0, first
    while stage > lmbda * (1 + 1e-9):
        optimizer = start(stage, weights, leave)
        optimizer.patience = 1
        for _ in optimizer:
            pass
        weights = torch.as_tensor(optimizer.state.weights)
        evaluations, seconds = evaluations + optimizer.state.evaluations, seconds + optimizer.state.seconds
        stage /= 10
    return start(lmbda, weights, 0.0), evaluations, seconds
