"""The average of a network over the last steps of its training (Polyak, Juditsky 1992), with weights m^age.

The steps of a stochastic descent end in a cloud around a minimum that is as wide as the rate is large; the average lies
inside it. What is averaged is the network (features, outer weights and the running statistics of batch norm), not what
it predicts. The training does not notice.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class PolyakAverage:
    """sum_s m^(t-s) theta_s / sum_s m^(t-s) over the steps s = 1 to t, for all floating-point tensors theta of
    ``network``, m = ``memory`` from 0 to below 1; before the first step, the network.

    The network keeps its tensors: they may be the buffers of a captured graph.
    """

    def __init__(self, network: nn.Module, memory: float) -> None:
        named = chain(network.named_parameters(), network.named_buffers())
        self._now = {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}
        self._average = {name: tensor.clone() for name, tensor in self._now.items()}
        self.memory, self._weights = memory, 0.0  # sum_s m^(t-s)

    def update(self) -> None:
        """Take in the network as it is after a step."""
        self._weights = self.memory * self._weights + 1
        take_in = get_ema_multi_avg_fn(1 - 1 / self._weights)
        take_in(list(self._average.values()), list(self._now.values()), None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network is its average meanwhile. What is changed in it then, changes the average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Let network and average change places."""
        for name, now in self._now.items():
            before = now.clone()
            now.copy_(self._average[name])
            self._average[name].copy_(before)

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs."""
        return {"weights": self._weights, "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned. Raises KeyError where that was another network's."""
        self._weights = state["weights"]
        for name, tensor in self._average.items():
            tensor.copy_(state["average"][name])
