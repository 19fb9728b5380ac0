"""VarPro with the unbiased penalty f(t) = (t - 1)^2/2.

Radial kernels on the torus R^2 / (4 Z)^2, penalty centre 1, outer weights by the inner ridge solve at every epoch
(paper, Appendix B). Results go to results/ beside this script, one file per seed.

    python Experiment.py --seed 0 --epochs 32000 --lambda 1e-3 --student_width 1024

Times, by processor, are in benchmarks/RESULTS.md; ``make plan SECTION=appendix-b`` says them for this machine. With
--device cuda the cg solver runs on the GPU as captured graphs, without a synchronisation per epoch; its time has not
been measured yet.
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take seconds

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from varpro import cli
from varpro.domains.torus import TORUS
from varpro.features import RADIAL_KERNELS, RadialTorus
from varpro.runs.experiment import Choices, perform, runs
from varpro.runs.limits import TORUS_DIFFUSION
from varpro.runs.options import add_activation, add_distances, add_problem, add_run, add_training
from varpro.runs.schedule import TIME_SCALE

LIMITS = (TORUS_DIFFUSION,)  # the features are compared with it, and with the teacher


def choices(options: Namespace) -> Choices:
    """The three choices of this experiment."""
    return Choices(
        features=RadialTorus(RADIAL_KERNELS[options.activation]),  # phi(w, x) = g(|wrap(w - x)|)
        centre=1.0,  # penalty (u - 1)^2 / 2: the teacher itself costs nothing
        outer_update="ridge",  # u solves the inner problem at every epoch
        limits=LIMITS,
    )


def parser() -> ArgumentParser:
    """The options of this experiment with its numbers."""
    options = cli.parser(__doc__)
    add_problem(options, TORUS, lmbda=1e-3, student_width=1024, gamma=100.0, samples=4096, teacher_width=4096)
    add_activation(options, RADIAL_KERNELS)
    add_training(options, epochs=32000, time_scale=TIME_SCALE)
    add_distances(options, LIMITS)
    add_run(options)
    return options


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """The runs that the options name, one after the other."""
    options = cli.parse(parser(), argv)
    for run in runs(options, choices(options), folder=Path(__file__).resolve().parent):
        perform(run, progress=options.progress, force=options.force)


if __name__ == "__main__":
    main()
