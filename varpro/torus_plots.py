"""The figures of Appendix B and their animation; panels, legends and conventions are those of varpro/plots.py."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from varpro import paper, plots, results
from varpro.features import LAPLACE, RadialTorus
from varpro.problem import drawn_problem

SMOOTHING = 0.08  # scale of the Gaussian that stands for a neuron in a density; the torus is 4 wide
_SECTION = "appendix-b"
_CELLS = 80  # of a density image along each coordinate
_SIGNAL_CELLS = 64
_DENSITY_MAP = "viridis"
_HALF = 2.0  # the torus is [-2, 2)^2
_MODES = ((-1.0, 0.0), (1.0, 1.0))  # of the teacher
_FRAMES = 75


def smoothed_density(points: np.ndarray, grid: np.ndarray, scale: float = SMOOTHING) -> np.ndarray:
    """Density (G, G) on the torus of neurons at ``points (M, 2)``: at [a, b] that of (grid[a], grid[b]).

    Every neuron is a periodic Gaussian of standard deviation ``scale`` in both coordinates, summed as a product of
    Fourier series sum_n exp(-(pi n scale / 2)^2 / 2) exp(i pi n (x - w) / 2) / 4, whose mass is exactly 1.
    """
    frequency = math.pi / 2  # of period 4
    last = math.ceil(8.5 / (frequency * scale))  # exp(-8.5^2 / 2) = 2e-16
    orders = frequency * np.arange(-last, last + 1)
    first, second = (np.exp(-1j * np.outer(orders, points[:, k])) for k in (0, 1))
    damping = np.exp(-((orders * scale) ** 2) / 2)
    moments = np.outer(damping, damping) * (first @ second.T) / len(points)
    waves = np.exp(1j * np.outer(grid, orders))
    return (waves @ moments @ waves.T).real / (2 * _HALF) ** 2


def centres(cells: int) -> np.ndarray:
    """Centres (cells,) of equal cells of [-2, 2)."""
    return (np.arange(cells) + 0.5) * (2 * _HALF / cells) - _HALF


def teacher_signal(neurons: torch.Tensor, grid: np.ndarray) -> np.ndarray:
    """f(x) = mean_j phi(w_j, x) with the Laplace kernel: (G, G), at [a, b] in the point (grid[a], grid[b])."""
    points = torch.cartesian_prod(*[torch.from_numpy(grid).float()] * 2)
    features = RadialTorus(LAPLACE).features
    values = [features(neurons.float(), chunk).mean(dim=1) for chunk in points.split(512)]
    return torch.cat(values).reshape(len(grid), len(grid)).numpy()


# --- panels -------------------------------------------------------------------------------------------------------


def square(axes: Axes) -> None:
    """The torus as the square [-2, 2)^2."""
    axes.set(xlim=(-_HALF, _HALF), ylim=(-_HALF, _HALF), aspect="equal", xlabel=r"$\omega_1$", ylabel=r"$\omega_2$")
    axes.set_xticks(range(-2, 3))
    axes.set_yticks(range(-2, 3))


def density_image(axes: Axes, density: np.ndarray, most: float):
    """A density (G, G), first coordinate to the right; colours go from 0 to ``most``, finer near 0."""
    extent = (-_HALF, _HALF, -_HALF, _HALF)
    norm = PowerNorm(0.5, vmin=0, vmax=most)
    image = axes.imshow(
        density.T, origin="lower", extent=extent, cmap=_DENSITY_MAP, norm=norm, interpolation="bilinear"
    )
    square(axes)
    axes.grid(False)
    return image


# --- figures ------------------------------------------------------------------------------------------------------


def teacher(seeds: Sequence[int] | None = None) -> Figure:
    """Teacher neurons (left) and teacher signal (right) for gamma 100 and infinity; draws of seed 0, no results."""
    grid = np.linspace(-_HALF, _HALF, _SIGNAL_CELLS + 1)
    with plots.style():
        figure = Figure(figsize=(8, 7))
        for row, gamma in enumerate((100.0, math.inf)):
            neurons = drawn_problem(RadialTorus(LAPLACE), 0, 1, 1, 4096, gamma).teacher
            axes = figure.add_subplot(2, 2, 2 * row + 1)
            few = len(neurons) < 10
            for k, colour in enumerate(plots.colours("epoch", 4)[1::2]):  # even and odd neurons: one mode each
                mine = neurons[k::2]
                axes.scatter(*mine.T, s=60 if few else 2, color=colour, alpha=1 if few else 0.35, linewidths=0)
            square(axes)
            name = r"$\gamma = \infty$" if math.isinf(gamma) else f"$\\gamma = {gamma:g}$"
            axes.set_title(f"teacher neurons, {name}, $T = {len(neurons)}$")
            surface = figure.add_subplot(2, 2, 2 * row + 2, projection="3d")
            x, y = np.meshgrid(grid, grid, indexing="ij")
            surface.plot_surface(
                x, y, teacher_signal(neurons, grid), cmap=_DENSITY_MAP, rstride=1, cstride=1, linewidth=0
            )
            surface.set(xlabel="$x_1$", ylabel="$x_2$", title=f"teacher signal, {name}", xticks=range(-2, 3))
            surface.set_yticks(range(-2, 3))
            surface.view_init(elev=35, azim=-60)
    return figure


def risk_width(seeds: Sequence[int] | None = None) -> Figure:
    """Risk against the epoch for four widths: biased (left, logarithmic epochs) and unbiased (right)."""
    return plots.risks(paper.TORUS_FIGURES["width"], seeds)


def distance_width(seeds: Sequence[int] | None = None) -> Figure:
    """Distance to the teacher for four widths, both penalties."""
    lines = plots.width_lines(paper.TORUS_FIGURES["width"], seeds)
    with plots.style():
        figure = Figure(figsize=(6, 4))
        plots.run_panel(figure.subplots(), lines, "distance_teacher", log_epochs=False)
        entries = [*plots.colour_entries("width", plots.width_labels()), *plots.penalty_entries()]
        note = f"$\\lambda = 10^{{-3}}$, $\\gamma = 100$; {plots.seed_note(line.seeds for line in lines)}"
        plots.legend(figure, [*entries, *plots.published_entry(lines)], note, columns=4)
    return figure


def distance_lambda(seeds: Sequence[int] | None = None) -> Figure:
    """Distance to the teacher and risk for three lambda at width 1024, both penalties."""
    lines, entries = plots.lambda_lines(paper.TORUS_FIGURES["lambda"], seeds)
    return _distance_and_risk(lines, [*entries, *plots.penalty_entries()], r"$M = 1024$, $\gamma = 100$")


def distance_gamma(seeds: Sequence[int] | None = None) -> Figure:
    """Distance to the teacher and risk for gamma 100 and infinity: unbiased, lambda 1e-2, width 1024."""
    runs = paper.TORUS_FIGURES["gamma"]
    tints = plots.colours("gamma", len(runs))
    lines = [plots.Line(run, plots.seeds_at_hand(run, seeds), tint) for run, tint in zip(runs, tints, strict=True)]
    labels = [r"$\gamma = \infty$" if math.isinf(run.gamma) else f"$\\gamma = {run.gamma:g}$" for run in runs]
    entries = plots.colour_entries("gamma", labels)
    return _distance_and_risk(lines, entries, r"unbiased, $M = 1024$, $\lambda = 10^{-2}$")


def activation(seeds: Sequence[int] | None = None) -> Figure:
    """Distance to the teacher and risk for the two radial kernels, each with a teacher of its own kind."""
    runs = paper.TORUS_FIGURES["activation"]
    tints = dict(zip(("", "cos"), plots.colours("gamma", 2), strict=True))
    lines = [
        plots.Line(
            run, plots.seeds_at_hand(run, seeds), tints[run.activation], plots.penalty_look(run), published=False
        )
        for run in runs
    ]
    entries = [("Laplace", {"color": tints[""]}), ("raised cosine", {"color": tints["cos"]})]
    note = r"$M = 1024$, $\lambda = 10^{-3}$, $\gamma = 100$"
    return _distance_and_risk(lines, [*entries, *plots.penalty_entries()], note)


def _distance_and_risk(lines: Sequence[plots.Line], entries: list, fixed: str) -> Figure:
    with plots.style():
        figure = Figure(figsize=(8, 3.5))
        left, right = figure.subplots(1, 2)
        plots.run_panel(left, lines, "distance_teacher", log_epochs=False)
        plots.run_panel(right, lines, "loss", log_epochs=True)
        note = f"{fixed}; {plots.seed_note(line.seeds for line in lines)}"
        plots.legend(figure, [*entries, *plots.published_entry(lines)], note)
    return figure


_WIDTHS = paper.TORUS_FIGURES["width"]
_recipe = partial(plots.Recipe, section=_SECTION)
RECIPES = {
    "convolution_teacher": _recipe(teacher),
    "convolution_risk_width": _recipe(risk_width, _WIDTHS),
    "convolution_distance_width": _recipe(distance_width, _WIDTHS),
    "convolution_distance_lambda": _recipe(distance_lambda, paper.TORUS_FIGURES["lambda"]),
    "convolution_distance_gamma": _recipe(distance_gamma, paper.TORUS_FIGURES["gamma"]),
    "convolution_activation": _recipe(activation, paper.TORUS_FIGURES["activation"]),
}


def publish(name: str) -> Figure | None:
    """:func:`varpro.plots.publish` for the figures of Appendix B."""
    return plots.publish(name, RECIPES)


# --- animation ----------------------------------------------------------------------------------------------------


def learned_density_animation(path: Path, seeds: Sequence[int] | None = None) -> Path:
    """Write a GIF: the density of the learned features (left) beside the teacher's (right), same colours."""
    run = paper.TORUS_DENSITY_RUN
    contents = [results.load(run.path(seed)) for seed in plots.seeds_at_hand(run, seeds)]
    epochs, grid = contents[0]["snapshot_epochs"].numpy(), centres(_CELLS)
    weights = np.stack([content["weights"].numpy() for content in contents], axis=1)  # (S, seeds, M, 2)
    target = np.mean([smoothed_density(content["teacher_weights"].numpy(), grid) for content in contents], axis=0)
    with plots.style():
        figure = Figure(figsize=(6.4, 3.5), dpi=90)
        left, right = figure.subplots(1, 2, sharey=True)
        image = density_image(left, smoothed_density(weights[0].reshape(-1, 2), grid), target.max())
        figure.colorbar(density_image(right, target, target.max()), ax=[left, right], label="density", shrink=0.85)
        left.set_title(f"learned features, $M = {run.width}$")
        right.set(title="teacher", ylabel="")

        def show(epoch: int) -> None:
            state = weights[np.searchsorted(epochs, epoch)]
            image.set_data(smoothed_density(state.reshape(-1, 2), grid).T)

        frames = plots.film(figure, plots.frame_epochs(epochs, _FRAMES), show)
    return plots.write_gif(path, frames, _palette())


def _palette() -> Image.Image:
    """The colours of a density, and greys for letters and lines."""
    tints = matplotlib.colormaps[_DENSITY_MAP](np.linspace(0, 1, 40))[:, :3]
    greys = np.repeat(np.linspace(0, 1, 8)[:, None], 3, axis=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.concatenate([tints, greys])).round().astype(np.uint8).tobytes())
    return palette


def publish_animation(name: str = "convolution_animation") -> plots.Animation | None:
    """Write ``figures/<name>.gif`` and return it for display; where a result is missing, say which, and return None."""
    seeds, run = plots.requested_seeds(), paper.TORUS_DENSITY_RUN
    if not plots.ready(name, _recipe(distance_width, [run]), seeds):
        return None
    return plots.Animation(learned_density_animation(plots.folder() / f"{name}.gif", seeds))
