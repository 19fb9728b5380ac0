"""From the name of a figure to its file: what it is drawn from, what is missing, and where it goes.

``$VARPRO_SEEDS`` (``0`` or ``0-5``) chooses the seeds, by default those of the published figure that are at hand;
``$VARPRO_FIGURES`` is the folder to write to, by default ``figures/``.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from varpro import names, results
from varpro.figures import panels
from varpro.figures.animation import Animation, Film
from varpro.paper import grid, records

Layout = Callable[[grid.Figure, Sequence[int] | None], Figure | Film]


class Publisher:
    """The figures of some ``sections`` of the grid: call it with a name to draw, write and return one.

    Its layouts draw; each is a function ``layout(spec, seeds)`` that is registered by the decorator :meth:`layout`
    and named in the grid. ``seeds`` are those asked for, or None.
    """

    def __init__(self, *sections: str) -> None:
        self.sections = sections
        self._layouts: dict[str, Layout] = {}

    def layout(self, draw: Layout) -> Layout:
        """Register a layout under its own name."""
        self._layouts[draw.__name__] = draw
        return draw

    def __call__(self, name: str) -> Figure | Animation | None:
        """Draw the figure ``name`` from the results at hand, write its file and return it for display.

        Prints a line on what is missing. What is there is drawn; None where that is not enough. Raises ValueError where
        there is no such figure in these sections.
        """
        section, spec = grid.find(name)
        if section not in self.sections:
            raise ValueError(
                f"figure {name!r} is one of section {section}: here are those of {', '.join(self.sections)}"
            )
        if spec.layout not in self._layouts:
            raise ValueError(f"figure {name!r}: there is no layout {spec.layout!r}, only {', '.join(self._layouts)}")
        seeds = requested_seeds()
        lack = missing(section, spec, seeds)
        if lack:
            print(lack)
        if not _enough(spec, seeds):
            return None
        return save(self._layouts[spec.layout](spec, seeds), spec.file)


def folder() -> Path:
    """Where figures go: ``$VARPRO_FIGURES``, or ``figures/`` of the repository."""
    return Path(os.environ.get("VARPRO_FIGURES", names.ROOT / "figures"))


def requested_seeds() -> list[int] | None:
    """The seeds of ``$VARPRO_SEEDS``; None where it is not set."""
    text = os.environ.get("VARPRO_SEEDS", "")
    return grid.parse_seeds(text) if text else None


def save(drawn: Figure | Film, file: str) -> Figure | Animation:
    """Write ``figures/<file>`` and return what a notebook shows; the same data give the same bytes."""
    path = folder() / file
    if isinstance(drawn, Film):
        return drawn.write(path)
    with panels.style(), results.replacing(path) as stream:
        drawn.savefig(stream, format=path.suffix[1:], metadata={"CreationDate": None})
    return drawn


def missing(section: str, spec: grid.Figure, seeds: Sequence[int] | None = None) -> str:
    """One sentence on the results that a figure lacks, with the command that makes them; "" if it lacks none.

    Without ``seeds`` a run is there as soon as one of its seeds is.
    """
    absent = [(f"the diffusion with gamma {d.gamma:g}", d.command()) for d in spec.diffusions if not d.path.exists()]
    for run in spec.runs:
        wanted = spec.seeds[:1] if seeds is None else seeds[:1] if run.deterministic else seeds
        lacking = [seed for seed in wanted if not run.path(seed).exists()]
        if not lacking or (seeds is None and records.seeds_at_hand(run, spec.seeds)):
            continue
        label = f"{run.experiment}, {run.parameters}, seed {grid.ranges(lacking)}"
        absent.append((label, run.command(lacking)))
    if not absent:
        return ""
    (first, command), count = absent[0], len(absent)
    if count == 1:
        return f"Missing for the figure '{spec.name}': {first}; make it with: {command}"
    return (
        f"Missing for the figure '{spec.name}': {count} results (first: {first}); "
        f"make the first with: {command}; make all with: {grid.make_command(section, seeds)}"
    )


def _enough(spec: grid.Figure, seeds: Sequence[int] | None) -> bool:
    """Whether there is anything to draw, or all where the figure needs all."""
    there = [bool(own) for own in records.at_hand(spec, seeds).values()]
    there += [diffusion.path.exists() for diffusion in spec.diffusions]
    return spec.needs == "nothing" or (all(there) if spec.needs == "all" or not there else any(there))
