"""Timing by turns: the solvers that are compared take turns in one process, and medians are reported."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path


def by_turns(
    actions: Mapping[str, Callable[[], int]], rounds: int, prepare: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Median seconds per unit of each action over ``rounds`` turns; an action returns how many units it did.

    ``prepare`` is called before each, outside of the clock.
    """
    for action in actions.values():
        action()  # compile, allocate, fill caches
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            prepare()
            begin = time.perf_counter()
            units = action()
            seconds[name].append((time.perf_counter() - begin) / units)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> str:
    """Processor, cores and versions, in one line."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "numba", "llvmlite"))
    return f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
