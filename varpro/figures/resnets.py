"""The layouts of Section 6.2, ResNets, for CIFAR-10 and for the digits, and their table."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varpro import results
from varpro.figures import panels
from varpro.figures.panels import Table
from varpro.figures.publish import Publisher, requested_seeds
from varpro.paper import fidelity, grid, published, records
from varpro.paper.grid import ResNetRun

publish = Publisher("resnets", "resnets-start", "resnets-cifar10")

_TITLES = {
    "varprom": "VarProM",
    "sgdm": "SGD with momentum",
    "shampoo": "Shampoo",
    "varpro-running": "varpro-running, not in the paper",
}
_TINTS = {"varprom": "#D55E00", "sgdm": "#0072B2", "shampoo": "#009E73", "varpro-running": "0.1"}  # Okabe and Ito's
_OTHER_TINT = "#CC79A7"
_THEIRS = {"linestyle": (0, (1, 1)), "linewidth": 1.1}  # a published curve in the colour of ours
_SHOWN = {"cifar10": (0.6, 0.95), "digits": (0.5, 1.0)}  # test accuracy


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Means (n - window + 1,) of ``window`` neighbours of ``values (n,)``; of all where there are fewer."""
    window = min(window, len(values))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return (sums[window:] - sums[:-window]) / window


def loss_panel(axes: Axes, run: ResNetRun, seeds: Sequence[int], colour: tuple | str) -> None:
    """Training loss against passes over the data: every point is the mean over the pass before it."""
    curves = [results.load(run.path(seed))["loss"].numpy() for seed in seeds]
    window = len(curves[0]) // run.passes  # steps of a pass
    values = np.stack([moving_average(curve, window) for curve in curves])
    shown = np.unique(np.linspace(0, values.shape[1] - 1, 400).astype(int))
    panels.banded(axes, (shown + window) / window, values[:, shown], color=colour)


def accuracy_panel(
    axes: Axes, run: ResNetRun, seeds: Sequence[int], colour: tuple | str, theirs: dict | None = None
) -> None:
    """Test accuracy after every pass, over the published one, in the look ``theirs``, where there is one."""
    if seeds:
        values = np.stack([results.load(run.path(seed))["accuracy"].numpy() for seed in seeds])
        panels.banded(axes, np.arange(values.shape[1]), values, color=colour)
    curve = published.accuracy(run)
    if curve is not None:
        if theirs is None:  # without runs of ours the colour tells the batch sizes apart
            theirs = panels.PUBLISHED_LOOK if seeds else panels.PUBLISHED_LOOK | {"color": colour, "alpha": 0.6}
        axes.plot(curve.x, curve.y, **theirs)


@publish.layout
def losses(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Training loss, one panel an optimizer, one line a batch size."""
    figure = _panels(spec, seeds, loss_panel, "training loss, mean over a pass", theirs=False)
    for axes in figure.axes:
        axes.set(yscale="log")
        panels.readable_logarithm(axes)
    return figure


@publish.layout
def accuracies(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """Test accuracy, one panel an optimizer, one line a batch size."""
    figure = _panels(spec, seeds, accuracy_panel, "test accuracy", theirs=True)
    for axes in figure.axes:
        axes.set(ylim=_SHOWN[spec.runs[0].dataset])
    return figure


@publish.layout
def start(spec: grid.Figure, seeds: Sequence[int] | None) -> Figure:
    """All optimizers at one batch size over the first passes: test accuracy (left) and training loss."""
    at_hand = records.at_hand(spec, seeds)
    with panels.style():
        figure = Figure(figsize=(10.5, 3.6))
        accuracy, loss = figure.subplots(1, 2, width_ratios=(3, 2))
        for run in spec.runs:
            colour = _TINTS.get(run.optimizer, _OTHER_TINT)
            accuracy_panel(accuracy, run, at_hand[run], colour, {"color": colour, **_THEIRS})
            if at_hand[run]:
                loss_panel(loss, run, at_hand[run], colour)
        accuracy.set(ylim=(0.2, 0.9), xlabel="passes over the data", ylabel="test accuracy")
        loss.set(yscale="log", xlabel="passes over the data", ylabel="training loss, mean over a pass")
        panels.readable_logarithm(loss)
        for axes in (accuracy, loss):
            axes.set_xlim(0, spec.runs[0].passes)
        entries = [
            (_TITLES.get(run.optimizer, run.optimizer), {"color": _TINTS.get(run.optimizer, _OTHER_TINT)})
            for run in spec.runs
        ]
        entries.append(("published, a single run", {"color": "0.4", **_THEIRS}))
        note = f"batch size {spec.runs[0].batch_size}; {panels.seed_note(at_hand.values())}"
        panels.legend(figure, entries, note)
    return figure


def _panels(spec: grid.Figure, seeds: Sequence[int] | None, panel: Callable, label: str, *, theirs: bool) -> Figure:
    """One panel an optimizer; ``theirs`` is whether published curves belong into them."""
    runs = spec.runs
    kinds = list(dict.fromkeys((run.optimizer, run.variant) for run in runs))
    sizes = sorted({run.batch_size for run in runs})
    tints = dict(zip(sizes, panels.colours("batch_size", len(sizes)), strict=True))
    at_hand = records.at_hand(spec, seeds)
    with panels.style():
        figure = Figure(figsize=(2.9 * len(kinds), 3.4))
        cells = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, (optimizer, variant) in zip(cells, kinds, strict=True):
            for run in runs:
                if (run.optimizer, run.variant) == (optimizer, variant) and (at_hand[run] or theirs):
                    panel(axes, run, at_hand[run], tints[run.batch_size])
            name = "2018 paper" if variant == "gupta" else variant
            axes.set(
                title=_TITLES.get(optimizer, optimizer) + (f" ({name})" if variant else ""),
                xlabel="passes over the data",
            )
            axes.set_xlim(0, runs[0].passes)
        cells[0].set_ylabel(label)
        entries = [(f"batch size {size}", {"color": colour}) for size, colour in tints.items()]
        theirs = theirs and any(published.accuracy(run) for run in runs)
        note = panels.seed_note(at_hand.values())
        if theirs and not any(at_hand.values()):
            note = "published single runs alone"
        elif theirs:
            entries.append(("published, a single run", panels.PUBLISHED_LOOK))
        panels.legend(figure, entries, note)
    return figure


def table(section: str) -> Table:
    """The test accuracies of the runs of a section that are at hand."""
    return Table(fidelity.numbers(section, requested_seeds()))
