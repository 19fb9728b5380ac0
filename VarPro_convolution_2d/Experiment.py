"""VarPro with the biased penalty f(t) = t^2/2.

Radial kernels on the torus R^2 / (4 Z)^2, penalty centre 0, outer weights by the inner ridge solve at every epoch
(paper, Appendix B). Results go to results/ beside this script, one file per seed.

    python Experiment.py --seed 0 --epochs 32000 --lambda 1e-3 --student_width 1024

Times, by processor, are in benchmarks/RESULTS.md; ``make plan SECTION=appendix-b`` says them for this machine. With
--device cuda the cg solver runs on the GPU as captured graphs, without a synchronisation per epoch; its time has not
been measured yet.
"""

from pathlib import Path

from varpro import cli
from varpro.features import RADIAL_KERNELS, RadialTorus
from varpro.runs.experiment import Choices, perform, runs, torus_measure


def choices(options):
    """The three choices of this experiment."""
    return Choices(
        features=RadialTorus(RADIAL_KERNELS[options.activation]),  # phi(w, x) = g(|wrap(w - x)|)
        centre=0.0,  # penalty u^2 / 2
        outer_update="ridge",  # u solves the inner problem at every epoch
    )


def parser():
    """The options of this experiment with its numbers."""
    options = cli.parser(__doc__)
    cli.add_problem(
        options,
        lmbda=1e-3,
        student_width=1024,
        gamma=100.0,
        samples=4096,
        teacher_width=4096,
        gamma_kind=cli.torus_concentration,
    )
    cli.add_activation(options, kernels=list(RADIAL_KERNELS))
    cli.add_training(options, epochs=32000, time_scale=2**-10)
    cli.add_run(options, solvers=("cg", "dense"))
    return options


@cli.command
def main(argv=None):
    options = cli.parse(parser(), argv)
    for run in runs(options, choices(options), folder=Path(__file__).resolve().parent):
        measure = torus_measure(run)  # energy distance to the teacher
        perform(run, measure, progress=options.progress)


if __name__ == "__main__":
    main()
