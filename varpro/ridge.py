"""The inner ridge solve for any feature matrix, and the risk it leaves (paper, Section 2).

    L(u) = (1 / (2 lam)) mean_{i,k} (phi u / M - y)^2 + (1/2) mean_{j,k} (u - c)^2

Writing u = c + delta turns every penalty centre into the centred problem with targets y - phi c / M: where u is
close to c nothing cancels, and for c = 1 and targets that are the row means of phi, bit for bit, u = 1 to the last bit.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real

import torch


@contextmanager
def matrix_products(*, tf32: bool) -> Iterator[None]:
    """Whether products of float32 matrices on CUDA may round their factors to TF32 (10 bits) meanwhile."""
    matmul = torch.backends.cuda.matmul
    usual, matmul.fp32_precision = matmul.fp32_precision, "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = usual


def predict(features: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """f = phi u / M: (N, k) from ``features (N, M)`` and ``outer (M, k)``."""
    return features @ outer / features.shape[1]


def solve(features: torch.Tensor, targets: torch.Tensor, lmbda: float, centre: float) -> torch.Tensor:
    """argmin_u L: (M, k), for ``features (N, M)`` and ``targets (N, k)``, by Cholesky in the smaller of N and M.

    Primal: (phi^T phi / (N M) + lam I) delta = phi^T (y - phi c / M) / N.
    Dual, for M > N: (phi phi^T / (N M) + lam I) a = (y - phi c / M) / N, delta = phi^T a.
    Raises FloatingPointError where the matrix is not positive definite in this precision.
    """
    outer, failed = solve_unchecked(features, targets, lmbda, centre)
    if failed.item():
        raise failure(features, targets, lmbda)
    return outer


def solve_unchecked(
    features: torch.Tensor, targets: torch.Tensor, lmbda: float, centre: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`solve` returns, and a scalar on the device that is not zero where it would raise: nothing waits."""
    samples, width = features.shape
    residual = (targets - centre * features.mean(dim=1, keepdim=True)) / samples
    dual = width > samples
    gram = features @ features.T if dual else features.T @ features
    gram.div_(samples * width).diagonal().add_(lmbda)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if dual:
        return centre + features.T @ torch.cholesky_solve(residual, factor), failed
    return centre + torch.cholesky_solve(features.T @ residual, factor), failed


def moments(features: torch.Tensor, targets: torch.Tensor, centre: float) -> tuple[torch.Tensor, torch.Tensor]:
    """All that L knows of ``features (N, M)``, ``targets (N, k)``: phi^T phi / N (M, M), phi^T (y - phi c / M) / N."""
    residual = targets - centre * features.mean(dim=1, keepdim=True)
    return features.T @ features / len(features), features.T @ residual / len(features)


def solve_moments_unchecked(
    second: torch.Tensor, cross: torch.Tensor, lmbda: float, centre: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`solve_unchecked` returns, from means of :func:`moments` over several batches.

    (A / M + lam I) delta = b for ``second`` A (M, M) and ``cross`` b (M, k).
    """
    matrix = second / len(second)
    matrix.diagonal().add_(lmbda)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return centre + torch.cholesky_solve(cross, factor), failed


def solve_moments(second: torch.Tensor, cross: torch.Tensor, lmbda: float, centre: float) -> torch.Tensor:
    """As :func:`solve_moments_unchecked`; where round-off makes the matrix indefinite, by eigenvalues, of which none of
    A is below 0. The host waits. Raises FloatingPointError where the moments are not finite."""
    outer, failed = solve_moments_unchecked(second, cross, lmbda, centre)
    if not failed.item() and outer.isfinite().all().item():
        return outer
    if not (second.isfinite().all() & cross.isfinite().all()).item():
        raise FloatingPointError("inner solve: features or targets are not finite, or their products overflow")
    values, vectors = torch.linalg.eigh(second / len(second))
    return centre + vectors @ (vectors.T @ cross / (values.clamp(min=0) + lmbda)[:, None])


def failure(
    features: torch.Tensor, targets: torch.Tensor, lmbda: float, solved: torch.Tensor | None = None
) -> FloatingPointError:
    """The error of a solve with ``features (N, M)`` and ``targets (N, k)`` that has failed; looks for the reason.

    ``solved`` is the matrix whose smaller side is the size of the system, by default the features.
    """
    for name, tensor in (("features", features), ("targets", targets)):
        if not tensor.isfinite().all().item():
            return FloatingPointError(f"inner solve: the {name} are not finite")
    return not_definite(features if solved is None else solved, lmbda)


def not_definite(features: torch.Tensor, lmbda: float) -> FloatingPointError:
    """The error of a solve whose matrix is not positive definite in the precision of ``features (N, M)``."""
    size = min(features.shape)
    remedy = "a larger lambda" if features.dtype == torch.float64 else "float64 or a larger lambda"
    return FloatingPointError(
        f"inner solve: the {size} x {size} system is not positive definite in "
        f"{str(features.dtype).removeprefix('torch.')} at lambda {lmbda:g}; use {remedy}"
    )


def check_lambda(lmbda: float) -> None:
    """Raises ValueError, with what is allowed, where L has no minimum or no meaning."""
    if not 0 < lmbda < math.inf:
        raise ValueError(f"lmbda: {lmbda} is not allowed: a finite number above 0")


def check_centre(centre: float) -> None:
    """Raises ValueError, with what is allowed, where the centre of the penalty is no number; all neurons share it."""
    if not (isinstance(centre, Real) and math.isfinite(centre)):
        shown = " ".join(str(centre).split())  # a tensor in one line
        raise ValueError(f"centre: {shown} is not allowed: a finite number")


def reduced_risk(
    features: torch.Tensor, targets: torch.Tensor, lmbda: float, centre: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(min_u L, argmin_u L), a scalar and (M, k), for any ``features (N, M)`` and ``targets (N, k)``.

    The scalar can be differentiated once in whatever the features depend on: u is solved for on detached features and
    then held fixed, which gives the exact gradient of the minimum (envelope theorem). A second derivative would lack
    the part that goes through u. Raises ValueError for other shapes, where ``lmbda`` is not above 0 and where
    ``centre`` is not one number, and for two dtypes; FloatingPointError as :func:`solve` does, and where ``targets``
    are not finite. All is computed in the dtype of the features: float64, or see :class:`varpro.loss.VarProLoss`.
    """
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets) or 0 in features.shape:
        shapes = f"features {tuple(features.shape)} with targets {tuple(targets.shape)}"
        raise ValueError(f"{shapes} are not allowed: (N, M) with (N, k), N, M >= 1")
    if features.dtype != targets.dtype:
        raise ValueError(f"features of {features.dtype} with targets of {targets.dtype} are not allowed: one dtype")
    check_lambda(lmbda)
    check_centre(centre)
    outer = solve(features.detach(), targets, lmbda, centre)
    if not outer.isfinite().all().item():
        raise failure(features, targets, lmbda)
    return loss(features, targets, outer, lmbda, centre), outer


def loss(
    features: torch.Tensor, targets: torch.Tensor, outer: torch.Tensor, lmbda: float, centre: float
) -> torch.Tensor:
    """L(u), a scalar in the dtype of the features."""
    data = (predict(features, outer) - targets).square().mean()
    return data / (2 * lmbda) + (outer - centre).square().mean() / 2
