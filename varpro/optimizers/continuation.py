"""Continuation in lambda: train at large lambda first, where the risk is smoother, and go down from there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from varpro.optimizers.base import Optimizer
from varpro.problem import Problem
from varpro.solvers.base import Objective, Solver


def continued(
    kind: type[Optimizer],
    build: Callable[[Objective], Solver[Any]],
    objective: Objective,
    problem: Problem,
    *,
    first: float = 0.1,
    leave: float = 0.5,
    tolerance: float = 0.0,
) -> Optimizer:
    """An optimizer of ``kind`` for ``objective``, from where those at first, first / 10, ... > lambda left off.

    ``build`` makes the solver of an objective. A larger lambda is left as soon as one iteration lowers the risk by no
    more than ``leave`` of itself. What those trainings took is counted.
    """
    evaluations, seconds, lmbda = 0, 0.0, first
    while lmbda > objective.lmbda * (1 + 1e-9):
        stage = replace(objective, lmbda=lmbda)
        optimizer = kind(build(stage), stage, problem, tolerance=leave, patience=1)
        for _ in optimizer:
            pass
        evaluations, seconds = evaluations + optimizer.state.evaluations, seconds + optimizer.state.seconds
        problem = replace(problem, student=torch.as_tensor(optimizer.state.weights).cpu().double())
        lmbda /= 10
    optimizer = kind(build(objective), objective, problem, tolerance=tolerance)
    optimizer.add_cost(evaluations, seconds)
    return optimizer
