"""What a GPU gives: VarPro epochs on the torus and passes of the ResNet, measured into a section of RESULTS.md.

    python -m benchmarks.gpu_epochs           # on a GPU; no row is begun after 6.5 minutes, and each is written at once
    python -m benchmarks.gpu_epochs --trial   # the same at tiny sizes on any machine; nothing is written

On the torus take turns: captured epochs by fused kernels and by tensors, the plain loop of
:mod:`benchmarks.torus_epochs` on the same device, and the compiled solver on the processor beside it, all in float32.
All but the plain loop go on from a state that has trained for a while, so that new preconditioners are paid for in the
time shown. The first epochs are compared with the dense solver in float64 on the CPU: small students amplify a
difference more than ten times there, so that float32 says little at M = 32.

With the ResNet, passes over images of the shape of CIFAR-10 are timed, with augmentation and test: a training of three
passes less one of a single pass, so that captures and choices of algorithms are in neither. The plain loop has two
loading workers and PyTorch's own precision.
"""

import argparse
import copy
import re
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.resnet_plain import PlainLoop
from benchmarks.torus_epochs import CENTRE, LMBDA, TIME_SCALE, PlainTorusLoop
from varpro.domains.torus import wrap_torus
from varpro.features import LAPLACE, RadialTorus
from varpro.paper.tables import markdown
from varpro.problem import Problem, drawn_problem
from varpro.ridge import matrix_products
from varpro.solvers.base import Solver
from varpro.solvers.dense import DenseSolver
from varpro.solvers.epochs import TensorEpoch
from varpro.solvers.graphs import GraphSolver
from varpro.solvers.torus import TorusSolver
from VarPro_resnet.cifar import synthetic
from VarPro_resnet.Experiment import OPTIMIZERS, parser, step
from VarPro_resnet.resnet import ResNet20
from VarPro_resnet.runs import memory_format, parse
from VarPro_resnet.training import Plan, train

RESULTS = Path(__file__).parent / "RESULTS.md"
HEADING = "## On a GPU"
CHECKED = 32  # epochs of the trajectory that is compared with the CPU
MINUTES = 6.5  # after which no further row is begun
_AWAKE_CYCLES = 400_000_000  # of the device: some tenths of a second
ARITHMETIC = {"float32": [], "TF32": ["--tf32"], "bfloat16": ["--mixed_precision"]}
CONSTANTS = LMBDA, CENTRE, TIME_SCALE


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and where."""

    device: str
    samples: int
    widths: tuple[int, ...]  # the telling ones first, in case that time runs out
    epochs: int  # of solvers in a turn
    warm_up: int  # epochs before the clock starts
    plain: int  # epochs, and steps, of plain loops in a turn
    images: int
    batch: int
    arithmetic: tuple[str, ...]
    rounds: int


FULL = Sizes("cuda", 4096, (1024, 32, 512, 128), 640, 200, 32, 50_000, 128, ("float32", "bfloat16", "TF32"), 3)
TRIAL = Sizes("cpu", 200, (8,), 8, 8, 2, 20, 8, ("float32",), 1)


# --- epochs on the torus -----------------------------------------------------------------------------------------


def _then_wait(action: Callable[[], None], units: int) -> Callable[[], int]:
    """``action`` and the end of what it launched, for a clock of the host; returns how many ``units`` it did."""

    def run() -> int:
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return units

    return run


def _wake() -> None:
    """Let the device leave the low clock that it has taken while the host worked, and wait for that."""
    if torch.cuda.is_available():
        torch.cuda._sleep(_AWAKE_CYCLES)
        torch.cuda.synchronize()


def _plain(problem: Problem, sizes: Sizes) -> Callable[[], None]:
    data = (tensor.to(sizes.device) for tensor in (problem.inputs, problem.targets[:, 0], problem.student))
    loop = PlainTorusLoop(*data)

    def run() -> None:
        with matrix_products(tf32=False):
            for _ in range(sizes.plain):
                loop.epoch()

    return run


def _trained(solver: Solver, problem: Problem, sizes: Sizes) -> Callable[[], None]:
    """``epochs`` of ``solver`` from a state that has trained: every turn, and every solver, the same ones."""
    weights = solver.own(problem.student)
    outer = solver.solve(weights)
    solver.advance(weights, outer, sizes.warm_up)
    return lambda: solver.advance(copy.deepcopy(weights), copy.deepcopy(outer), sizes.epochs)


def _graphs(problem: Problem, sizes: Sizes, dtype: torch.dtype, kind: type | None = None) -> GraphSolver:
    data = problem.inputs.to(sizes.device, dtype), problem.targets.to(sizes.device)
    return GraphSolver(RadialTorus(LAPLACE), *data, *CONSTANTS, kind=kind)


def _first_epochs(solver: Solver, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and weights, on the CPU."""
    weights = solver.own(problem.student)
    losses = solver.advance(weights, solver.solve(weights), CHECKED)
    return losses, weights.cpu()


def _deviations(problem: Problem, sizes: Sizes) -> list[str]:
    """Of the device to float64 on the CPU: relative, of the losses in float32 and in float64; of weights in float64."""
    data = problem.inputs.double(), problem.targets.double()
    expected, exact = _first_epochs(DenseSolver(RadialTorus(LAPLACE), *data, *CONSTANTS, "ridge"), problem)
    single, _ = _first_epochs(_graphs(problem, sizes, torch.float32), problem)
    losses, weights = _first_epochs(_graphs(problem, sizes, torch.float64), problem)
    differences = (single / expected - 1, losses / expected - 1, wrap_torus(weights - exact))
    return [f"{float(difference.abs().max()):.1e}" for difference in differences]


def _waits(run: Callable[[], None], epochs: int) -> float:
    """How often an epoch of ``run`` makes the host wait for the device, as PyTorch notices it."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught) / epochs


EPOCHS_HEADER = ["M", "N", "plain loop", "CPU route", "tensors", "fused", "plain / fused", "steps", "epochs per factor"]
EPOCHS_HEADER += ["waits", "largest residual", "losses, float32", "losses, float64", "weights, float64"]


def _epochs_row(width: int, sizes: Sizes) -> list[str]:
    problem = drawn_problem(RadialTorus(LAPLACE), 0, sizes.samples, width, sizes.samples, 100.0)
    best = _graphs(problem, sizes, torch.float32)
    data = problem.inputs.numpy(), problem.targets[:, 0].numpy()
    solvers = {"cpu": TorusSolver("laplace", *data, *CONSTANTS), "best": best}
    if best.kind is not TensorEpoch:
        solvers["tensors"] = _graphs(problem, sizes, torch.float32, TensorEpoch)
    runs = {name: _trained(solver, problem, sizes) for name, solver in solvers.items()}
    before = best.report()
    actions = {name: _then_wait(run, sizes.epochs) for name, run in runs.items()}
    actions["plain"] = _then_wait(_plain(problem, sizes), sizes.plain)
    seconds = measure.by_turns(actions, sizes.rounds, _wake)
    effort = {name: count - before[name] for name, count in best.report().items()}
    fused, tensors = (seconds["best"], seconds["tensors"]) if "tensors" in seconds else (None, seconds["best"])
    return [
        str(width),
        str(sizes.samples),
        *(f"{value * 1e3:.3g} ms" for value in (seconds["plain"], seconds["cpu"], tensors)),
        f"{fused * 1e3:.3g} ms" if fused else "none",
        f"{seconds['plain'] / fused:.1f}" if fused else "none",
        f"{effort['steps'] / effort['epochs']:.2f}",
        f"{effort['epochs'] / effort['factorisations']:.0f}" if effort["factorisations"] else "none",
        f"{_waits(runs['best'], sizes.epochs):.2f}",
        f"{best.report()['worst_residual']:.1e}",
        *_deviations(problem, sizes),
    ]


# --- passes of the ResNet ----------------------------------------------------------------------------------------


def _training(optimizer: str, arithmetic: str, replay: bool, sizes: Sizes) -> Callable[[int], float]:
    """Seconds of a training of so many passes."""
    batch = ["--batch_size", str(sizes.batch), "--device", sizes.device]
    options = parse(parser(optimizer), [*batch, *ARITHMETIC[arithmetic]], OPTIMIZERS, optimizer)
    images = synthetic(sizes.images, sizes.images // 5).to(sizes.device)
    layout = memory_format(options.device, options.mixed_precision or options.tf32)

    def run(passes: int) -> float:
        network = ResNet20().to(options.device)
        plan = Plan(sizes.images, sizes.batch, passes, 0)
        begin = time.perf_counter()
        take = step(network, options)
        train(
            take,
            images,
            plan,
            seed=0,
            memory_format=layout,
            tf32=options.tf32,
            threads=torch.get_num_threads(),
            replay=replay,
        )
        return time.perf_counter() - begin

    return run


def _plain_rate(optimizer: str, sizes: Sizes) -> float:
    """Images per second of the plain loop."""
    numbers = OPTIMIZERS[optimizer]
    loop = PlainLoop(optimizer, synthetic(sizes.images, 10), sizes.batch, LMBDA, numbers.time_scale, numbers.momentum)
    run = _then_wait(lambda: loop.steps(sizes.plain), sizes.plain * sizes.batch)
    return 1 / measure.by_turns({"plain": run}, sizes.rounds)["plain"]


PASSES_HEADER = ["optimizer", "precision", "plain loop, images/s", "eager", "captured", "captured / plain"]


def _passes_row(optimizer: str, arithmetic: str, plain: float, sizes: Sizes) -> list[str]:
    trainings = {replay: _training(optimizer, arithmetic, replay, sizes) for replay in (False, True)}
    times: dict[bool, list[float]] = {replay: [] for replay in trainings}
    for run in trainings.values():
        run(1)  # algorithms are chosen by trial
    for _ in range(sizes.rounds):
        for replay, run in trainings.items():
            times[replay].append((run(3) - run(1)) / 2)
    eager, captured = (sizes.images / statistics.median(times[replay]) for replay in (False, True))
    return [optimizer, arithmetic, f"{plain:.0f}", f"{eager:.0f}", f"{captured:.0f}", f"{captured / plain:.1f}"]


# --- the section -------------------------------------------------------------------------------------------------


def recorded() -> str:
    """The section of RESULTS.md as it stands, without its heading."""
    whole = RESULTS.read_text(encoding="utf-8")
    found = re.search(rf"^{HEADING}\n\n(.*?)\n*(?=^## |\Z)", whole, re.MULTILINE | re.DOTALL)
    return found.group(1)


def _record(text: str) -> None:
    whole = RESULTS.read_text(encoding="utf-8")
    RESULTS.write_text(whole.replace(f"{HEADING}\n\n{recorded()}", f"{HEADING}\n\n{text}"), encoding="utf-8")


def section(sizes: Sizes = FULL, note: Callable[[str], None] = _record) -> str:
    """The section as measured here, which ``note`` gets after every row; the one that stands, without a GPU."""
    if sizes.device == "cuda" and not torch.cuda.is_available():
        return recorded()
    begin = time.monotonic()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a trial"
    epochs: list[list[str]] = []
    passes: list[list[str]] = []
    plain: dict[str, float] = {}

    def rate(optimizer: str) -> float:
        if optimizer not in plain:
            plain[optimizer] = _plain_rate(optimizer, sizes)
        return plain[optimizer]

    plans = [(epochs, lambda width=width: _epochs_row(width, sizes)) for width in sizes.widths]
    for arithmetic in sizes.arithmetic:
        for optimizer in ("sgdm", "varprom"):
            arguments = optimizer, arithmetic
            plans.append((passes, lambda of=arguments: _passes_row(*of, rate(of[0]), sizes)))
    text = ""
    for rows, measured in plans:
        if time.monotonic() - begin > 60 * MINUTES:
            print(f"stopped after {MINUTES:g} minutes", flush=True)
            break
        rows.append(measured())
        print(f"{time.monotonic() - begin:4.0f} s  {' '.join(rows[-1])}", flush=True)
        text = f"""{card}; beside it {measure.machine()}.

VarPro epochs on the torus (Laplace kernel, lambda 1e-3, unbiased), float32, relative residual 1e-6; with the steps of
conjugate gradients in an epoch, the times that the host waits in one, and how far the first {CHECKED} epochs are from
float64 on the CPU.

{markdown(EPOCHS_HEADER, epochs)}

Images per second of the ResNet at batch {sizes.batch}, augmentation and test included.

{markdown(PASSES_HEADER, passes)}"""
        note(text)
    return text


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trial", action="store_true", help="tiny sizes on the CPU; nothing is written")
    if options.parse_args().trial:
        torch.set_num_threads(1)
        print(section(TRIAL, lambda text: None))
    else:
        print(section())
