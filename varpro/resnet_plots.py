"""The figures of Section 6.2, ResNets, for CIFAR-10 and for the digits; conventions are those of varpro/plots.py."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varpro import paper, plots, results
from varpro.paper import ResNetRun

_TITLES = {"varprom": "VarProM", "sgdm": "SGD with momentum", "shampoo": "Shampoo"}
_SHOWN = {"cifar10": (0.6, 0.95), "digits": (0.5, 1.0)}  # test accuracy


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Means (n - window + 1,) of ``window`` neighbours of ``values (n,)``; of all where there are fewer."""
    window = min(window, len(values))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return (sums[window:] - sums[:-window]) / window


def loss_panel(axes: Axes, run: ResNetRun, seeds: Sequence[int], colour: tuple) -> None:
    """Training loss against passes over the data: every point is the mean over the pass before it."""
    curves = [results.load(run.path(seed))["loss"].numpy() for seed in seeds]
    window = len(curves[0]) // run.passes  # steps of a pass
    values = np.stack([moving_average(curve, window) for curve in curves])
    shown = np.unique(np.linspace(0, values.shape[1] - 1, 400).astype(int))
    _line(axes, (shown + window) / window, values[:, shown], colour)


def accuracy_panel(axes: Axes, run: ResNetRun, seeds: Sequence[int], colour: tuple) -> None:
    """Test accuracy after every pass, over the published one where there is one."""
    if seeds:
        values = np.stack([results.load(run.path(seed))["accuracy"].numpy() for seed in seeds])
        _line(axes, np.arange(values.shape[1]), values, colour)
    curve = paper.published_accuracy(run)
    if curve is not None:  # without runs of ours the colour tells the batch sizes apart
        own = plots.PUBLISHED_LOOK if seeds else plots.PUBLISHED_LOOK | {"color": colour, "alpha": 0.6}
        axes.plot(curve.x, curve.y, **own)


def _line(axes: Axes, x: np.ndarray, values: np.ndarray, colour: tuple) -> None:
    axes.plot(x, values.mean(axis=0), color=colour)
    if len(values) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def losses(runs: Sequence[ResNetRun], seeds: Sequence[int] | None = None) -> Figure:
    """Training loss, one panel an optimizer, one line a batch size."""
    figure = _panels(runs, seeds, loss_panel, "training loss, mean over a pass", published=False)
    for axes in figure.axes:
        axes.set(yscale="log")
        plots.readable_logarithm(axes)
    return figure


def accuracies(runs: Sequence[ResNetRun], seeds: Sequence[int] | None = None) -> Figure:
    """Test accuracy, one panel an optimizer, one line a batch size."""
    figure = _panels(runs, seeds, accuracy_panel, "test accuracy", published=True)
    for axes in figure.axes:
        axes.set(ylim=_SHOWN[runs[0].dataset])
    return figure


def _panels(
    runs: Sequence[ResNetRun], seeds: Sequence[int] | None, panel: Callable, label: str, *, published: bool
) -> Figure:
    kinds = list(dict.fromkeys((run.optimizer, run.variant) for run in runs))
    sizes = sorted({run.batch_size for run in runs})
    tints = dict(zip(sizes, plots.colours("batch size", len(sizes)), strict=True))
    at_hand = {run: plots.seeds_at_hand(run, seeds) for run in runs}
    with plots.style():
        figure = Figure(figsize=(2.9 * len(kinds), 3.4))
        grid = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, (optimizer, variant) in zip(grid, kinds, strict=True):
            for run in runs:
                if (run.optimizer, run.variant) == (optimizer, variant) and (at_hand[run] or published):
                    panel(axes, run, at_hand[run], tints[run.batch_size])
            name = "2018 paper" if variant == "gupta" else variant
            axes.set(title=_TITLES[optimizer] + (f" ({name})" if variant else ""), xlabel="passes over the data")
            axes.set_xlim(0, runs[0].passes)
        grid[0].set_ylabel(label)
        entries = plots.colour_entries("batch size", [f"batch size {size}" for size in sizes])
        theirs = published and any(paper.published_accuracy(run) for run in runs)
        note = plots.seed_note(at_hand.values())
        if theirs and not any(at_hand.values()):
            note = "published single runs alone"
        elif theirs:
            entries.append(("published, a single run", plots.PUBLISHED_LOOK))
        plots.legend(figure, entries, note)
    return figure


def _recipes(section: str, dataset: str, runs: Sequence[ResNetRun], *, published: bool) -> dict[str, plots.Recipe]:
    return {
        f"resnet_loss_{dataset}": plots.Recipe(partial(losses, runs), runs, section=section),
        f"resnet_accuracy_{dataset}": plots.Recipe(
            partial(accuracies, runs), runs, section=section, without_runs=published
        ),
    }


RECIPES = {
    **_recipes("resnets", "digits", paper.DIGITS_RUNS, published=False),
    **_recipes("resnets-cifar10", "cifar10", paper.CIFAR_RUNS, published=True),
}


class Table(str):
    """Markdown that a notebook shows as a table."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)


def publish(name: str) -> Figure | None:
    """:func:`varpro.plots.publish` for the figures of Section 6.2."""
    return plots.publish(name, RECIPES)


def table(dataset: str) -> Table:
    """Final and best test accuracy of the runs at hand on ``dataset``."""
    runs = {"digits": paper.DIGITS_RUNS, "cifar10": paper.CIFAR_RUNS}[dataset]
    seeds = plots.requested_seeds()
    return Table(paper.accuracy_table(runs, list(paper.SEEDS) if seeds is None else seeds))
