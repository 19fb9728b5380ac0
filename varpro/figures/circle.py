"""The layouts of Section 6.1 and the animation of densities on the circle."""

import math
from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varpro.domains.circle import circle_density
from varpro.figures import panels
from varpro.figures.animation import Film, film, frame_epochs
from varpro.figures.panels import PUBLISHED_LOOK, TEACHER_LOOK
from varpro.figures.publish import Publisher
from varpro.paper import grid, published, records

publish = Publisher("6.1")

# VarPro lies on two-timescale descent for large lambda: broad and pale below, thin dashes above, both stay visible.
_ALGORITHMS = {
    grid.TWO_TIMESCALE: ("two-timescale", {"linestyle": "solid", "linewidth": 3.2, "alpha": 0.4, "zorder": 2}),
    grid.UNBIASED: ("VarPro", {"linestyle": "dashed", "linewidth": 1.2, "zorder": 3}),
}


# --- densities ----------------------------------------------------------------------------------------------------


@publish.layout
def teacher_densities(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """The teacher's density for gamma 10, 100, 1000; from the formula, without results or seeds."""
    with panels.style():
        figure = Figure(figsize=(5, 3.2))
        axes = figure.subplots()
        tints = panels.colours("gamma", len(grid.GAMMAS))
        theirs = [published.curve_of(grid.Run(grid.UNBIASED, gamma=g), "density_target", ()) for g in grid.GAMMAS]
        for gamma, colour, curve in zip(grid.GAMMAS, tints, theirs, strict=True):
            axes.plot(records.CIRCLE, circle_density(records.CIRCLE, gamma), color=colour)
            if curve is not None:
                axes.plot(curve.x, curve.y, **PUBLISHED_LOOK)
        axes.axhline(1 / (2 * math.pi), **TEACHER_LOOK)
        angle_axis(axes)
        labels = [f"$\\gamma = {gamma:g}$" for gamma in grid.GAMMAS]
        entries = [(label, {"color": colour}) for label, colour in zip(labels, tints, strict=True)]
        entries += [("uniform", TEACHER_LOOK), *([("published", PUBLISHED_LOOK)] if any(theirs) else [])]
        panels.legend(figure, entries, "")
    return figure


@publish.layout
def density_evolution(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Density of the diffusion (left) and of the learned features (right) at the same epochs."""
    (run,), (diffusion,) = spec.runs, spec.diffusions
    at_hand = records.at_hand(spec, seeds)[run]
    tints = panels.colours("epoch", len(panels.DENSITY_EPOCHS))
    with panels.style():
        figure = Figure(figsize=(8, 3.5))
        left, right = figure.subplots(1, 2, sharey=True)
        solution = records.diffusion_densities(diffusion) if diffusion.path.exists() else None
        learned = records.feature_densities(run, at_hand) if at_hand else None
        shown = [_density_panel(left, run, solution, ("density_diffusion", ()), tints)]
        shown += [_density_panel(right, run, learned, ("density_learned", spec.seeds), tints)]
        left.set_title("ultra-fast diffusion")
        right.set(title="features learned by VarPro", ylabel="")
        labels = [f"epoch {epoch} ($t$ = {epoch * grid.TIME_SCALE:.1f})" for epoch in panels.DENSITY_EPOCHS]
        entries = [(label, {"color": colour}) for label, colour in zip(labels, tints, strict=True)]
        entries += [("teacher", TEACHER_LOOK), *([("published", PUBLISHED_LOOK)] if any(shown) else [])]
        fixed = f"right: $\\lambda = {panels.power(run.lmbda)}$, $M = {run.width}$"
        panels.legend(figure, entries, f"{fixed}, {panels.seed_note([at_hand], band=False)}", columns=4)
    return figure


def _density_panel(
    axes: Axes, run: grid.Run, densities: records.Densities | None, theirs: tuple, tints: Sequence[tuple]
) -> bool:
    """A density at some epochs with the teacher's, dashed; ``theirs`` is quantity and seeds of the published ones.

    Returns whether one of these is shown.
    """
    shown = False
    for epoch, colour in zip(panels.DENSITY_EPOCHS, tints, strict=True):
        if densities is None or epoch > densities.epochs[-1]:
            continue
        axes.plot(densities.places, densities.at(epoch), color=colour)
        curve = published.curve_of(run, *theirs, epoch)
        if curve is not None:
            axes.plot(curve.x, curve.y, **PUBLISHED_LOOK)
            shown = True
    axes.plot(records.CIRCLE, circle_density(records.CIRCLE, run.gamma), **TEACHER_LOOK)
    angle_axis(axes)
    return shown


def angle_axis(axes: Axes) -> None:
    """Angles in [-pi, pi] below, density from 0 upwards."""
    ticks = [-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi]
    axes.set_xticks(ticks, [r"$-\pi$", r"$-\pi/2$", "0", r"$\pi/2$", r"$\pi$"])
    axes.set(xlabel=r"angle $\omega$", ylabel="density", xlim=(-math.pi, math.pi))
    axes.set_ylim(bottom=0)


@publish.layout
def animation(spec: grid.Figure, seeds: Sequence[int] | None) -> Film:
    """Density of the diffusion (left) beside that of the learned features (right), teacher dashed."""
    (run,), (diffusion,) = spec.runs, spec.diffusions
    at_hand = records.at_hand(spec, seeds)[run]
    moving = [records.diffusion_densities(diffusion), records.feature_densities(run, at_hand)]
    teacher = circle_density(records.CIRCLE, run.gamma)
    with panels.style():
        figure = Figure(figsize=(7.2, 2.9), dpi=110)
        left, right = figure.subplots(1, 2, sharey=True)
        lines = []
        for axes, densities, colour in zip((left, right), moving, panels.colours("epoch", 3)[1:], strict=True):
            axes.plot(records.CIRCLE, teacher, label="teacher", **TEACHER_LOOK)
            lines += axes.plot(densities.places, densities.at(0), color=colour)
            angle_axis(axes)
            axes.set_ylim(0, 1.25 * teacher.max())
        left.set_title("ultra-fast diffusion")
        fixed = f"$M = {run.width}$, $\\lambda = {panels.power(run.lmbda)}$"
        right.set(title=f"features learned by VarPro ({fixed})", ylabel="")
        left.legend(loc="upper left")

        def show(epoch: int) -> None:
            for line, densities in zip(lines, moving, strict=True):
                line.set_ydata(densities.at(epoch))

        return film(figure, frame_epochs(moving[0].epochs), show)


# --- curves -------------------------------------------------------------------------------------------------------

publish.layout(panels.risks)


@publish.layout
def distances(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Distance to the teacher, and to the diffusion with logarithmic epochs, as published."""
    return panels.row(spec, seeds, ["distance_teacher", "distance_diffusion"], linear=["distance_teacher"])


@publish.layout
def distances_to_limits(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Distance to the teacher, to the plain and to the projected diffusion: widths (top), lambda (bottom).

    Dashed in the middle: the distance of the two limits from each other, without any network.
    """
    usual = grid.Run(grid.UNBIASED)
    rows = {"width": [run for run in spec.runs if run.lmbda == usual.lmbda]}
    rows["lmbda"] = [run for run in spec.runs if run.width == usual.width]
    quantities = ["distance_teacher", *(f"distance_{limit}" for limit in panels.TO_LIMIT)]
    with panels.style():
        figure = Figure(figsize=(10.5, 7))
        for part, (by, runs) in zip(figure.subfigures(2, 1), rows.items(), strict=True):
            own = replace(spec, runs=runs, by=by)
            more = panels.limits_entry(runs[0])
            _, plain, _ = panels.fill_row(part, own, seeds, quantities, quantities[:1], more=more, sharey=True)
            panels.limits_apart(plain, runs[0])
            plain.set_ylabel(panels.TO_LIMIT["diffusion"])
    return figure


@publish.layout
def risk_and_distances(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Risk, distance to the teacher, and to the diffusion with logarithmic epochs, as published."""
    return panels.row(spec, seeds, panels.COMPARED, linear=["loss", "distance_teacher"])


@publish.layout
def two_timescale(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Two-timescale descent beside VarPro: risk and both distances (rows) for three lambda (columns), four widths."""
    lines = compared(panels.lines_of(spec, seeds))
    columns = sorted({run.lmbda for run in spec.runs}, reverse=True)
    with panels.style():
        figure = Figure(figsize=(8.5, 7.6))
        cells = figure.subplots(len(panels.COMPARED), len(columns), sharey="row")
        for column, lmbda in enumerate(columns):
            own = [line for line in lines if line.run.lmbda == lmbda]
            for axes, quantity in zip(cells[:, column], panels.COMPARED, strict=True):
                panels.run_panel(axes, own, quantity, log_epochs=True)
                axes.set_ylabel("" if column else panels.QUANTITIES[quantity])
            cells[0, column].set_title(f"$\\lambda = {panels.power(lmbda)}$")
        names = [(name, {"color": "0.2", **look}) for name, look in _ALGORITHMS.values()]
        theirs = panels.published_entry(lines, panels.COMPARED)
        panels.legend(figure, [*panels.entries_of(spec, lines, []), *names, *theirs], panels.note_of(spec, lines))
    return figure


def compared(lines: Sequence[panels.Line]) -> list[panels.Line]:
    """``lines`` of both algorithms, each pair over the same seeds, where both have any in common."""
    seeds = {line.run: set(line.seeds) for line in lines}
    shown = []
    for line in lines:
        pair = [replace(line.run, experiment=experiment) for experiment in _ALGORITHMS]
        common = set.intersection(*(seeds.get(run, set()) for run in pair))
        look = _ALGORITHMS[line.run.experiment][1]
        shown.append(replace(line, seeds=tuple(sorted(common)) or line.seeds, look=look))
    return shown
