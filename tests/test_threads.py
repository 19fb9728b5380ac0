"""Who shares the work: the choice between one thread and several, with made-up times."""

import ctypes
from types import SimpleNamespace

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from varpro.threads import ThreadChoice, keep_freed_memory, one_blas_thread, one_torch_thread


def run(choice: ThreadChoice, cost: dict[int, float], units: int, threads: int = 2) -> list[tuple[int, int]]:
    """(threads, units) of every stretch while ``units`` are done in stretches of at most 32."""
    stretches = []
    while units > 0:
        chosen, count = choice.plan(threads, min(units, 32))
        choice.note(chosen, count, count * cost[chosen])
        stretches.append((chosen, count))
        units -= count
    return stretches


@pytest.mark.parametrize(("cost", "best"), [({1: 1.0, 2: 0.6}, 2), ({1: 1.0, 2: 30.0}, 1)])
def test_the_faster_choice_gets_nearly_all_of_the_time(cost, best):
    stretches = run(ThreadChoice(), cost, 20000)
    seconds = {k: sum(count * cost[k] for threads, count in stretches if threads == k) for k in (1, 2)}
    assert seconds[best] / sum(seconds.values()) > 0.97
    assert sum(threads != best for threads, _ in stretches) > 3  # and the other one is tried again


def test_a_change_is_noticed():
    choice = ThreadChoice()
    assert run(choice, {1: 1.0, 2: 0.6}, 1000)[-1][0] == 2
    assert run(choice, {1: 1.0, 2: 20.0}, 64)[-1][0] == 1  # a busy core shows at once
    assert run(choice, {1: 1.0, 2: 0.6}, 5000)[-1][0] == 2  # an idle one at the next trial


def test_the_first_unit_is_not_timed():
    choice = ThreadChoice()
    assert choice.plan(2, 32) == (1, 1)
    choice.note(1, 1, 100.0)
    assert run(choice, {1: 1.0, 2: 3.0}, 100)[-1][0] == 1


def test_a_single_thread_has_no_choice():
    assert run(ThreadChoice(), {1: 1.0}, 100, threads=1) == [(1, 32), (1, 32), (1, 32), (1, 4)]


@pytest.fixture
def two_torch_threads():
    """Where a process has one thread all the time, it would have one meanwhile and one afterwards anyway."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_torch_threads")
def test_one_thread_meanwhile():
    with one_torch_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), one_torch_thread():
        raise KeyError
    assert torch.get_num_threads() == 2


def test_one_blas_thread_meanwhile():
    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        assert set(blas()) == {2}
        with one_blas_thread():
            assert set(blas()) == {1}
        assert set(blas()) == {2}


def test_memory_can_be_kept(monkeypatch):
    """By the numbers that malloc.h of the GNU C library gives to M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD."""
    calls = []
    library = SimpleNamespace(mallopt=lambda parameter, size: calls.append((parameter, size)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: calls.append(name) or library)
    keep_freed_memory()
    assert calls == ["libc.so.6", (-1, 2**31 - 1), (-2, 2**28), (-3, 2**30)]


def test_without_the_gnu_c_library_memory_is_given_back_as_ever(monkeypatch):
    asked = []

    def no_library(name):
        asked.append(name)
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    keep_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: asked.append(name) or SimpleNamespace())  # one with no mallopt
    keep_freed_memory()
    assert asked == ["libc.so.6"] * 2
