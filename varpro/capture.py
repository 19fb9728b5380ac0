"""Actions on tensors that stay where they are, captured as CUDA graphs: one launch in place of hundreds.

An action reads and writes buffers that others keep; it sends nothing to the host and gets nothing from it. Where there
is no CUDA it is called as it is, so that what is built on this module is tested on any machine.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

Action = Callable[[], None]


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream that warms up and captures: libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream(device)


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """On CUDA, work meanwhile goes to the stream that captures, after all that is under way and before all to come.

    Whatever is to be captured runs here a few times before, as capture demands: libraries make their handles and
    workspaces for a stream, choose algorithms and compile kernels at the first call.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        usual, side = torch.cuda.current_stream(), _side_stream(device)
        side.wait_stream(usual)
        with torch.cuda.stream(side):
            yield
        usual.wait_stream(side)


class Memory:
    """What captured actions work in, shared by all that are given the same one; it goes with the last of them."""

    def __init__(self) -> None:
        self.pool: Any = None


def captured(device: torch.device, *actions: Action, memory: Memory | None = None) -> list[Action]:
    """The ``actions`` as one graph launch each on CUDA, to be called in this order; as they are elsewhere.

    Nothing is computed meanwhile. The graphs share their memory: what one leaves there, a later one may read. Those of
    several calls with the same ``memory`` leave nothing there for each other. Raises RuntimeError where an action
    cannot be captured: what is not captured would be several times slower.
    """
    if device.type != "cuda":
        return list(actions)
    replays: list[Action] = []
    memory = memory or Memory()
    with torch.cuda.device(device):
        usual = torch.cuda.current_stream()
        for action in actions:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=memory.pool, stream=_side_stream(device)):
                    action()
            finally:
                torch.cuda.set_stream(usual)  # torch 2.11 leaves the other one current where a capture fails
            memory.pool = graph.pool()
            replays.append(graph.replay)
    return replays
