"""Which states of a run are kept and which are measured."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

TIME_SCALE = 2**-10  # h of the paper's runs, the time of one epoch
MEASUREMENTS = 1001  # epochs at which distances are taken (docs/definitions.md, 2)
_SNAPSHOTS = 1000  # about this many by default


@dataclass(frozen=True)
class Schedule:
    """Which states are kept and which are measured, all counted in epochs from 0 to ``epochs``."""

    epochs: int
    snapshot_epochs: np.ndarray  # (S,) increasing
    distance_epochs: np.ndarray  # (1001,) non-decreasing, int(linspace(0, epochs, 1001))

    @cached_property
    def measured_epochs(self) -> np.ndarray:
        """The distinct ones among ``distance_epochs``, increasing."""
        return np.unique(self.distance_epochs)


def schedule(epochs: int, saving_step: int | None = None) -> Schedule:
    """Every ``saving_step``-th state (default: about 1000 in all) and always the last; 1001 measurements."""
    step = saving_step or math.ceil(epochs / _SNAPSHOTS)
    kept = np.unique(np.append(np.arange(0, epochs + 1, step), epochs))
    return Schedule(epochs, kept, np.linspace(0, epochs, MEASUREMENTS).astype(np.int64))
