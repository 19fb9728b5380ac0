"""What the results at hand say: curves over epochs and densities on the circle, of one seed or of several."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from varpro import results
from varpro.paper import grid

QUANTITIES = ("loss", "distance_teacher", "distance_diffusion", "distance_projected")
_OF_STATES = ("distance_epochs", "snapshot_epochs", "evaluations", "seconds")
SMOOTHING = 0.04  # scale, in radians, of the Gaussian in the published density figure
CIRCLE = np.linspace(-math.pi, math.pi, 1025)


def seeds_at_hand(run: grid.AnyRun, seeds: Iterable[int] = grid.SEEDS) -> tuple[int, ...]:
    """Those of ``seeds`` for which ``run`` has a result file."""
    return tuple(seed for seed in seeds if run.path(seed).exists())


def at_hand(spec: grid.Figure, seeds: Sequence[int] | None) -> dict[grid.AnyRun, tuple[int, ...]]:
    """:func:`seeds_at_hand` of every run of a figure; without ``seeds`` those of the published one."""
    return {run: seeds_at_hand(run, spec.chosen(seeds)) for run in spec.runs}


def curves(run: grid.Run, seeds: Sequence[int], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs (E,), values (seeds, E)) of one of :data:`QUANTITIES` of a run.

    Raises ResultError where a seed is not at hand, or its file does not have that.
    """
    missing = [seed for seed in seeds if not run.path(seed).exists()]
    if missing:
        raise results.ResultError(f"{run.path(missing[0])}: no such file; make it with: {run.command(missing)}")
    records = [_record(run, seed) for seed in seeds]
    for seed, record in zip(seeds, records, strict=True):
        if quantity not in record:
            raise results.ResultError(f"{run.path(seed)}: has no {quantity}, which its script did not measure")
    values = np.stack([record[quantity] for record in records])
    return np.arange(values.shape[1]) if quantity == "loss" else records[0]["distance_epochs"], values


def mean_curve(run: grid.Run, seeds: Sequence[int], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs (E,), mean over the seeds (E,)) of a quantity of a run; raises what :func:`curves` does."""
    epochs, values = curves(run, seeds, quantity)
    return epochs, values.mean(axis=0)


def result(run: grid.Run, seed: int) -> dict[str, Any]:
    """The contents of the result file of ``run``.

    Raises ResultError where it is not at hand, or was made by a script whose choices are not those of the repository.
    """
    path = run.path(seed)
    contents = results.load(path)
    stated = contents.get("config") or {}
    difference = results.differing(stated, {name: value for name, value in run.choices.items() if name in stated})
    if difference:
        raise results.ResultError(f"{path} was made with {difference}: remove it, or give it a --name of its own")
    return contents


def _record(run: grid.Run, seed: int) -> dict[str, np.ndarray]:
    """The curves of a result file, without its snapshots."""
    return _curves(run, seed, run.path(seed), run.path(seed).stat().st_mtime)


@cache
def _curves(run: grid.Run, seed: int, path: Path, changed: float) -> dict[str, np.ndarray]:
    """``path`` and the time when it was ``changed`` are there so that another file is read anew."""
    contents = result(run, seed)
    return {name: contents[name].numpy() for name in (*QUANTITIES, *_OF_STATES) if name in contents}


class Way(NamedTuple):
    """The states of a training on its way, by what they took: all (S,).

    ``evaluations`` are inner solves and ``seconds`` the time of the training, without distances and compiling.
    """

    evaluations: np.ndarray
    seconds: np.ndarray
    risk: np.ndarray
    distance: np.ndarray


def way(run: grid.Run, seed: int) -> Way:
    """Those states of a run at hand that were kept and measured, and whose risk is known."""
    record = _record(run, seed)
    epochs = np.intersect1d(record["snapshot_epochs"], record["distance_epochs"])
    epochs = epochs[epochs < len(record["loss"])]
    kept = np.searchsorted(record["snapshot_epochs"], epochs)
    measured = np.searchsorted(record["distance_epochs"], epochs)
    evaluations = record["evaluations"][kept] if "evaluations" in record else epochs + 1.0
    return Way(evaluations, record["seconds"][kept], record["loss"][epochs], record["distance_teacher"][measured])


# --- densities ----------------------------------------------------------------------------------------------------


def smoothed_density(angles: np.ndarray, places: np.ndarray, scale: float = SMOOTHING) -> np.ndarray:
    """Density (G,) at ``places (G,)``, radians, of neurons at ``angles`` (any shape), all of the same mass.

    Every neuron is a periodic Gaussian of standard deviation ``scale``. It is summed as its Fourier series
    1/(2 pi) (1 + 2 sum_n exp(-n^2 scale^2 / 2) cos n(x - angle)), whose mass over a period is exactly 1.
    """
    orders = np.arange(1, math.ceil(8.5 / scale) + 1)  # exp(-8.5^2 / 2) = 2e-16
    moments = np.exp(-1j * np.outer(orders, np.ravel(angles))).mean(axis=1)
    moments *= np.exp(-((orders * scale) ** 2) / 2)
    return (1 + 2 * (np.exp(1j * np.outer(places, orders)) @ moments).real) / (2 * math.pi)


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
    """A density over time: ``at(epoch)`` is its values (G,) at the angles ``places (G,)``, on the torus (G, G).

    Between the snapshots, at ``epochs (S,)``, it is interpolated.
    """

    places: np.ndarray
    at: Callable[[float], np.ndarray]
    epochs: np.ndarray


def diffusion_densities(diffusion: grid.Diffusion) -> Densities:
    """The density of the diffusion on its own grid. Raises ResultError where it is not at hand."""
    contents = results.load(diffusion.path)
    epochs, density = contents["snapshot_epochs"].numpy(), contents["density"].numpy()
    return Densities(contents["grid"].numpy(), lambda epoch: state_at(epoch, epochs, density), epochs)


def last_densities(run: grid.Run, seeds: Sequence[int], places: np.ndarray = CIRCLE) -> tuple[np.ndarray, np.ndarray]:
    """(learned, teacher): smoothed densities (G,) of the last features and the teacher's, averaged over ``seeds``."""
    contents = [result(run, seed) for seed in seeds]
    last = np.stack([content["weights"][-1].numpy() for content in contents])
    teachers = np.stack([content["teacher_weights"].numpy() for content in contents])
    learned, teacher = (
        smoothed_density(np.arctan2(weights[..., 1], weights[..., 0]), places) for weights in (last, teachers)
    )
    return learned, teacher


def feature_densities(run: grid.Run, seeds: Sequence[int], places: np.ndarray = CIRCLE) -> Densities:
    """The smoothed density of a run's learned features, averaged over ``seeds``, of which there must be one."""
    contents = [result(run, seed) for seed in seeds]
    epochs = contents[0]["snapshot_epochs"].numpy()
    weights = [content["weights"].numpy() for content in contents]  # (S, M, 2) each

    def at(epoch: float) -> np.ndarray:
        states = np.stack([state_at(epoch, epochs, kept) for kept in weights])  # (seeds, M, 2)
        return smoothed_density(np.arctan2(states[..., 1], states[..., 0]), places)

    return Densities(places, at, epochs)
