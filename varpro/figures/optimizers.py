"""The layouts of the study of optimizers on the reduced risk."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varpro.figures import panels
from varpro.figures.circle import angle_axis
from varpro.figures.panels import TEACHER_LOOK
from varpro.figures.publish import Publisher
from varpro.paper import arrivals, grid, records

publish = Publisher("optimizers")

_QUANTITIES = {"risk": "risk", "distance": "distance to the teacher"}
_COSTS = {"evaluations": "evaluations (inner solves)", "seconds": "seconds"}
_REFERENCE_LOOK = {"color": "0.55", "linewidth": 0.8, "linestyle": (0, (1, 2))}
_MARKS = (("risk", 1.0), ("distance", 2.0))
_POINTS = 300  # of a line
_SYMBOLS = {"width": "width M", "lmbda": r"$\lambda$"}


def _at_hand(spec: grid.Figure, seeds: Sequence[int] | None) -> list[arrivals.Trials]:
    trials = (arrivals.trials(run, spec.chosen(seeds)) for run in spec.runs)
    return [each for each in trials if each.ways]


def _legend(
    figure: Figure, spec: grid.Figure, shown: Sequence[arrivals.Trials], last: dict, statistic: str = "median"
) -> None:
    methods = [name for name in grid.METHODS if any(each.run.method == name for each in shown)]
    entries = [(grid.METHODS[name].label, {"color": grid.METHODS[name].colour}) for name in methods]
    seeds = [tuple(each.ways) for each in shown]
    note = panels.seed_note(seeds, band=statistic == "median", statistic=statistic)
    data = ", infinite data" if all(math.isinf(run.samples) for run in spec.runs) else ""
    panels.legend(figure, [*entries, *last.items()], f"{panels.fixed_note(spec)}{data}; {note}", columns=3)


# --- risk and distance by cost ------------------------------------------------------------------------------------


@publish.layout
def race(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Risk and distance to the teacher (rows) against evaluations and seconds (columns), all logarithmic."""
    shown = _at_hand(spec, seeds)
    with panels.style():
        figure = Figure(figsize=(8, 6))
        cells = figure.subplots(2, 2, sharex="col", sharey="row")
        for row, (quantity, label) in zip(cells, _QUANTITIES.items(), strict=True):
            for axes, cost in zip(row, _COSTS, strict=True):
                for each in shown:
                    _race_line(
                        axes,
                        each,
                        quantity,
                        arrivals.evaluation_seconds(each.ways.values()) if cost == "seconds" else 1.0,
                    )
                axes.set(xscale="log", yscale="log")
            row[0].set_ylabel(label)
            panels.readable_logarithm(row[0])
        for axes, label in zip(cells[1], _COSTS.values(), strict=True):
            axes.set_xlabel(label)
        _legend(figure, spec, shown, {"last of gradient descent": _REFERENCE_LOOK})
    return figure


def _race_line(axes: Axes, each: arrivals.Trials, quantity: str, unit: float) -> None:
    """The line of one method; ``unit`` is what an evaluation costs."""
    if math.isnan(unit):
        return
    ways = list(each.ways.values())
    costs, values = reached(ways, quantity)
    panels.banded(axes, unit * costs, values, centre=np.median, color=grid.METHODS[each.run.method].colour)
    if each.run.method == grid.GRADIENT_DESCENT:
        axes.axhline(np.median(each.last(quantity)), **_REFERENCE_LOOK)


def reached(ways: Sequence[records.Way], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """(evaluations (P,), values (ways, P)): the risk or distance of the state that each way is in after so many.

    They begin where all have a state, and end where the last one ends; the others rest in their last state.
    """
    spent = [way.evaluations for way in ways]
    costs = np.geomspace(max(each[0] for each in spent), max(each[-1] for each in spent), _POINTS)
    places = [np.searchsorted(each, costs * (1 + 1e-12), side="right") - 1 for each in spent]
    return costs, np.stack([getattr(way, quantity)[place] for way, place in zip(ways, places, strict=True)])


# --- evaluations to a mark ----------------------------------------------------------------------------------------


@publish.layout
def arrivals_by(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Evaluations to the risk, and to twice the distance, of gradient descent (rows) by width or lambda, per gamma."""
    shown = _at_hand(spec, seeds)
    gammas = sorted({run.gamma for run in spec.runs})
    with panels.style():
        figure = Figure(figsize=(8.5, 5.6))
        cells = figure.subplots(len(_MARKS), len(gammas), sharex=True, sharey=True, squeeze=False)
        for column, gamma in zip(cells.T, gammas, strict=True):
            column[0].set_title(f"$\\gamma = {panels.number(gamma)}$")
            for axes, mark in zip(column, _MARKS, strict=True):
                for method in grid.METHODS:
                    own = [each for each in shown if (each.run.gamma, each.run.method) == (gamma, method)]
                    _arrival_line(axes, sorted(own, key=lambda each: getattr(each.run, spec.by)), spec.by, mark)
                axes.set(xscale="log", yscale="log")
            ticks = sorted({getattr(run, spec.by) for run in spec.runs})
            column[1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            column[1].minorticks_off()
            column[1].set_xlabel(_SYMBOLS[spec.by])
        for axes, (quantity, factor) in zip(cells[:, 0], _MARKS, strict=True):
            axes.set_ylabel(f"evaluations to {quantity} x {factor:g}")
        missed = {
            "not all seeds get there": {"color": "0.4", "marker": "o", "markerfacecolor": "white", "linewidth": 0}
        }
        _legend(figure, spec, shown, missed)
    return figure


def _arrival_line(axes: Axes, own: Sequence[arrivals.Trials], by: str, mark: tuple[str, float]) -> None:
    found = [(getattr(each.run, by), each.arrivals(*mark), len(each.ways)) for each in own]
    found = [each for each in found if each[1]]
    if not found:
        return
    method = grid.METHODS[own[0].run.method]
    look = {"color": method.colour}
    places, medians = [place for place, *_ in found], [np.median(there) for _, there, _ in found]
    axes.plot(places, medians, **look)
    for place, there, seeds in found:
        fill = look["color"] if len(there) == seeds else "white"
        axes.plot([place, place], [min(there), max(there)], linewidth=0.9, **look)
        axes.plot(place, np.median(there), marker=method.marker, markersize=5, markerfacecolor=fill, **look)


# --- features -----------------------------------------------------------------------------------------------------


@publish.layout
def features(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Density of the last features of every method (above), and less that of the teacher (below); a gamma a column."""
    shown = _at_hand(spec, seeds)
    gammas = sorted({run.gamma for run in spec.runs})
    with panels.style():
        figure = Figure(figsize=(9.5, 5.6))
        cells = figure.subplots(2, len(gammas), sharex=True, squeeze=False)
        for (above, below), gamma in zip(cells.T, gammas, strict=True):
            own = [each for each in shown if each.run.gamma == gamma]
            for each in own:
                learned, teacher = records.last_densities(each.run, list(each.ways))
                look = {"linewidth": 1.1, "color": grid.METHODS[each.run.method].colour}
                above.plot(records.CIRCLE, learned, **look)
                below.plot(records.CIRCLE, learned - teacher, **look)
                if each is own[-1]:
                    above.plot(records.CIRCLE, teacher, **TEACHER_LOOK)
            angle_axis(above)
            angle_axis(below)
            limit = 1.05 * max((np.abs(line.get_ydata()).max() for line in below.lines), default=1.0)
            below.set_ylim(-limit, limit)
            (lmbda,) = {run.lmbda for run in spec.runs if run.gamma == gamma}
            title = f"$\\gamma = {panels.number(gamma)}$, $\\lambda = {panels.power(lmbda)}$"
            above.set(title=title, xlabel="", ylabel="")
            below.set_ylabel("")
        cells[0, 0].set_ylabel("density")
        cells[1, 0].set_ylabel("density less that of the teacher")
        _legend(figure, spec, shown, {"teacher": TEACHER_LOOK}, statistic="mean")
    return figure
