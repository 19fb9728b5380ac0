"""Adaptive time steps shared by the diffusions: the Rosenbrock pair of Shampine and Reichelt and its step control.

Second order and L-stable ("ode23s", The MATLAB ODE suite, 1997), for d_t z = f(z) with W = I - h d J, J about f':

    W k1 = f(z);  W (k2 - k1) = f(z + h k1 / 2) - k1;  z' = z + h k2;
    W k3 = f(z') - e_32 (k2 - f(z + h k1 / 2)) - 2 (k1 - f(z));  error = h (k1 - 2 k2 + k3) / 6.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

DIAGONAL = 1 / (2 + math.sqrt(2))  # d of the Rosenbrock pair, the value that makes it L-stable
E32 = 6 + math.sqrt(2)  # e_32 of the pair's error estimate
SAFETY = 0.9
STEP_RATIO_LIMITS = (0.2, 4.0)  # of two steps in a row
FLAT = 1e-18  # an energy this close to its minimum is round-off: it may go up
MAX_REJECTIONS = 60  # in a row; the step is then below 1e-20 of the first try
SHORTEST = 1e-12  # of the time so far: shorter steps would never reach the end

State = TypeVar("State")


@dataclass(frozen=True)
class Step(Generic[State]):
    """A step from ``before`` to ``after`` (times and states) with the stages of the pair."""

    time_before: float
    time_after: float
    before: State
    after: State
    k1: np.ndarray
    k2: np.ndarray


def first_size(rtol: float, speed: float) -> float:
    """The first step to try: it would move the mass rtol^(1/3), could the flow keep its first ``speed``."""
    return rtol ** (1 / 3) / max(speed, 1e-12)


def accepted_steps(
    state: State,
    attempt: Callable[[State, float], tuple[State, np.ndarray, np.ndarray, float]],
    size: float,
    end: float,
    rtol: float,
    subject: str,
) -> Iterator[Step[State]]:
    """The adaptive steps from time 0 to ``end``, each with an error of at most ``rtol``.

    ``attempt(state, h)`` returns the new state, both stages and the error: infinity where the step must not be taken.
    ``size`` is the first h. Raises RuntimeError, naming ``subject``, when no step is short enough.
    """
    time, rejections = 0.0, 0
    while time < end:
        left = end - time
        last = size >= left
        size = left if last else min(size, left / 2)  # no tiny last step, too short to lower the energy
        if rejections > MAX_REJECTIONS or size < SHORTEST * time:
            raise RuntimeError(f"no step is short enough at time {time:g} ({subject}, rtol = {rtol:g})")
        after, k1, k2, error = attempt(state, size)
        if error <= rtol:
            accepted = Step(time, end if last else time + size, state, after, k1, k2)
            yield accepted
            state, time, rejections = after, accepted.time_after, 0
        else:
            rejections += 1
            error = max(error, 8 * rtol)  # at most half the step, whichever test failed
        low, high = STEP_RATIO_LIMITS
        size *= min(high, max(low, SAFETY * (rtol / max(error, 1e-300)) ** (1 / 3)))


def decreases(excess: float, new_excess: float) -> bool:
    """Whether an energy fell, or is at its minimum up to round-off; both given as what exceeds the minimum."""
    return new_excess <= excess or max(new_excess, excess) < FLAT


def fill_snapshots(
    step: Step[State], times: np.ndarray, at: Callable[[Step[State], float], tuple[np.ndarray, ...]], *into: np.ndarray
) -> None:
    """Rows ``at(step, part)`` of the step into the arrays ``into``, each (len(times), ...), at ``times`` inside it."""
    for k, time in enumerate(times):
        if k > 0 and time == times[k - 1]:
            for array in into:
                array[k] = array[k - 1]
            continue
        part = (time - step.time_before) / (step.time_after - step.time_before)
        for array, row in zip(into, at(step, part), strict=True):
            array[k] = row
