"""The reduced risk of any network's features as a loss: the last layer is solved for, the rest is trained.

    criterion = VarProLoss(lmbda=1e-3, classes=10)
    loss = criterion(network(inputs), labels)
    loss.backward()

The network ends in its features; it has no last linear layer. ``criterion.predict(network(inputs))`` are the outputs.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from varpro import ridge
from varpro.threads import one_torch_thread

_FLOAT32_LAMBDA = 1e-3  # from here up the residual of float32 features may be float32: see the class
_SMALL = 2**26  # products in a solve, at most, that are not worth sharing out among threads


class VarProLoss(nn.Module):
    """``loss = criterion(features, targets)``: the risk min_u L that is left when the outer weights u are optimal.

        L(u) = (1 / (2 lmbda)) mean_{i,k} (phi u / M - y)^2 + (1/2) mean_{j,k} (u - centre)^2

    for ``features`` phi (N, M) of a mini-batch, or of all data, with gradients, and ``targets`` y. The ridge problem is
    solved on the detached features, in the smaller of N and M (varpro/ridge.py), and u is kept in the buffer ``outer``.

    **Targets** are real numbers (N, k), one-hot vectors included: then ``outer`` is (M, k) and :meth:`predict` returns
    (N, k); real numbers (N,): then they are (M,) and (N,); or class labels (N,) of an integer dtype, which stand for
    one-hot vectors of length ``classes``.

    **Gradient.** With ``averaging`` 0 it is the exact gradient of features -> min_u L: since dL/du = 0 there, the
    derivative of u drops out (envelope theorem). This holds for the first derivative; a second one through this loss
    lacks a term. With ``averaging`` m > 0 the outer weights are a running average over the mini-batches,
    u <- m u + (1 - m) argmin_u L (paper, Section 6.2), and so no minimiser: what is returned is L(u), and its gradient
    is that at fixed u, not that of the reduced risk. The first u is the first solution, unless there was one before.

    **Memory.** The solution of a mini-batch that is not much larger than M fits its noise, and so do averages of a few
    such solutions. With ``memory`` m > 0 the second moments are averaged instead, A <- m A + (1 - m) phi^T phi / N and
    b <- m b + (1 - m) phi^T y / N, each divided by the sum of its weights, and u is solved from them: it minimises
    R(u) = sum_s w_s data_s(u) + penalty(u) over all mini-batches s so far, with weights w_s that decay like m^age and
    the features as they were then: that of about 1 / (1 - m) mini-batches. L(u) of the mini-batch at hand is returned.
    Its gradient is 1 / w_t times that of min_u R in the features of this mini-batch, w_t being its weight, exactly
    (envelope theorem again, since u minimises R). It is also an estimate of the gradient of the reduced risk of all
    data, as good as old features stand for new ones.

    **Modes.** In training mode every call solves and updates ``outer``. In evaluation mode nothing is solved: the loss
    is L at the ``outer`` that is kept.

    **Precision.** Features in half precision, as from autocast, are taken to float32, and inside autocast nothing here
    is narrower. The solve is in float64 (where the device has it) whatever the features are: with ReLU features of size
    1 a float32 one has errors in u of 3e-7 / 5e-6 / 2e-5 / 2e-4 at lmbda 1e-1 / 1e-3 / 1e-4 / 1e-6 (N = 1024,
    M = 512). Below lmbda 1e-3 the residual of float32 features is float64 too: where N < M the features can fit the
    targets, the residual is of size lmbda, and what a float32 product leaves of the gradient is wrong by 4e-7 at 1e-3,
    2e-6 at 1e-4, 2e-4 at 1e-6 and 2 % at 1e-8 (N = 64, M = 512). ``dtype`` makes both what you like: float32 where
    lmbda is 1e-2 and more on a GPU with slow float64. The solve never uses TF32; the prediction and its gradient do
    where ``torch.set_float32_matmul_precision`` allows it and the residual is float32.

    **State.** ``outer`` is a buffer: it is in ``state_dict``, which a fresh module loads, and moves with ``to``. It
    gets its shape at the first call, from the state that is loaded, or from ``outer``: a tensor (M, k) or (M,) to start
    from, which stays in use and is updated in place, so that it may be the weight of a network's own last layer.

    **Failure.** Features or targets that are not finite, and a system that is not positive definite, raise
    FloatingPointError on the CPU, and nothing of that mini-batch is kept. On a GPU the host would have to wait for the
    answer: there loss and ``outer`` become NaN, and :meth:`check` raises. Raises ValueError, in one line, for what is
    not allowed.
    """

    outer: torch.Tensor | None
    second_moment: torch.Tensor | None
    cross_moment: torch.Tensor | None
    remembered: torch.Tensor
    _failed: torch.Tensor

    def __init__(
        self,
        lmbda: float,
        centre: float = 0.0,
        averaging: float = 0.0,
        *,
        memory: float = 0.0,
        classes: int | None = None,
        outer: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(lmbda, centre, averaging, memory, classes, outer, dtype)
        self.lmbda, self.centre, self.averaging, self.memory = lmbda, centre, averaging, memory
        self.classes, self.dtype = classes, dtype
        device = None if outer is None else outer.device
        self.register_buffer("outer", None if outer is None else outer.detach())
        self.register_buffer("second_moment", None)  # A (M, M)
        self.register_buffer("cross_moment", None)  # b (M, k)
        count = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("remembered", count, persistent=memory > 0)  # mini-batches in A and b
        self.register_buffer("_failed", torch.zeros((), dtype=torch.bool, device=device), persistent=False)

    def forward(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """L, a scalar, for ``features (N, M)`` and ``targets`` (N, k) or (N,); training updates ``outer``."""
        targets = self._checked_targets(features, targets)
        outer = self._solved(features.detach(), targets) if self.training else self._kept()
        return self._risk(features, targets, outer)

    def solve(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The first half of a call in training mode: u (M, k) or (M,) for this mini-batch; ``outer`` is updated.

        In the dtype in which the loss is computed. :meth:`at` is the other half: for who captures one of them in a CUDA
        graph, where a factorisation may not be.
        """
        return self._solved(features.detach(), self._checked_targets(features, targets))

    def at(self, features: torch.Tensor, targets: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        """L, a scalar, at ``outer`` u (M, k) or (M,): nothing is solved or kept."""
        targets = self._checked_targets(features, targets)
        expected = (features.shape[1], *targets.shape[1:])
        if outer.shape != expected:  # it might be broadcast, to another number
            raise ValueError(f"outer {tuple(outer.shape)} is not allowed here: {expected}")
        return self._risk(features, targets, outer)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Set ``outer`` to argmin_u L of all ``batches`` of (features, targets) together, whatever it was before.

        For the end of a training, or a test on the way: with the network in evaluation mode, since the features of
        batch-norm layers are others there than in training. Batches may come from a generator, and are read once. The
        memory stays as it is. The host waits for a GPU. Raises FloatingPointError where features are not finite, and
        ValueError as a call does.
        """
        second = cross = None
        shape: tuple[int, ...] | None = None
        count = 0
        for features, targets in batches:
            targets = self._checked_targets(features, targets)
            own = (features.shape[1], *targets.shape[1:])
            if shape not in (None, own):
                raise ValueError(f"batches: outer would be {shape} after the first ones, {own} after this one")
            shape = own
            dtype = self._solve_dtype(features)
            columns = targets if targets.ndim == 2 else targets[:, None]
            with _full_precision(features), _few_threads(features, moments=True), ridge.matrix_products(tf32=False):
                new = ridge.moments(features.to(dtype), columns.to(dtype), self.centre)
            count += len(features)
            share = len(features) / count
            if second is None or cross is None:
                second, cross = new
            else:
                second, cross = second.lerp(new[0], share), cross.lerp(new[1], share)
        if second is None or cross is None:
            raise ValueError("batches: there are none")
        with _full_precision(features), _few_threads(features, moments=True):
            solution = ridge.solve_moments(second, cross, self.lmbda, self.centre)
        self._update(features, solution if targets.ndim == 2 else solution[:, 0], weight=1.0)

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """f = phi u / M at the ``outer`` that is kept: (N, k) or (N,) from ``features (N, M)``.

        In the wider dtype of the two, float32 at least. Raises RuntimeError where there are no outer weights yet.
        """
        _check_features(features)
        outer = self._kept()
        if features.shape[1] != len(outer):
            raise ValueError(f"features {tuple(features.shape)}: outer is for {len(outer)} features")
        with _full_precision(features):
            wide = torch.promote_types(torch.promote_types(features.dtype, outer.dtype), torch.float32)
            return ridge.predict(features.to(wide), outer.to(wide))

    def check(self) -> None:
        """Raise FloatingPointError where a solve since the last look has failed. On a GPU the host waits for it."""
        if self._failed.item():
            self._failed.zero_()
            raise FloatingPointError(
                "inner solve: features or targets were not finite, or a system not positive definite at lambda "
                f"{self.lmbda:g}; use a larger lambda"
            )

    def extra_repr(self) -> str:
        """The options, for ``print``."""
        options = {name: getattr(self, name) for name in ("lmbda", "centre", "averaging", "memory", "classes")}
        return ", ".join(f"{name}={value:g}" for name, value in options.items() if value is not None)

    # --- the solve -------------------------------------------------------------------------------------------------

    def _risk(self, features: torch.Tensor, targets: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        with _full_precision(features):
            wide = torch.promote_types(features.dtype, torch.float32)
            dtype = self._loss_dtype(wide, features.device)
            return ridge.loss(features.to(dtype), targets.to(dtype), outer.to(dtype), self.lmbda, self.centre).to(wide)

    @torch.no_grad()
    def _solved(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The outer weights of this call in the dtype of the loss; ``outer`` is them."""
        dtype = self._loss_dtype(torch.promote_types(features.dtype, torch.float32), features.device)
        solve_dtype = self._solve_dtype(features)
        columns = targets if targets.ndim == 2 else targets[:, None]
        few_threads = _few_threads(features, moments=self.memory > 0)
        with _full_precision(features), few_threads, ridge.matrix_products(tf32=False):
            wide = features.to(solve_dtype), columns.to(solve_dtype)
            if self.memory > 0:
                solution = self._solve_remembered(*wide)
            else:
                solution, failed = ridge.solve_unchecked(*wide, self.lmbda, self.centre)
                solution = self._checked(solution, _failed(solution, failed), *wide, wide[0])
        solution = solution if targets.ndim == 2 else solution[:, 0]
        return self._update(features, solution.to(dtype), weight=1 - self.averaging)

    def _update(self, features: torch.Tensor, solution: torch.Tensor, weight: float) -> torch.Tensor:
        """u <- (1 - weight) u + weight solution; returns it, in the dtype of ``solution``, apart from the buffer, which
        later calls change."""
        if self.outer is None:
            stored = torch.promote_types(features.dtype, torch.float32)
            with torch.inference_mode(False):  # a later training changes it in place
                self.outer = torch.empty(solution.shape, dtype=stored, device=solution.device)
            outer = solution
        else:  # in the layout of the buffer; what a failed solve has left there is not averaged with
            outer = torch.empty_like(self.outer, dtype=solution.dtype).copy_(solution)
            if weight < 1:
                outer.copy_(
                    torch.where(self.outer.isfinite(), self.outer.to(solution.dtype).lerp(outer, weight), outer)
                )
        self.outer.copy_(outer)
        return outer

    def _checked(
        self,
        solution: torch.Tensor,
        failed: torch.Tensor,
        features: torch.Tensor,
        targets: torch.Tensor,
        solved: torch.Tensor,
    ) -> torch.Tensor:
        """``solution``, or an error about the matrix ``solved``, or NaN where the host would have to wait for that."""
        if not _host_knows(features):
            self._failed = self._failed.to(features.device) | failed
            return torch.where(failed, math.nan, solution)
        if failed.item():
            raise ridge.failure(features, targets, self.lmbda, solved)
        return solution

    def _solve_remembered(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """argmin_u of the remembered risk, this batch included, which is remembered unless the solve fails.

        Means with weights m^age: A <- A + (1 - m) / (1 - m^t) (phi^T phi / N - A) for batch t = 1, 2, ..., b likewise.
        """
        second, cross = ridge.moments(features, targets, self.centre)
        count = self.remembered.to(features.device) + 1
        if self.second_moment is not None and self.cross_moment is not None:
            share = (1 - self.memory) / (1 - self.memory ** count.to(second.dtype))
            second = self.second_moment.to(second.dtype).lerp(second, share)
            cross = self.cross_moment.to(cross.dtype).lerp(cross, share)
        solution, failed = ridge.solve_moments_unchecked(second, cross, self.lmbda, self.centre)
        failed = _failed(solution, failed)
        solution = self._checked(solution, failed, features, targets, second)
        if not _host_knows(features):  # of a failure, which would have raised
            second = _unless(failed, second, self.second_moment)
            cross = _unless(failed, cross, self.cross_moment)
            count = _unless(failed, count, count - 1)
        self.second_moment, self.cross_moment, self.remembered = second, cross, count
        return solution

    def _solve_dtype(self, features: torch.Tensor) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        return _widest(features.device)

    def _loss_dtype(self, wide: torch.dtype, device: torch.device) -> torch.dtype:
        """That of residual and loss on ``device``, for features that are ``wide``: float32 or float64."""
        if self.dtype is not None:
            return torch.promote_types(wide, self.dtype)
        return wide if self.lmbda >= _FLOAT32_LAMBDA else _widest(device)

    # --- what comes in ---------------------------------------------------------------------------------------------

    def _checked_targets(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Targets as numbers, (N, k) or (N,), that go with ``features`` and ``outer``."""
        _check_features(features)
        targets = self._real(targets, features)
        self._check_shapes(features, targets)
        return targets

    def _kept(self) -> torch.Tensor:
        if self.outer is None:
            raise RuntimeError("VarProLoss has no outer weights yet: call it in training mode, or load a state dict")
        return self.outer

    def _real(self, targets: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Targets as numbers: class labels become one-hot vectors."""
        if targets.ndim not in (1, 2) or len(targets) != len(features) or 0 in targets.shape:
            raise ValueError(
                f"targets {tuple(targets.shape)} are not allowed with features {tuple(features.shape)}: "
                f"({len(features)}, k) or ({len(features)},)"
            )
        if targets.is_complex():
            raise ValueError(f"targets of {targets.dtype} are not allowed: real numbers or class labels")
        if targets.device != features.device:
            raise ValueError(f"targets are on {targets.device}, features on {features.device}: move one of them")
        if targets.ndim == 2:
            if self.classes not in (None, targets.shape[1]):
                raise ValueError(
                    f"targets {tuple(targets.shape)} are not allowed with classes={self.classes}: labels (N,) of an "
                    f"integer dtype, or one-hot vectors (N, {self.classes})"
                )
            return targets
        if targets.is_floating_point():
            if self.classes is not None:
                raise ValueError(
                    f"targets (N,) of {targets.dtype} are not allowed with classes={self.classes}: "
                    "labels of an integer dtype"
                )
            return targets
        if self.classes is None:
            raise ValueError(
                f"targets (N,) of {targets.dtype} are class labels: say how many there are, "
                "VarProLoss(..., classes=K), or make them floating-point numbers"
            )
        if targets.device.type == "cpu":  # one_hot looks at nothing elsewhere, where the host would wait
            least, most = targets.min().item(), targets.max().item()
            if least < 0 or most >= self.classes:
                raise ValueError(
                    f"class labels from {least} to {most} are not allowed with classes={self.classes}: "
                    f"0 to {self.classes - 1}"
                )
        return F.one_hot(targets.long(), self.classes)

    def _check_shapes(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        if self.outer is None:
            return
        if self.outer.device != features.device:
            raise ValueError(
                f"features are on {features.device}, outer on {self.outer.device}: move the loss with .to(...)"
            )
        expected = (features.shape[1], *targets.shape[1:])
        if tuple(self.outer.shape) != expected:
            raise ValueError(
                f"features {tuple(features.shape)} and targets {tuple(targets.shape)} need outer {expected}, "
                f"but it is {tuple(self.outer.shape)}"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """As in the base class, except that what has no shape yet takes that of the state."""
        for name in ("outer", *(("second_moment", "cross_moment") if self.memory > 0 else ())):
            saved = state_dict.get(prefix + name)
            if getattr(self, name) is None and saved is not None:
                setattr(self, name, torch.empty_like(saved, device=self._failed.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


@contextmanager
def _full_precision(features: torch.Tensor) -> Iterator[None]:
    """No autocast meanwhile."""
    device = features.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        yield


def _host_knows(features: torch.Tensor) -> bool:
    """Whether the host can look at a number without waiting for the device of ``features``."""
    return features.device.type == "cpu"


def _failed(solution: torch.Tensor, info: torch.Tensor) -> torch.Tensor:
    """Whether a solve has failed, by the ``info`` of its factorisation or by what came out; a scalar on the device."""
    return (info != 0) | ~solution.isfinite().all()


def _unless(failed: torch.Tensor, new: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
    """``new``, or ``old`` (None: zeros) where the device knows of a failure."""
    return torch.where(failed, torch.zeros_like(new) if old is None else old.to(new), new)


@contextmanager
def _few_threads(features: torch.Tensor, *, moments: bool = False) -> Iterator[None]:
    """One thread of the CPU where the products of ``features (N, M)`` are too small to be shared out.

    With ``moments`` the matrix to be factored is M x M also for N < M.
    """
    samples, width = features.shape
    products = (samples + width) * width**2 if moments else samples * width * min(samples, width)
    small = features.device.type == "cpu" and products <= _SMALL
    with one_torch_thread() if small else nullcontext():
        yield


def _widest(device: torch.device) -> torch.dtype:
    """Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _check_features(features: torch.Tensor) -> None:
    if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
        raise ValueError(
            f"features {tuple(features.shape)} of {features.dtype} are not allowed: (N, M) real numbers, N, M >= 1"
        )


def _check_options(
    lmbda: float,
    centre: float,
    averaging: float,
    memory: float,
    classes: int | None,
    outer: torch.Tensor | None,
    dtype: torch.dtype | None,
) -> None:
    ridge.check_lambda(lmbda)
    ridge.check_centre(centre)
    if not 0 <= averaging < 1:
        raise ValueError(f"averaging: {averaging} is not allowed: a number from 0 to below 1")
    if not 0 <= memory < 1:
        raise ValueError(f"memory: {memory} is not allowed: a number from 0 to below 1")
    if averaging > 0 and memory > 0:
        raise ValueError("averaging and memory: one of them may be above 0")
    if classes is not None and not (isinstance(classes, int) and classes >= 1):
        raise ValueError(f"classes: {classes} is not allowed: a whole number from 1 up, or None")
    if outer is not None and not (outer.ndim in (1, 2) and outer.is_floating_point()):
        raise ValueError(f"outer: {tuple(outer.shape)} of {outer.dtype} is not allowed: (M, k) or (M,) real numbers")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype: {dtype} is not allowed: torch.float32, torch.float64 or None")
