"""What the diffusions share: steps under error control, what is kept of them, and the checks of their arguments."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

SAFETY = 0.9
STEP_RATIO_LIMITS = (0.2, 4.0)  # of two steps in a row
MAX_REJECTIONS = 60  # in a row; the step is then below 1e-20 of the first try
SHORTEST = 1e-12  # of the time so far: shorter steps would never reach the end
FLAT = 1e-18  # an energy this close to its minimum is round-off: it may go up

# The Rosenbrock pair of Shampine and Reichelt ("ode23s", The MATLAB ODE suite, 1997), for d_t z = f(z) with
# W = I - h d J, J about f': second order and L-stable.
#     W k1 = f(z);  W (k2 - k1) = f(z + h k1 / 2) - k1;  z' = z + h k2;
#     W k3 = f(z') - e_32 (k2 - f(z + h k1 / 2)) - 2 (k1 - f(z));  error = h (k1 - 2 k2 + k3) / 6.
DIAGONAL = 1 / (2 + math.sqrt(2))  # d, the value that makes it L-stable
E32 = 6 + math.sqrt(2)  # e_32 of its error estimate


class Trial(NamedTuple):
    """A step that was tried: its error estimate, whether its result is admissible, and the states it leads between."""

    error: float
    admissible: bool
    before: Any
    after: Any
    details: Any


class Step(NamedTuple):
    """An accepted trial and the times between which it goes."""

    time_before: float
    time_after: float
    trial: Trial


def first_size(rtol: float, speed: float) -> float:
    """The first step to try: it would move the mass rtol^(1/3), could the flow keep its first ``speed``."""
    return rtol ** (1 / 3) / max(speed, 1e-12)


def decreases(excess: float, new_excess: float, flat: float = FLAT) -> bool:
    """Whether an energy fell, or is at its minimum up to round-off; both given as what exceeds the minimum."""
    return new_excess <= excess or max(new_excess, excess) < flat


class History:
    """What is kept along the way: arrays ``snapshots``, each (S, ...), at the S ``snapshot_times``, and the energy and
    the time at the start and after each of K accepted steps: ``energy (K + 1,)``, ``times (K + 1,)``.

    ``rows`` are those of the initial ``state``, one per array; ``energy`` is that of a state.
    """

    def __init__(
        self, snapshot_times: np.ndarray, energy: Callable[[Any], float], state: Any, rows: tuple[np.ndarray, ...]
    ) -> None:
        self._wanted, self._energy_of = snapshot_times, energy
        self._times, self._energy = [0.0], [energy(state)]
        self._done = int(np.searchsorted(snapshot_times, 0.0, side="right"))
        self.snapshots = tuple(np.empty((len(snapshot_times), *row.shape)) for row in rows)
        for array, row in zip(self.snapshots, rows, strict=True):
            array[: self._done] = row

    def follow(
        self,
        steps: Iterable[Step],
        at: Callable[[Step, float], tuple[np.ndarray, ...]],
        progress: Callable[[float], None] | None,
    ) -> Iterator[Step]:
        """Each of ``steps`` when all of it is kept; ``at(step, part)`` are the rows at that part of a step."""
        for step in steps:
            self._fill(step, at)
            self._times.append(step.time_after)
            self._energy.append(self._energy_of(step.trial.after))
            if progress is not None:
                progress(step.time_after / self._wanted[-1])
            yield step

    @property
    def energy(self) -> np.ndarray:
        """(K + 1,)."""
        return np.array(self._energy)

    @property
    def times(self) -> np.ndarray:
        """(K + 1,)."""
        return np.array(self._times)

    def _fill(self, step: Step, at: Callable[[Step, float], tuple[np.ndarray, ...]]) -> None:
        stop = int(np.searchsorted(self._wanted, step.time_after, side="right"))
        for k in range(self._done, stop):
            time = self._wanted[k]
            again = k > self._done and time == self._wanted[k - 1]
            part = (time - step.time_before) / (step.time_after - step.time_before)
            rows = [array[k - 1] for array in self.snapshots] if again else at(step, part)
            for array, row in zip(self.snapshots, rows, strict=True):
                array[k] = row
        self._done = stop


def accepted_steps(
    attempt: Callable[[Any, float], Trial], state: Any, size: float, end: float, rtol: float, hint: str = ""
) -> Iterator[Step]:
    """The steps of a second-order method from time 0 to ``end``; ``attempt(state, size)`` tries one, first of ``size``.

    A step is accepted where its error is at most ``rtol`` and its result is admissible, and tried again, shorter,
    where not. The local error is taken to grow as the third power of the step.

    Raises RuntimeError, with ``hint``, when no step is short enough.
    """
    time, rejections = 0.0, 0
    while time < end:
        left = end - time
        last = size >= left
        size = left if last else min(size, left / 2)  # no tiny last step, too short to lower the energy
        if rejections > MAX_REJECTIONS or size < SHORTEST * time:
            raise RuntimeError(f"no step is short enough at time {time:g} (rtol = {rtol:g}){hint}")
        trial = attempt(state, size)
        error = trial.error
        if error <= rtol and trial.admissible:
            accepted = Step(time, end if last else time + size, trial)
            yield accepted
            state, time, rejections = trial.after, accepted.time_after, 0
        else:
            rejections += 1
            error = max(error, 8 * rtol) if math.isfinite(error) else math.inf  # at most half the step
        low, high = STEP_RATIO_LIMITS
        size *= min(high, max(low, SAFETY * (rtol / max(error, 1e-300)) ** (1 / 3)))


def check_gamma(gamma: float, most: float) -> None:
    """Raises ValueError where ``gamma`` is out of its range."""
    if not (0 <= gamma <= most):
        raise ValueError(f"gamma must be between 0 and {most:g}, not {gamma}")


def check_numbers(time_scale: float, rtol: float) -> None:
    """Raises ValueError where a number is out of its range."""
    if not (0 < time_scale < math.inf):
        raise ValueError(f"time_scale must be finite and above 0, not {time_scale}")
    if not (0 < rtol < 1):
        raise ValueError(f"rtol must be between 0 and 1, not {rtol}")


def check_grid_size(grid_size: int, smallest: int) -> None:
    """Raises ValueError where ``grid_size`` is not an integer or below ``smallest``."""
    if not isinstance(grid_size, int | np.integer) or grid_size < smallest:
        raise ValueError(f"grid_size must be an integer, at least {smallest}, not {grid_size}")


def checked_epochs(snapshot_epochs: Sequence[int] | np.ndarray) -> np.ndarray:
    """``snapshot_epochs`` as int64 (S,); raises ValueError where they are none, negative or decreasing."""
    epochs = np.asarray(snapshot_epochs)
    if epochs.ndim != 1 or epochs.size == 0 or not np.issubdtype(epochs.dtype, np.integer):
        raise ValueError(f"snapshot_epochs must be a sequence of integers, at least one, not {snapshot_epochs}")
    if epochs[0] < 0:
        raise ValueError(f"snapshot_epochs must be at least 0, not {epochs[0]}")
    falls = np.flatnonzero(epochs[1:] < epochs[:-1])
    if falls.size > 0:
        raise ValueError(f"snapshot_epochs must not decrease: {epochs[falls[0]]} is followed by {epochs[falls[0] + 1]}")
    return epochs.astype(np.int64)
