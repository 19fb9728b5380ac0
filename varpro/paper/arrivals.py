"""When each way of training has reached what gradient descent reaches in all its epochs: evaluations and seconds.

A mark is a multiple of the last risk, or of the last distance to the teacher, of gradient descent with the same seed.
The first state that is there counts. An evaluation is one inner solve, of which an epoch of gradient descent takes one.
Seconds are evaluations times the :func:`evaluation_seconds` of a method: what one took at the median. So they hold
neither what is loaded once per process nor the moments when something else had the processor.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from varpro.paper import grid, records
from varpro.paper.tables import markdown

MARKS = (("risk", 2.0), ("risk", 1.1), ("risk", 1.0), ("distance", 2.0), ("distance", 1.1), ("distance", 1.0))
_RISING = ("gamma", "lmbda", "width")  # parameters, in the order of the rows of a table


def arrival(way: records.Way, quantity: str, mark: float) -> float | None:
    """Evaluations to the first state of ``way`` whose ``risk`` or ``distance`` is at most ``mark``, or None."""
    there = np.flatnonzero(getattr(way, quantity) <= mark)
    return float(way.evaluations[there[0]]) if len(there) else None


def evaluation_seconds(ways: Iterable[records.Way]) -> float:
    """Seconds an evaluation, with its share of the steps: the median from one kept state to the next, of all ways.

    nan where no way has two states: a run of one epoch.
    """
    steps = [np.diff(way.seconds) / np.diff(way.evaluations) for way in ways]
    every = np.concatenate(steps)
    return float(np.median(every)) if len(every) else math.nan


def reference(run: grid.Run) -> grid.Run:
    """The run of gradient descent on the same problem."""
    options = run.options[: len(run.options) - len(grid.METHODS[run.method].options)]
    return replace(run, epochs=grid.EPOCHS, options=options)


@dataclass(frozen=True)
class Trials:
    """A run and gradient descent on the same problem, with the seeds of both that are at hand: ways by seed."""

    run: grid.Run
    ways: Mapping[int, records.Way]
    descents: Mapping[int, records.Way]

    def arrivals(self, quantity: str, factor: float) -> list[float]:
        """Evaluations to ``factor`` times the last ``quantity`` of gradient descent, of the seeds that get there."""
        marks = {seed: factor * getattr(descent, quantity)[-1] for seed, descent in self.descents.items()}
        found = (arrival(way, quantity, marks[seed]) for seed, way in self.ways.items())
        return [each for each in found if each is not None]

    def last(self, quantity: str) -> np.ndarray:
        """The last risk or distance of every seed."""
        return np.array([getattr(way, quantity)[-1] for way in self.ways.values()])

    def ratios(self, quantity: str) -> np.ndarray:
        """The last risk or distance of every seed, over that of gradient descent."""
        return self.last(quantity) / np.array([getattr(self.descents[s], quantity)[-1] for s in self.ways])


def trials(run: grid.Run, seeds: Sequence[int]) -> Trials:
    """What is at hand of ``run`` with ``seeds``; none where gradient descent is not."""
    descent = reference(run)
    both = [seed for seed in records.seeds_at_hand(run, seeds) if descent.path(seed).exists()]
    return Trials(run, {s: records.way(run, s) for s in both}, {s: records.way(descent, s) for s in both})


def _ordered(wanted: Mapping[grid.Run, Sequence[int]]) -> list[Trials]:
    """The trials at hand, problem by problem, gradient descent first."""
    methods = list(grid.METHODS)

    def place(run: grid.Run) -> tuple:
        return (run.experiment, run.samples, *(getattr(run, name) for name in _RISING), methods.index(run.method))

    found = [trials(run, wanted[run]) for run in sorted(wanted, key=place)]
    return [each for each in found if each.ways]


def table(wanted: Mapping[grid.Run, Sequence[int]], marks: Iterable[tuple[str, float]] = MARKS) -> str:
    """Evaluations and seconds to every mark, of ``wanted`` runs with their seeds: a Markdown table with a note.

    A cell has the median over the seeds that are there, the least and the most, and the seconds of the median.
    """
    marks, rows = list(marks), []
    for each in _ordered(wanted):
        seconds = evaluation_seconds(each.ways.values())
        cells = [_cell(each.arrivals(*mark), len(each.ways), seconds) for mark in marks]
        ends = [f"{np.median(each.last(quantity)):.2g}" for quantity in ("risk", "distance")]
        rows.append([_problem(each.run), name(each.run), str(len(each.ways)), *cells, *ends])
    if not rows:
        return "No results at hand."
    heads = [f"{quantity} x {factor:g}" for quantity, factor in marks]
    note = (
        "Evaluations until the risk, or the distance to the teacher, is at most so many times that of gradient descent "
        "after all its epochs with the same seed: median over the seeds that get there (least to most), how many get "
        "there where not all do, and the seconds of that median. A dash: none does."
    )
    return f"{note}\n\n" + markdown(["problem", "method", "seeds", *heads, "last risk", "last distance"], rows, left=2)


def _cell(found: Sequence[float], seeds: int, seconds: float) -> str:
    if not found:
        return "-"
    low, median, high = min(found), np.median(found), max(found)
    spread = f" ({low:.0f} to {high:.0f})" if high > low else ""
    missed = f", {len(found)} of {seeds}" if len(found) < seeds else ""
    return f"{median:.0f}{spread}{missed}: {_time(median * seconds)}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def lower_risk_but_farther(wanted: Mapping[grid.Run, Sequence[int]]) -> str:
    """Where a method ends with less risk than gradient descent and yet farther from the teacher: a Markdown table."""
    rows = []
    for each in _ordered(wanted):
        risks, distances = each.ratios("risk"), each.ratios("distance")
        farther = (risks < 1) & (distances > 1)
        if farther.any():
            count = f"{farther.sum()} of {len(each.ways)}"
            sizes = [f"{np.median(ratios[farther]):.2g}" for ratios in (risks, distances)]
            rows.append([_problem(each.run), name(each.run), count, *sizes])
    if not rows:
        return "Nowhere, in the results at hand."
    note = "Last risk and last distance over those of gradient descent, medians over the seeds that are concerned."
    return f"{note}\n\n" + markdown(["problem", "method", "seeds", "risk", "distance"], rows, left=2)


def name(run: grid.Run) -> str:
    """The way of training, as shown."""
    return grid.METHODS[run.method].label


def _problem(run: grid.Run) -> str:
    where = "torus, " if run.on_torus else "infinite data, " if math.isinf(run.samples) else ""
    return f"{where}gamma {run.gamma:g}, lambda {run.lmbda:g}, M = {run.width}"
