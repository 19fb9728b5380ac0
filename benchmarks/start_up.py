"""What a short run costs besides training: importing, drawing, saving, in a fresh process each time."""

import json
import statistics
import subprocess
import sys
import tempfile

from varpro.paper.tables import markdown

_PROGRAM = """
import json, sys, time
begin = time.perf_counter()
import torch
torch_imported = time.perf_counter()
from pathlib import Path
from varpro import results
from varpro.features import ReLUCircle
from varpro.problem import drawn_problem
from varpro.runs import training
from varpro.runs.descent import GradientDescent
from varpro.runs.schedule import schedule
from varpro.solvers.circle import CircleSolver
from varpro.diffusion.circle import solve_diffusion
from varpro.distances import CircleMeasure
imported = time.perf_counter()
problem = drawn_problem(ReLUCircle(), 0, 4096, 32, 4096, 100.0)
drawn = time.perf_counter()
plan = schedule(32000)
density = solve_diffusion(100.0, plan.snapshot_epochs)
diffused = time.perf_counter()
solver = CircleSolver(problem.inputs.numpy(), problem.targets[:, 0].numpy(), 1e-3, 1.0, 2**-10, "ridge")
weights = solver.own(problem.student)
solver.advance(weights, solver.solve(weights), 1)
loaded = time.perf_counter()
teacher = CircleMeasure(problem.teacher.numpy())
def measure(place, weights):
    student = CircleMeasure(weights)
    return {"t": student.energy_distance(teacher),
            "d": student.energy_distance(CircleMeasure(density.grid, density.density[place]))}
record = training.train(GradientDescent(solver, problem.student), plan, measure)
trained = time.perf_counter()
results.save(Path(sys.argv[1]) / "run.pt", {"weights": record.weights, "outer": record.outer, "loss": record.loss})
saved = time.perf_counter()
marks = [begin, torch_imported, imported, drawn, diffused, loaded, trained, saved]
print(json.dumps([b - a for a, b in zip(marks, marks[1:])] + [saved - begin]))
"""
_STAGES = (
    "import torch",
    "import varpro",
    "draw the problem",
    "solve the diffusion (or read its file)",
    "load compiled functions",
    "train 32000 epochs at M = 32, with 2002 distances",
    "save",
    "in all",
)


def stages(rounds: int = 5) -> str:
    """The table of median seconds of each stage of a 32000-epoch run at M = 32."""
    runs = []
    for _ in range(rounds + 1):  # the first one may compile
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", _PROGRAM, folder]
            runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    medians = [statistics.median(values) for values in zip(*runs[1:], strict=True)]
    rows = [[name, f"{seconds:.2f} s"] for name, seconds in zip(_STAGES, medians, strict=True)]
    return markdown(["stage", "time"], rows)
