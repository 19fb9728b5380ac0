"""What the diffusions share: steps under error control, and the checks of their arguments."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

SAFETY = 0.9
STEP_RATIO_LIMITS = (0.2, 4.0)  # of two steps in a row
MAX_REJECTIONS = 60  # in a row; the step is then below 1e-20 of the first try


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


def accepted_steps(
    attempt: Callable[[Any, float], Trial], state: Any, first_size: float, end: float, rtol: float
) -> Iterator[Step]:
    """The steps of a second-order method from time 0 to ``end``; ``attempt(state, size)`` tries one.

    A step is accepted where its error is at most ``rtol`` and its result is admissible, and tried again, shorter,
    where not. The local error is taken to grow as the third power of the step.

    Raises RuntimeError when no step is short enough.
    """
    time, size, rejections = 0.0, first_size, 0
    while time < end:
        left = end - time
        last = size >= left
        size = left if last else min(size, left / 2)  # no tiny last step, too short to lower the energy
        trial = attempt(state, size)
        error = trial.error
        if error <= rtol and trial.admissible:
            accepted = Step(time, end if last else time + size, trial)
            yield accepted
            state, time, rejections = trial.after, accepted.time_after, 0
        else:
            rejections += 1
            if rejections > MAX_REJECTIONS:
                raise RuntimeError(f"no step is short enough at time {time:g} (rtol = {rtol:g})")
            error = max(error, 8 * rtol) if math.isfinite(error) else math.inf  # at most half the step
        low, high = STEP_RATIO_LIMITS
        size *= min(high, max(low, SAFETY * (rtol / max(error, 1e-300)) ** (1 / 3)))


def check_numbers(gamma: float, max_gamma: float, time_scale: float, rtol: float) -> None:
    """Raises ValueError where a number is out of its range."""
    if not (0 <= gamma <= max_gamma):
        raise ValueError(f"gamma must be between 0 and {max_gamma:g}, not {gamma}")
    if not (0 < time_scale < math.inf):
        raise ValueError(f"time_scale must be finite and above 0, not {time_scale}")
    if not (0 < rtol < 1):
        raise ValueError(f"rtol must be between 0 and 1, not {rtol}")


def check_grid_size(grid_size: int, smallest: int) -> None:
    """Raises ValueError where ``grid_size`` is not an integer or below ``smallest``."""
    if not isinstance(grid_size, int | np.integer) or grid_size < smallest:
        raise ValueError(f"grid_size must be an integer, at least {smallest}, not {grid_size}")


def checked_epochs(snapshot_epochs: Sequence[int]) -> np.ndarray:
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
