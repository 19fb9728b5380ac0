"""How far VarPro on the torus stays from the ultra-fast diffusion, by width, lambda, start (docs/diffusion_2d.md, 10).

    python -m benchmarks.torus_limit [--widths 64 256 1024 4096] [--lambdas 1e-2 1e-3 1e-4] [--kernel laplace]

The teacher is the law itself, on 256^2 cells, so that no sample of it stands between the students and the diffusion;
N = 4096 inputs of seed 0 remain. Unbiased, ``time_scale`` 2^-10. The first table has all lambdas at ``--width``, evenly
spread, the others all widths at ``--lambda``, from an evenly spread and from a random start.

Two distances are printed: the energy distance of the runs, whose kernel |wrap(.)| is not of negative type, and
:func:`harmonic_distance`, which is 0 for no two laws that differ in the harmonics that it takes.
"""

import argparse
import math
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from benchmarks.measure import machine
from varpro.diffusion.torus import TorusTeacher, solve_torus_diffusion
from varpro.distances import TorusDensity, TorusMeasure
from varpro.domains.torus import TORUS
from varpro.features import RADIAL_KERNELS, RadialTorus
from varpro.paper.tables import markdown
from varpro.problem import Problem
from varpro.runs.descent import GradientDescent
from varpro.runs.schedule import TIME_SCALE
from varpro.solvers.base import Objective
from varpro.solvers.choose import choose

GAMMA = 100.0
EPOCHS = (0, 32, 100, 250, 500, 1000, 2000)
SAMPLES, CELLS, HARMONICS = 4096, 256, 64


def cell_centres(cells: int) -> np.ndarray:
    """Centres (cells,) of equal cells of [-2, 2)."""
    return -2 + (np.arange(cells) + 0.5) * (4 / cells)


def harmonics_of_points(points: np.ndarray) -> np.ndarray:
    """E exp(-i pi k . X / 2) for k in [-64, 64]^2, X a point of ``points (M, 2)``: (129, 129)."""
    orders = math.pi / 2 * np.arange(-HARMONICS, HARMONICS + 1)
    first, second = (np.exp(-1j * np.outer(orders, points[:, axis])) for axis in (0, 1))
    return first @ second.T / len(points)


def harmonics_of_density(density: np.ndarray) -> np.ndarray:
    """The same of a density (n, n) of averages over cells, which are sinc times the smooth one in each harmonic."""
    orders = np.arange(-HARMONICS, HARMONICS + 1)
    waves = np.exp(-0.5j * math.pi * np.outer(orders, cell_centres(len(density))))
    waves /= np.sinc(orders / len(density))[:, None]
    return waves @ (density / density.sum()) @ waves.T


def harmonic_distance(first: np.ndarray, second: np.ndarray) -> float:
    """sqrt(1/16 sum_{0 < |k|_inf <= 64} 2 pi |pi k / 2|^-3 |p_k - q_k|^2) of the harmonics of two laws.

    -2 pi |xi|^-3 is the transform of |z| on the plane: at small scales this is the energy distance.
    """
    orders = math.pi / 2 * np.arange(-HARMONICS, HARMONICS + 1)
    squared = orders[:, None] ** 2 + orders**2
    squared[HARMONICS, HARMONICS] = np.inf
    return math.sqrt((2 * math.pi / 16 * squared**-1.5 * np.abs(first - second) ** 2).sum())


class Study:
    """Data of the teacher's law and the diffusion, shared by all students; a row of distances for each."""

    def __init__(self, kernel: str) -> None:
        self.features = RadialTorus(RADIAL_KERNELS[kernel])
        self.inputs = TORUS.draws(0, SAMPLES, 1, SAMPLES, GAMMA).inputs
        x = torch.from_numpy(cell_centres(CELLS))
        masses = torch.from_numpy(TorusTeacher.of_law(GAMMA, CELLS).cells).ravel() * (4 / CELLS) ** 2
        law = torch.cartesian_prod(x, x)
        blocks = self.inputs.split(16)  # so that the features of all cells stay in the caches
        self.targets = torch.cat([self.features.predict(law, block, len(law) * masses) for block in blocks])[:, None]
        diffusion = solve_torus_diffusion(GAMMA, EPOCHS, grid_size=CELLS)
        self.limits = [(TorusDensity(f), harmonics_of_density(f)) for f in diffusion.density]

    def follow(self, width: int, lmbda: float, *, spread: bool, last: int) -> np.ndarray:
        """Both distances (2, number of ``EPOCHS``) of one student, NaN after epoch ``last``."""
        begin = time.process_time()
        student = TORUS.spread(width) if spread else TORUS.draws(0, SAMPLES, width, SAMPLES, GAMMA).student
        objective = Objective(self.features, lmbda, 1.0, TIME_SCALE, "ridge")
        problem = Problem(self.inputs, self.targets, student, None)
        kind, device, dtype, _ = choose(objective, problem, device="cpu")
        descent = GradientDescent(kind.build(objective, problem, device=device, dtype=dtype, tf32=False), student)
        found = np.full((2, len(EPOCHS)), np.nan)
        for place, (epoch, following) in enumerate(pairwise((*EPOCHS, EPOCHS[-1]))):
            points = torch.as_tensor(descent.weights).double().numpy()
            density, harmonics = self.limits[place]
            found[:, place] = (
                density.energy_distance(TorusMeasure(points)),
                harmonic_distance(harmonics_of_points(points), harmonics),
            )
            if following > last or following == epoch:
                break
            descent.advance(following - epoch)
        start = "spread" if spread else "random"
        cost = f"{time.process_time() - begin:.0f} CPU s"
        print(width, f"{lmbda:g}", start, *(f"{d:.4f}" for d in found.ravel()), cost, flush=True)
        return found


def slope(sizes: Sequence[float], distances: np.ndarray) -> str:
    """The exponent of a power law through ``distances`` by ``sizes``, least squares in logarithms."""
    there = distances > 0  # not those that the energy distance does not see, nor NaN
    if there.sum() < 2:
        return ""
    return f"{np.polyfit(np.log(np.asarray(sizes)[there]), np.log(distances[there]), 1)[0]:.2f}"


def _rows(labels: list[str], parameter: str, sizes: Sequence[float], found: np.ndarray) -> list[list[str]]:
    """Rows of distances ``found (sizes, epochs)`` and below them the slope of each epoch."""
    values = [["" if math.isnan(d) else f"{d:.4f}" for d in line] for line in found]
    rows = [[*label.split(), *line] for label, line in zip(labels, values, strict=True)]
    return [*rows, [f"slope in {parameter}", *labels[0].split()[1:], *(slope(sizes, column) for column in found.T)]]


def main(argv: list[str] | None = None) -> None:
    """Print the table that the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=RADIAL_KERNELS, default="laplace")
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 256, 1024, 4096])
    parser.add_argument("--lambda", dest="lmbda", type=float, default=1e-3)
    parser.add_argument("--lambdas", type=float, nargs="*", default=[1e-2, 1e-3, 1e-4])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=EPOCHS[-1], help="of students of up to 1024 neurons")
    parser.add_argument("--wide_epochs", type=int, default=500, help="of wider ones")
    options = parser.parse_args(argv)
    print(machine(), flush=True)
    study = Study(options.kernel)

    def follow(width: int, lmbda: float, spread: bool = True) -> np.ndarray:
        return study.follow(width, lmbda, spread=spread, last=options.epochs if width <= 1024 else options.wide_epochs)

    names = ("energy distance", "harmonic distance")
    header = ["start", *(f"epoch {epoch}" for epoch in EPOCHS)]
    tables = []
    by_lambda = np.array([follow(options.width, lmbda) for lmbda in options.lambdas])
    by_width = {
        start: np.array([follow(width, options.lmbda, start == "spread") for width in options.widths])
        for start in ("spread", "random")
    }
    for kind, name in enumerate(names):
        if options.lambdas:
            labels = [f"{lmbda:g} spread" for lmbda in options.lambdas]
            rows = _rows(labels, "lambda", options.lambdas, by_lambda[:, kind])
            tables.append(f"{name}, M = {options.width}:\n\n" + markdown(["lambda", *header], rows))
        for start, found in by_width.items():
            if options.widths:
                rows = _rows([f"{width} {start}" for width in options.widths], "M", options.widths, found[:, kind])
                tables.append(f"{name}, lambda = {options.lmbda:g}:\n\n" + markdown(["M", *header], rows))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
