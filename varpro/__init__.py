"""Variable-projection (VarPro) and two-timescale training of two-layer neural networks.

One alphabet everywhere: N samples, M neurons (student width), T teacher neurons, S snapshots, d input
dimension; ``inputs (N, d)``, ``targets (N, k)``, ``weights (M, d)``, ``outer (M, k)``, ``features (N, M)``,
``lmbda`` the regularisation strength, ``centre`` the penalty centre (0 biased, 1 unbiased).

The names below are the library's face, shown at work in docs/library.md; each is imported when it is first used.
``varpro.__version__`` is the version of the installed package.

Source: R. Barboni, G. Peyré, F.-X. Vialard, "Ultra-fast feature learning for the training of two-layer
neural networks in the two-timescale regime", arXiv 2504.18208.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "VarProLoss": "varpro.loss",
    "reduced_risk": "varpro.ridge",
    "CircleSolver": "varpro.solvers.circle",
    "LevenbergMarquardt": "varpro.optimizers.levenberg_marquardt",
    "CircleMeasure": "varpro.distances",
    "TorusMeasure": "varpro.distances",
    "EuclideanMeasure": "varpro.distances",
    "TorusDensity": "varpro.distances",
    "solve_diffusion": "varpro.diffusion.circle",
    "solve_projected": "varpro.diffusion.projected",
    "solve_torus_diffusion": "varpro.diffusion.torus",
    "TorusTeacher": "varpro.diffusion.torus",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return installed_version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'varpro' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})


def installed_version(package: str) -> str:
    """The version of an installed package; ``unknown`` for one that is only on the path."""
    from importlib import metadata  # as dear as all of `import varpro`

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
