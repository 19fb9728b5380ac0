"""The figures of Section 6.1 and the animation, and what all figures share: panels, legends, one style.

The notebooks call :func:`publish` and :func:`publish_animation`; everything is drawn from result files alone.

Conventions in every figure: solid is unbiased and dashed is biased, as in the published figures; a thin grey line
is the published curve of the same run; a line is a mean over seeds and its band goes from the smallest to the
largest of them. ``$VARPRO_SEEDS`` (``0`` or ``0-5``) chooses the seeds, by default all of 0..5 that are at hand;
``$VARPRO_FIGURES`` is the folder to write to, by default ``figures/``.
"""

import base64
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from varpro import paper, results
from varpro.domains.circle import circle_density

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
# Perceptually uniform and readable without colour vision, from light to dark: (map, first, last).
_COLOUR_MAPS = {
    "width": ("viridis", 0.88, 0.0),
    "lambda": ("plasma", 0.82, 0.05),
    "gamma": ("magma", 0.8, 0.1),
    "batch size": ("viridis", 0.88, 0.0),
    "epoch": ("viridis", 0.88, 0.0),
}
TEACHER_LOOK = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1.1}
PUBLISHED_LOOK = {"color": "0.62", "linewidth": 0.7, "zorder": 5}
UNBIASED_LOOK, BIASED_LOOK = {"linestyle": "solid"}, {"linestyle": "dashed"}
# VarPro lies on two-timescale descent for large lambda: broad and pale below, thin dashes above, both stay visible.
_ALGORITHMS = {
    paper.TWO_TIMESCALE: {"linestyle": "solid", "linewidth": 3.2, "alpha": 0.4, "zorder": 2},
    paper.UNBIASED: {"linestyle": "dashed", "linewidth": 1.2, "zorder": 3},
}
TIME_SCALE = 2**-10  # time of one epoch in every run of the paper's grid
_QUANTITIES = {
    "loss": "risk",
    "distance_teacher": "distance to the teacher",
    "distance_diffusion": "distance to the diffusion",
}

DENSITY_EPOCHS = (0, 100, 1000, 5000, 10000)
SMOOTHING = 0.04  # scale, in radians, of the Gaussian in the published density figure
_CIRCLE = np.linspace(-math.pi, math.pi, 1025)


def style() -> AbstractContextManager:
    """The style of every figure here, as a context."""
    return matplotlib.rc_context(STYLE)


def colours(parameter: str, count: int) -> list[tuple]:
    """``count`` colours for increasing values of ``width``, ``lambda``, ``gamma`` or ``epoch``, light to dark."""
    name, first, last = _COLOUR_MAPS[parameter]
    return list(matplotlib.colormaps[name](np.linspace(first, last, count)))


def penalty_look(run: paper.Run) -> dict:
    """Solid or dashed."""
    return BIASED_LOOK if run.biased else UNBIASED_LOOK


# --- seeds, and what is missing -----------------------------------------------------------------------------------


def requested_seeds() -> list[int] | None:
    """The seeds of ``$VARPRO_SEEDS``; None where it is not set: then all of 0..5 that are at hand."""
    text = os.environ.get("VARPRO_SEEDS", "")
    return paper.parse_seeds(text) if text else None


def seeds_at_hand(run: paper.Run, seeds: Iterable[int] | None = None) -> tuple[int, ...]:
    """Those of ``seeds`` (default 0..5) for which ``run`` has a result file."""
    return tuple(seed for seed in (paper.SEEDS if seeds is None else seeds) if run.path(seed).exists())


def missing(
    name: str,
    runs: Sequence[paper.Run],
    seeds: Sequence[int] | None = None,
    diffusions: Sequence[paper.Diffusion] = (),
    section: str = "6.1",
) -> str:
    """One sentence on the results that figure ``name`` lacks, with the command that makes them; "" if it lacks none.

    Without ``seeds`` a run is there as soon as one of its seeds is.
    """
    absent = [(f"the diffusion with gamma {d.gamma:g}", d.command()) for d in diffusions if not d.path.exists()]
    for run in runs:
        wanted = paper.SEEDS[:1] if seeds is None else seeds
        lacking = [seed for seed in wanted if not run.path(seed).exists()]
        if not lacking or (seeds is None and seeds_at_hand(run)):
            continue
        label = f"{run.experiment}, {run.parameters}, seed {_ranges(lacking)}"
        absent.append((label, run.command(lacking)))
    if not absent:
        return ""
    (first, command), count = absent[0], len(absent)
    if count == 1:
        return f"Missing for the figure '{name}': {first}; make it with: {command}"
    return (
        f"Missing for the figure '{name}': {count} results (first: {first}); "
        f"make the first with: {command}; make all with: {paper.make_command(section, seeds or ())}"
    )


def _ranges(seeds: Sequence[int]) -> str:
    """``0-5`` or ``0,2,7-9``, which :func:`varpro.paper.parse_seeds` reads."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


# --- data ---------------------------------------------------------------------------------------------------------


def smoothed_density(angles: np.ndarray, grid: np.ndarray, scale: float = SMOOTHING) -> np.ndarray:
    """Density (G,) at ``grid (G,)``, radians, of neurons at ``angles`` (any shape), all of the same mass.

    Every neuron is a periodic Gaussian of standard deviation ``scale``. It is summed as its Fourier series
    1/(2 pi) (1 + 2 sum_n exp(-n^2 scale^2 / 2) cos n(x - angle)), whose mass over a period is exactly 1.
    """
    orders = np.arange(1, math.ceil(8.5 / scale) + 1)  # exp(-8.5^2 / 2) = 2e-16
    moments = np.exp(-1j * np.outer(orders, np.ravel(angles))).mean(axis=1)
    moments *= np.exp(-((orders * scale) ** 2) / 2)
    return (1 + 2 * (np.exp(1j * np.outer(grid, orders)) @ moments).real) / (2 * math.pi)


def state_at(epoch: float, epochs: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The state (...) at ``epoch``, linear between the two snapshots of ``states (S, ...)`` around it.

    Snapshots are 32 epochs apart in the paper's runs: too coarse for its density at epoch 100 without this.
    """
    place = min(int(np.searchsorted(epochs, epoch)), len(epochs) - 1)
    if place == 0 or epochs[place] == epoch:
        return states[place]
    share = (epoch - epochs[place - 1]) / (epochs[place] - epochs[place - 1])
    return (1 - share) * states[place - 1] + share * states[place]


@dataclass(frozen=True)
class Densities:
    """A density on the circle over time: ``at(epoch)`` is its values (G,) at the angles ``grid (G,)``.

    Between the snapshots, at ``epochs (S,)``, it is interpolated.
    """

    grid: np.ndarray
    at: Callable[[float], np.ndarray]
    epochs: np.ndarray


def diffusion_densities(diffusion: paper.Diffusion) -> Densities:
    """The density of the diffusion on its own grid."""
    contents = results.load(diffusion.path)
    epochs, density = contents["snapshot_epochs"].numpy(), contents["density"].numpy()
    grid = contents["grid"].numpy()
    return Densities(grid, lambda epoch: state_at(epoch, epochs, density), epochs)


def feature_densities(run: paper.Run, seeds: Sequence[int], grid: np.ndarray = _CIRCLE) -> Densities:
    """The smoothed density of a run's learned features, averaged over ``seeds``, of which there must be one."""
    contents = [results.load(run.path(seed)) for seed in seeds]
    epochs = contents[0]["snapshot_epochs"].numpy()
    weights = [content["weights"].numpy() for content in contents]  # (S, M, 2) each

    def at(epoch: float) -> np.ndarray:
        states = np.stack([state_at(epoch, epochs, kept) for kept in weights])  # (seeds, M, 2)
        return smoothed_density(np.arctan2(states[..., 1], states[..., 0]), grid)

    return Densities(grid, at, epochs)


@cache
def _record(path: Path, changed: float) -> dict[str, np.ndarray]:
    """The curves of a result file, without its snapshots; ``changed`` is its time, so that a new file is read anew."""
    contents = results.load(path)
    return {name: contents[name].numpy() for name in (*_QUANTITIES, "distance_epochs") if name in contents}


def curves(run: paper.Run, seeds: Sequence[int], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs (E,), values (seeds, E)), thinned to what a panel can show."""
    records = [_record(run.path(seed), run.path(seed).stat().st_mtime) for seed in seeds]
    values = np.stack([record[quantity] for record in records])
    last = values.shape[1] - 1
    # close together at the start for a logarithmic axis, and evenly spaced for a linear one
    shown = np.unique(np.r_[0, np.geomspace(1, max(last, 1), 250), np.linspace(0, last, 300)].astype(int))
    shown = shown[shown <= last]
    epochs = shown if quantity == "loss" else records[0]["distance_epochs"][shown]
    return epochs, values[:, shown]


# --- panels -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A run as a line, mean over ``seeds``, with a band; no line without seeds."""

    run: paper.Run
    seeds: tuple[int, ...]
    colour: tuple
    look: dict = field(default_factory=lambda: UNBIASED_LOOK)
    published: bool = True  # whether the published curve of the run, if any, is laid over


def run_panel(axes: Axes, lines: Sequence[Line], quantity: str, *, log_epochs: bool) -> None:
    """``loss``, ``distance_teacher`` or ``distance_diffusion`` of several runs against the epoch, on a log scale."""
    for line in lines:
        if not line.seeds:
            continue
        epochs, values = curves(line.run, line.seeds, quantity)
        axes.plot(epochs, values.mean(axis=0), color=line.colour, **line.look)
        if len(values) > 1:
            band = {"color": line.colour, "alpha": 0.12, "linewidth": 0}
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), **band)
        curve = paper.published_curve(line.run, quantity) if line.published else None
        if curve is not None:
            axes.plot(curve.x, curve.y, linestyle=line.look["linestyle"], **PUBLISHED_LOOK)
    last = max((line.run.epochs for line in lines), default=1)
    axes.set(yscale="log", xlabel="epoch", ylabel=_QUANTITIES[quantity])
    if log_epochs:
        first = 1 if quantity == "loss" else max(last // 1000, 1)  # the first epoch after 0 that has a value
        axes.set(xscale="log", xlim=(first, last))
    else:
        axes.set(xlim=(0, last))
    readable_logarithm(axes)


def readable_logarithm(axes: Axes) -> None:
    """Plain numbers beside a logarithmic vertical axis that spans too few powers of ten to be read by them."""
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def density_panel(axes: Axes, densities: Densities | None, published: Sequence[str], gamma: float) -> None:
    """A density at the epochs 0, 100, 1000, 5000, 10000 with the teacher's, dashed.

    ``published`` is (panel, quantity) of the published density figure.
    """
    for epoch, colour in zip(DENSITY_EPOCHS, colours("epoch", len(DENSITY_EPOCHS)), strict=True):
        if densities is None or epoch > densities.epochs[-1]:
            continue
        axes.plot(densities.grid, densities.at(epoch), color=colour)
        series = f"i={epoch} (t={epoch * TIME_SCALE:.1f})"
        curve = paper.published("density_evolution").get((*published, series, "solid"))
        if curve is not None:
            axes.plot(curve.x, curve.y, **PUBLISHED_LOOK)
    axes.plot(_CIRCLE, circle_density(_CIRCLE, gamma), **TEACHER_LOOK)
    angle_axis(axes)


def angle_axis(axes: Axes) -> None:
    """Angles in [-pi, pi] below, density from 0 upwards."""
    ticks = [-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi]
    axes.set_xticks(ticks, [r"$-\pi$", r"$-\pi/2$", "0", r"$\pi/2$", r"$\pi$"])
    axes.set(xlabel=r"angle $\omega$", ylabel="density", xlim=(-math.pi, math.pi))
    axes.set_ylim(bottom=0)


def legend(figure: Figure, entries: Sequence[tuple[str, dict]], note: str, columns: int | None = None) -> None:
    """One legend below all panels; ``note`` above it states what was averaged and what is fixed."""
    handles = [Line2D([], [], label=label, **look) for label, look in entries]
    columns = columns or len(handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=note, columnspacing=1.4)


def colour_entries(parameter: str, labels: Sequence[str]) -> list[tuple[str, dict]]:
    """Legend entries for values of a parameter."""
    return [(label, {"color": c}) for label, c in zip(labels, colours(parameter, len(labels)), strict=True)]


def penalty_entries() -> list[tuple[str, dict]]:
    """Legend entries for the two penalties."""
    return [("unbiased", {"color": "0.2", **UNBIASED_LOOK}), ("biased", {"color": "0.2", **BIASED_LOOK})]


def published_entry(lines: Sequence[Line], quantity: str = "distance_teacher") -> list[tuple[str, dict]]:
    """The legend entry for published curves, where one is shown."""
    shown = any(line.seeds and line.published and paper.published_curve(line.run, quantity) for line in lines)
    return [("published, seeds 0-5", PUBLISHED_LOOK)] if shown else []


def seed_note(seeds: Iterable[Sequence[int]], *, band: bool = True) -> str:
    """What a line is a mean over, for the legend."""
    sets = sorted({tuple(each) for each in seeds if each})
    if not sets:
        return "no results"
    if sets == [sets[0][:1]]:
        return f"seed {sets[0][0]}"
    listed = ", or ".join(map(_ranges, sets))
    note = f"mean over seeds {listed}" if len(sets) == 1 else f"mean over the seeds at hand ({listed})"
    return f"{note}, band from smallest to largest" if band else note


def power(value: float) -> str:
    """``10^{-3}`` for 1e-3, in mathtext without the dollars; any other number as it is."""
    exponent = round(math.log10(value))
    return f"10^{{{exponent}}}" if math.isclose(value, 10.0**exponent) else f"{value:g}"


# --- figures of Section 6.1 ---------------------------------------------------------------------------------------


def density_evolution(seeds: Sequence[int] | None = None) -> Figure:
    """Density of the diffusion (left) and of the learned features (right) at the same epochs."""
    run = paper.DENSITY_RUN
    diffusion, seeds = paper.Diffusion(run.gamma, run.epochs), seeds_at_hand(run, seeds)
    with style():
        figure = Figure(figsize=(8, 3.5))
        left, right = figure.subplots(1, 2, sharey=True)
        solution = diffusion_densities(diffusion) if diffusion.path.exists() else None
        learned = feature_densities(run, seeds) if seeds else None
        density_panel(left, solution, ("left", "density_diffusion"), run.gamma)
        density_panel(right, learned, ("right", "density_learned"), run.gamma)
        left.set_title("ultra-fast diffusion")
        right.set(title="features learned by VarPro", ylabel="")
        labels = [f"epoch {epoch} ($t$ = {epoch * TIME_SCALE:.1f})" for epoch in DENSITY_EPOCHS]
        entries = [*colour_entries("epoch", labels), ("teacher", TEACHER_LOOK)]
        entries += [("published", PUBLISHED_LOOK)] if paper.published("density_evolution") else []
        note = f"right: $\\lambda = {power(run.lmbda)}$, $M = {run.width}$, {seed_note([seeds], band=False)}"
        legend(figure, entries, note, columns=4)
    return figure


def gamma_densities(seeds: Sequence[int] | None = None) -> Figure:
    """The teacher's density for gamma 10, 100, 1000; from the formula, without results or seeds."""
    with style():
        figure = Figure(figsize=(5, 3.2))
        axes = figure.subplots()
        for gamma, colour in zip(paper.GAMMAS, colours("gamma", len(paper.GAMMAS)), strict=True):
            axes.plot(_CIRCLE, circle_density(_CIRCLE, gamma), color=colour)
            curve = paper.published("gamma_densities").get(("single", "density_target", f"gamma={gamma:g}", "solid"))
            if curve is not None:
                axes.plot(curve.x, curve.y, **PUBLISHED_LOOK)
        axes.axhline(1 / (2 * math.pi), **TEACHER_LOOK)
        angle_axis(axes)
        labels = [f"$\\gamma = {gamma:g}$" for gamma in paper.GAMMAS]
        entries = [*colour_entries("gamma", labels), ("uniform", TEACHER_LOOK)]
        entries += [("published", PUBLISHED_LOOK)] if paper.published("gamma_densities") else []
        legend(figure, entries, "")
    return figure


def risk_width(seeds: Sequence[int] | None = None) -> Figure:
    """Risk against the epoch for four widths: biased (left, logarithmic epochs) and unbiased (right)."""
    return risks(paper.FIGURES["width"], seeds)


def risks(runs: Sequence[paper.Run], seeds: Sequence[int] | None) -> Figure:
    """Risk of ``runs`` of several widths: biased (left, logarithmic epochs) and unbiased (right)."""
    with style():
        figure = Figure(figsize=(8, 3.5))
        lines = []
        for axes, biased in zip(figure.subplots(1, 2), (True, False), strict=True):
            own = [line for line in width_lines(runs, seeds) if line.run.biased == biased]
            # one penalty a panel: solid in both, as published
            solid = [Line(line.run, line.seeds, line.colour) for line in own]
            run_panel(axes, solid, "loss", log_epochs=biased)
            axes.set_title("biased penalty $u^2/2$" if biased else "unbiased penalty $(u-1)^2/2$")
            lines += solid
        entries = [*colour_entries("width", width_labels()), *published_entry(lines, "loss")]
        legend(figure, entries, f"$\\lambda = 10^{{-3}}$, $\\gamma = 100$; {seed_note(x.seeds for x in lines)}")
    return figure


def distance_width(seeds: Sequence[int] | None = None) -> Figure:
    """Distances to the teacher and to the diffusion for four widths, both penalties."""
    entries = colour_entries("width", width_labels())
    lines = width_lines(paper.FIGURES["width"], seeds)
    return _distances(lines, entries, r"$\lambda = 10^{-3}$, $\gamma = 100$", penalties=True)


def distance_lambda(seeds: Sequence[int] | None = None) -> Figure:
    """Distances for lambda from 1e-1 to 1e-4 at width 1024, both penalties."""
    lines, entries = lambda_lines(paper.FIGURES["lambda"], seeds)
    return _distances(lines, entries, r"$M = 1024$, $\gamma = 100$", penalties=True)


def distance_gamma(seeds: Sequence[int] | None = None) -> Figure:
    """Distances for gamma 10, 100, 1000: unbiased, lambda 1e-4, width 1024."""
    runs = paper.FIGURES["gamma"]
    tints = colours("gamma", len(runs))
    lines = [Line(run, seeds_at_hand(run, seeds), tint) for run, tint in zip(runs, tints, strict=True)]
    entries = colour_entries("gamma", [f"$\\gamma = {run.gamma:g}$" for run in runs])
    return _distances(lines, entries, r"unbiased, $M = 1024$, $\lambda = 10^{-4}$", penalties=False)


def two_timescale(seeds: Sequence[int] | None = None) -> Figure:
    """Two-timescale descent beside VarPro: risk and both distances (rows) for three lambda (columns), four widths."""
    runs = paper.FIGURES["two_timescale"]
    columns = sorted({run.lmbda for run in runs}, reverse=True)
    tints = dict(zip(paper.WIDTHS, colours("width", len(paper.WIDTHS)), strict=True))
    with style():
        figure = Figure(figsize=(8.5, 7.6))
        grid = figure.subplots(len(_QUANTITIES), len(columns), sharey="row")
        drawn = []
        for column, lmbda in enumerate(columns):
            lines = [_compared(run, seeds, tints[run.width]) for run in runs if run.lmbda == lmbda]
            drawn += lines
            for axes, quantity in zip(grid[:, column], _QUANTITIES, strict=True):
                run_panel(axes, lines, quantity, log_epochs=True)
                axes.set_ylabel("" if column else _QUANTITIES[quantity])
            grid[0, column].set_title(f"$\\lambda = {power(lmbda)}$")
        names = {paper.TWO_TIMESCALE: "two-timescale", paper.UNBIASED: "VarPro"}
        styles = [(name, {"color": "0.2", **_ALGORITHMS[experiment]}) for experiment, name in names.items()]
        note = f"unbiased, $\\gamma = 100$; {seed_note(line.seeds for line in drawn)}"
        legend(figure, [*colour_entries("width", width_labels()), *styles], note)
    return figure


def _compared(run: paper.Run, seeds: Sequence[int] | None, colour: tuple) -> Line:
    """A line of the two-timescale figure; both algorithms over the same seeds, where both have any in common.

    No published curve: those at hand are means over other seeds than this comparison has in the paper.
    """
    other = paper.UNBIASED if run.experiment == paper.TWO_TIMESCALE else paper.TWO_TIMESCALE
    own, theirs = (seeds_at_hand(paper.Run(e, run.lmbda, run.width), seeds) for e in (run.experiment, other))
    common = tuple(seed for seed in own if seed in theirs)
    return Line(run, common or own, colour, _ALGORITHMS[run.experiment], published=False)


def width_lines(runs: Sequence[paper.Run], seeds: Sequence[int] | None) -> list[Line]:
    """A line for each of ``runs``, coloured by width, solid or dashed by penalty."""
    tints = dict(zip(paper.WIDTHS, colours("width", len(paper.WIDTHS)), strict=True))
    return [Line(run, seeds_at_hand(run, seeds), tints[run.width], penalty_look(run)) for run in runs]


def lambda_lines(runs: Sequence[paper.Run], seeds: Sequence[int] | None) -> tuple[list[Line], list[tuple[str, dict]]]:
    """A line for each of ``runs``, coloured by lambda, solid or dashed by penalty; and the entries of the legend."""
    values = sorted({run.lmbda for run in runs}, reverse=True)
    tints = dict(zip(values, colours("lambda", len(values)), strict=True))
    lines = [Line(run, seeds_at_hand(run, seeds), tints[run.lmbda], penalty_look(run)) for run in runs]
    return lines, colour_entries("lambda", [f"$\\lambda = {power(value)}$" for value in values])


def width_labels() -> list[str]:
    """Legend labels of the four widths."""
    return [f"$M = {width}$" for width in paper.WIDTHS]


def _distances(lines: Sequence[Line], entries: Sequence[tuple[str, dict]], fixed: str, *, penalties: bool) -> Figure:
    """Two panels: distance to the teacher, and to the diffusion with logarithmic epochs, as published."""
    with style():
        figure = Figure(figsize=(8, 3.5))
        left, right = figure.subplots(1, 2)
        run_panel(left, lines, "distance_teacher", log_epochs=False)
        run_panel(right, lines, "distance_diffusion", log_epochs=True)
        styles = penalty_entries() if penalties else []
        note = f"{fixed}; {seed_note(line.seeds for line in lines)}"
        legend(figure, [*entries, *styles, *published_entry(lines)], note)
    return figure


# --- writing ------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where figures go: ``$VARPRO_FIGURES``, or ``figures/`` of the repository."""
    return Path(os.environ.get("VARPRO_FIGURES", results.ROOT / "figures"))


def save(figure: Figure, name: str) -> Path:
    """Write ``figures/<name>.pdf``; the same data give the same bytes."""
    path = folder() / f"{name}.pdf"
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(path, metadata={"CreationDate": None})
    return path


@dataclass(frozen=True)
class Recipe:
    """A figure and what it is drawn from."""

    draw: Callable[[Sequence[int] | None], Figure]
    runs: Sequence[paper.Run] = ()
    diffusions: Sequence[paper.Diffusion] = ()
    section: str = "6.1"
    without_runs: bool = False  # whether published curves alone are worth a figure


_DENSITY = ([paper.DENSITY_RUN], [paper.Diffusion(paper.DENSITY_RUN.gamma)])
RECIPES = {
    "density_evolution": Recipe(density_evolution, *_DENSITY),
    "gamma_densities": Recipe(gamma_densities),
    "risk_width": Recipe(risk_width, paper.FIGURES["width"]),
    "distance_width": Recipe(distance_width, paper.FIGURES["width"]),
    "distance_lambda": Recipe(distance_lambda, paper.FIGURES["lambda"]),
    "two_timescale": Recipe(two_timescale, paper.FIGURES["two_timescale"]),
    "distance_gamma": Recipe(distance_gamma, paper.FIGURES["gamma"]),
}


def publish(name: str, recipes: Mapping[str, Recipe] = RECIPES) -> Figure | None:
    """Draw the figure ``name`` from the results at hand, write its PDF and return it; say in a line what is missing.

    What is there is drawn. None where nothing is.
    """
    recipe, seeds = recipes[name], requested_seeds()
    if not ready(name, recipe, seeds):
        return None
    figure = recipe.draw(seeds)
    save(figure, name)
    return figure


def ready(name: str, recipe: Recipe, seeds: Sequence[int] | None) -> bool:
    """Whether there is anything to draw; prints what is missing."""
    lack = missing(name, recipe.runs, seeds, recipe.diffusions, recipe.section)
    if lack:
        print(lack)
    there = [run for run in recipe.runs if seeds_at_hand(run, seeds)]
    there += [diffusion for diffusion in recipe.diffusions if diffusion.path.exists()]
    return bool(there) or recipe.without_runs or not (recipe.runs or recipe.diffusions)


# --- animation ----------------------------------------------------------------------------------------------------

_FRAMES = 125
_FRAME_MS = 90
_HOLD_MS = 1000  # the first and the last frame stay for a moment
_LAST_EPOCH = 10000  # beyond it, next to nothing moves


def frame_epochs(epochs: np.ndarray, frames: int = _FRAMES) -> np.ndarray:
    """At most ``frames`` of the increasing ``epochs (S,)``, up to 10000; dense at the start, which moves fastest.

    Snapshots only: a state between two of them would be shown as it never was.
    """
    last = min(int(epochs[-1]), _LAST_EPOCH)
    wanted = last * np.linspace(0, 1, frames) ** 2
    return np.unique(epochs[np.abs(epochs[:, None] - wanted).argmin(axis=0)])


def film(figure: Figure, epochs: Iterable[int], show: Callable[[int], None]) -> list[Image.Image]:
    """A frame for each of ``epochs``: ``figure`` after ``show(epoch)``, with epoch and time above it."""
    canvas, clock = FigureCanvasAgg(figure), figure.suptitle(" ")
    frames = []
    for epoch in epochs:
        show(epoch)
        clock.set_text(f"epoch {epoch:\u2007>5}, $t$ = {epoch * TIME_SCALE:.2f}")  # a space as wide as a digit
        canvas.draw()
        figure.set_layout_engine("none")  # the layout of the first frame holds for all: nothing jumps
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return frames


def diffusion_animation(path: Path, seeds: Sequence[int] | None = None) -> Path:
    """Write a GIF: density of the diffusion (left) beside that of the learned features (right), teacher dashed."""
    run = paper.DENSITY_RUN
    used = seeds_at_hand(run, seeds)
    panels = [diffusion_densities(paper.Diffusion(run.gamma, run.epochs)), feature_densities(run, used)]
    teacher = circle_density(_CIRCLE, run.gamma)
    with style():
        figure = Figure(figsize=(7.2, 2.9), dpi=110)
        left, right = figure.subplots(1, 2, sharey=True)
        lines = []
        for axes, densities, colour in zip((left, right), panels, colours("epoch", 3)[1:], strict=True):
            axes.plot(_CIRCLE, teacher, label="teacher", **TEACHER_LOOK)
            lines += axes.plot(densities.grid, densities.at(0), color=colour)
            angle_axis(axes)
            axes.set_ylim(0, 1.25 * teacher.max())
        left.set_title("ultra-fast diffusion")
        right.set(title=f"features learned by VarPro ($M = {run.width}$, $\\lambda = {power(run.lmbda)}$)", ylabel="")
        left.legend(loc="upper left")

        def show(epoch: int) -> None:
            for line, densities in zip(lines, panels, strict=True):
                line.set_ydata(densities.at(epoch))

        frames = film(figure, frame_epochs(panels[0].epochs), show)
    return write_gif(path, frames)


def write_gif(path: Path, frames: Sequence[Image.Image], palette: Image.Image | None = None) -> Path:
    """Write frames as an endless GIF whose first and last frame stay; ``palette`` is an image in mode P."""
    # one small palette for all frames, so that neighbours differ only where something moves
    palette = palette or frames[-1].quantize(32)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_HOLD_MS, *[_FRAME_MS] * (len(frames) - 2), _HOLD_MS]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    return path


@dataclass(frozen=True)
class Animation:
    """A GIF that a notebook shows, and keeps, as a moving picture."""

    path: Path = field(repr=False)  # a path of this machine has no place in a notebook

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.path.read_bytes()).decode()
        return f'<img alt="{self.path.stem}" src="data:image/gif;base64,{data}">'


def publish_animation(name: str = "diffusion_animation") -> Animation | None:
    """Write ``figures/<name>.gif`` and return it for display; where a result is missing, say which, and return None."""
    seeds = requested_seeds()
    some = ready(name, Recipe(density_evolution, *_DENSITY), seeds)
    if not some or not seeds_at_hand(paper.DENSITY_RUN, seeds) or not _DENSITY[1][0].path.exists():
        return None
    return Animation(diffusion_animation(folder() / f"{name}.gif", seeds))
