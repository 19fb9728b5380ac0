"""Two-timescale gradient descent with the unbiased penalty f(t) = (t - 1)^2/2.

ReLU features on the circle S^1, penalty centre 1, one gradient step of the outer weights per epoch
(paper, Section 6.1). Results go to results/ beside this script, one file per seed; Results_SHL.ipynb draws them.

    python Experiment.py --seed 0 --epochs 32000 --lambda 1e-3 --student_width 1024

Times, by processor, are in benchmarks/RESULTS.md; ``make plan`` says them for this machine.
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take seconds

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from varpro import cli
from varpro.domains.circle import CIRCLE
from varpro.features import ReLUCircle
from varpro.runs.experiment import Choices, perform, runs
from varpro.runs.limits import CIRCLE_DIFFUSION, CIRCLE_PROJECTED
from varpro.runs.options import add_distances, add_outer_rate, add_problem, add_run, add_training
from varpro.runs.schedule import TIME_SCALE

CHOICES = Choices(
    features=ReLUCircle(),  # phi(w, x) = max(w . x, 0), |w| = 1
    centre=1.0,  # penalty (u - 1)^2 / 2: the teacher itself costs nothing
    outer_update="gradient",  # u takes one gradient step per epoch, at rate lam M by default
    limits=(CIRCLE_DIFFUSION, CIRCLE_PROJECTED),  # the features are compared with the first one, and the teacher
)


def parser() -> ArgumentParser:
    """The options of this experiment with its numbers."""
    options = cli.parser(__doc__)
    add_problem(options, CIRCLE, lmbda=1e-3, student_width=1024, gamma=100.0, samples=4096, teacher_width=4096)
    add_training(options, epochs=32000, time_scale=TIME_SCALE)
    add_outer_rate(options)
    add_distances(options, CHOICES.limits)
    add_run(options)
    return options


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """The runs that the options name, one after the other."""
    options = cli.parse(parser(), argv)
    for run in runs(options, CHOICES, folder=Path(__file__).resolve().parent):
        perform(run, progress=options.progress, force=options.force)


if __name__ == "__main__":
    main()
