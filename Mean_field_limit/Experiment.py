"""VarPro near its mean-field limit: infinite data, the teacher's density itself, an equally spaced start.

ReLU features on the circle S^1, or ReLU plus its square, which see every harmonic; penalty (u - 1)^2 / 2, outer weights
by the inner ridge solve at every epoch. What separates the features from the limit of the dynamics is then the width M,
lambda and the time step alone; --samples, --teacher_width and --init bring the paper's choices back, one by one. The
distances are those to the ultra-fast diffusion and to the projected one (docs/limit.md). Results go to results/ beside
this script, one file per seed; Results_mean_field.ipynb draws them.

    python Experiment.py --lambda 1e-6 --student_width 4096 --time_scale 2.44140625e-4
    python Experiment.py --seed 0 1 2 3 4 5 --init random --samples 4096 --teacher_width 4096
    python Experiment.py --features squared_relu_circle --samples 2048 --student_width 256 --dtype float64

Times, by processor, are in benchmarks/RESULTS.md; ``make plan SECTION=mean-field`` says them for this machine.
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take seconds

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from varpro import cli
from varpro.domains.circle import CIRCLE
from varpro.features import ReLUCircle, SquaredReLUCircle
from varpro.runs.experiment import Choices, perform, runs
from varpro.runs.limits import CIRCLE_DIFFUSION, CIRCLE_PROJECTED
from varpro.runs.options import add_distances, add_features, add_problem, add_run, add_training
from varpro.runs.schedule import TIME_SCALE

# phi(w, x) = max(w . x, 0), |w| = 1, whose limit is conjectured to be the projected diffusion; or
# phi(w, x) = max(w . x, 0) + max(w . x, 0)^2, for which it is the plain one
FEATURES = {each.name: each for each in (ReLUCircle(), SquaredReLUCircle())}
CHOICES = Choices(
    features=FEATURES["relu_circle"],
    centre=1.0,  # penalty (u - 1)^2 / 2: the teacher itself costs nothing
    outer_update="ridge",  # u solves the inner problem at every epoch
    limits=(CIRCLE_DIFFUSION, CIRCLE_PROJECTED),  # the features are compared with both, and with the teacher
)


def parser() -> ArgumentParser:
    """The options of this experiment with its numbers."""
    options = cli.parser(__doc__)
    infinite = float("inf")
    add_problem(
        options,
        CIRCLE,
        lmbda=1e-6,
        student_width=1024,
        gamma=100.0,
        samples=infinite,
        teacher_width=infinite,
        init="quantile",
    )
    add_features(
        options, FEATURES, what="ReLU, or ReLU plus its square, which sees all harmonics (dense, finite samples)"
    )
    add_training(options, epochs=32000, time_scale=TIME_SCALE)
    add_distances(options, CHOICES.limits, usual=2)
    add_run(options)
    return options


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """The runs that the options name, one after the other."""
    options = cli.parse(parser(), argv)
    choices = replace(CHOICES, features=FEATURES[options.features])
    for run in runs(options, choices, folder=Path(__file__).resolve().parent):
        perform(run, progress=options.progress, force=options.force)


if __name__ == "__main__":
    main()
