"""The layouts of Appendix B and the animation of densities on the torus."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from varpro import results
from varpro.diffusion.snapshots import density_at
from varpro.diffusion.torus import TorusTeacher
from varpro.features import LAPLACE, RADIAL_KERNELS, RadialTorus, harmonics
from varpro.figures import panels
from varpro.figures.animation import Film, film, frame_epochs
from varpro.figures.publish import Publisher
from varpro.paper import grid, records
from varpro.problem import drawn_problem

publish = Publisher("appendix-b")

SMOOTHING = 0.08  # scale of the Gaussian that stands for a neuron in a density; the torus is 4 wide
_CELLS = 80  # of a density image along each coordinate
_SIGNAL_CELLS = 64
_DENSITY_MAP = "viridis"
_HALF = 2.0  # the torus is [-2, 2)^2
_FRAMES = 75
_HARMONICS = 24  # along each axis
_LAW_CELLS = 256


def smoothed_density(points: np.ndarray, places: np.ndarray, scale: float = SMOOTHING) -> np.ndarray:
    """Density (G, G) on the torus of neurons at ``points (M, 2)``: at [a, b] that of (places[a], places[b]).

    Every neuron is a periodic Gaussian of standard deviation ``scale`` in both coordinates, summed as a product of
    Fourier series sum_n exp(-(pi n scale / 2)^2 / 2) exp(i pi n (x - w) / 2) / 4, whose mass is exactly 1.
    """
    first, second = (np.exp(-1j * np.outer(_orders(scale), points[:, k])) for k in (0, 1))
    return _damped((first @ second.T) / len(points), places, scale)


def smoothed_cells(density: np.ndarray, places: np.ndarray, scale: float = SMOOTHING) -> np.ndarray:
    """The same (G, G) of a law with averages ``density (n, n)`` over cells, in place of neurons."""
    waves = np.exp(-1j * np.outer(_orders(scale), centres(len(density))))
    return _damped(waves @ (density / density.sum()) @ waves.T, places, scale)


def _orders(scale: float) -> np.ndarray:
    """The frequencies (K,), of period 4, that smoothing by ``scale`` leaves."""
    frequency = math.pi / 2
    last = math.ceil(8.5 / (frequency * scale))  # exp(-8.5^2 / 2) = 2e-16
    return frequency * np.arange(-last, last + 1)


def _damped(moments: np.ndarray, places: np.ndarray, scale: float) -> np.ndarray:
    """The Fourier series (G, G) with ``moments (K, K)``, smoothed."""
    orders = _orders(scale)
    damping = np.exp(-((orders * scale) ** 2) / 2)
    waves = damping * np.exp(1j * np.outer(places, orders))
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


def density_image(axes: Axes, density: np.ndarray, most: float) -> AxesImage:
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
def diffusion_distance(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Distance to the diffusion, logarithmic epochs."""
    return panels.row(spec, seeds, ["distance_diffusion"], linear=[])


@publish.layout
def seen_harmonics(spec: grid.Figure, seeds: Sequence[int] | None = None) -> Figure:
    """What each kernel makes of a harmonic of the neurons' density, and what three lambda let through; no results."""
    orders = np.arange(_HARMONICS + 1)
    radii = np.hypot(*np.meshgrid(orders, orders)).ravel()
    shown = (radii > 0) & (radii <= _HARMONICS)
    with panels.style():
        figure = Figure(figsize=(6, 4))
        axes = figure.subplots()
        entries = []
        tints = panels.colours("activation", len(RADIAL_KERNELS))
        for kernel, colour in zip(RADIAL_KERNELS.values(), tints, strict=True):
            sizes = np.abs(harmonics(kernel, _HARMONICS)).ravel()
            look = {"color": colour, "marker": ".", "markersize": 3, "linestyle": "none"}
            axes.plot(radii[shown], sizes[shown], **look)
            entries.append((kernel.label, look | {"markersize": 8}))
        look = {"color": "0.4", "linewidth": 0.9, "linestyle": "dashed"}
        for lmbda in (1e-1, 1e-3, 1e-5):
            axes.axhline(math.sqrt(lmbda), **look)
            at = (_HARMONICS, math.sqrt(lmbda))
            axes.annotate(f"$\\lambda = {panels.power(lmbda)}$", at, (0, 2), textcoords="offset points", ha="right")
        entries.append(("$\\sqrt{\\lambda}$", look))
        axes.set(xscale="log", yscale="log", xlabel="frequency $|k|$ of a harmonic", ylabel="its weight $|c_k|$")
        axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        panels.legend(figure, entries, "above a dashed line: seen at that $\\lambda$")
    return figure


def diffusion_density(diffusion: grid.Diffusion) -> records.Densities:
    """The diffusion, smoothed as the neurons are, (G, G). Raises ResultError where it is not at hand."""
    contents = results.load(diffusion.path)
    epochs, density = contents["snapshot_epochs"].numpy(), contents["density"].numpy()
    places = centres(_CELLS)
    return records.Densities(places, lambda epoch: smoothed_cells(density_at(density, epochs, epoch), places), epochs)


def feature_density(run: grid.Run, seeds: Sequence[int]) -> records.Densities:
    """The density of a run's learned features, averaged over ``seeds``, of which there must be one: (G, G)."""
    contents = [records.result(run, seed) for seed in seeds]
    epochs, places = contents[0]["snapshot_epochs"].numpy(), centres(_CELLS)
    weights = np.stack([content["weights"].numpy() for content in contents], axis=1)  # (S, seeds, M, 2)

    def at(epoch: float) -> np.ndarray:
        state = weights[np.abs(epochs - epoch).argmin()]  # the nearest: neurons cross the seam of the square
        return smoothed_density(state.reshape(-1, 2), places)

    return records.Densities(places, at, epochs)


def teacher_density(gamma: float) -> np.ndarray:
    """The teacher's law, smoothed as the neurons are: (G, G)."""
    return smoothed_cells(TorusTeacher.of_law(gamma, _LAW_CELLS).cells, centres(_CELLS))


@publish.layout
def density_evolution(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Density of the diffusion (above) and of the learned features (below) at the same epochs."""
    (run,), (diffusion,) = spec.runs, spec.diffusions
    at_hand = records.at_hand(spec, seeds)[run]
    limit = diffusion_density(diffusion) if diffusion.path.exists() else None
    learned = feature_density(run, at_hand) if at_hand else None
    most = teacher_density(run.gamma).max()
    with panels.style():
        figure = Figure(figsize=(10.5, 4.6))
        cells = figure.subplots(2, len(panels.DENSITY_EPOCHS), sharex=True, sharey=True)
        for axes, title in zip(cells[0], panels.DENSITY_EPOCHS, strict=True):
            axes.set_title(f"epoch {title}, $t$ = {title * grid.TIME_SCALE:.1f}")
        for line, densities in zip(cells, (limit, learned), strict=True):
            for axes, epoch in zip(line, panels.DENSITY_EPOCHS, strict=True):
                there = densities is not None and epoch <= densities.epochs[-1]
                density = densities.at(epoch) if there else np.full((2, 2), np.nan)
                image = density_image(axes, density, most)
                axes.set(xlabel="", ylabel="")
        cells[0, 0].set_ylabel("ultra-fast diffusion")
        cells[1, 0].set_ylabel("learned features")
        figure.colorbar(image, ax=cells, label="density", shrink=0.8)
        fixed = f"unbiased, $M = {run.width}$, $\\lambda = {panels.power(run.lmbda)}$, $\\gamma = {run.gamma:g}$"
        panels.legend(figure, [], f"{fixed}, {panels.seed_note([at_hand], band=False)}", columns=1)
    return figure


@publish.layout
def animation(spec: grid.Figure, seeds: Sequence[int] | None) -> Film:
    """The diffusion (left), the learned features (middle) and the teacher (right), same colours."""
    (run,), (diffusion,) = spec.runs, spec.diffusions
    at_hand = records.at_hand(spec, seeds)[run]
    moving, target = [diffusion_density(diffusion), feature_density(run, at_hand)], teacher_density(run.gamma)
    with panels.style():
        figure = Figure(figsize=(8.4, 3.2), dpi=85)
        places = figure.subplots(1, 3, sharey=True)
        images = [
            density_image(axes, density, target.max())
            for axes, density in zip(places, [*(each.at(0) for each in moving), target], strict=True)
        ]
        figure.colorbar(images[-1], ax=places, label="density", shrink=0.85)
        fixed = f"$M = {run.width}$, $\\lambda = {panels.power(run.lmbda)}$"
        for axes, title in zip(places, ("ultra-fast diffusion", f"learned, {fixed}", "teacher"), strict=True):
            axes.set_title(title)
        for axes in places[1:]:
            axes.set_ylabel("")

        def show(epoch: int) -> None:
            for image, densities in zip(images, moving, strict=False):
                image.set_data(densities.at(epoch).T)

        return film(figure, frame_epochs(moving[1].epochs, _FRAMES), show, _palette())


def _palette() -> Image.Image:
    """The colours of a density, and greys for letters and lines."""
    tints = matplotlib.colormaps[_DENSITY_MAP](np.linspace(0, 1, 40))[:, :3]
    greys = np.repeat(np.linspace(0, 1, 8)[:, None], 3, axis=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.concatenate([tints, greys])).round().astype(np.uint8).tobytes())
    return palette
