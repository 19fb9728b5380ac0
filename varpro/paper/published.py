"""The paper's curves as numbers: the tables of ``published/`` and the runs that they belong to.

A table with a comment line like ``# runs: domain=circle, lambda=1e-3, gamma=100, seeds=0-5`` has curves of runs. That
line, the panel and the series state parameters as ``key=value`` (``domain``, ``M``, ``lambda``, ``gamma``, ``seeds``);
the quantity and the line style say what is drawn (``published/README.md``). So a new table is one file and no code.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from varpro import names
from varpro.paper import grid

_FOLDER = names.ROOT / "published"
_MARK = "# runs:"
_DOMAINS = {  # (VarPro biased, VarPro unbiased, two-timescale)
    "circle": (grid.BIASED, grid.UNBIASED, grid.TWO_TIMESCALE),
    "torus": (grid.TORUS_BIASED, grid.TORUS_UNBIASED, ""),
}
_NUMBERS = {"M": ("width", int), "lambda": ("lmbda", float), "gamma": ("gamma", float)}
_WITHOUT_SEEDS = ("density_target", "density_diffusion")
_QUANTITIES = {"risk": "loss"}  # their names in a result file, where that is another
_KNOWN = ("loss", "distance_teacher", "distance_diffusion", "distance_projected", "density_learned", *_WITHOUT_SEEDS)


class TableError(ValueError):
    """A table in ``published/`` is not of the form that its README states; a line for the user."""


@dataclass(frozen=True)
class Curve:
    """A published curve at its vertices: ``x (V,)`` iterations (or angles), ``y (V,)`` values."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class RunCurve:
    """A published curve of ``run``, a mean over ``seeds``; ``quantity`` is its name in a result file, or a density.

    At a vertex x of ``loss`` stands ``loss[x]``, of a distance that after x epochs. ``density_learned`` and
    ``density_diffusion`` are curves over the angle after ``epoch`` epochs, ``density_target`` is the teacher's law; the
    last two have no seeds.
    """

    table: str
    run: grid.Run
    quantity: str
    seeds: tuple[int, ...]
    curve: Curve
    epoch: int | None = None


@cache
def table(name: str) -> dict[tuple[str, str, str, str], Curve]:
    """The curves of ``published/<name>.csv`` by (panel, quantity, series, linestyle); {} where there is no file.

    Raises TableError where it is none of that form.
    """
    path = _FOLDER / f"{name}.csv"
    if not path.exists():
        return {}
    points: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8") as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            try:
                key = (row["panel"], row["quantity"], row["series"], row["linestyle"])
                points.setdefault(key, []).append((float(row["iteration"]), float(row["value"])))
            except (KeyError, TypeError, ValueError) as error:
                raise TableError(f"{path}: {error} in the row {','.join(map(str, row.values()))}") from None
    return {key: Curve(*np.array(values).T) for key, values in points.items()}


@cache
def run_curves() -> tuple[RunCurve, ...]:
    """Every curve of a run in ``published/``, by table. Raises TableError where a table says something unknown."""
    return tuple(curve for path in sorted(_FOLDER.glob("*.csv")) for curve in _read(path))


def _read(path: Path) -> Iterator[RunCurve]:
    with path.open(encoding="utf-8") as lines:
        stated = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    for line in stated:
        for (panel, quantity, series, style), curve in table(path.stem).items():
            try:
                yield _run_curve(path.stem, _parameters(line, panel, series), quantity, style, curve)
            except (KeyError, ValueError) as error:
                raise TableError(f"{path}: {panel},{quantity},{series},{style}: {error} is not known") from None


def _parameters(*texts: str) -> dict[str, str]:
    """``key=value`` from all the texts, separated by commas or spaces; the later text wins. Uniform is gamma = 0."""
    return dict(re.findall(r"(\w+)=([^\s,)]+)", " ".join(texts).replace("uniform", "gamma=0")))


def _run_curve(source: str, parameters: dict[str, str], quantity: str, style: str, curve: Curve) -> RunCurve:
    biased, unbiased, two_timescale = _DOMAINS[parameters.pop("domain")]
    seeds = tuple(grid.parse_seeds(parameters.pop("seeds", "0")))
    seeds = () if quantity in _WITHOUT_SEEDS else seeds
    epoch = int(parameters.pop("i")) if "i" in parameters else None
    parameters.pop("t", None)  # the time of the epoch
    stated = {_NUMBERS[key][0]: _NUMBERS[key][1](value) for key, value in parameters.items()}
    name, _, method = quantity.rpartition("_")
    if method == "2ts":
        experiment = two_timescale
    elif method in ("biased", "unbiased"):
        experiment = biased if method == "biased" else unbiased
    else:
        name, experiment = quantity, biased if style == "dashed" and "density" not in quantity else unbiased
    name = _QUANTITIES.get(name, name)
    if name not in _KNOWN:
        raise ValueError(f"quantity {quantity!r}")
    return RunCurve(source, grid.Run(experiment, **stated), name, seeds, curve, epoch)


@cache
def _by_run() -> dict[tuple[grid.Run, str, int | None], list[RunCurve]]:
    found: dict[tuple[grid.Run, str, int | None], list[RunCurve]] = {}
    for curve in run_curves():
        found.setdefault((curve.run, curve.quantity, curve.epoch), []).append(curve)
    return found


def curve_of(run: grid.Run, quantity: str, seeds: Sequence[int] = grid.SEEDS, epoch: int | None = None) -> Curve | None:
    """The published curve of a quantity of ``run`` (:class:`RunCurve`), mean over ``seeds``; None if there is none."""
    found = [each.curve for each in _by_run().get((run, quantity, epoch), []) if each.seeds == tuple(seeds)]
    return found[0] if found else None


def accuracy(run: grid.ResNetRun) -> Curve | None:
    """The published test accuracy of ``run`` after 0, 1, ..., 110 passes; None where there is none.

    Of a run that has passes at the first rate alone, only as many: those of the published runs have that rate too.
    """
    if run.dataset != "cifar10" or run.variant:
        return None
    panel = grid.OPTIMIZERS.get(run.optimizer, "")
    curve = table("resnet_accuracy").get((panel, "accuracy", f"bs={run.batch_size}", "solid"))
    if curve is None or run.final_epochs:
        return curve
    shown = min(run.epochs, grid.FULL_PASSES) + 1
    return Curve(curve.x[:shown], curve.y[:shown])
