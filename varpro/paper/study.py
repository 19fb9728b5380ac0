"""The numbers of the study of the limit (docs/limit.md, 7): distances at times, slopes, growth rates, the answer.

Times t are epochs times the time scale: those of the limits, whatever the time step of a run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from varpro import results
from varpro.domains.circle import CIRCLE
from varpro.paper import grid, records
from varpro.paper.tables import markdown

TIMES = (0.25, 1.0, 4.0)  # the shock of the projected diffusion forms at the first one
_CONFIDENCE = 0.95


# --- distances and states at times --------------------------------------------------------------------------------


def distances(run: grid.Run, seeds: Sequence[int], limit: str) -> tuple[np.ndarray, np.ndarray]:
    """(times (E,), energy distances (seeds, E)) of the features of ``run`` to the limit of that name."""
    epochs, values = records.curves(run, seeds, f"distance_{limit}")
    return epochs * run.time_scale, values


def distances_at(run: grid.Run, seeds: Sequence[int], limit: str, times: Sequence[float]) -> np.ndarray:
    """(seeds, times): :func:`distances` at the measured times next to ``times``; nan beyond the end of the run."""
    measured, values = distances(run, seeds, limit)
    found = values[:, [int(np.abs(measured - time).argmin()) for time in times]]
    return np.where(np.asarray(times) > measured[-1] * (1 + 1e-9), np.nan, found)


@dataclass(frozen=True)
class States:
    """The snapshots of one result: ``times (S,)``, ``weights (S, M, 2)``, ``outer (S, M)``."""

    times: np.ndarray
    weights: np.ndarray
    outer: np.ndarray

    def place(self, time: float) -> int | None:
        """The snapshot at ``time``; None where there is none within half a snapshot's distance of it."""
        nearest = int(np.abs(self.times - time).argmin())
        return nearest if abs(self.times[nearest] - time) <= 0.5 * self.times[1] else None


def states(run: grid.Run, seed: int) -> States:
    """The snapshots of a result. Raises ResultError where it is not at hand."""
    contents = records.result(run, seed)
    names = ("snapshot_epochs", "weights", "outer")
    epochs, weights, outer = (contents[name].numpy().astype(np.float64) for name in names)
    return States(epochs * run.time_scale, weights, outer)


def gap(one: States, other: States, time: float) -> float:
    """Energy distance between the features of two results at ``time``; nan where one of them has no snapshot there."""
    places = one.place(time), other.place(time)
    if None in places:
        return math.nan
    measures = [CIRCLE.measure(each.weights[place]) for each, place in zip((one, other), places, strict=True)]
    return measures[0].energy_distance(measures[1])


def between_limits(times: Sequence[float], run: grid.Run) -> np.ndarray:
    """Energy distances (times,) of the projected diffusion from the plain one, both as ``run`` is compared with them;
    nan after its end."""
    contents = [results.load(run.limit(name).path) for name in grid.BOTH_LIMITS]
    ends = contents[0]["snapshot_epochs"].numpy() * run.time_scale

    def at(time: float) -> float:
        if time > ends[-1] * (1 + 1e-9):
            return math.nan
        place = int(np.abs(ends - time).argmin())
        one, other = (CIRCLE.measure(c["grid"].numpy(), c["density"][place].numpy()) for c in contents)
        return one.energy_distance(other)

    return np.array([at(time) for time in times])


# --- slopes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """d log y / d log x by least squares: mean over seeds, with half the width of the 95 % interval (nan for one)."""

    value: float
    margin: float

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if math.isnan(self.margin) else f" ± {self.margin:.2f}")


def slope(x: np.ndarray, y: np.ndarray) -> Slope:
    """The slope of ``y (seeds, n)`` over ``x (n,)`` on logarithmic axes, one fit for each seed.

    The interval is Student's, over the slopes of the seeds. Values that are not positive and finite are left out.
    """
    fits = []
    for row in np.atleast_2d(y):
        good = np.isfinite(row) & (row > 0)
        fits.append(np.polyfit(np.log(x[good]), np.log(row[good]), 1)[0] if good.sum() > 1 else math.nan)
    count = len(fits)
    if count == 1:
        return Slope(float(fits[0]), math.nan)
    quantile = stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1)
    return Slope(float(np.mean(fits)), float(quantile * np.std(fits, ddof=1) / math.sqrt(count)))


# --- the outer step of two-timescale descent ----------------------------------------------------------------------


def largest_eigenvalue(weights: np.ndarray) -> float:
    """The largest eigenvalue of phi^T phi / (N M) for infinitely many Gaussian inputs and ReLU at ``weights (M, 2)``.

    The arc-cosine kernel of degree one over M (docs/linear_time_relu.md, 9).
    """
    cosines = np.clip(weights @ weights.T, -1, 1)
    angles = np.arccos(cosines)
    kernel = (np.sin(angles) + (math.pi - angles) * cosines) / (2 * math.pi)
    return float(np.linalg.eigvalsh(kernel)[-1] / len(weights))


_EXCESS = (0.2, 200.0)  # times the first loss: above round-off and the slow drift of the features, below saturation


def growth(loss: np.ndarray) -> float:
    """The factor by which the error of u grows in an epoch, from the risks ``loss (E,)`` of a run; 1 where it does not.

    The excess of the risk over its first value is a square of that error. The fit takes the epochs at which it has
    passed the first value and has not yet grown enough to move the features.
    """
    excess = loss / loss[0] - 1
    begin = int(np.argmax(excess > _EXCESS[0])) if (excess > _EXCESS[0]).any() else len(loss)
    end = begin + int(np.argmax(excess[begin:] > _EXCESS[1])) if (excess[begin:] > _EXCESS[1]).any() else len(loss)
    if end - begin < 3:
        return 1.0
    return math.exp(np.polyfit(np.arange(begin, end), np.log(excess[begin:end]), 1)[0] / 2)


# --- the answer ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rung:
    """One configuration on the way from the paper's to the limit: its name, and which limit is measured to."""

    label: str
    run: grid.Run
    limit: str


def _ladder() -> grid.Figure:
    return grid.find("mean_field_ladder")[1]


def ladder(lmbda: float) -> list[Rung]:
    """From the paper's configuration at ``lmbda`` to the limit; each rung changes one thing more."""
    paper, spread, infinite = (run for run in _ladder().runs if run.lmbda == lmbda)
    return [
        Rung("as in the paper, to the plain diffusion", paper, "diffusion"),
        Rung("... to the projected diffusion", paper, "projected"),
        Rung("... from an equally spaced start", spread, "projected"),
        Rung("... with infinite data and teacher", infinite, "projected"),
        Rung("... with lambda 1e-6", _ladder().runs[-1], "projected"),
    ]


_CAUSES = (
    "the limit they are measured to",
    "the random start",
    "the finite data and teacher",
    "lambda",
    "what is left",
)
ANSWER_TIMES = (0.1, 0.25, 1.0, 4.0, 31.25)


def climb(lmbda: float, seeds: Mapping[grid.Run, Sequence[int]], times: Sequence[float]) -> np.ndarray:
    """(rungs, times): mean distance over ``seeds`` of every rung of :func:`ladder`."""
    rungs = ladder(lmbda)
    return np.stack([distances_at(rung.run, seeds[rung.run], rung.limit, times).mean(axis=0) for rung in rungs])


def answer(seeds: Sequence[int] | None = None) -> str:
    """What the distances to the diffusion of the paper's configuration are limited by, in Markdown, from result files.

    ``seeds`` are those at hand by default. "" where results are lacking or end too early.
    """
    at_hand = records.at_hand(_ladder(), seeds)
    paper = _ladder().runs[0]
    if not all(at_hand.values()) or not all(paper.limit(name).path.exists() for name in grid.BOTH_LIMITS):
        return ""
    if min(ANSWER_TIMES) > grid.EPOCHS * grid.TIME_SCALE:
        return ""
    lines = []
    for lmbda in (1e-3, 1e-4):
        values = climb(lmbda, at_hand, ANSWER_TIMES)
        there = np.isfinite(values[0])
        times = [time for time, good in zip(ANSWER_TIMES, there, strict=True) if good]
        values, apart = values[:, there], between_limits(times, paper)
        averaged = grid.ranges(at_hand[ladder(lmbda)[0].run])
        lines += [f"Width {grid.WIDEST}, lambda {lmbda:g}, mean over seeds {averaged}:", ""]
        header = ["distance of the features", *(f"t = {time:g}" for time in times)]
        labels = [*(rung.label for rung in ladder(lmbda)), "(of the two limits from each other)"]
        rows = zip(labels, [*values, apart], strict=True)
        cells = [[label, *(f"{value:.4f}" for value in row)] for label, row in rows]
        lines += [markdown(header, cells, left=len(header))]
        drops = np.vstack([values[:-1] ** 2 - values[1:] ** 2, values[-1:] ** 2]) / values[0] ** 2
        causes = [_CAUSES[index] for index in drops.argmax(axis=0)]
        shares = drops.max(axis=0)
        said = [
            f"{cause} at t = {time:g} ({share:.0%})" for time, cause, share in zip(times, causes, shares, strict=True)
        ]
        lines += ["", f"Most of the squared distance at lambda {lmbda:g} goes with {', '.join(said)}.", ""]
    lines += [
        "A share is the fall of the squared distance at that step over its first value; it exceeds 100% where another"
    ]
    lines[-1] += " step raises the distance."
    return "\n".join(lines)
