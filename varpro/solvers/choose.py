"""Which solver an experiment takes: the first one that computes what was asked for, on a device that was asked for.

Everything known about a solver stands in its class; here is only the order of preference.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from varpro.problem import Problem
from varpro.solvers.base import Objective, Solver
from varpro.solvers.circle import CircleSolver
from varpro.solvers.dense import DenseSolver
from varpro.solvers.graphs import GraphSolver
from varpro.solvers.torus import TorusSolver

# The preferred one first.
SOLVERS: tuple[type[Solver[Any]], ...] = (CircleSolver, TorusSolver, GraphSolver, DenseSolver)
NAMES = tuple(dict.fromkeys(solver.name for solver in SOLVERS))


class Refusal(Exception):
    """No solver does what was asked for; the message is one line that names the option and what is allowed."""


class Choice(NamedTuple):
    """A solver class with the device and the precision it will have; ``usual`` where they are those of ``auto`` without
    a GPU: what is left unsaid in the name of a result means the same on every machine."""

    solver: type[Solver[Any]]
    device: str
    dtype: str
    usual: bool


def choose(
    objective: Objective, problem: Problem, *, solver: str = "auto", device: str = "auto", dtype: str | None = None
) -> Choice:
    """The solver for ``objective`` on ``problem`` among those of the name ``solver`` (``auto``: all).

    ``device`` is ``auto``, ``cpu`` or ``cuda``. Raises Refusal where none remains.
    """
    refused: dict[str, str] = {}
    usual = next(_choices(objective, problem, "auto", "cpu", None, refused), None)
    if usual is None:
        raise Refusal(_all(refused, problem))
    refused.clear()
    found = next(_choices(objective, problem, solver, device, dtype, refused), None)
    if found is None:
        able = dict.fromkeys(kind.name for kind, *_ in _choices(objective, problem, "auto", device, dtype, {}))
        if not able:
            raise Refusal(_all(refused, problem))
        raise Refusal(f"--solver {solver}: {refused[solver]}; allowed here: {', '.join(able)}")
    return Choice(*found, usual=(found[0].name, found[2]) == (usual[0].name, usual[2]))


def _all(refused: Mapping[str, str], problem: Problem) -> str:
    """Why there is no solver for ``problem``; of infinite data where it is those that leave one only."""
    infinite = [kind.name for kind in SOLVERS if kind.takes_infinite_data and kind.name in refused]
    if not math.isinf(problem.samples) or not infinite:
        return "; ".join(f"--solver {name}: {obstacle}" for name, obstacle in refused.items())
    reasons = "; ".join(f"--solver {name} {refused[name]}" for name in infinite)
    return f"--samples inf: {reasons}, and no other takes them; allowed here: a whole number"


def _choices(
    objective: Objective, problem: Problem, name: str, device: str, dtype: str | None, refused: dict[str, str]
) -> Iterator[tuple[type[Solver[Any]], str, str]]:
    """Solvers that can be had, those with a drawback last; what keeps the others goes to ``refused`` by name."""
    available = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    able = []
    for kind in SOLVERS:
        if name not in ("auto", kind.name):
            continue
        places = [place for place in kind.devices if device in ("auto", place) and place in available]
        precisions = [precision for precision in kind.dtypes if dtype in (None, precision)]
        if math.isinf(problem.samples) and not kind.takes_infinite_data:
            obstacle = "takes a finite number of samples"
        else:
            obstacle = kind.obstacle(objective, problem)
        if not places:
            obstacle = obstacle or f"runs on {' or '.join(kind.devices)}, not on {device.replace('auto', 'cpu')}"
        if not precisions:
            obstacle = obstacle or f"computes in {' or '.join(kind.dtypes)}, not in {dtype}"
        if obstacle:
            refused.setdefault(kind.name, obstacle)
        else:
            able.append((kind, places[0], precisions[0]))
    yield from sorted(able, key=lambda choice: bool(choice[0].drawback(objective, problem)))
