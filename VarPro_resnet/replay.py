"""Training steps through buffers that stay where they are: on CUDA a captured graph or two in place of 300 launches.

A step has three parts (:class:`VarPro_resnet.training.Descent`): features, outer weights, descent. Where the outer
weights are solved for, features and descent are one graph each and the solve is between them, launched as it is: no
library promises that its factorisations can be captured. While the device computes the features the host launches the
solve. Where nothing is solved the whole step is one graph.

Elsewhere the same parts run on the same buffers, to the bits of the plain loop.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from varpro import capture
from VarPro_resnet.shampoo import Shampoo

_WARM_UP = 3  # steps before the first capture, in which momenta are made and algorithms chosen


class Step(Protocol):
    """What is replayed; its words are those of :class:`VarPro_resnet.training.Descent`."""

    optimizer: torch.optim.Optimizer
    solves: bool

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the next step."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, M) of ``images (B, 3, 32, 32)``."""

    def solve(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Outer weights (M, k) for ``features (B, M)`` and ``targets (B, k)``."""

    def descend(self, features: torch.Tensor, targets: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        """A step at ``outer (M, k)``; returns the loss before it."""


def replayable(step: Step) -> bool:
    """Whether the parts of ``step`` leave the host alone: Shampoo decomposes matrices there."""
    return not isinstance(step.optimizer, Shampoo)


class Replay:
    """``step`` on mini-batches of ``batch_size`` images, its losses written into ``losses (steps,)`` on the device.

    Every call is a step of the training. The first few run as they are, on the stream that captures; then the parts
    are captured, once for every learning rate, which is a constant of a graph.
    """

    def __init__(self, step: Step, losses: torch.Tensor, batch_size: int) -> None:
        self.step, self.losses, self.batch_size = step, losses, batch_size
        self.place = torch.zeros(1, dtype=torch.int64, device=losses.device)  # of this step in ``losses``
        self.replays: Sequence[capture.Action] = []
        self.rates: tuple[float, ...] = ()  # that were captured
        self.made = 0  # steps
        self.images: torch.Tensor | None = None  # these stay where they are, once made
        self.targets: torch.Tensor | None = None
        self.features: torch.Tensor | None = None
        self.outer: torch.Tensor | None = None

    def takes(self, images: torch.Tensor) -> bool:
        """Whether ``images (B, 3, 32, 32)`` are a full mini-batch."""
        return len(images) == self.batch_size

    def __call__(self, place: int, images: torch.Tensor, targets: torch.Tensor) -> None:
        """One step on ``images (B, 3, 32, 32)`` and ``targets (B, k)``; its loss goes to ``losses[place]``."""
        if self.images is None:
            self.images, self.targets = torch.empty_like(images), torch.empty_like(targets)
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.place.fill_(place)
        self.made += 1
        if self.made <= _WARM_UP:
            with capture.aside(self.losses.device):
                self._run(self._parts())
            self.features = self.features.detach()  # the graph of autograd has had its use
            return
        if self.rates != self.step.rates:
            self.replays = []  # the memory of those before
            self.replays = capture.captured(self.losses.device, *self._parts())
            self.features = self.features.detach()
            self.rates = self.step.rates
        self._run(self.replays)

    def _parts(self) -> Sequence[capture.Action]:
        """What is captured; not kept, since a cycle would keep the graphs and their memory until a collection."""
        return [self._forward, self._descend] if self.step.solves else [self._whole]

    def _run(self, parts: Sequence[capture.Action]) -> None:
        parts[0]()
        if self.step.solves:
            outer = self.step.solve(self.features.detach(), self.targets)
            if self.outer is None:
                self.outer = torch.empty_like(outer)
            self.outer.copy_(outer)
            parts[1]()

    def _forward(self) -> None:
        self.features = self.step.forward(self.images)

    def _descend(self) -> None:
        self._write(self.step.descend(self.features, self.targets, self.outer))

    def _whole(self) -> None:
        self._forward()
        self._write(self.step.descend(self.features, self.targets, self.step.solve(self.features, self.targets)))

    def _write(self, loss: torch.Tensor) -> None:
        self.losses.index_copy_(0, self.place, loss.to(self.losses.dtype)[None])
