"""Evaluations and time until an optimizer has reached what gradient descent reaches in 32000 epochs, on the circle.

Every optimizer trains from the paper's start (seed 0, N = 4096, unbiased). A mark is a multiple of the risk, or of the
distance to the teacher, of gradient descent after 32000 epochs; the first state that is there counts. Optimizers take
turns and the median is shown. Times are those of the process (all of this runs in one thread), without the measuring
of distances and without the sorting of the samples, which happens once per data set (2 ms).
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from varpro.distances import CircleMeasure
from varpro.features import ReLUCircle
from varpro.optimizers.base import Optimizer
from varpro.optimizers.continuation import continued
from varpro.optimizers.lbfgs import LBFGS
from varpro.optimizers.levenberg_marquardt import LevenbergMarquardt
from varpro.optimizers.momentum import Momentum
from varpro.paper.tables import markdown
from varpro.problem import Problem, drawn_problem
from varpro.runs.schedule import TIME_SCALE
from varpro.solvers.base import Objective
from varpro.solvers.circle import CircleSolver
from varpro.solvers.circle_newton import CircleNewton

SAMPLES, CENTRE, EPOCHS = 4096, 1.0, 32_000
FEATURES = ReLUCircle()
CASES = tuple((width, gamma, 1e-3) for gamma in (10.0, 100.0) for width in (32, 128, 512, 1024, 8192)) + tuple(
    (width, 1000.0, 1e-4) for width in (32, 128, 512, 1024, 8192)
)
ITERATIONS = {"momentum": 3000, "lbfgs": 400, "lm": 80, "lm, fast decay": 80, "lm, continued": 80}
FACTORS = (2.0, 1.1, 1.0)
TOLERANCE = 1e-4  # on the relative fall of the risk: ends Levenberg-Marquardt; on a plateau L-BFGS falls by less


class Point(NamedTuple):
    """A state on the way: evaluations and seconds so far, risk, distance to the teacher."""

    evaluations: int
    seconds: float
    risk: float
    distance: float


class Case:
    """One learning problem with its solver."""

    def __init__(self, width: int, gamma: float, lmbda: float, seed: int = 0) -> None:
        self.problem: Problem = drawn_problem(FEATURES, seed, SAMPLES, width, 4096, gamma)
        self.objective = Objective(FEATURES, lmbda, CENTRE, TIME_SCALE, "ridge")
        self.teacher = CircleMeasure(self.problem.teacher.numpy())
        self.solver = CircleSolver.build(self.objective, self.problem, device="cpu", dtype="float64", tf32=False)

    def build(self, objective: Objective) -> CircleSolver:
        """The solver for another lambda, with the same sorted samples."""
        solver = copy.copy(self.solver)
        solver.lmbda = objective.lmbda
        return solver

    def distance(self, weights: np.ndarray) -> float:
        """The energy distance of ``weights (M, 2)`` to the teacher."""
        return CircleMeasure(weights).energy_distance(self.teacher)

    def gradient_descent(self, stride: int = 50) -> list[Point]:
        """Every ``stride``-th state of 32000 epochs at the rate of the paper."""
        weights = self.solver.own(self.problem.student)
        outer, points, seconds = self.solver.solve(weights), [], 0.0
        for epoch in range(0, EPOCHS, stride):
            begin = time.process_time()
            losses = self.solver.advance(weights, outer, stride)
            seconds += time.process_time() - begin
            points.append(Point(epoch + stride, seconds, losses[-1], self.distance(weights)))
        return points

    def path(self, start: Callable[[], Optimizer], iterations: int) -> list[Point]:
        """The states of an optimizer that ``start`` makes."""
        begin = time.process_time()
        run = start()
        seconds, points = time.process_time() - begin, []
        states = islice(run, iterations)
        while True:
            begin = time.process_time()
            state = next(states, None)
            seconds += time.process_time() - begin
            if state is None:
                return points
            points.append(Point(state.evaluations, seconds, state.risk, self.distance(state.weights)))

    def optimizers(self) -> dict[str, Callable[[], Optimizer]]:
        """What is compared, by name."""
        problem, objective = self.problem, self.objective
        end = {"tolerance": TOLERANCE}
        return {
            "momentum": lambda: Momentum(self.solver, objective, problem),
            "lbfgs": lambda: LBFGS(self.solver, objective, problem),
            "lm": lambda: LevenbergMarquardt(self.solver, objective, problem, **end),
            "lm, fast decay": lambda: LevenbergMarquardt(
                self.solver, objective, problem, damping=0.01, slow_decay=5.0, **end
            ),
            "lm, continued": lambda: continued(LevenbergMarquardt, self.build, objective, problem, **end),
        }


def arrivals(paths: list[list[Point]], there: Callable[[Point], bool]) -> str:
    """Evaluations and median time of the first point that is ``there``, or a dash. All paths have the same points."""
    place = next((k for k, point in enumerate(paths[0]) if there(point)), None)
    if place is None:
        return "-"
    seconds = statistics.median(path[place].seconds for path in paths)
    return f"{paths[0][place].evaluations}: {seconds * 1e3:.3g} ms"


def rows_of(width: int, gamma: float, lmbda: float, rounds: int) -> Iterator[list[str]]:
    """The rows of one problem: gradient descent first, which sets the marks."""
    case = Case(width, gamma, lmbda)
    descent = case.gradient_descent()
    end, starts = descent[-1], case.optimizers()
    paths: dict[str, list[list[Point]]] = {"gd": [descent], **{name: [] for name in starts}}
    for _ in range(rounds):
        for name, start in starts.items():
            paths[name].append(case.path(start, ITERATIONS[name]))
    for name, turns in paths.items():
        last = turns[0][-1]
        yield [
            f"{width}, {gamma:g}, {lmbda:g}",
            name,
            *(arrivals(turns, lambda point, most=factor * end.risk: point.risk <= most) for factor in FACTORS),
            *(arrivals(turns, lambda point, most=factor * end.distance: point.distance <= most) for factor in FACTORS),
            f"{last.risk:.1e}",
            f"{last.distance:.4f}",
            f"{last.evaluations}",
        ]


def study(rounds: int = 3) -> str:
    """The table of all problems."""
    for start in Case(32, 10.0, 1e-3).optimizers().values():  # compile
        next(start())
    rows = []
    for case in CASES:
        for row in rows_of(*case, rounds):
            rows.append(row)
            print(" | ".join(row), flush=True)
    marks = [f"{quantity} x {factor:g}" for quantity in ("risk", "distance") for factor in FACTORS]
    return markdown(["M, gamma, lambda", "optimizer", *marks, "last risk", "last distance", "evaluations"], rows)


def goals(rounds: int = 7, seeds: int = 6) -> str:
    """Whole trainings at M = 1024, six seeds: evaluations and time to a mark of the distance to the teacher.

    Levenberg-Marquardt is one compiled call, with as many iterations as it takes; the continued one is not.
    """
    rows = []
    for gamma, lmbda in ((100.0, 1e-3), (1000.0, 1e-4)):
        cases = [Case(1024, gamma, lmbda, seed) for seed in range(seeds)]
        descents = [case.gradient_descent(EPOCHS)[-1].distance for case in cases]
        marks = [0.01] * seeds if gamma == 1000 else [2 * distance for distance in descents]
        for name in ("lm", "lm, fast decay", "lm, continued"):
            found, last = [], []
            for case, mark in zip(cases, marks, strict=True):
                path = case.path(case.optimizers()[name], ITERATIONS[name])
                last.append(path[-1].distance)
                place = next((k for k, point in enumerate(path) if point.distance <= mark), None)
                if place is not None:
                    options = {"first_damping": 0.01, "slow_decay": 5.0} if name == "lm, fast decay" else {}
                    continued_run = name == "lm, continued"
                    seconds = path[place].seconds if continued_run else one_call(case, path, place, rounds, options)
                    found.append((path[place].evaluations, seconds))
            evaluations, seconds = zip(*found, strict=True) if found else ([math.nan], [math.nan])
            rows.append(
                [
                    f"gamma {gamma:g}, lambda {lmbda:g}, {name}",
                    f"{min(marks):.3g} to {max(marks):.3g}" if gamma < 1000 else f"{marks[0]:g}",
                    f"{len(found)} of {seeds}",
                    f"{min(evaluations)} to {max(evaluations)}",
                    f"{min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f} ms",
                    f"{min(last):.4f} to {max(last):.4f}",
                    f"{min(descents):.4f} to {max(descents):.4f}",
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    header = ["M = 1024, seeds 0 to 5", "mark", "reached", "evaluations", "time", "last distance", "that of gd"]
    return markdown(header, rows)


def one_call(case: Case, path: list[Point], place: int, rounds: int, options: dict[str, float]) -> float:
    """Median seconds of the training up to ``path[place]``, the first inner solve included, in one compiled call."""
    newton, seconds = CircleNewton(case.solver), []
    for _ in range(rounds):
        weights = case.solver.own(case.problem.student)
        begin = time.process_time()
        newton.advance(weights, case.solver.solve(weights), place + 1, **options)
        seconds.append(time.process_time() - begin)
    if not math.isclose(case.distance(weights), path[place].distance, rel_tol=1e-6):
        raise AssertionError("one call and many calls differ")
    return statistics.median(seconds)


def cost(rounds: int = 5) -> str:
    """The cost of one Levenberg-Marquardt trial (step, exact solve, risk) against an epoch of gradient descent."""
    rows = []
    for width in (32, 128, 512, 1024, 1 << 13, 1 << 15, 1 << 17):
        case = Case(width, 100.0, 1e-3)
        solver, newton = case.solver, CircleNewton(case.solver)
        start = solver.own(case.problem.student)
        outer = solver.solve(start)
        repeats, epochs = max(1, (1 << 11) // width), max(10, (1 << 14) // width)
        trials, descents, evaluations = [], [], 0
        for turn in range(rounds + 1):  # the first compiles and fills the caches
            begin, evaluations = time.process_time(), 0
            for _ in range(repeats):
                evaluations += newton.advance(start.copy(), outer.copy(), 8).evaluations
            trial = (time.process_time() - begin) / evaluations
            begin = time.process_time()
            solver.advance(start.copy(), outer.copy(), epochs)
            if turn:
                trials.append(trial)
                descents.append((time.process_time() - begin) / epochs)
        trial, descent = statistics.median(trials), statistics.median(descents)
        rows.append([str(width), f"{trial * 1e6:.3g} us", f"{trial / width * 1e9:.0f} ns", f"{trial / descent:.1f}"])
        print(" | ".join(rows[-1]), flush=True)
    return markdown(["M", "trial", "per neuron", "in epochs of gradient descent"], rows)


def main() -> None:
    """Measure and print the tables that are named on the command line, all without a name."""
    tables = {"cost": cost, "goals": goals, "study": study}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(tables)} (default: all)")
    chosen = parser.parse_args().tables or list(tables)
    if unknown := set(chosen) - set(tables):
        parser.error(f"{unknown.pop()!r} is not allowed: {', '.join(tables)}")
    print("\n\n".join(tables[name]() for name in chosen))


if __name__ == "__main__":
    main()
