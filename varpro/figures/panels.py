"""What all figures share: one style, panels with lines of runs, legends.

Conventions in every figure: solid is unbiased and dashed is biased, as in the published figures; a thin grey line is
the published curve of the same run; a line is a mean over seeds and its band goes from the smallest to the largest.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from varpro.features import LAPLACE, RADIAL_KERNELS
from varpro.paper import grid, published, records, study

STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "pdf.fonttype": 42,  # text stays text
}
# Perceptually uniform and readable without colour vision, from light to dark: (map, first, last); the first for others.
_COLOUR_MAPS = {
    "width": ("viridis", 0.88, 0.0),
    "lmbda": ("plasma", 0.82, 0.05),
    "gamma": ("magma", 0.8, 0.1),
    "activation": ("magma", 0.8, 0.1),
    "batch_size": ("viridis", 0.88, 0.0),
    "epoch": ("viridis", 0.88, 0.0),
    "samples": ("viridis", 0.88, 0.0),
    "time_scale": ("magma", 0.8, 0.1),
    "outer_rate": ("plasma", 0.82, 0.05),
}
DENSITY_EPOCHS = (0, 100, 1000, 5000, 10000)  # at which densities are drawn, as published
_BAND = 0.12  # the opacity of a band
TEACHER_LOOK = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1.1}
PUBLISHED_LOOK = {"color": "0.62", "linewidth": 0.7, "zorder": 5}
UNBIASED_LOOK, BIASED_LOOK = {"linestyle": "solid"}, {"linestyle": "dashed"}
TO_LIMIT = {"diffusion": "distance to the plain diffusion", "projected": "distance to the projected diffusion"}
QUANTITIES = {
    "loss": "risk",
    "distance_teacher": "distance to the teacher",
    "distance_diffusion": "distance to the diffusion",
    "distance_projected": TO_LIMIT["projected"],
}
COMPARED = ("loss", "distance_teacher", "distance_diffusion")  # those of the published figures
SYMBOLS = {  # of parameters, in mathtext
    "width": "M",
    "lmbda": r"\lambda",
    "gamma": r"\gamma",
    "samples": "N",
    "time_scale": "h",
    "outer_rate": "R",
    "ratio": r"\eta_u / \eta_w",
}
_FIXED = ("width", "lmbda", "gamma")  # that a note states


def style() -> AbstractContextManager:
    """The style of every figure here, as a context."""
    return matplotlib.rc_context(STYLE)


def colours(parameter: str, count: int) -> list[tuple]:
    """``count`` colours for increasing values of a parameter, light to dark."""
    name, first, last = _COLOUR_MAPS.get(parameter, _COLOUR_MAPS["width"])
    return list(matplotlib.colormaps[name](np.linspace(first, last, count)))


def penalty_look(run: grid.Run) -> dict:
    """Solid or dashed."""
    return BIASED_LOOK if run.biased else UNBIASED_LOOK


# --- lines --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A run as a line, mean over ``seeds``, with a band; no line without seeds."""

    run: grid.Run
    seeds: tuple[int, ...]
    colour: tuple
    look: dict = field(default_factory=lambda: UNBIASED_LOOK)
    published_seeds: Sequence[int] = grid.SEEDS  # of the published curve that is laid over, if there is one

    def theirs(self, quantity: str) -> published.Curve | None:
        """The published curve of this run, if there is one."""
        return published.curve_of(self.run.training, quantity, self.published_seeds)


def lines_of(spec: grid.Figure, seeds: Sequence[int] | None) -> list[Line]:
    """A line for each run of ``spec``, coloured by its parameter, solid or dashed by penalty.

    Without ``seeds`` those of the published figure that are at hand.
    """
    tints = dict(zip(_values(spec), colours(spec.by, len(_values(spec))), strict=True))
    at_hand = records.at_hand(spec, seeds)
    return [Line(run, at_hand[run], tints[getattr(run, spec.by)], penalty_look(run), spec.seeds) for run in spec.runs]


def _values(spec: grid.Figure) -> list:
    """The values of the parameter that tells the lines apart, in the order of their colours."""
    values = {getattr(run, spec.by) for run in spec.runs}
    return sorted(values, reverse=spec.by == "lmbda")


def entries_of(spec: grid.Figure, lines: Sequence[Line], quantities: Sequence[str]) -> list[tuple[str, dict]]:
    """Legend entries: the parameter that tells lines apart, the penalties where there are both, published curves."""
    labels = [_label(spec.by, value) for value in _values(spec)]
    entries = [(label, {"color": c}) for label, c in zip(labels, colours(spec.by, len(labels)), strict=True)]
    if len({run.biased for run in spec.runs}) > 1:
        entries += [("unbiased", {"color": "0.2", **UNBIASED_LOOK}), ("biased", {"color": "0.2", **BIASED_LOOK})]
    return entries + published_entry(lines, quantities)


def published_entry(lines: Sequence[Line], quantities: Sequence[str]) -> list[tuple[str, dict]]:
    """The legend entry for published curves, where one is shown."""
    drawn = [line for line in lines if line.seeds]
    shown = {tuple(line.published_seeds) for line in drawn for name in quantities if line.theirs(name)}
    return [(f"published, {seeds_for_people(seeds)}", PUBLISHED_LOOK) for seeds in sorted(shown)]


def note_of(spec: grid.Figure, lines: Sequence[Line]) -> str:
    """What is fixed in a figure, and what was averaged."""
    return f"{fixed_note(spec)}; {seed_note(line.seeds for line in lines)}"


def fixed_note(spec: grid.Figure) -> str:
    """What is the same in all runs of a figure."""
    runs = spec.runs
    parts = ["biased" if runs[0].biased else "unbiased"] if len({run.biased for run in runs}) == 1 else []
    for name in _FIXED:
        if name != spec.by and len({getattr(run, name) for run in runs}) == 1:
            parts.append(_label(name, getattr(runs[0], name)))
    return ", ".join(parts)


def _label(name: str, value: float | str) -> str:
    if name == "activation":
        return RADIAL_KERNELS[value or LAPLACE.name].label
    if name not in SYMBOLS:
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"${SYMBOLS[name]} = {power(value) if name == 'lmbda' else number(value)}$"


def number(value: float) -> str:
    """A number in mathtext without the dollars."""
    return r"\infty" if math.isinf(value) else f"{value:g}"


def power(value: float) -> str:
    """``10^{-3}`` for 1e-3, in mathtext without the dollars; any other number as it is."""
    exponent = round(math.log10(value))
    return f"10^{{{exponent}}}" if math.isclose(value, 10.0**exponent) else f"{value:g}"


def seeds_for_people(seeds: Sequence[int]) -> str:
    """``seed 0``, or ``seeds 0-5``."""
    return f"seed{'s' if len(seeds) > 1 else ''} {grid.ranges(seeds)}"


def seed_note(seeds: Iterable[Sequence[int]], *, band: bool = True, statistic: str = "mean") -> str:
    """What a line is a ``statistic`` over, for the legend."""
    sets = sorted({tuple(each) for each in seeds if each})
    if not sets:
        return "no results"
    if sets == [sets[0][:1]]:
        return f"seed {sets[0][0]}"
    listed = ", or ".join(map(grid.ranges, sets))
    note = f"{statistic} over " + (f"seeds {listed}" if len(sets) == 1 else f"the seeds at hand ({listed})")
    return f"{note}, band from smallest to largest" if band else note


# --- panels -------------------------------------------------------------------------------------------------------


def run_panel(axes: Axes, lines: Sequence[Line], quantity: str, *, log_epochs: bool) -> None:
    """One of :data:`QUANTITIES` of several runs against the epoch, on a log scale."""
    for line in lines:
        if not line.seeds:
            continue
        epochs, values = _thinned(*records.curves(line.run, line.seeds, quantity))
        banded(axes, epochs, values, color=line.colour, **line.look)
        curve = line.theirs(quantity)
        if curve is not None:
            shown = curve.x > 0 if log_epochs else curve.x >= 0  # 0 would be a flat line from the left edge
            axes.plot(curve.x[shown], curve.y[shown], linestyle=line.look["linestyle"], **PUBLISHED_LOOK)
    last = max((line.run.epochs for line in lines), default=1)
    axes.set(yscale="log", xlabel="epoch", ylabel=QUANTITIES[quantity])
    if log_epochs:
        first = 1 if quantity == "loss" else max(last // 1000, 1)  # the first epoch after 0 that has a value
        axes.set(xscale="log", xlim=(first, last))
    else:
        axes.set(xlim=(0, last))
    readable_logarithm(axes)


def banded(
    axes: Axes, x: np.ndarray, values: np.ndarray, *, color: tuple | str, centre: Callable = np.mean, **look: Any
) -> None:
    """The ``centre`` of ``values (seeds, n)`` against ``x (n,)``, and a band from the smallest to the largest."""
    axes.plot(x, centre(values, axis=0), color=color, **look)
    if len(values) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=_BAND, linewidth=0)


def _thinned(epochs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of ``epochs (E,)`` and ``values (seeds, E)`` that a panel can show."""
    last = len(epochs) - 1
    # close together at the start for a logarithmic axis, and evenly spaced for a linear one
    shown = np.unique(np.r_[0, np.geomspace(1, max(last, 1), 250), np.linspace(0, last, 300)].astype(int))
    shown = shown[shown <= last]
    return epochs[shown], values[:, shown]


def readable_logarithm(axes: Axes) -> None:
    """Plain numbers beside a logarithmic vertical axis that spans too few powers of ten to be read by them."""
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: FigureBase, entries: Sequence[tuple[str, dict]], note: str, columns: int | None = None) -> None:
    """One legend below all panels; ``note`` above it states what was averaged and what is fixed."""
    handles = [Line2D([], [], label=label, **look) for label, look in entries]
    columns = columns or len(handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=note, columnspacing=1.4)


def row(spec: grid.Figure, seeds: Sequence[int] | None, quantities: Sequence[str], linear: Sequence[str]) -> Figure:
    """A panel for each of ``quantities``, all runs in each; epochs are on a logarithmic axis but for the ``linear``."""
    with style():
        figure = Figure(figsize={1: (6, 4), 2: (8, 3.5), 3: (10.5, 3.5)}[len(quantities)])
        fill_row(figure, spec, seeds, quantities, linear)
    return figure


def fill_row(
    figure: FigureBase,
    spec: grid.Figure,
    seeds: Sequence[int] | None,
    quantities: Sequence[str],
    linear: Sequence[str],
    *,
    more: Sequence[tuple[str, dict]] = (),
    sharey: bool = False,
) -> list[Axes]:
    """The panels and the legend of :func:`row`, which ends with the entries ``more``, in a figure or a part of one."""
    lines = lines_of(spec, seeds)
    cells = figure.subplots(1, len(quantities), squeeze=False, sharey=sharey)[0]
    for axes, quantity in zip(cells, quantities, strict=True):
        run_panel(axes, lines, quantity, log_epochs=quantity not in linear)
    entries = [*entries_of(spec, lines, quantities), *more]
    legend(figure, entries, note_of(spec, lines), columns=None if len(quantities) > 1 else 4)
    return list(cells)


def limits_entry(run: grid.Run) -> list[tuple[str, dict]]:
    """The legend entry for :func:`limits_apart`, where both limits are at hand."""
    both = all(run.limit(name).path.exists() for name in TO_LIMIT)
    return [("the two limits from each other", TEACHER_LOOK)] if both else []


def limits_apart(axes: Axes, run: grid.Run, unit: float = 1.0) -> None:
    """The distance of the plain from the projected diffusion that ``run`` is compared with, without any network.

    Nothing where one of them is not at hand. ``unit`` is what a unit of the horizontal axis is, in epochs.
    """
    if limits_entry(run):
        shown = np.unique(np.geomspace(1, 1000, 150).astype(int)) / 1000 * run.epochs  # snapshots: no steps between
        axes.plot(shown / unit, study.between_limits(shown * run.time_scale, run), **TEACHER_LOOK)


def risks(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Risk of runs of several widths: biased (left, logarithmic epochs) and unbiased (right)."""
    # one penalty a panel: solid in both, as published
    lines = [replace(line, look=UNBIASED_LOOK) for line in lines_of(spec, seeds)]
    with style():
        figure = Figure(figsize=(8, 3.5))
        for axes, biased in zip(figure.subplots(1, 2), (True, False), strict=True):
            run_panel(axes, [line for line in lines if line.run.biased == biased], "loss", log_epochs=biased)
            axes.set_title("biased penalty $u^2/2$" if biased else "unbiased penalty $(u-1)^2/2$")
        entries = [entry for entry in entries_of(spec, lines, ["loss"]) if "biased" not in entry[0]]
        legend(figure, entries, note_of(spec, lines))
    return figure


class Table(str):
    """Markdown that a notebook shows as a table."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)
