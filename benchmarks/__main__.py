"""Measure, print the tables, and keep them in ``benchmarks/RESULTS.md`` with the plot ``benchmarks/epoch_time.png``."""

from argparse import ArgumentParser
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks import circle_epochs, gpu_epochs, optimizers, resnet_images, start_up, torus_epochs
from benchmarks.measure import machine
from varpro.figures import panels

FOLDER = Path(__file__).parent


def main() -> None:
    """About twenty minutes on two calm cores."""
    ArgumentParser(description=__doc__).parse_args()
    print(machine(), flush=True)
    epochs, points = circle_epochs.solvers()
    wide, wide_points = circle_epochs.wide()
    torus, gpu = torus_epochs.table(), gpu_epochs.section()
    trials, goals, study = optimizers.cost(), optimizers.goals(), optimizers.study()
    images, loading = resnet_images.table(), resnet_images.first_load()
    stages = start_up.stages()
    text = f"""# Benchmarks

`python -m benchmarks` (or `make bench`) measures this anew and rewrites this file. Solvers take turns in one process
and medians are shown, so the ratios are good where the machine is noisy; the absolute times are those of

{machine()}.

## Time per epoch

The plain loop is PyTorch in float32 with autograd and an LU solve, {circle_epochs.threads()}
(`benchmarks/plain.py`); the linear solver is exact, float64, on one core. The floor is the measured time of the two
chains of dependent operations in an epoch (factorisation and backward sweep) plus the rest of the arithmetic at the
machine's rate of multiply-adds; the gap is how far the solver is above it (`benchmarks/circle_epochs.py`).

{epochs}

## Wide students

VarPro epochs of the linear solver, N = {circle_epochs.SAMPLES}.

{wide}

## Time per epoch on the torus

The plain loop is PyTorch in float32 with autograd and an LU solve on all cores; the cg solver solves every epoch to a
relative residual of 1e-6 (`benchmarks/torus_epochs.py`: Laplace kernel, lambda 1e-3, unbiased).

{torus}

## Images per second of the ResNet

Batch size 128, random images of the shape of CIFAR-10, both loops on all that the machine has. The plain loop has a
DataLoader with two workers and per-sample transforms (`benchmarks/resnet_plain.py`). Ratios are medians over
turns.

{images}

{loading}

{gpu_epochs.HEADING}

{gpu}

## Optimizers on the reduced risk

`benchmarks/optimizers.py`: circle, N = 4096, unbiased, from the paper's start, one thread, times of the process. A
trial of Levenberg-Marquardt is one damped step with the exact solve and the risk at its end.

{trials}

Whole trainings from the paper's start, Levenberg-Marquardt in one compiled call ("fast decay": less damping from the
start; "continued": from lambda 0.1 down). `python -m benchmarks.optimizers goals` makes this table alone.

{goals}

Evaluations and time until the risk, or the distance to the teacher, is that of gradient descent after 32000 epochs, or
1.1 or 2 times it (seed 0). A dash: not reached. "lm, continued" shows states of its last lambda only.

{study}

## A short run from start to end

32000 epochs at M = 32 in a fresh process.

{stages}

`python benchmarks/diffusion_accuracy.py` measures the diffusion solver against finite volumes.
"""
    (FOLDER / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)
    points["linear"] += wide_points
    _plot(points)


def _plot(points: dict[str, list[tuple[int, float]]]) -> None:
    with mpl.rc_context(panels.STYLE):
        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        for (name, values), marker in zip(points.items(), "so", strict=True):
            axes.loglog(*zip(*sorted(values), strict=True), marker=marker, label=name)
        axes.set(xlabel="width M", ylabel="seconds per VarPro epoch")
        axes.legend()
        figure.savefig(FOLDER / "epoch_time.png", dpi=150)


if __name__ == "__main__":
    main()
