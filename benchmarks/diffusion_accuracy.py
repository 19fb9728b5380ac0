"""Accuracy and time of the quantile solver of the ultra-fast diffusion, against a finite-volume solution.

    python benchmarks/diffusion_accuracy.py [--gamma 100] [--reference_cells 16384] [--repeats 5]

Measured with the default tolerance, 4096 cells and 1001 snapshots up to epoch 32000 (the solver uses one core);
L1 at epoch 32 / 1000 / 5000 / 10000 / 32000:
gamma 100: 0.38 s, 361 steps, 2.4e-5 / 2.1e-5 / 1.6e-5 / 1.5e-5 / 4e-9 (error of the reference 2e-8);
gamma 10000: 1.4 s, 1856 steps, 5.2e-5 / 3.9e-5 / 4.0e-5 / 3.9e-5 / 3.1e-5 (error of the reference 3e-7).

The reference shares nothing with the solver but the teacher's cdf. With r = nu/mu the equation reads
d_t mu = - d_x (nu d_x r); cell averages of mu on equal cells, two-point fluxes (second order in the cell),
backward differentiation formulas of order 1 to 5 in time, and cell masses added up to the output cells. Its own
error is estimated from half as many cells: a third of the distance between the two.
"""

import argparse
import math
import statistics
import time

import numpy as np
from scipy.integrate import solve_ivp
from scipy.sparse import csc_matrix, diags_array

from varpro.diffusion.circle import solve_diffusion
from varpro.domains.circle import circle_cdf, circle_density
from varpro.runs.schedule import TIME_SCALE

EPOCHS = (0, 32, 1000, 5000, 10000, 32000)
RUN_EPOCHS = np.linspace(0, 32000, 1001).astype(int)  # the snapshots of a run of the paper
GRID_SIZE = 4096
REFERENCE_RTOL = 1e-8  # with 1e-10 the reference moves by 2e-9


def finite_volume_densities(gamma: float, times: np.ndarray, cells: int) -> np.ndarray:
    """Cell averages (len(times), cells) of the density on equal cells of [-pi, pi), from uniform at time 0."""
    edges = np.linspace(-math.pi, math.pi, cells + 1)
    width = 2 * math.pi / cells
    average_nu = np.diff(circle_cdf(edges, gamma)) / width  # of a cell
    left_nu = circle_density(edges[:-1], gamma)  # at the left edge of a cell
    right_nu = np.roll(left_nu, -1)

    def flow(_time, mu):
        ratio = average_nu / mu
        flux = left_nu * (ratio - np.roll(ratio, 1)) / width  # through the left edge
        return (flux - np.roll(flux, -1)) / width

    def jacobian(_time, mu):
        slope = -average_nu / mu**2 / width**2
        above = np.roll(slope, -1) * -right_nu
        below = np.roll(slope, 1) * -left_nu
        middle = slope * (left_nu + right_nu)
        bands = [middle, above[:-1], below[1:], below[:1], above[-1:]]
        return csc_matrix(diags_array(bands, offsets=[0, 1, -1, cells - 1, 1 - cells]))

    uniform = np.full(cells, 1 / (2 * math.pi))
    solution = solve_ivp(
        flow, (0, times[-1]), uniform, "BDF", times, jac=jacobian, rtol=REFERENCE_RTOL, atol=REFERENCE_RTOL / 100
    )
    if not solution.success:
        raise RuntimeError(f"the reference failed: {solution.message}")
    return solution.y.T


def coarsened(density: np.ndarray, cells: int) -> np.ndarray:
    """Averages (S, cells) of ``density (S, m cells)`` over groups of m cells."""
    return density.reshape(len(density), cells, -1).mean(axis=2)


def l1_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int |first - second| dx per row of two (S, cells)."""
    return np.abs(first - second).mean(axis=1) * 2 * math.pi


def solver_seconds(gamma: float, repeats: int) -> tuple[float, int]:
    """Median wall time of a whole run with 1001 snapshots, compilation apart, and its steps."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        steps = solve_diffusion(gamma, RUN_EPOCHS, TIME_SCALE, GRID_SIZE).steps
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), steps


def main(argv: list[str] | None = None) -> None:
    """The table on the terminal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gamma", type=float, default=100.0)
    parser.add_argument("--reference_cells", type=int, default=16384, help="a multiple of 8192")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs")
    options = parser.parse_args(argv)

    solution = solve_diffusion(options.gamma, EPOCHS, TIME_SCALE, GRID_SIZE)  # compiles, too
    seconds, steps = solver_seconds(options.gamma, options.repeats)
    print(f"solver: {seconds:.3f} s (median of {options.repeats}), {steps} steps, {len(RUN_EPOCHS)} snapshots")

    times = np.array(EPOCHS) * TIME_SCALE
    begin = time.perf_counter()
    fine = coarsened(finite_volume_densities(options.gamma, times, options.reference_cells), GRID_SIZE)
    print(f"reference, {options.reference_cells} cells: {time.perf_counter() - begin:.0f} s")
    half = coarsened(finite_volume_densities(options.gamma, times, options.reference_cells // 2), GRID_SIZE)
    print(f"{'epoch':>6} {'L1 to reference':>16} {'error of reference':>19}")
    for epoch, distance, error in zip(
        EPOCHS, l1_distance(solution.density, fine), l1_distance(half, fine) / 3, strict=True
    ):
        print(f"{epoch:6d} {distance:16.2e} {error:19.2e}")


if __name__ == "__main__":
    main()
