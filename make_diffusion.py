"""Solve the weighted ultra-fast diffusion on the circle (paper, Section 6.1).

The limit of the unbiased VarPro flow as lambda -> 0 and M -> infinity, from the uniform density to the teacher's.
The densities go to results/ beside this script; the training scripts read them to measure their distance to it.

    python make_diffusion.py --epochs 32000 --gamma 100

Measured on one core: 0.2, 0.4 and 0.8 s for gamma 10, 100 and 1000, after 2.5 s of imports. The file takes 16 MB.
"""

from tqdm import tqdm

from varpro import cli, names
from varpro.domains.circle import CIRCLE
from varpro.runs.limits import CIRCLE_DIFFUSION
from varpro.runs.options import add_diffusion
from varpro.runs.schedule import TIME_SCALE, schedule


def parser():
    """The options of this script."""
    options = cli.parser(__doc__)
    add_diffusion(options, CIRCLE, gamma=100.0, epochs=32000, time_scale=TIME_SCALE, grid_size=4096)
    cli.add_output(options)
    return options


@cli.command
def main(argv=None):
    options = cli.parse(parser(), argv)
    kept = schedule(options.epochs, options.saving_step)
    epochs = kept.snapshot_epochs if options.saving_step else kept.measured_epochs
    with tqdm(total=1.0, desc="diffusion", disable=not options.progress) as bar:
        CIRCLE_DIFFUSION.contents(
            gamma=options.gamma,
            epochs=options.epochs,
            time_scale=options.time_scale,
            snapshot_epochs=epochs,
            folder=options.output or names.directory(),
            grid_size=options.grid_size,
            name=options.name,
            force=options.force,
            progress=lambda done: bar.update(done - bar.n),
        )


if __name__ == "__main__":
    main()
