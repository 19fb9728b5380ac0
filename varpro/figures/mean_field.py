"""The layouts of the study of the limit: how far the features are from it, and on what that depends."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varpro import results
from varpro.diffusion.projected import harmonics as coefficients
from varpro.domains.circle import circle_density
from varpro.figures import panels
from varpro.figures.panels import Line, Table
from varpro.figures.publish import Publisher, requested_seeds
from varpro.paper import grid, records, study

publish = Publisher("mean-field")

_TIME = "time $t$ (epochs times $h$)"
_MARKERS = ("o", "s", "^")
_DISTANCE = "energy distance"
# Where the parameter of a figure is what the distance mostly comes from: there slopes are fitted, else everywhere.
_FITTED = {"mean_field_width": (2**8, 2**10), "mean_field_lambda": (1e-5, 1e-3)}


def answer() -> Table:
    """What the published distances are limited by, computed from the results at hand; empty where they are lacking."""
    return Table(study.answer(requested_seeds()))


# --- series -------------------------------------------------------------------------------------------------------


@publish.layout
def series(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Distance to the projected diffusion over time, one line a run, and against the parameter at three times.

    For samples and time steps the right panel shows the distance to the features of the last run, the one with
    infinite data or the finest step: the error of that parameter alone.
    """
    lines = [line for line in panels.lines_of(spec, seeds) if line.seeds]
    with panels.style():
        figure = Figure(figsize=(9, 3.9))
        left, right = figure.subplots(1, 2)
        for line in lines:
            _over_time(left, line, "projected")
        left.set(ylabel=panels.TO_LIMIT["projected"])
        _times(left)
        alone = spec.by in ("samples", "time_scale")
        found = _errors_alone(lines) if alone else _distances_at(lines, "projected")
        _against(right, spec.by, [getattr(line.run, spec.by) for line in lines], found, _FITTED.get(spec.name))
        last = _label(spec.by, getattr(lines[-1].run, spec.by))
        right.set(ylabel=f"distance to the features at {last}" if alone else panels.TO_LIMIT["projected"])
        entries = [(_label(spec.by, getattr(line.run, spec.by)), {"color": line.colour}) for line in lines]
        panels.legend(figure, entries, _note(spec.runs[0], spec.by, lines), columns=6)
    return figure


def _over_time(axes: Axes, line: Line, limit: str) -> None:
    """The mean over the seeds of a line, with its band."""
    times, values = study.distances(line.run, line.seeds, limit)
    shown = np.unique(np.geomspace(1, len(times) - 1, 250).astype(int))
    panels.banded(axes, times[shown], values[:, shown], color=line.colour, **line.look)


def _times(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log", xlabel=_TIME)
    _readable(axes)


def _readable(axes: Axes) -> None:
    """Plain numbers where few powers of ten are shown; nothing where no value is."""
    if any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        panels.readable_logarithm(axes)


def _distances_at(lines: Sequence[Line], limit: str) -> list[np.ndarray]:
    """Distances (seeds, times) of every line at the times of the study."""
    return [study.distances_at(line.run, line.seeds, limit, study.TIMES) for line in lines]


def _errors_alone(lines: Sequence[Line]) -> list[np.ndarray]:
    """(seeds, times): distances from the features of the last line, of the same seed or of its only one."""
    *others, last = lines
    references = {seed: study.states(last.run, seed) for seed in last.seeds}
    found = []
    for line in others:
        rows = []
        for seed in line.seeds:
            reference = references.get(seed) or next(iter(references.values()))
            own = study.states(line.run, seed)
            rows.append([study.gap(own, reference, time) for time in study.TIMES])
        found.append(np.array(rows))
    return found


def _against(
    axes: Axes, by: str, values: Sequence[float], found: Sequence[np.ndarray], fitted: tuple[float, float] | None = None
) -> None:
    """Distances at the times of the study against the parameter, with slopes; ``fitted`` are the ends of their fit."""
    x = np.array(values[: len(found)], dtype=float)
    low, high = fitted or (0, math.inf)
    within = (x >= low * (1 - 1e-9)) & (x <= high * (1 + 1e-9))
    tints = panels.colours("epoch", len(study.TIMES))
    for place, (time, colour, marker) in enumerate(zip(study.TIMES, tints, _MARKERS, strict=True)):
        columns = [each[:, place] for each in found]
        means = np.array([column.mean() for column in columns])
        if not np.isfinite(means).any():
            continue
        spread = np.array([[m - c.min(), c.max() - m] for m, c in zip(means, columns, strict=True)]).T
        count = min(map(len, columns))
        rows = np.stack([column[:count] for column in columns], axis=1)  # (seeds, values)
        fit = study.slope(x[within], rows[:, within]) if within.sum() > 1 else None
        label = f"$t = {time:g}$" + (f", slope {fit}" if fit else "")
        bars = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1, "capsize": 2}
        axes.errorbar(x, means, spread, label=label, **bars)
    axes.set_xscale("log", base=10 if by == "lmbda" else 2)
    axes.set(yscale="log", xlabel=f"${panels.SYMBOLS[by]}$")
    if axes.lines:
        to = f" to {_label(by, high)}" if high < math.inf else ""
        title = f"slopes from {_label(by, low)}{to}" if fitted else None
        axes.legend(title=title)
    _readable(axes)


def _label(by: str, value: float) -> str:
    """``$N = 2^{10}$``, ``$\\lambda = 10^{-3}$``."""
    text = panels.power(value) if by == "lmbda" else panels.number(value)
    if by != "outer_rate" and not math.isinf(value) and math.log2(value).is_integer():
        text = f"2^{{{math.log2(value):.0f}}}"
    return f"${panels.SYMBOLS[by]} = {text}$"


def _note(run: grid.Run, by: str, lines: Sequence[Line]) -> str:
    """What is fixed, and what was averaged."""
    fixed = [_label(name, getattr(run, name)) for name in ("width", "lmbda", "samples", "time_scale") if name != by]
    start = run.option("init", "quantile")
    fixed += ["random start" if start == "random" else "equally spaced start"]
    drawn = [line.seeds for line in lines if not line.run.deterministic]
    return f"{', '.join(fixed)}; {panels.seed_note(drawn) if drawn else 'nothing is drawn'}"


# --- from the paper's configuration to the limit ------------------------------------------------------------------


@publish.layout
def ladder(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """The paper's configuration and its choices replaced one by one, for two lambda; grey: the two limits apart."""
    at_hand = records.at_hand(spec, seeds)
    with panels.style():
        figure = Figure(figsize=(9, 4.2))
        lmbdas = sorted({run.lmbda for run in spec.runs}, reverse=True)[:2]
        for axes, lmbda in zip(figure.subplots(1, 2, sharey=True), lmbdas, strict=True):
            rungs = study.ladder(lmbda)
            tints = panels.colours("epoch", len(rungs))
            for rung, colour in zip(rungs, tints, strict=True):
                if at_hand[rung.run]:
                    _over_time(axes, Line(rung.run, at_hand[rung.run], colour), rung.limit)
            panels.limits_apart(axes, spec.runs[0], 1 / grid.TIME_SCALE)
            axes.set(title=f"$\\lambda = {panels.power(lmbda)}$")
            _times(axes)
        figure.axes[0].set(ylabel=_DISTANCE)
        entries = [(rung.label, {"color": colour}) for rung, colour in zip(rungs, tints, strict=True)]
        entries += panels.limits_entry(spec.runs[0])
        panels.legend(
            figure,
            entries,
            f"$M = {grid.WIDEST}$, {panels.seed_note(of for run, of in at_hand.items() if not run.deterministic)}",
            columns=2,
        )
    return figure


# --- harmonics ----------------------------------------------------------------------------------------------------

_ORDERS = 16


@publish.layout
def harmonics(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Harmonics of mu and u mu less those of the teacher, beside those of the projected diffusion, at three times."""
    (run,) = spec.runs
    (seed, *_) = records.at_hand(spec, seeds)[run]
    found = study.states(run, seed)
    path = run.limit("projected").path
    limit = results.load(path) if path.exists() else None
    teacher = _of_density(circle_density(records.CIRCLE[:-1], run.gamma), records.CIRCLE[:-1])
    orders, (first, second) = np.arange(1, _ORDERS + 1), panels.colours("gamma", 2)
    hollow = {"linestyle": "none", "markersize": 5, "fillstyle": "none"}
    with panels.style():
        figure = Figure(figsize=(9.5, 3.7))
        for axes, time in zip(figure.subplots(1, 3, sharey=True), study.TIMES, strict=True):
            place = found.place(time)
            axes.set(yscale="log", title=f"$t = {time:g}$", xlabel="order $k$", xticks=orders[1::2])
            if place is None:
                continue
            angles = np.arctan2(found.weights[place, :, 1], found.weights[place, :, 0])
            masses = np.full(len(angles), 1 / len(angles))
            for weighted, marker, colour in ((masses, "o", first), (masses * found.outer[place], "s", second)):
                own = coefficients(angles, weighted, _ORDERS)
                axes.plot(orders, np.abs(own - teacher)[1:], marker=marker, color=colour, **hollow)
            if limit is not None:
                row = int(np.abs(limit["snapshot_epochs"].numpy() * run.time_scale - time).argmin())
                density, outer = (limit[name][row].numpy().astype(float) for name in ("density", "outer"))
                for values, colour in ((density, first), (density * outer, second)):
                    own = _of_density(values, limit["grid"].numpy())
                    axes.plot(orders, np.abs(own - teacher)[1:], color=colour, linewidth=0.8)
        figure.axes[0].set(ylabel="harmonic, less the teacher's", ylim=(1e-7, 2))
        entries = [(r"features $\mu$", {"marker": "o", "color": first, **hollow})]
        entries += [(r"$u \mu$", {"marker": "s", "color": second, **hollow})]
        entries += [(f"projected diffusion: ${name}$", {"color": c}) for name, c in (("f", first), ("u f", second))]
        panels.legend(figure, entries, _note(run, "", [Line(run, (seed,), first)]))
    return figure


def _of_density(density: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Fourier coefficients from values on equal steps: exact for all orders that the grid resolves."""
    return coefficients(angles, density * (2 * math.pi / len(angles)), _ORDERS)


# --- features that see everything ---------------------------------------------------------------------------------


@publish.layout
def injective(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Features that see every harmonic, and ReLU: distance to the limits over time, against lambda, against width."""
    all_lines = sorted(panels.lines_of(spec, seeds), key=lambda line: -line.run.lmbda)
    squared = grid.DENSE["features"]
    every = [line for line in all_lines if line.run.option("features", "") == squared]
    usual = max({run.width for run in spec.runs}, key=lambda width: sum(run.width == width for run in spec.runs))
    lines = [line for line in every if line.seeds and line.run.width == usual]
    relu = [line for line in all_lines if line.seeds and line not in every]
    several = next(run.lmbda for run in spec.runs if run.width != usual)
    with panels.style():
        figure = Figure(figsize=(10.5, 3.9))
        left, middle, right = figure.subplots(1, 3)
        for line in lines:
            _over_time(left, line, "diffusion")
        left.set(ylabel=panels.TO_LIMIT["diffusion"])
        _times(left)
        kinds = [("with square, plain", lines, "diffusion", "o", "solid")]
        kinds += [
            ("ReLU, plain", relu, "diffusion", "s", "dashed"),
            ("ReLU, projected", relu, "projected", "^", "dotted"),
        ]
        for time, colour in zip((0.25, 1.0), panels.colours("epoch", 2), strict=True):
            for label, drawn, limit, marker, style in kinds:
                values = [study.distances_at(line.run, line.seeds, limit, [time]).mean() for line in drawn]
                if not np.isfinite(values).any():
                    continue
                look = {"marker": marker, "markersize": 4, "color": colour, "linestyle": style, "linewidth": 1}
                middle.plot([line.run.lmbda for line in drawn], values, label=f"{label}, $t = {time:g}$", **look)
        middle.set(xscale="log", yscale="log", xlabel=r"$\lambda$", ylabel=_DISTANCE)
        if middle.lines:
            middle.set_ylim(top=4 * middle.get_ylim()[1])  # room for six entries
            middle.legend(fontsize=6, ncols=2, loc="upper center")
        _readable(middle)
        widths = sorted(
            (line for line in every if line.seeds and line.run.lmbda == several), key=lambda line: line.run.width
        )
        if widths:
            _against(right, "width", [line.run.width for line in widths], _distances_at(widths, "diffusion"))
        right.set(title=f"$\\lambda = {panels.power(several)}$", ylabel=panels.TO_LIMIT["diffusion"])
        entries = [(_label("lmbda", line.run.lmbda), {"color": line.colour}) for line in lines]
        fixed = f"left and middle: $M = {usual}$, $N = {spec.runs[0].samples}$"
        panels.legend(figure, entries, f"{fixed}, equally spaced start, seed 0; left and right: with square")
    return figure


# --- two-timescale descent ----------------------------------------------------------------------------------------


@publish.layout
def rates(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Two-timescale descent against VarPro of the same step: distance of the features over time, and over the ratio."""
    lines = [line for line in panels.lines_of(spec, seeds) if line.seeds]
    partner = {line.run.time_scale: line for line in lines if line.run.experiment == grid.MEAN_FIELD}
    own = [line for line in lines if line.run.experiment == grid.TWO_TIMESCALE and line.run.time_scale in partner]
    own.sort(key=lambda line: -line.run.time_scale)
    tints = panels.colours("epoch", len(own))
    ratios, found = [], []
    with panels.style():
        figure = Figure(figsize=(9, 3.9))
        left, right = figure.subplots(1, 2)
        for line, colour in zip(own, tints, strict=True):
            two, one = (study.states(each.run, each.seeds[0]) for each in (line, partner[line.run.time_scale]))
            times = two.times[1:]
            left.plot(times, [study.gap(two, one, time) for time in times], color=colour)
            ratios.append(line.run.lmbda / line.run.time_scale)
            found.append(np.array([[study.gap(two, one, time) for time in study.TIMES]]))
        left.set(ylabel="distance to the features of VarPro")
        _times(left)
        if found:
            _against(right, "ratio", ratios, found, (1, math.inf))
        right.axvline(1, **panels.TEACHER_LOOK)
        right.set(
            xlabel=r"ratio of the rates $\eta_u / \eta_w = \lambda / h$", ylabel="distance to the features of VarPro"
        )
        entries = [(f"$\\eta_u / \\eta_w = {ratio:.2g}$", {"color": c}) for ratio, c in zip(ratios, tints, strict=True)]
        entries += [("equal rates: joint gradient descent", panels.TEACHER_LOOK)]
        fixed = f"$M = {grid.RATE_WIDTH}$, $\\lambda = {panels.power(grid.RATE_LMBDA)}$, $h$ from the ratio"
        panels.legend(figure, entries, f"{fixed}, infinite data, equally spaced start", columns=5)
    return figure


@publish.layout
def stability(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Risk for several outer rates R (eta_u = R lambda M), and the growth of the error of u beside its prediction."""
    at_hand = {run: own for run, own in records.at_hand(spec, seeds).items() if own}
    runs = list(at_hand)
    tints = panels.colours("outer_rate", len(runs))
    rate_of = {run: run.option("outer_rate", 1.0) for run in runs}
    with panels.style():
        figure = Figure(figsize=(9, 3.7))
        left, right = figure.subplots(1, 2)
        curves = {run: records.curves(run, at_hand[run][:1], "loss") for run in runs}
        for run, colour in zip(runs, tints, strict=True):
            epochs, loss = curves[run]
            left.plot(epochs, loss[0], color=colour)
        left.set(xscale="log", yscale="log", xlabel="epoch", ylabel="risk", xlim=(8, None), ylim=(0.3, 1e4))
        first = study.states(runs[0], at_hand[runs[0]][0])
        eigenvalue = study.largest_eigenvalue(first.weights[0]) + runs[0].lmbda
        growths = [study.growth(curves[run][1][0]) for run in runs]
        right.plot(list(rate_of.values()), growths, "o", color="black", markersize=4, label="measured")
        line = np.linspace(min(rate_of.values()), max(rate_of.values()), 400)
        predicted = np.maximum(np.abs(1 - line * eigenvalue), 1)
        right.plot(line, predicted, color="0.5", linewidth=1, label=r"$\max(|1 - R (\Lambda + \lambda)|, 1)$")
        right.axvline(
            2 / eigenvalue, **panels.TEACHER_LOOK, label=f"$2 / (\\Lambda + \\lambda) = {2 / eigenvalue:.3f}$"
        )
        right.set(xlabel="$R$", ylabel="growth of the error of $u$ in one epoch")
        right.legend()
        entries = [(_label("outer_rate", rate), {"color": c}) for rate, c in zip(rate_of.values(), tints, strict=True)]
        fixed = f"$M = {grid.RATE_WIDTH}$, $\\lambda = {panels.power(grid.RATE_LMBDA)}$, $h = 2^{{-20}}$"
        panels.legend(figure, entries, f"{fixed}, infinite data, equally spaced start", columns=6)
    return figure
