"""VarPro with the biased penalty f(t) = t^2/2.

ReLU features on the circle S^1, penalty centre 0, outer weights by the inner ridge solve at every epoch
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
from varpro.runs.options import add_distances, add_problem, add_run, add_training
from varpro.runs.schedule import TIME_SCALE

CHOICES = Choices(
    features=ReLUCircle(),  # phi(w, x) = max(w . x, 0), |w| = 1
    centre=0.0,  # penalty u^2 / 2
    outer_update="ridge",  # u solves the inner problem at every epoch
    limits=(CIRCLE_DIFFUSION, CIRCLE_PROJECTED),  # the features are compared with the first one, and the teacher
)


def parser() -> ArgumentParser:
    """The options of this experiment with its numbers."""
    options = cli.parser(__doc__)
    add_problem(options, CIRCLE, lmbda=1e-3, student_width=1024, gamma=100.0, samples=4096, teacher_width=4096)
    add_training(options, epochs=32000, time_scale=TIME_SCALE)
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
