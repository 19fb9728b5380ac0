"""Time per VarPro epoch on the torus on a GPU: the solver of captured graphs against the plain loop on the same device.

The plain loop is that of :mod:`benchmarks.torus_epochs`, in float32. The solvers take turns, timed by CUDA events over
many epochs from a state that has trained for a while, so that new preconditioners are paid for in the time shown. The
first epochs are compared with the dense solver in float64 on the CPU: small students amplify a difference more than ten
times there, so that float32 says little at M = 32. The times that the host waited are counted, of the dense solver too.
"""

import statistics
import warnings
from collections.abc import Callable, Mapping

import torch

from benchmarks import measure
from benchmarks.torus_epochs import CENTRE, LMBDA, SAMPLES, TIME_SCALE, WARM_UP, WIDTHS, PlainTorusLoop
from varpro.domains.torus import wrap_torus
from varpro.features import LAPLACE, RadialTorus
from varpro.problem import Problem, drawn_problem
from varpro.ridge import matrix_products
from varpro.solvers.dense import DenseSolver
from varpro.solvers.graphs import GraphSolver

EPOCHS = 320  # of the captured solver in a turn
CHECKED = 32  # epochs of the trajectory that is compared with the CPU


def _seconds_by_turns(actions: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median seconds per unit of each action by CUDA events; an action returns how many units it did."""
    for action in actions.values():
        action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            units = action()
            end.record()
            end.synchronize()
            seconds[name].append(begin.elapsed_time(end) / 1e3 / units)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _plain(problem: Problem, epochs: int) -> Callable[[], int]:
    data = (tensor.cuda() for tensor in (problem.inputs, problem.targets[:, 0], problem.student))
    loop = PlainTorusLoop(*data)

    def run() -> int:
        with matrix_products(tf32=False):
            for _ in range(epochs):
                loop.epoch()
        return epochs

    return run


def _solver(problem: Problem, dtype: torch.dtype) -> GraphSolver:
    data = problem.inputs.to("cuda", dtype), problem.targets.cuda()
    return GraphSolver(RadialTorus(LAPLACE), *data, LMBDA, CENTRE, TIME_SCALE)


def _dense(problem: Problem, device: str, dtype: torch.dtype) -> DenseSolver:
    data = (tensor.to(device, dtype) for tensor in (problem.inputs, problem.targets))
    return DenseSolver(RadialTorus(LAPLACE), *data, LMBDA, CENTRE, TIME_SCALE, "ridge")


def _first_epochs(solver: GraphSolver | DenseSolver, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and weights, on the CPU."""
    weights = solver.own(problem.student)
    losses = solver.advance(weights, solver.solve(weights), CHECKED)
    return losses, weights.cpu()


def _deviations(problem: Problem) -> list[str]:
    """Of the GPU to float64 on the CPU: relative, of the losses in float32 and in float64; of weights in float64."""
    expected, exact = _first_epochs(_dense(problem, "cpu", torch.float64), problem)
    single, _ = _first_epochs(_solver(problem, torch.float32), problem)
    losses, weights = _first_epochs(_solver(problem, torch.float64), problem)
    differences = (single / expected - 1, losses / expected - 1, wrap_torus(weights - exact))
    return [f"{float(difference.abs().max()):.1e}" for difference in differences]


def _waits(run: Callable[[], int]) -> float:
    """How often an epoch of ``run`` makes the host wait for the device, as PyTorch notices it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epochs = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught) / epochs


def _row(width: int, rounds: int) -> list[str]:
    problem = drawn_problem(RadialTorus(LAPLACE), 0, SAMPLES, width, 4096, 100.0)
    solver, dense = _solver(problem, torch.float32), _dense(problem, "cuda", torch.float32)
    weights = solver.own(problem.student)
    outer = solver.solve(weights)
    solver.advance(weights, outer, WARM_UP)

    def run() -> int:
        solver.advance(weights, outer, EPOCHS)
        return EPOCHS

    def run_dense() -> int:
        _first_epochs(dense, problem)
        return CHECKED

    before = solver.report()
    seconds = _seconds_by_turns({"plain": _plain(problem, 32), "graph": run}, rounds)
    after = solver.report()
    epochs = after["epochs"] - before["epochs"]
    return [
        str(width),
        str(SAMPLES),
        f"{seconds['plain'] * 1e3:.3g} ms",
        f"{seconds['graph'] * 1e3:.3g} ms",
        f"{seconds['plain'] / seconds['graph']:.1f}",
        f"{(after['steps'] - before['steps']) / epochs:.2f}",
        f"{1e3 * (after['factorisations'] - before['factorisations']) / epochs:.1f}",
        f"{_waits(run):.2f}",
        f"{_waits(run_dense):.2f}",
        f"{after['worst_residual']:.1e}",
        *_deviations(problem),
    ]


def table(rounds: int = 5) -> str:
    """The table of VarPro epochs on the GPU at hand, or one line where there is none."""
    if not torch.cuda.is_available():
        return "not measured: no CUDA device here"
    rows = []
    for width in WIDTHS:
        rows.append(_row(width, rounds))
        print(" ".join(rows[-1]), flush=True)
    header = ["M", "N", "plain loop", "captured", "ratio", "steps", "factors per 1000 epochs"]
    header += ["waits per epoch", "of the dense solver", "largest residual"]
    header += ["losses, float32", "losses, float64", "weights, float64"]
    return f"{torch.cuda.get_device_name()}\n\n{measure.table(header, rows)}"


if __name__ == "__main__":
    print(table())
