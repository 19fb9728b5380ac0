"""The data that a run learns from: drawn on a domain with a teacher, or the user's own tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from varpro.domains.base import Domain, Draws, Law, Measure
from varpro.features import FeatureMap

_FINITE = 4096  # samples or neurons drawn where infinitely many are asked for: the paper's


@dataclass(frozen=True)
class Problem:
    """What a run learns from, float64 on the CPU.

    ``inputs (N, d)``, ``targets (N, k)``, ``student (M, d)`` the initial weights, ``teacher (T, d)`` the teacher's
    weights, or None where the data came without. For infinitely many Gaussian inputs ``inputs`` and ``targets`` are
    None. A teacher of infinitely many neurons is its ``law``, and ``teacher`` is None.
    """

    inputs: torch.Tensor | None
    targets: torch.Tensor | None
    student: torch.Tensor
    teacher: torch.Tensor | None
    law: Law | None = None

    @property
    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``inputs (N, d)`` and ``targets (N, k)``. Raises ValueError where there are infinitely many."""
        if self.inputs is None or self.targets is None:
            raise ValueError("there are infinitely many samples, which are not at hand one by one")
        return self.inputs, self.targets

    @property
    def samples(self) -> float:
        """N, or infinity."""
        return math.inf if self.inputs is None else len(self.inputs)

    @property
    def teacher_width(self) -> float | None:
        """T, or infinity, or None where there is no teacher."""
        if self.law is not None:
            return math.inf
        return None if self.teacher is None else len(self.teacher)

    def teacher_measure(self, domain: Domain) -> Measure | None:
        """The teacher's neurons, or its law, as a measure on ``domain``; None where there is no teacher."""
        if self.law is not None:
            return domain.measure(self.law.points.numpy(), self.law.masses.numpy())
        return None if self.teacher is None else domain.measure(self.teacher.numpy())


def drawn_problem(
    features: FeatureMap,
    seed: int,
    samples: float,
    student_width: int,
    teacher_width: float,
    gamma: float,
    *,
    spread: bool = False,
) -> Problem:
    """Data of a teacher with unit outer weights, y = f_teacher(x) without noise (docs/definitions.md, 2 and 4).

    ``samples`` and ``teacher_width`` may be infinite: Gaussian inputs in expectation, and the teacher's law itself. The
    student is then the one that is drawn beside 4096 samples and neurons. With ``spread`` it is evenly spread instead.

    Raises ValueError, with what is allowed, where the domain has no law or no evenly spread points.
    """
    domain = features.domain
    draws = drawn(domain, seed, samples, student_width, teacher_width, gamma)
    law: Law | None = None
    if math.isinf(teacher_width):
        law = domain.law(gamma)
        if law is None:
            raise ValueError(
                f"--teacher_width inf: the law of the teacher on the {domain.name} is not at hand; allowed here: a "
                "whole number"
            )
    student = initial_weights(domain, draws, spread=spread)
    teacher = None if law is not None else draws.teacher
    if math.isinf(samples):
        return Problem(None, None, student, teacher, law)
    if law is None:
        targets = features.predict(draws.teacher, draws.inputs)
    else:
        targets = features.predict(law.points, draws.inputs, len(law.points) * law.masses)
    return Problem(draws.inputs, targets[:, None], student, teacher, law)


def drawn(domain: Domain, seed: int, samples: float, student_width: int, teacher_width: float, gamma: float) -> Draws:
    """The random numbers of a run, where infinitely many samples or neurons may be asked for."""
    finite = [_FINITE if math.isinf(count) else int(count) for count in (samples, teacher_width)]
    return domain.draws(seed, finite[0], student_width, finite[1], gamma)


def initial_weights(domain: Domain, draws: Draws, *, spread: bool) -> torch.Tensor:
    """The student's (M, d): those of ``draws``, or as many that are evenly ``spread``. Raises ValueError where the
    domain has none."""
    student = domain.spread(len(draws.student)) if spread else draws.student
    if student is None:
        raise ValueError(f"--init quantile: there are no evenly spread points on the {domain.name}")
    return student


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
