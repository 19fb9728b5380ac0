"""The data that a run learns from: drawn on a domain with a teacher, or the user's own tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from varpro.domains.base import Domain
from varpro.features import FeatureMap


@dataclass(frozen=True)
class Problem:
    """What a run learns from, float64 on the CPU.

    ``inputs (N, d)``, ``targets (N, k)``, ``student (M, d)`` the initial weights, ``teacher (T, d)`` the teacher's
    weights, or None where the data came without.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    student: torch.Tensor
    teacher: torch.Tensor | None


def drawn_problem(
    features: FeatureMap, seed: int, samples: int, student_width: int, teacher_width: int, gamma: float
) -> Problem:
    """Data of a teacher with unit outer weights, y = f_teacher(x) without noise (docs/definitions.md, 2 and 4)."""
    draws = features.domain.draws(seed, samples, student_width, teacher_width, gamma)
    targets = features.predict(draws.teacher, draws.inputs)
    return Problem(draws.inputs, targets[:, None], draws.student, draws.teacher)


def problem_from_tensors(
    tensors: Mapping[str, torch.Tensor], domain: Domain, student: Callable[[int], torch.Tensor]
) -> Problem:
    """The user's own data on ``domain``: ``inputs (N, d)``, ``targets (N,)`` or ``(N, k)``, perhaps ``teacher_weights
    (T, d)`` and ``student_weights (M, d)``, which are projected to the domain. ``student(N)`` draws the student where
    there is none.

    Raises ValueError naming the tensor where one is missing, has a wrong shape, or is not finite.
    """
    d = domain.dimension
    shapes = {
        "inputs": f"(N, {d})",
        "targets": "(N,) or (N, k)",
        "teacher_weights": f"(T, {d})",
        "student_weights": f"(M, {d})",
    }
    found = {}
    for name, shape in shapes.items():
        value = tensors.get(name)
        if value is None:
            if not name.endswith("_weights"):
                needed = f"inputs {shapes['inputs']} and targets {shapes['targets']}"
                raise ValueError(f"there is no tensor {name!r}; needed: {needed}")
            continue
        plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_quantized or value.is_complex() or not torch.isfinite(value).all():
            raise ValueError(f"{name!r} is not a dense tensor of finite real numbers")
        columns = d if name != "targets" else value.shape[1] if value.ndim == 2 else 1
        value = value.detach().double()
        value = value if value.ndim == 2 else value[..., None]
        if value.ndim != 2 or value.shape[1] != columns or value.numel() == 0:
            raise ValueError(f"{name!r} has shape {tuple(tensors[name].shape)}; allowed: {shape}")
        found[name] = domain.project(value) if name.endswith("_weights") else value
        if not torch.isfinite(found[name]).all():
            raise ValueError(f"{name!r} holds a zero vector, which has no direction")
    samples = len(found["inputs"])
    if len(found["targets"]) != samples:
        raise ValueError(f"'targets' has {len(found['targets'])} rows and 'inputs' {samples}")
    start = found["student_weights"] if "student_weights" in found else domain.project(student(samples))
    return Problem(domain.canonical_inputs(found["inputs"]), found["targets"], start, found.get("teacher_weights"))
