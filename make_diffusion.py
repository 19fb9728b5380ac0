"""Solve an ultra-fast diffusion, the limit of VarPro training (Section 6.1; docs/limit.md, docs/diffusion_2d.md).

It is the limit of the unbiased VarPro flow as lambda -> 0 and M -> infinity, from the uniform density to the teacher's:
on the circle, as in the paper; projected to the harmonics that ReLU features see (--limit projected); or on the torus
of Appendix B (--domain torus). The densities go to results/ beside this script. Training scripts read those with
the usual grid and steps, or make those that they lack, to measure their distance to them.

    python make_diffusion.py --epochs 32000 --gamma 100
    python make_diffusion.py --epochs 32000 --gamma 100 --limit projected
    python make_diffusion.py --epochs 32000 --gamma 100 --domain torus

Measured on one core, after 2.5 s of imports: 0.2, 0.4 and 0.8 s for gamma 10, 100 and 1000 on the circle; at gamma 100
8 s for the projected one and 5 s on the torus. The files take 16, 32 and 37 MB.
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take seconds

from argparse import ArgumentParser
from collections.abc import Sequence

from tqdm import tqdm

from varpro import cli, names
from varpro.runs.limits import LIMITS
from varpro.runs.options import add_diffusion, chosen_limit, chosen_schedule
from varpro.runs.schedule import TIME_SCALE


def parser() -> ArgumentParser:
    """The options of this script."""
    options = cli.parser(__doc__)
    add_diffusion(options, LIMITS, gamma=100.0, epochs=32000, time_scale=TIME_SCALE)
    cli.add_output(options)
    return options


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """The limit that the options name, into a file."""
    options = cli.parse(parser(), argv)
    limit, gamma = chosen_limit(options, LIMITS)
    kept = chosen_schedule(options)
    with tqdm(total=1.0, desc="diffusion", disable=not options.progress) as bar:
        limit.contents(
            gamma=gamma,
            epochs=options.epochs,
            time_scale=options.time_scale,
            snapshot_epochs=kept.snapshot_epochs if options.saving_step else kept.measured_epochs,
            folder=options.output or names.directory(),
            grid_size=options.grid_size,
            name=options.name,
            force=options.force,
            progress=lambda done: bar.update(done - bar.n),
        )


if __name__ == "__main__":
    main()
