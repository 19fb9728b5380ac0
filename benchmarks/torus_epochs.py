"""Time per VarPro epoch on the torus: the compiled solver with warm conjugate gradients against the plain loop.

The plain loop is PyTorch in float32 with autograd and an LU solve on all cores, the data in one tensor. The two take
turns; the compiled solver is timed over many epochs from a state that has trained for a while, so that its new
preconditioners are paid for in the time shown.
"""

import torch

from benchmarks import measure
from varpro.features import LAPLACE, RadialTorus
from varpro.paper.tables import markdown
from varpro.problem import drawn_problem
from varpro.runs.schedule import TIME_SCALE
from varpro.solvers.torus import TorusSolver

SAMPLES = 4096
LMBDA, CENTRE = 1e-3, 1.0
WIDTHS = (32, 128, 512, 1024)
WARM_UP = 200  # epochs before the clock starts


def _wrap(z: torch.Tensor) -> torch.Tensor:
    return torch.remainder(z + 2, 4) - 2


class PlainTorusLoop:
    """The loop that most people would write, for the Laplace kernel."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        self.inputs, self.targets, self.weights = inputs.float(), targets.float(), weights.float()

    def epoch(self) -> None:
        """One epoch: features, solve, loss and gradient by autograd, step, wrap."""
        width = len(self.weights)
        weights = self.weights.requires_grad_()
        features = 8 * torch.exp(-2 * _wrap(self.inputs[:, None] - weights).norm(dim=2))
        outer = self._solve(features.detach())
        residual = features @ outer / width - self.targets
        loss = residual.square().mean() / (2 * LMBDA) + (outer - CENTRE).square().mean() / 2
        (gradient,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            self.weights = _wrap(weights - width * TIME_SCALE * gradient)
            self.loss = loss.item()

    def _solve(self, features: torch.Tensor) -> torch.Tensor:
        samples, width = features.shape
        matrix = features.T @ features / (samples * width) + LMBDA * torch.eye(width, device=features.device)
        return torch.linalg.solve(matrix, features.T @ self.targets / samples + LMBDA * CENTRE)


def _plain(problem, epochs: int):
    loop = PlainTorusLoop(problem.inputs, problem.targets, problem.student)

    def run() -> int:
        for _ in range(epochs):
            loop.epoch()
        return epochs

    return run


def _compiled(problem, epochs: int):
    solver = TorusSolver("laplace", problem.inputs.numpy(), problem.targets[:, 0].numpy(), LMBDA, CENTRE, TIME_SCALE)
    weights = solver.own(problem.student)
    outer = solver.solve(weights)
    solver.advance(weights, outer, WARM_UP)

    def run() -> int:
        solver.advance(weights, outer, epochs)
        return epochs

    return solver, run


def table(rounds: int = 5) -> str:
    """The table of VarPro epochs, with what the inner solves took per epoch."""
    rows = []
    for width in WIDTHS:
        problem = drawn_problem(RadialTorus(LAPLACE), 0, SAMPLES, width, 4096, 100.0)
        solver, run = _compiled(problem, 200)
        before = solver.report()
        seconds = measure.by_turns({"plain": _plain(problem, max(2, 256 // width)), "cg": run}, rounds)
        after = solver.report()
        solves = after["solves"] - before["solves"]
        factorisations = after["factorisations"] - before["factorisations"]
        rows.append(
            [
                str(width),
                str(SAMPLES),
                f"{seconds['plain'] * 1e3:.3g} ms",
                f"{seconds['cg'] * 1e3:.3g} ms",
                f"{seconds['plain'] / seconds['cg']:.0f}",
                f"{(after['steps'] - before['steps']) / solves:.2f}",
                f"{solves / factorisations:.0f}" if factorisations else "none",
                f"{after['worst_residual']:.1e}",
            ]
        )
        print(" ".join(rows[-1]), flush=True)
    header = ["M", "N", "plain loop", "cg solver", "ratio", "steps", "epochs per factor", "largest residual"]
    return markdown(header, rows)


if __name__ == "__main__":
    print(table())
