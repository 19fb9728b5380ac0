"""Time per epoch on the circle: linear solver against the plain loop, its own floor, and up to a million neurons.

The floor is what the processor could not do without. Per neuron and VarPro epoch:

* the chain of the factorisation, which no other work can shorten: S U (four dependent multiply-adds and an addition), a
  dot product of eight (a product, three additions, three shuffles), the pivot, a division, W, and S again;
* the chain of the backward sweep: a dot product, a subtraction, a multiply-add.

Every neuron waits for the one before it in both. ``_chain`` is exactly these two chains and nothing else, so
that the floor is that of the machine at hand. The other work (generators, half-plane sums, step, sort) is free of such
chains; its floor is its multiply-adds, far below.
"""

import numpy as np
import torch

from benchmarks.measure import by_turns
from benchmarks.plain import PlainLoop
from varpro import simd
from varpro.compiled import compiled
from varpro.features import ReLUCircle
from varpro.paper.tables import markdown
from varpro.problem import drawn_problem
from varpro.runs.schedule import TIME_SCALE
from varpro.solvers.circle import CircleSolver

SAMPLES = 4096
LMBDA, CENTRE = 1e-3, 1.0
WIDTHS = (32, 128, 512, 1024)
WIDE = tuple(4**k for k in range(6, 11))  # 2^12 ... 2^20
PARALLEL_WORK = 110  # multiply-adds per neuron and epoch outside the two chains, counted in varpro/solvers/circle.py


@compiled()
def _chain(count, ridge):
    """The dependent operations of factorisation and backward sweep, on numbers that stay in registers."""
    u = simd.splat(1e-3)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = f = g = simd.splat(1e-3)
    total = 0.0
    for _ in range(count):
        lo = simd.madd(s1, simd.lane(u, 1), simd.mul(s0, simd.lane(u, 0)))
        lo = simd.madd(s3, simd.lane(u, 3), simd.madd(s2, simd.lane(u, 2), lo))
        hi = simd.madd(s5, simd.lane(u, 5), simd.mul(s4, simd.lane(u, 4)))
        hi = simd.madd(s7, simd.lane(u, 7), simd.madd(s6, simd.lane(u, 6), hi))
        known = simd.add(lo, hi)
        pivot = max(ridge - simd.dot(u, known), ridge)
        z = ridge - simd.dot(u, f)
        q = simd.sub(u, known)
        w = simd.mul(q, simd.splat(1.0 / pivot))
        f = simd.madd(w, simd.splat(z), f)
        s0, s1 = simd.madd(w, simd.lane(q, 0), s0), simd.madd(w, simd.lane(q, 1), s1)
        s2, s3 = simd.madd(w, simd.lane(q, 2), s2), simd.madd(w, simd.lane(q, 3), s3)
        s4, s5 = simd.madd(w, simd.lane(q, 4), s4), simd.madd(w, simd.lane(q, 5), s5)
        s6, s7 = simd.madd(w, simd.lane(q, 6), s6), simd.madd(w, simd.lane(q, 7), s7)
    for _ in range(count):
        value = ridge - simd.dot(u, g)
        g = simd.madd(u, simd.splat(value), g)
        total += value
    return total + simd.dot(f, u)


@compiled(fastmath=True)
def _multiply_adds(count, factor):
    """8 ``count`` independent multiply-adds, for the rate of the machine."""
    a = np.ones(512)
    for _ in range(count // 64):
        for i in range(512):
            a[i] = a[i] * factor + factor
    return a.sum()


def _linear(problem, outer_update: str, epochs: int):
    solver = CircleSolver(
        problem.inputs.numpy(), problem.targets[:, 0].numpy(), LMBDA, CENTRE, TIME_SCALE, outer_update
    )
    weights = solver.own(problem.student)
    outer = solver.solve(weights)

    def run() -> int:
        solver.advance(weights, outer, epochs)
        return epochs

    return run


def _plain(problem, outer_update: str, epochs: int):
    loop = PlainLoop(problem.inputs, problem.targets, problem.student, LMBDA, CENTRE, TIME_SCALE, outer_update)

    def run() -> int:
        for _ in range(epochs):
            loop.epoch()
        return epochs

    return run


def floor(width: int) -> float:
    """Seconds per VarPro epoch that the two chains and the rest of the arithmetic take at least."""
    count = 200_000
    chain = by_turns({"chain": lambda: [count, _chain(count, 1.0)][0]}, 5)["chain"]
    rate = by_turns({"rate": lambda: [8 * count, _multiply_adds(count, 0.5)][0]}, 5)["rate"]
    return width * (chain + PARALLEL_WORK * rate)


def solvers(rounds: int = 7) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """The table of VarPro and two-timescale epochs against the plain loop, and (width, seconds) for the plot."""
    rows, points = [], {"plain PyTorch": [], "linear": []}
    for outer_update, name in (("ridge", "VarPro"), ("gradient", "two-timescale")):
        for width in WIDTHS:
            problem = drawn_problem(ReLUCircle(), 0, SAMPLES, width, 4096, 100.0)
            plain_epochs = max(2, 256 // width)
            seconds = by_turns(
                {
                    "plain": _plain(problem, outer_update, plain_epochs),
                    "linear": _linear(problem, outer_update, max(50, 40_000 // width)),
                },
                rounds,
            )
            least = floor(width) if outer_update == "ridge" else None
            rows.append(
                [
                    name,
                    str(width),
                    str(SAMPLES),
                    f"{seconds['plain'] * 1e3:.3g} ms",
                    f"{seconds['linear'] * 1e6:.3g} us",
                    f"{seconds['plain'] / seconds['linear']:.0f}",
                    f"{least * 1e6:.3g} us" if least else "",
                    f"{seconds['linear'] / least:.1f}" if least else "",
                ]
            )
            print(" ".join(rows[-1]), flush=True)
            if outer_update == "ridge":
                points["plain PyTorch"].append((width, seconds["plain"]))
                points["linear"].append((width, seconds["linear"]))
    header = ["epoch", "M", "N", "plain loop", "linear solver", "ratio", "floor", "gap"]
    return markdown(header, rows), points


def wide(rounds: int = 5) -> tuple[str, list[tuple[int, float]]]:
    """The table of VarPro epochs up to 2^20 neurons, and (width, seconds)."""
    rows, points = [], []
    for width in WIDE:
        problem = drawn_problem(ReLUCircle(), 0, SAMPLES, width, 4096, 100.0)
        epochs = max(10, (1 << 20) // width)  # entering and leaving a call costs about an epoch
        seconds = by_turns({"linear": _linear(problem, "ridge", epochs)}, rounds)["linear"]
        rows.append([str(width), f"{seconds * 1e3:.3g} ms", f"{seconds / width * 1e9:.1f} ns"])
        points.append((width, seconds))
        print(" ".join(rows[-1]), flush=True)
    return markdown(["M", "epoch", "per neuron"], rows), points


def threads() -> str:
    """How many threads the plain loop has."""
    return f"{torch.get_num_threads()} threads"
