"""Who shares the work: the choice between one thread and several, with made-up times."""

import pytest
import torch
from threadpoolctl import threadpool_info

from varpro.threads import Sharing, keep_freed_memory, one_blas_thread, one_torch_thread


def run(sharing: Sharing, cost: dict[int, float], units: int, threads: int = 2) -> list[tuple[int, int]]:
    """(threads, units) of every stretch while ``units`` are done in stretches of at most 32."""
    stretches = []
    while units > 0:
        chosen, count = sharing.plan(threads, min(units, 32))
        sharing.note(chosen, count, count * cost[chosen])
        stretches.append((chosen, count))
        units -= count
    return stretches


@pytest.mark.parametrize(("cost", "best"), [({1: 1.0, 2: 0.6}, 2), ({1: 1.0, 2: 30.0}, 1)])
def test_the_faster_choice_gets_nearly_all_of_the_time(cost, best):
    stretches = run(Sharing(), cost, 20000)
    seconds = {k: sum(count * cost[k] for threads, count in stretches if threads == k) for k in (1, 2)}
    assert seconds[best] / sum(seconds.values()) > 0.97
    assert sum(threads != best for threads, _ in stretches) > 3  # and the other one is tried again


def test_a_change_is_noticed():
    sharing = Sharing()
    assert run(sharing, {1: 1.0, 2: 0.6}, 1000)[-1][0] == 2
    assert run(sharing, {1: 1.0, 2: 20.0}, 64)[-1][0] == 1  # a busy core shows at once
    assert run(sharing, {1: 1.0, 2: 0.6}, 5000)[-1][0] == 2  # an idle one at the next trial


def test_the_first_unit_is_not_timed():
    sharing = Sharing()
    assert sharing.plan(2, 32) == (1, 1)
    sharing.note(1, 1, 100.0)
    assert run(sharing, {1: 1.0, 2: 3.0}, 100)[-1][0] == 1


def test_a_single_thread_has_no_choice():
    assert run(Sharing(), {1: 1.0}, 100, threads=1) == [(1, 32), (1, 32), (1, 32), (1, 4)]


def test_one_thread_meanwhile():
    threads = torch.get_num_threads()
    with one_torch_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    with pytest.raises(KeyError), one_torch_thread():
        raise KeyError
    assert torch.get_num_threads() == threads


def test_one_blas_thread_meanwhile():
    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = blas()
    with one_blas_thread():
        assert set(blas()) == {1}
    assert blas() == before


def test_memory_can_be_kept():
    keep_freed_memory()
    assert torch.zeros(1 << 20).sum() == 0
