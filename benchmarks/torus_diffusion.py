"""Accuracy and cost of the diffusion on the torus, and of distances to it; the tables of docs/diffusion_2d.md.

    python -m benchmarks.torus_diffusion [--gammas 1 100 1000] [--sizes 64 128 256] [--reference_size 512]

Times are those that the process spent on its processors; compilation is left out. The reference is Richardson's
extrapolation from ``reference_size`` and half of it, at a tenth of the tolerance; it takes most of the time, minutes
for gamma = 1000. The distances need 1.7 GB.
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np

from benchmarks.measure import machine
from varpro.diffusion.snapshots import choose_snapshots, density_at
from varpro.diffusion.torus import SIDE, TorusDiffusion, solve_torus_diffusion
from varpro.distances import TorusDensity, TorusMeasure
from varpro.paper.tables import markdown

EPOCHS = (32, 1000, 5000, 10000)
RUN_EPOCHS = 32000
RTOL = 1e-5
STUDENT_WIDTH = 1024
KEPT = 140  # snapshots of 256^2 cells in float32: 37 MB


def cpu_seconds(action: Callable):
    """What ``action()`` returns and the processor time that it took, in seconds."""
    begin = time.process_time()
    result = action()
    return result, time.process_time() - begin


def coarsened(density: np.ndarray, size: int) -> np.ndarray:
    """Averages (S, size, size) of ``density (S, m size, m size)`` over squares of m x m cells."""
    step = density.shape[1] // size
    return density.reshape(len(density), size, step, size, step).mean(axis=(2, 4))


def l1_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Integral of |first - second| per snapshot of two (S, n, n)."""
    return np.abs(first - second).mean(axis=(1, 2)) * SIDE**2


def accuracy(gamma: float, sizes: list[int], reference_size: int) -> str:
    """Table: steps, iterations, processor time to the last epoch of a run, and errors at ``EPOCHS``, per grid size."""
    solve_torus_diffusion(gamma, EPOCHS, grid_size=16, rtol=RTOL)  # compiles
    largest = max(sizes)
    half = solve_torus_diffusion(gamma, EPOCHS, grid_size=reference_size // 2, rtol=RTOL / 10).density
    fine = solve_torus_diffusion(gamma, EPOCHS, grid_size=reference_size, rtol=RTOL / 10).density
    reference = (4 * coarsened(fine, largest) - coarsened(half, largest)) / 3
    del half, fine
    rows = []
    for size in sizes:
        solution, seconds = cpu_seconds(
            lambda size=size: solve_torus_diffusion(gamma, [*EPOCHS, RUN_EPOCHS], grid_size=size, rtol=RTOL)
        )
        errors = l1_distance(solution.density[:-1], coarsened(reference, size))
        figures = [f"{seconds:.1f}", f"{seconds / size**2 * 1e6:.0f}", str(solution.steps), str(solution.iterations)]
        rows.append([f"{size}^2", *figures, *(f"{error:.1e}" for error in errors)])
        print(rows[-1], flush=True)
    header = ["cells", "CPU s", "µs per cell", "steps", "iterations", *(f"L1 at {epoch}" for epoch in EPOCHS)]
    return markdown(header, rows)


def distances(gamma: float, size: int) -> str:
    """Table: processor time of 1001 distances of a uniform student, and what thinning the snapshots changes."""
    epochs = np.unique(np.linspace(0, RUN_EPOCHS, 1001).astype(int))
    student = np.random.default_rng(0).uniform(-2, 2, (STUDENT_WIDTH, 2))

    def solved(grid_size: int) -> TorusDiffusion:
        return solve_torus_diffusion(gamma, epochs, grid_size=grid_size, rtol=RTOL)

    solution = solved(size)
    TorusDensity(solution.density[0]).energy_distance(TorusMeasure(student))  # compiles
    full, seconds = cpu_seconds(
        lambda: [TorusDensity(f).energy_distance(TorusMeasure(student)) for f in solution.density]
    )
    kept, choice_seconds = cpu_seconds(lambda: choose_snapshots(solved(size // 2).density, epochs, KEPT))
    snapshots = solution.density[kept].astype(np.float32)
    between = [density_at(snapshots, epochs[kept], epoch) for epoch in epochs]
    thinned = [TorusDensity(f).energy_distance(TorusMeasure(student)) for f in between]
    l1 = max(np.abs(f - g).mean() * SIDE**2 for f, g in zip(between, solution.density, strict=True))
    row = [f"{gamma:g}", f"{seconds:.1f}", f"{choice_seconds:.1f}", f"{snapshots.nbytes / 2**20:.0f}", f"{l1:.1e}"]
    row.append(f"{np.abs(np.subtract(full, thinned)).max():.1e}")
    print(row, flush=True)
    header = ["gamma", "1001 distances, CPU s", "choice, CPU s", "MiB", "largest L1 error", "largest error of D"]
    return markdown(header, [row])


def main(argv: list[str] | None = None) -> None:
    """The table on the terminal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gammas", type=float, nargs="+", default=[1.0, 100.0, 1000.0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--reference_size", type=int, default=512, help="a multiple of twice the largest of --sizes")
    options = parser.parse_args(argv)
    print(machine(), flush=True)
    tables = [f"gamma = {g:g}:\n\n" + accuracy(g, options.sizes, options.reference_size) for g in options.gammas]
    tables += [distances(gamma, 256) for gamma in options.gammas]
    print("\n\n".join(tables))
    print(f"largest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
