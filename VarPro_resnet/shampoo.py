"""Shampoo: gradient descent preconditioned along every axis ("mode") of every parameter tensor.

The two variants differ in two things: ``gupta`` (Gupta, Koren, Singer 2018, arXiv 1802.09568, Algorithm 2) adds
G_(i) G_(i)^T of the raw gradient G to the preconditioner P_i of every mode i and applies P_i^(-1/(2k)), where
``torch_optimizer`` (the behaviour of torch_optimizer 0.3.0, behind the published curves) adds G_(i) G_(i)^T of the
gradient as already preconditioned in the modes before i and applies P_i^(-1/k).

Here k is the order of the tensor (its number of axes), G_(i) (d_i, rest) the gradient as a matrix whose rows run along
axis i, and P_i (d_i, d_i) starts at epsilon I.

Preconditioners and all that is computed with them are float64, whatever the dtype of the parameters. Directions that
few gradients have had leave eigenvalues near epsilon, which float32 cannot resolve beside the largest one, and a
negative power makes them the ones that count: in the first 60 steps of a ResNet-20, float32 preconditioners change
single updates by up to a hundredth, float64 ones by a millionth (the rounding of the parameters).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from typing import Any

import torch

from varpro.threads import available_cores, one_torch_thread

VARIANTS = ("torch_optimizer", "gupta")


class Shampoo(torch.optim.Optimizer):
    """Shampoo for real parameters of any order; a scalar has no mode and takes plain gradient steps.

    ``lr`` is the length of the step. The roots of the preconditioners are taken in the first step and then in every
    ``update_every``-th; between them the last ones are applied, while the preconditioners accumulate in every step.

    ``momentum`` m mixes before preconditioning, in both variants as torch_optimizer 0.3.0 does: the gradient used is
    (1 - m) g + m b, where b is the preconditioned gradient of the step before (in the first step b = g).

    All options can be set per parameter group. Raises ValueError for an option or a parameter that is not allowed.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.0,
        epsilon: float = 1e-4,
        update_every: int = 1,
        variant: str = "torch_optimizer",
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "epsilon": epsilon,
            "update_every": update_every,
            "variant": variant,
        }
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in the base class; refuses options and parameters that are not allowed."""
        _check_options(self.defaults | param_group)
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if not parameter.is_floating_point():
                self.param_groups.pop()
                raise ValueError(f"params: a tensor of {parameter.dtype} is not allowed: real floating-point numbers")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient; returns what ``closure`` returns.

        Raises FloatingPointError where the roots cannot be taken because a gradient is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with one_torch_thread():  # the matrices are too small to be shared out
            for group in self.param_groups:
                self._step_group(group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in the base class, except that the state keeps its dtype; there it would take that of the parameters."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(saved, own, strict=True):
            if key in state_dict["state"]:
                self.state[parameter] = _copied(state_dict["state"][key], parameter.device)

    def _step_group(self, group: dict[str, Any]) -> None:
        stacks = [_Stack(parameters, self.state, group) for parameters in self._alike(group)]
        for mode in range(max((stack.order for stack in stacks), default=0)):
            live = [stack for stack in stacks if mode < stack.order]
            for stack in live:
                stack.accumulate(mode)
            _take_roots([stack for stack in live if stack.due], mode, group["epsilon"])
            for stack in live:
                stack.precondition(mode)
        for stack in stacks:
            stack.finish()

    def _alike(self, group: dict[str, Any]) -> Iterator[list[torch.Tensor]]:
        """The parameters with a gradient, in lists of one shape, dtype and device whose roots are due together."""
        lists = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                phase = self.state[parameter].get("step", 0) % group["update_every"]
                lists[parameter.shape, parameter.dtype, parameter.device, phase == 0].append(parameter)
        yield from lists.values()


class _Stack:
    """One step of B parameters of one shape (d_1, ..., d_k), all computed as one batch.

    ``preconditioners[i]`` and ``roots[i]`` are (B, d_i, d_i); ``gradient (B, d_1, ..., d_k)`` is preconditioned in one
    mode after the other.
    """

    def __init__(self, parameters: list[torch.Tensor], states: dict, group: dict[str, Any]) -> None:
        self.parameters, self.group = parameters, group
        self.states = [states[parameter] for parameter in parameters]
        self.order = parameters[0].ndim
        self.gradient = torch.stack([parameter.grad for parameter in parameters]).double()
        for state, gradient in zip(self.states, self.gradient, strict=True):
            if not state:
                state.update(_new_state(gradient, group["epsilon"]))
        self.due = self.states[0]["step"] % group["update_every"] == 0
        self.preconditioners = self._stacked("preconditioners")
        self.roots = [None] * self.order if self.due else self._stacked("roots")
        if group["momentum"] > 0:
            buffers = [state.get("momentum_buffer", own) for state, own in zip(self.states, self.gradient, strict=True)]
            self.gradient = self.gradient.lerp(torch.stack(buffers), group["momentum"])
        self.raw = self.gradient

    @property
    def power(self) -> float:
        """The power of every preconditioner."""
        return -1 / self.order if self.group["variant"] == "torch_optimizer" else -1 / (2 * self.order)

    def accumulate(self, mode: int) -> None:
        """P_i <- P_i + G_(i) G_(i)^T."""
        seen = self.gradient if self.group["variant"] == "torch_optimizer" else self.raw
        rows = _rows(seen.movedim(mode + 1, 1))
        self.preconditioners[mode] = torch.baddbmm(self.preconditioners[mode], rows, rows.mT)

    def precondition(self, mode: int) -> None:
        """G_(i) <- P_i^power G_(i)."""
        moved = self.gradient.movedim(mode + 1, 1)
        self.gradient = (self.roots[mode] @ _rows(moved)).view(moved.shape).movedim(1, mode + 1)

    def finish(self) -> None:
        """Move the parameters and keep the state."""
        updates = self.gradient.to(self.parameters[0].dtype)
        for parameter, update in zip(self.parameters, updates, strict=True):
            parameter.add_(update, alpha=-self.group["lr"])
        for member, state in enumerate(self.states):
            state["step"] += 1
            state["preconditioners"] = [stacked[member] for stacked in self.preconditioners]
            state["roots"] = [stacked[member] for stacked in self.roots]
            if self.group["momentum"] > 0:
                state["momentum_buffer"] = self.gradient[member]

    def _stacked(self, name: str) -> list[torch.Tensor]:
        return [torch.stack(tensors) for tensors in zip(*(state[name] for state in self.states), strict=True)]


def _rows(tensors: torch.Tensor) -> torch.Tensor:
    """(B, d, ...) as (B, d, the rest)."""
    return tensors.reshape(*tensors.shape[:2], -1)


def _new_state(gradient: torch.Tensor, epsilon: float) -> dict[str, Any]:
    eyes = [epsilon * torch.eye(size, dtype=gradient.dtype, device=gradient.device) for size in gradient.shape]
    return {"step": 0, "preconditioners": eyes, "roots": []}


def _take_roots(stacks: Sequence[_Stack], mode: int, epsilon: float) -> None:
    """P_i^power of every stack, for one i, with one batch of decompositions per size of matrix."""
    batches = defaultdict(list)
    for stack in stacks:
        matrices = stack.preconditioners[mode]
        batches[matrices.shape[-1], matrices.device, stack.power == -1].append(stack)
    for (_, _, inverse), members in batches.items():
        matrices = torch.cat([stack.preconditioners[mode] for stack in members])
        powers = torch.cat([matrices.new_full((len(stack.parameters), 1), stack.power) for stack in members])
        on_device = matrices.device.type == "cpu"
        roots = (_roots if on_device else roots_on_host)(matrices, powers, inverse, epsilon)
        for stack, root in zip(members, roots.split([len(stack.parameters) for stack in members]), strict=True):
            stack.roots[mode] = root


def roots_on_host(matrices: torch.Tensor, powers: torch.Tensor, inverse: bool, epsilon: float) -> torch.Tensor:
    """What :func:`_roots` gives, decomposed on the CPU, every matrix in a thread of a pool, for ``matrices`` elsewhere.

    GPU libraries decompose small symmetric matrices one after the other, a millisecond each.
    """
    host, host_powers = matrices.cpu(), powers.cpu()

    def root(one: int) -> torch.Tensor:
        return _roots(host[one : one + 1], host_powers[one : one + 1], inverse, epsilon)

    return torch.cat(list(_pool().map(root, range(len(host))))).to(matrices.device)


@cache
def _pool() -> ThreadPoolExecutor:
    # the number of threads of tensor operations is one of each thread: those of a pool do not take over the caller's
    return ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,))


def _roots(matrices: torch.Tensor, powers: torch.Tensor, inverse: bool, epsilon: float) -> torch.Tensor:
    """P^power (B, d, d), of ``inverse`` P^-1, for symmetric ``matrices (B, d, d)`` and ``powers (B, 1)``."""
    return _inverses(matrices, epsilon) if inverse else _powers(matrices, powers, epsilon)


def _powers(matrices: torch.Tensor, powers: torch.Tensor, epsilon: float) -> torch.Tensor:
    """P^power (B, d, d) of symmetric ``matrices (B, d, d)``, with ``powers (B, 1)``.

    No eigenvalue of epsilon I plus a sum of squares is below epsilon, and none is known better than to the round-off
    of the largest one: those that come out below either are set to it.
    """
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:
        raise FloatingPointError("Shampoo: a gradient is not finite, or its square overflows") from None
    floor = values[:, -1:] * (matrices.shape[-1] * torch.finfo(values.dtype).eps)
    values = values.clamp(min=floor.clamp(min=epsilon))
    return (vectors * values.pow(powers).unsqueeze(-2)) @ vectors.mT


def _inverses(matrices: torch.Tensor, epsilon: float) -> torch.Tensor:
    """P^-1 by Cholesky, several times faster than by eigenvalues.

    These serve all of the batch where a factor does not exist, or has a pivot that is known to less than two digits.
    """
    factors, failed = torch.linalg.cholesky_ex(matrices)
    round_off = matrices.shape[-1] * torch.finfo(matrices.dtype).eps
    lost = factors.diagonal(dim1=1, dim2=2).square() < 100 * round_off * matrices.diagonal(dim1=1, dim2=2)
    if (lost.any() | failed.any()).item():
        return _powers(matrices, matrices.new_full((len(matrices), 1), -1.0), epsilon)
    return torch.cholesky_inverse(factors)


def _copied(state: Any, device: torch.device) -> Any:
    if isinstance(state, torch.Tensor):
        return state.to(device, copy=True)
    if isinstance(state, dict):
        return {key: _copied(value, device) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [_copied(value, device) for value in state]
    return state


def _check_options(options: dict[str, Any]) -> None:
    lr, momentum, epsilon = (options[name] for name in ("lr", "momentum", "epsilon"))
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: {lr} is not allowed: a finite number above 0")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: {momentum} is not allowed: a number from 0 to below 1")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon: {epsilon} is not allowed: a finite number above 0")
    if not (isinstance(options["update_every"], int) and options["update_every"] >= 1):
        raise ValueError(f"update_every: {options['update_every']} is not allowed: a whole number from 1 up")
    if options["variant"] not in VARIANTS:
        raise ValueError(f"variant: {options['variant']!r} is not allowed: {' or '.join(VARIANTS)}")
