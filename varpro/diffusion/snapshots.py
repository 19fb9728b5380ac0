"""Few snapshots that stand for many: which to keep, and the density between them."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

NODES = 4  # of the interpolating polynomial
INSERTED_SHARE = 0.3  # of the intervals, those that err most, get another snapshot in a round


def density_at(density: np.ndarray, snapshot_epochs: Sequence[int] | np.ndarray, epoch: float) -> np.ndarray:
    """The density (...), float64, at ``epoch`` from the snapshots ``density (S, ...)``.

    A cubic polynomial in log(1 + epoch) through the nearest four; where that is not positive, the straight line
    through the nearest two, which is. Both have the mass of the snapshots. A snapshot's own epoch gives the snapshot.

    Raises ValueError where ``epoch`` lies outside of the snapshots.
    """
    epochs = np.asarray(snapshot_epochs)
    if not epochs[0] <= epoch <= epochs[-1]:
        raise ValueError(
            f"epoch must be between {epochs[0]} and {epochs[-1]}, the snapshots' first and last, not {epoch}"
        )
    place = int(np.searchsorted(epochs, epoch, side="right")) - 1
    if epochs[place] == epoch:
        return np.asarray(density[place], dtype=np.float64)
    found = _combined(density, epochs, epoch, place, NODES)
    return found if found.min() > 0 else _combined(density, epochs, epoch, place, 2)


def _combined(density: np.ndarray, epochs: np.ndarray, epoch: float, place: int, nodes: int) -> np.ndarray:
    """Lagrange's polynomial in log(1 + epoch) through ``nodes`` snapshots around the interval ``place``."""
    nodes = min(nodes, len(epochs))
    first = min(max(place + 1 - nodes // 2, 0), len(epochs) - nodes)
    places, here = np.log1p(epochs[first : first + nodes]), np.log1p(epoch)
    total = np.zeros(density.shape[1:])
    for k in range(nodes):
        others = np.delete(places, k)
        total += np.prod((here - others) / (places[k] - others)) * density[first + k]
    return total


def choose_snapshots(density: np.ndarray, epochs: np.ndarray, count: int) -> np.ndarray:
    """Indices, increasing, of at most ``count`` of the snapshots ``density (S, ...)`` that give the others best.

    ``epochs (S,)`` increase. From a few at geometric distances, in rounds: the worst epoch of each interval that errs
    most, in the mean of the absolute differences to :func:`density_at`, is added. A coarse grid serves to choose for a
    finer one.
    """
    epochs = np.asarray(epochs)
    kept = np.unique(np.rint(np.geomspace(1, len(epochs), min(count, 2 * NODES)) - 1).astype(int))
    while len(kept) < min(count, len(epochs)):
        few, at = density[kept], epochs[kept]
        errors = np.array(
            [np.abs(density_at(few, at, epoch) - f).mean() for f, epoch in zip(density, epochs, strict=True)]
        )
        worst = [low + int(np.argmax(errors[low:high])) for low, high in pairwise(kept)]
        worst = sorted((k for k in worst if errors[k] > 0), key=lambda k: -errors[k])
        if not worst:
            break
        room = min(count - len(kept), max(1, round(INSERTED_SHARE * len(kept))))
        kept = np.sort(np.concatenate([kept, worst[:room]]).astype(int))
    return kept
