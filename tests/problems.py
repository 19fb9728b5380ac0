"""Generators of learning problems on the circle and the torus, awkward ones included, and slow but sure solutions."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from varpro.features import RadialKernel


def build(kind, goal, problem):
    """A solver of class ``kind``, as a run makes it: in float64 on the CPU."""
    return kind.build(goal, problem, device="cpu", dtype="float64", tf32=False)


# --- on the circle ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CircleProblem:
    """``inputs (N, 2)``, ``targets (N,)``, ``weights (M, 2)`` unit vectors; float64."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    @property
    def features(self) -> np.ndarray:
        """max(w_j . x_i, 0): (N, M)."""
        return np.maximum(self.inputs @ self.weights.T, 0)


def circle_points(angles: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 2) at ``angles`` (n,); exact on the axes, where cos and sin leave 1e-17."""
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.where(np.abs(points) < 1e-15, 0.0, points)


def random_problem(samples: int, width: int, seed: int = 0) -> CircleProblem:
    """Gaussian inputs, noisy targets of a random teacher, uniform student."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, 2))
    teacher = circle_points(rng.uniform(-np.pi, np.pi, 20))
    targets = np.maximum(inputs @ teacher.T, 0).mean(axis=1) + 0.05 * rng.normal(size=samples)
    return CircleProblem(inputs, targets, circle_points(rng.uniform(-np.pi, np.pi, width)))


_EIGHTHS = st.integers(-8, 8).map(lambda k: k * np.pi / 4)  # axes and diagonals, with ties
_ANGLES = st.one_of(_EIGHTHS, st.floats(-np.pi, np.pi, allow_subnormal=False))


@st.composite
def awkward_problems(draw) -> CircleProblem:
    """Few or many samples and neurons; ties; angles on the axes; sometimes all samples in one half-plane."""
    sample_angles = np.array(draw(st.lists(_ANGLES, min_size=1, max_size=25)))
    neuron_angles = np.array(draw(st.lists(_ANGLES, min_size=1, max_size=25)))
    if draw(st.booleans()):
        sample_angles = np.abs(sample_angles) / 2
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    radii = rng.uniform(0.1, 2.0, size=(len(sample_angles), 1))
    return CircleProblem(
        radii * circle_points(sample_angles), rng.normal(size=len(sample_angles)), circle_points(neuron_angles)
    )


def clustered_problem(samples: int, width: int, spread: float, seed: int = 0) -> CircleProblem:
    """Neurons in four clusters of the given angular spread; 0 puts them on top of one another."""
    base = random_problem(samples, width, seed)
    rng = np.random.default_rng(seed + 1)
    angles = rng.choice([0.0, 0.3, 2.0, 4.5], width) + spread * rng.normal(size=width)
    return CircleProblem(base.inputs, base.targets, circle_points(angles))


def half_line_problem(samples: int, width: int, seed: int = 0) -> CircleProblem:
    """All samples on one ray."""
    base = random_problem(samples, width, seed)
    radii = np.abs(base.inputs[:, :1]) + 0.01
    return CircleProblem(radii * np.array([[0.6, 0.8]]), base.targets, base.weights)


def dense_solution(problem: CircleProblem, lmbda: float, centre: float) -> np.ndarray:
    """argmin_u L in float64 by a general solver: (M,)."""
    phi = problem.features
    samples, width = phi.shape
    return np.linalg.solve(
        phi.T @ phi / (samples * width) + lmbda * np.eye(width), phi.T @ problem.targets / samples + lmbda * centre
    )


def extended_predictions(problem: CircleProblem, lmbda: float, centre: float) -> np.ndarray:
    """f at the samples for the optimal u, in extended precision (80 bits where the platform has them): (N,)."""
    phi = np.maximum(problem.inputs.astype(np.longdouble) @ problem.weights.astype(np.longdouble).T, 0)
    samples, width = phi.shape
    matrix = phi.T @ phi / (samples * width) + lmbda * np.eye(width, dtype=np.longdouble)
    x = phi.T @ (problem.targets - centre * phi.sum(axis=1) / width) / samples
    for k in range(width):  # Cholesky in place, one column at a time
        matrix[k, k] = np.sqrt(matrix[k, k])
        matrix[k + 1 :, k] /= matrix[k, k]
        matrix[k + 1 :, k + 1 :] -= np.outer(matrix[k + 1 :, k], matrix[k + 1 :, k])
    for k in range(width):
        x[k] = (x[k] - matrix[k, :k] @ x[:k]) / matrix[k, k]
    for k in reversed(range(width)):
        x[k] = (x[k] - matrix[k + 1 :, k] @ x[k + 1 :]) / matrix[k, k]
    return (phi @ (x + centre) / width).astype(np.float64)


def reduced_risk(problem: CircleProblem, lmbda: float, centre: float) -> float:
    """min_u L."""
    outer = dense_solution(problem, lmbda, centre)
    residual = problem.features @ outer / len(outer) - problem.targets
    return float(np.mean(residual**2) / (2 * lmbda) + np.mean((outer - centre) ** 2) / 2)


# --- on the torus -------------------------------------------------------------------------------------------------

BUMP = RadialKernel(  # a kernel that a reader might add: g(r) = (1 - r^2 / 4)^2 for r <= 2
    "bump",
    value=lambda r: (1 - r.clamp_max(2.0) ** 2 / 4) ** 2,
    slope=lambda r: -(1 - r.clamp_max(2.0) ** 2 / 4),
)


def wrap(z):
    """Coordinates of any shape in [-2, 2)."""
    return -2 + np.mod(z + 2, 4)


def formula(kernel, weights, inputs):
    """phi (N, M) as the definition has it."""
    radius = np.linalg.norm(wrap(weights[None] - inputs[:, None]), axis=2)
    if kernel == "laplace":
        return 8 * np.exp(-2 * radius)
    return np.where(radius <= 2, (1 + np.cos(np.pi * radius / 2)) / 2, 0)


def drawn(kernel, samples=300, width=30, seed=0):
    """Gaussian inputs (N, 2), noisy targets (N,) of a random teacher, uniform student (M, 2)."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, 2))
    targets = formula(kernel, rng.uniform(-1, 1, (20, 2)), inputs).mean(axis=1) + 0.05 * rng.normal(size=samples)
    return inputs, targets, rng.uniform(-2, 2, (width, 2))


def system(kernel, inputs, targets, weights, centre=1.0, lmbda=1e-3):
    """A and b of the inner problem."""
    phi = formula(kernel, weights, inputs)
    samples, width = phi.shape
    return phi.T @ phi / (samples * width) + lmbda * np.eye(width), phi.T @ targets / samples + lmbda * centre


def relative_residual(kernel, inputs, targets, weights, outer):
    """|b - A u| / |b| of the inner problem."""
    matrix, right = system(kernel, inputs, targets, weights)
    return np.linalg.norm(right - matrix @ outer) / np.linalg.norm(right)
