"""Threads and memory of the process, on a machine that others may be using too.

Threads that share short loops wait for each other many times in an epoch. Where another process has one of the cores,
every such wait can last until the scheduler comes round, and two threads are then far slower than one.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

_MALLOC = {-1: 2**31 - 1, -2: 2**28, -3: 2**30}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, bytes
_TRIAL = 4  # units
_TRIAL_SHARE = 0.02  # of the time, at most, goes into trying again what was slower


class ThreadChoice:
    """Chooses between one thread and several by trial, for work whose results do not depend on it.

    The work is counted in units. Ask :meth:`plan`, do what it says, and :meth:`note` how long that took.
    """

    def __init__(self) -> None:
        self._cost: dict[int, float] = {}  # seconds per unit, when last done, by number of threads
        self._warm = False  # the very first unit may compile
        self._since = 0.0  # seconds since the slower choice was tried

    def plan(self, threads: int, units: int) -> tuple[int, int]:
        """How many threads to take, of 1 or ``threads``, and for how many of the next ``units``."""
        if threads == 1:
            return 1, units
        if not self._warm:
            return 1, 1
        for choice in (1, threads):
            if choice not in self._cost:
                return choice, min(units, _TRIAL)
        best, other = sorted((1, threads), key=self._cost.__getitem__)
        if self._since > _TRIAL * self._cost[other] / _TRIAL_SHARE:
            return other, min(units, _TRIAL)
        return best, units

    def note(self, threads: int, units: int, seconds: float) -> None:
        """``units`` were done by ``threads`` in ``seconds``."""
        if not self._warm:
            self._warm = True
            return
        trial = threads not in self._cost or threads != min(self._cost, key=self._cost.__getitem__)
        self._since = 0.0 if trial else self._since + seconds
        self._cost[threads] = seconds / units


def available_cores() -> int:
    """Cores that this process may use; a cluster gives a job some of those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of main memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Matrix products and factorisations in one thread: always the same bits, and no waiting for a busy core."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Tensor operations on the CPU in so many threads.

    One is for those too small to be shared out: with two threads on two busy cores a Cholesky factor of size 64 takes
    two hundred times as long, all of it waiting.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Tensor operations on the CPU in one thread."""
    with torch_threads(1):
        yield


def keep_freed_memory() -> None:
    """Let the C library keep what is freed instead of giving it back to the system, from now on (glibc only).

    A training step on the CPU frees and takes some hundred megabytes of activations; without this each page of them
    is asked for and zeroed again, 5 % of the step of a ResNet-20.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, size in _MALLOC.items():
        mallopt(parameter, size)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
