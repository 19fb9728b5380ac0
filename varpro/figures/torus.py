"""The layouts of Appendix B and the animation of densities on the torus."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from varpro import results
from varpro.features import LAPLACE, RadialTorus
from varpro.figures import panels
from varpro.figures.animation import Film, film, frame_epochs
from varpro.figures.publish import Publisher
from varpro.paper import grid, records
from varpro.problem import drawn_problem

publish = Publisher()

SMOOTHING = 0.08  # scale of the Gaussian that stands for a neuron in a density; the torus is 4 wide
_CELLS = 80  # of a density image along each coordinate
_SIGNAL_CELLS = 64
_DENSITY_MAP = "viridis"
_HALF = 2.0  # the torus is [-2, 2)^2
_FRAMES = 75


def smoothed_density(points: np.ndarray, places: np.ndarray, scale: float = SMOOTHING) -> np.ndarray:
    """Density (G, G) on the torus of neurons at ``points (M, 2)``: at [a, b] that of (places[a], places[b]).

    Every neuron is a periodic Gaussian of standard deviation ``scale`` in both coordinates, summed as a product of
    Fourier series sum_n exp(-(pi n scale / 2)^2 / 2) exp(i pi n (x - w) / 2) / 4, whose mass is exactly 1.
    """
    frequency = math.pi / 2  # of period 4
    last = math.ceil(8.5 / (frequency * scale))  # exp(-8.5^2 / 2) = 2e-16
    orders = frequency * np.arange(-last, last + 1)
    first, second = (np.exp(-1j * np.outer(orders, points[:, k])) for k in (0, 1))
    damping = np.exp(-((orders * scale) ** 2) / 2)
    moments = np.outer(damping, damping) * (first @ second.T) / len(points)
    waves = np.exp(1j * np.outer(places, orders))
    return (waves @ moments @ waves.T).real / (2 * _HALF) ** 2


def centres(cells: int) -> np.ndarray:
    """Centres (cells,) of equal cells of [-2, 2)."""
    return (np.arange(cells) + 0.5) * (2 * _HALF / cells) - _HALF


def teacher_signal(neurons: torch.Tensor, places: np.ndarray) -> np.ndarray:
    """f(x) = mean_j phi(w_j, x) with the Laplace kernel: (G, G), at [a, b] in the point (places[a], places[b])."""
    points = torch.cartesian_prod(*[torch.from_numpy(places).float()] * 2)
    features = RadialTorus(LAPLACE)
    values = [features(neurons.float(), chunk).mean(dim=1) for chunk in points.split(512)]
    return torch.cat(values).reshape(len(places), len(places)).numpy()


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


@publish.layout
def teacher(spec: grid.Figure, seeds: Sequence[int] | None = None) -> Figure:
    """Teacher neurons (left) and teacher signal (right) for gamma 100 and infinity; draws of seed 0, no results."""
    places = np.linspace(-_HALF, _HALF, _SIGNAL_CELLS + 1)
    with panels.style():
        figure = Figure(figsize=(8, 7))
        for row, gamma in enumerate((100.0, math.inf)):
            neurons = drawn_problem(RadialTorus(LAPLACE), 0, 1, 1, 4096, gamma).teacher
            axes = figure.add_subplot(2, 2, 2 * row + 1)
            few = len(neurons) < 10
            for k, colour in enumerate(panels.colours("epoch", 4)[1::2]):  # even and odd neurons: one mode each
                mine = neurons[k::2]
                axes.scatter(*mine.T, s=60 if few else 2, color=colour, alpha=1 if few else 0.35, linewidths=0)
            square(axes)
            name = r"$\gamma = \infty$" if math.isinf(gamma) else f"$\\gamma = {gamma:g}$"
            axes.set_title(f"teacher neurons, {name}, $T = {len(neurons)}$")
            surface = figure.add_subplot(2, 2, 2 * row + 2, projection="3d")
            x, y = np.meshgrid(places, places, indexing="ij")
            surface.plot_surface(
                x, y, teacher_signal(neurons, places), cmap=_DENSITY_MAP, rstride=1, cstride=1, linewidth=0
            )
            surface.set(xlabel="$x_1$", ylabel="$x_2$", title=f"teacher signal, {name}", xticks=range(-2, 3))
            surface.set_yticks(range(-2, 3))
            surface.view_init(elev=35, azim=-60)
    return figure


publish.layout(panels.risks)


@publish.layout
def distance(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Distance to the teacher."""
    return panels.row(spec, seeds, ["distance_teacher"], linear=["distance_teacher"])


@publish.layout
def distance_and_risk(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Distance to the teacher (left) and risk (right, logarithmic epochs)."""
    return panels.row(spec, seeds, ["distance_teacher", "loss"], linear=["distance_teacher"])


@publish.layout
def animation(spec: grid.Figure, seeds: Sequence[int] | None) -> Film:
    """The density of the learned features (left) beside the teacher's (right), same colours."""
    (run,) = spec.runs
    at_hand = records.seeds_at_hand(run, spec.seeds if seeds is None else seeds)
    contents = [results.load(run.path(seed)) for seed in at_hand]
    epochs, places = contents[0]["snapshot_epochs"].numpy(), centres(_CELLS)
    weights = np.stack([content["weights"].numpy() for content in contents], axis=1)  # (S, seeds, M, 2)
    target = np.mean([smoothed_density(content["teacher_weights"].numpy(), places) for content in contents], axis=0)
    with panels.style():
        figure = Figure(figsize=(6.4, 3.5), dpi=90)
        left, right = figure.subplots(1, 2, sharey=True)
        image = density_image(left, smoothed_density(weights[0].reshape(-1, 2), places), target.max())
        figure.colorbar(density_image(right, target, target.max()), ax=[left, right], label="density", shrink=0.85)
        left.set_title(f"learned features, $M = {run.width}$")
        right.set(title="teacher", ylabel="")

        def show(epoch: int) -> None:
            state = weights[np.searchsorted(epochs, epoch)]
            image.set_data(smoothed_density(state.reshape(-1, 2), places).T)

        return film(figure, frame_epochs(epochs, _FRAMES), show, _palette())


def _palette() -> Image.Image:
    """The colours of a density, and greys for letters and lines."""
    tints = matplotlib.colormaps[_DENSITY_MAP](np.linspace(0, 1, 40))[:, :3]
    greys = np.repeat(np.linspace(0, 1, 8)[:, None], 3, axis=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.concatenate([tints, greys])).round().astype(np.uint8).tobytes())
    return palette
