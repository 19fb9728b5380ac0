"""Teacher laws, the seeded random draws, and the data set (paper, Section 6.1).

The law nu_gamma on angles is a 2:1 mixture of the same bump at 0 and at 0.4 pi. Each bump is the image of the
uniform law under ``psi = atan2(sin theta, sqrt(1 + gamma) cos theta)``, ``angle = 2 psi``, so density, cdf and
sampler are all in closed form. gamma = 0 is the uniform law; gamma -> infinity gives two Diracs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from varpro.features import FeatureMap, wrap_torus
from varpro.solvers.circle import predict

SECOND_BUMP = 0.4 * math.pi  # angle of the lighter bump
BUMP_MASSES = (2.0 / 3.0, 1.0 / 3.0)
TORUS_MODES = ((-1.0, 0.0), (1.0, 1.0))  # of Appendix B; half of the mass each


def wrap_angle(angles: np.ndarray) -> np.ndarray:
    """Angles (radians, any shape) reduced to [-pi, pi)."""
    wrapped = np.mod(np.asarray(angles, dtype=np.float64) + math.pi, 2 * math.pi) - math.pi
    return np.where(wrapped >= math.pi, -math.pi, wrapped)  # mod can round up to 2 pi


def circle_density(angles: np.ndarray, gamma: float) -> np.ndarray:
    """Density of nu_gamma at ``angles`` (radians, any shape); it integrates to 1 over a period 2 pi.

    nu(x) = sqrt(1 + gamma) / (3 pi) [1 / (1 + gamma sin^2(x/2)) + (1/2) / (1 + gamma sin^2((x - 0.4 pi)/2))]
    """
    angles = np.asarray(angles, dtype=np.float64)
    return sum(
        mass * math.sqrt(1 + gamma) / (2 * math.pi) / (1 + gamma * np.sin((angles - centre) / 2) ** 2)
        for mass, centre in zip(BUMP_MASSES, (0.0, SECOND_BUMP), strict=True)
    )


def circle_cdf(angles: np.ndarray, gamma: float) -> np.ndarray:
    """Cumulative mass of nu_gamma from -pi to ``angles``; any real angle: N(x + 2 pi) = N(x) + 1, N(-pi) = 0."""
    angles = np.asarray(angles, dtype=np.float64)
    return sum(
        mass * (_bump_cdf(angles - centre, gamma) - _bump_cdf(np.float64(-math.pi - centre), gamma))
        for mass, centre in zip(BUMP_MASSES, (0.0, SECOND_BUMP), strict=True)
    )


def torus_bump_density(coordinates: np.ndarray, gamma: float) -> np.ndarray:
    """Density b of one bump at 0 at ``coordinates`` (any shape), of period 4, over which it integrates to 1.

    b(s) = sqrt(1 + gamma) / (4 (1 + gamma sin^2(pi s / 4)))
    """
    sine = np.sin(np.pi * np.asarray(coordinates, dtype=np.float64) / 4)
    return math.sqrt(1 + gamma) / (4 * (1 + gamma * sine**2))


def torus_bump_cdf(coordinates: np.ndarray, gamma: float) -> np.ndarray:
    """Integral of b from -2 to ``coordinates``, any real numbers."""
    return _bump_cdf(np.pi * np.asarray(coordinates, dtype=np.float64) / 2, gamma)


def _bump_cdf(angles: np.ndarray, gamma: float) -> np.ndarray:
    """1/2 + atan(sqrt(1 + gamma) tan(x/2)) / pi, continued over whole turns."""
    turns = np.floor((angles + math.pi) / (2 * math.pi))
    half = (angles - 2 * math.pi * turns) / 2  # in [-pi/2, pi/2)
    return turns + 0.5 + np.arctan2(math.sqrt(1 + gamma) * np.sin(half), np.cos(half)) / math.pi


def _bump_sampler(uniform: np.ndarray, gamma: float) -> np.ndarray:
    """Angles in [-pi, pi) of one bump at 0 from ``uniform`` draws on [0, 1), same shape."""
    theta = 2 * math.pi * uniform - math.pi
    half = np.arctan2(np.sin(theta), math.sqrt(1 + gamma) * np.cos(theta))
    return wrap_angle(2 * half)


def circle_teacher_angles(uniform: np.ndarray, gamma: float) -> np.ndarray:
    """Angles (T,) of a sample of nu_gamma from ``uniform`` draws (T,) on [0, 1).

    Every neuron with index 1, 4, 7, ... (one third) belongs to the bump at 0.4 pi.
    """
    angles = _bump_sampler(uniform, gamma)
    angles[1::3] += SECOND_BUMP
    return wrap_angle(angles)


def directions(angles: np.ndarray) -> torch.Tensor:
    """Unit vectors (T, 2), float64, at ``angles`` (T,) in radians."""
    angles = np.asarray(angles, dtype=np.float64)
    return torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=-1))


@dataclass(frozen=True)
class Draws:
    """The random numbers of one run: ``teacher (T, 2)`` float64, ``inputs (N, 2)`` and ``student (M, 2)`` float32."""

    teacher: torch.Tensor
    inputs: torch.Tensor
    student: torch.Tensor


def circle_draws(seed: int, samples: int, student_width: int, teacher_width: int, gamma: float) -> Draws:
    """The draws of the paper's circle runs: seed s here is seed s there.

    Two private generators stand in for the global ones of ``torch.manual_seed(seed)`` and
    ``numpy.random.seed(seed)``; they give the same numbers and leave the caller's random state alone. The order
    matters, and so do the draws that are thrown away: the original built two networks whose default
    initialisation consumed them.
    """
    numpy_stream = np.random.RandomState(seed)
    torch_stream = torch.Generator().manual_seed(seed)
    teacher = directions(circle_teacher_angles(numpy_stream.rand(teacher_width), gamma))
    _discard_network_initialisation(teacher_width, torch_stream)
    inputs = torch.randn(samples, 2, dtype=torch.float32, generator=torch_stream)
    _discard_network_initialisation(student_width, torch_stream)
    student = torch.randn(student_width, 2, dtype=torch.float32, generator=torch_stream)
    return Draws(teacher, inputs, student / student.norm(dim=1, keepdim=True))


def torus_draws(seed: int, samples: int, student_width: int, teacher_width: int, gamma: float) -> Draws:
    """The draws of the paper's torus runs (Appendix B), in the same order as :func:`circle_draws`.

    Each coordinate of the teacher is a bump of width gamma, scaled to [-2, 2); neurons with even index then move by
    (-1, 0), those with odd index by (1, 1). gamma = infinity leaves the two modes alone: T = 2. The law is
    [b(x + 1) b(y) + b(x - 1) b(y - 1)] / 2 with b of :func:`torus_bump_density`.
    """
    numpy_stream = np.random.RandomState(seed)
    torch_stream = torch.Generator().manual_seed(seed)
    if math.isinf(gamma):
        teacher_width = 2
        spread = np.zeros((2, 2))
    else:
        spread = np.stack([_bump_sampler(numpy_stream.rand(teacher_width), gamma) for _ in range(2)], axis=1)
    teacher = torch.from_numpy(spread) * (2 / math.pi)
    for k, mode in enumerate(TORUS_MODES):
        teacher[k::2] += torch.tensor(mode, dtype=torch.float64)
    _discard_network_initialisation(teacher_width, torch_stream)
    inputs = torch.randn(samples, 2, dtype=torch.float32, generator=torch_stream)
    _discard_network_initialisation(student_width, torch_stream)
    student = 2 * (2 * torch.rand(student_width, 2, dtype=torch.float32, generator=torch_stream) - 1)
    return Draws(wrap_torus(teacher), inputs, student)


def _discard_network_initialisation(width: int, stream: torch.Generator) -> None:
    torch.randn(width, 2, dtype=torch.float32, generator=stream)
    torch.nn.init.kaiming_uniform_(torch.empty(1, width, dtype=torch.float32), a=math.sqrt(5), generator=stream)


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


def circle_problem(seed: int, samples: int, student_width: int, teacher_width: int, gamma: float) -> Problem:
    """Data of a teacher with unit outer weights, y = f_teacher(x) without noise (docs/definitions.md, 2)."""
    draws = circle_draws(seed, samples, student_width, teacher_width, gamma)
    inputs = draws.inputs.double()
    targets = predict(draws.teacher.numpy(), np.ones(teacher_width), inputs.numpy())
    student = torch.nn.functional.normalize(draws.student.double(), dim=1)
    return Problem(inputs, torch.from_numpy(targets)[:, None], student, draws.teacher)


def torus_problem(
    features: FeatureMap, seed: int, samples: int, student_width: int, teacher_width: int, gamma: float
) -> Problem:
    """The same on the torus, for a radial feature map; gamma = infinity means a teacher of two neurons."""
    draws = torus_draws(seed, samples, student_width, teacher_width, gamma)
    inputs = draws.inputs.double()
    targets = torch.cat([features.features(draws.teacher, block).mean(dim=1) for block in inputs.split(_ROWS)])
    return Problem(inputs, targets[:, None], draws.student.double(), draws.teacher)


_ROWS = 256  # samples whose features of the whole teacher are held at a time


def problem_from_tensors(
    tensors: Mapping[str, torch.Tensor],
    project: Callable[[torch.Tensor], torch.Tensor],
    student: Callable[[int], torch.Tensor],
) -> Problem:
    """The user's own data: ``inputs (N, 2)``, ``targets (N,)`` or ``(N, k)``, perhaps ``teacher_weights (T, 2)`` and
    ``student_weights (M, 2)``, which ``project`` puts on the domain. ``student(N)`` draws the student where there is
    none.

    Raises ValueError naming the tensor where one is missing, has a wrong shape, or is not finite.
    """
    found = {}
    for name, needed in (("inputs", True), ("targets", True), ("teacher_weights", False), ("student_weights", False)):
        value = tensors.get(name)
        if value is None:
            if needed:
                raise ValueError(f"there is no tensor {name!r}; needed: inputs (N, 2) and targets (N,) or (N, k)")
            continue
        plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_quantized or value.is_complex() or not torch.isfinite(value).all():
            raise ValueError(f"{name!r} is not a dense tensor of finite real numbers")
        columns = 2 if name != "targets" else value.shape[1] if value.ndim == 2 else 1
        value = value.detach().double()
        value = value if value.ndim == 2 else value[..., None]
        if value.ndim != 2 or value.shape[1] != columns or value.numel() == 0:
            raise ValueError(f"{name!r} has shape {tuple(tensors[name].shape)}; allowed: {_SHAPES[name]}")
        found[name] = project(value) if name.endswith("_weights") else value
        if not torch.isfinite(found[name]).all():
            raise ValueError(f"{name!r} holds a zero vector, which has no direction")
    samples = len(found["inputs"])
    if len(found["targets"]) != samples:
        raise ValueError(f"'targets' has {len(found['targets'])} rows and 'inputs' {samples}")
    start = found["student_weights"] if "student_weights" in found else project(student(samples).double())
    return Problem(found["inputs"], found["targets"], start, found.get("teacher_weights"))


_SHAPES = {
    "inputs": "(N, 2)",
    "targets": "(N,) or (N, k)",
    "teacher_weights": "(T, 2)",
    "student_weights": "(M, 2)",
}
