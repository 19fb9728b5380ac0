"""What the experiment scripts share around the training itself: which file a run belongs to, which solver it takes,
what is measured on the way, and what is written at the end."""

import argparse
import hashlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from varpro import cli, names, results, teachers
from varpro.diffusion.circle import solve_diffusion
from varpro.distances import CircleMeasure, TorusMeasure
from varpro.features import FeatureMap
from varpro.runs.training import Measure, Schedule, Solver, Training, schedule, train
from varpro.solvers import torus
from varpro.solvers.circle import CircleSolver, compiled
from varpro.solvers.dense import DenseSolver
from varpro.solvers.graphs import GraphSolver

_FAST = {"circle": "linear", "torus": "cg"}  # the solver that a domain has to itself
_WIDE = 8  # neurons per sample beyond which dense is faster than cg
_FLOAT32_LAMBDA = 1e-5  # there dense float32 runs are 1e-4 off in the weights after 60 epochs
_NAMED = (
    "teacher_width",
    "samples",
    "time_scale",
    "saving_step",
    "activation",
)  # in the file name where they are not the default


@dataclass(frozen=True)
class Choices:
    """The three choices that tell the shallow experiments apart."""

    features: FeatureMap
    centre: float  # c of the penalty (u - c)^2 / 2: 0 biased, 1 unbiased
    outer_update: str  # "ridge": u solves the inner problem at every epoch; "gradient": one step at rate lam M


@dataclass(frozen=True)
class Run:
    """One seed of one experiment, ready to train."""

    config: dict
    path: Path
    problem: teachers.Problem
    solver: Solver
    plan: Schedule


def runs(options: argparse.Namespace, choices: Choices, folder: Path) -> Iterator[Run]:
    """The runs that ``options`` ask for and that do not exist yet; the others are reported and skipped.

    ``folder`` is the experiment's folder. Raises UsageError or ResultError, each a line for the user, before a run
    with wrong options starts.
    """
    tensors, data_label = _read_data(options)
    for seed in options.seed:
        problem = _problem(options, choices.features, seed, tensors)
        fast = _FAST[choices.features.domain]
        # far more neurons than samples: the dual system is small, and the inverse that cg keeps is not
        wide = fast == "cg" and options.device != "cuda" and len(problem.student) > _WIDE * len(problem.inputs)
        obstacle = _obstacle(choices, problem, options.device)
        solver, device, dtype = cli.resolve_solver(options, fast, obstacle, wide)
        plan = schedule(options.epochs, options.saving_step)
        config = {
            "experiment": folder.name,
            "features": choices.features.name,
            "centre": choices.centre,
            "outer_update": choices.outer_update,
            "seed": seed,
            "lambda": options.lmbda,
            "student_width": len(problem.student),
            "teacher_width": None if problem.teacher is None else len(problem.teacher),
            "gamma": None if tensors else options.gamma,
            "samples": len(problem.inputs),
            "epochs": options.epochs,
            "time_scale": options.time_scale,
            "saving_step": int(plan.snapshot_epochs[1]),
            "solver": solver,
            "dtype": dtype,
            "data": data_label,
            "name": options.name,
        }
        if "activation" in options:
            config["activation"] = options.activation
        if options.tf32:
            config["tf32"] = True
        path = _output(options, folder) / _file_name(options, choices, config)
        results.prepare(path)
        if not options.force and results.complete(path, config):
            print(f"seed {seed}: kept {path}", flush=True)
            continue
        _warn_of_precision(config)
        config["device"] = device
        yield Run(config, path, problem, _solver(choices, problem, config), plan)


def _obstacle(choices: Choices, problem: teachers.Problem, device: str) -> str:
    """What keeps the domain's own solver from this problem, for people; "" if nothing does."""
    if device == "cuda":
        return ""
    if problem.targets.shape[1] > 1:
        return "takes targets with one output"
    if choices.features.domain == "torus" and choices.features.kernel.name not in torus.KERNELS:
        return f"is compiled for the kernels {' and '.join(torus.KERNELS)}"
    return ""


def _warn_of_precision(config: dict) -> None:
    if config["solver"] == "dense" and config["dtype"] == "float32" and config["lambda"] < _FLOAT32_LAMBDA:
        print(
            f"warning: float32 loses digits at --lambda {config['lambda']:g}; below {_FLOAT32_LAMBDA:g} use "
            "--dtype float64",
            file=sys.stderr,
            flush=True,
        )


def perform(run: Run, measure: Measure | None, *, progress: bool) -> None:
    """Train, measure and save one run; an interrupted one goes on from its checkpoint."""
    config = run.config
    label = f"seed {config['seed']}"
    training = train(
        run.solver,
        run.problem.student,
        run.plan,
        measure,
        checkpoint=run.path.with_suffix(".checkpoint"),
        config=config,
        progress=progress,
        label=label,
        report=None if progress else lambda line: print(f"{label}: {line}", flush=True),
    )
    contents = _contents(run, training)
    results.save(run.path, contents)
    distances = "".join(f", {name.replace('_', ' to ')} {values[-1]:.5f}" for name, values in training.measured.items())
    print(
        f"{label}: {config['epochs']} epochs in {training.elapsed:.2f} s, loss {training.loss[-1]:.5g}{distances}\n"
        f"{label}: wrote {run.path}",
        flush=True,
    )


def _contents(run: Run, training: Training) -> dict:
    contents = {
        "config": run.config,
        "snapshot_epochs": training.snapshot_epochs,
        "weights": training.weights,
        "outer": training.outer,
        "loss": training.loss,
        "elapsed_time": training.elapsed,
        "provenance": results.provenance(run.config["device"]),
    }
    if isinstance(run.solver, CircleSolver):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            contents["accuracy"] = run.solver.accuracy()._asdict()
        for warning in caught:
            print(f"warning: {warning.message}", file=sys.stderr, flush=True)
    if training.effort:
        contents["accuracy"] = training.effort
    if run.config["outer_update"] == "gradient":
        # eta_u / eta_w = (lam M) / (M time_scale)
        contents["rate_ratio"] = run.config["lambda"] / run.config["time_scale"]
    if run.problem.teacher is not None:
        contents["teacher_weights"] = run.problem.teacher.float()
    if training.measured:
        contents["distance_epochs"] = torch.from_numpy(run.plan.distance_epochs)
        contents.update(training.measured)
    return contents


def torus_measure(run: Run) -> Measure | None:
    """Energy distance of the student to the teacher, with the norm of the torus; None where there is no teacher."""
    if run.problem.teacher is None:
        return None
    teacher = TorusMeasure(run.problem.teacher.numpy())
    return lambda _, weights: {"distance_teacher": TorusMeasure(weights).energy_distance(teacher)}


def circle_measure(run: Run, options: argparse.Namespace) -> Measure | None:
    """Energy distances of the student to the teacher and to the diffusion at the same time (docs/definitions.md, 2).

    None where the user's own data leave nothing to compare with.
    """
    teacher = None if run.problem.teacher is None else CircleMeasure(run.problem.teacher.numpy())
    diffusion = _diffusion_of(run, options) if options.data is None else None
    if teacher is None and diffusion is None:
        return None

    def measure(place: int, weights: np.ndarray) -> dict[str, float]:
        student, distances = CircleMeasure(weights), {}
        if teacher is not None:
            distances["distance_teacher"] = student.energy_distance(teacher)
        if diffusion is not None:
            density = CircleMeasure(diffusion["grid"].numpy(), diffusion["density"][place].numpy())
            distances["distance_diffusion"] = student.energy_distance(density)
        return distances

    return measure


def _diffusion_of(run: Run, options: argparse.Namespace) -> dict:
    return diffusion_file(
        gamma=options.gamma,
        epochs=options.epochs,
        time_scale=options.time_scale,
        snapshot_epochs=np.unique(run.plan.distance_epochs),
        folder=options.output or results.directory(),
    )


def diffusion_file(
    *,
    gamma: float,
    epochs: int,
    time_scale: float,
    snapshot_epochs: np.ndarray,
    folder: Path,
    grid_size: int = 4096,
    name: str = "",
    force: bool = False,
    progress=None,
) -> dict:
    """The diffusion solution of these parameters, from its file in ``folder``, which is made where it is missing.

    Contents: docs/definitions.md, 7; ``density (S, grid_size)`` is float32.
    """
    # a saving step other than that of the default schedule belongs into the name
    step = int(snapshot_epochs[1] - snapshot_epochs[0])
    changed = {"grid_size": grid_size} if grid_size != 4096 else {}
    changed |= {"time_scale": time_scale} if time_scale != 2**-10 else {}
    changed |= {"saving_step": step} if not _is_default(snapshot_epochs, epochs) else {}
    path = folder / names.diffusion({"gamma": gamma, "epochs": epochs}, changed, name)
    config = {"gamma": gamma, "epochs": epochs, "time_scale": time_scale, "grid_size": grid_size, "saving_step": step}
    if not force and results.complete(path, config):
        print(f"diffusion: kept {path}", flush=True)
        return results.load(path)
    solution = solve_diffusion(gamma, snapshot_epochs, time_scale=time_scale, grid_size=grid_size, progress=progress)
    contents = {
        "config": config,
        "gamma": gamma,
        "time_scale": time_scale,
        "grid": torch.from_numpy(solution.grid),
        "density": torch.from_numpy(solution.density).float(),
        "snapshot_epochs": torch.from_numpy(np.asarray(snapshot_epochs)),
        "energy": torch.from_numpy(solution.energy),
        "energy_times": torch.from_numpy(solution.times),
        "provenance": results.provenance("cpu"),
    }
    results.save(path, contents)
    print(f"diffusion: wrote {path}", flush=True)
    return contents


def _is_default(snapshot_epochs: np.ndarray, epochs: int) -> bool:
    return np.array_equal(snapshot_epochs, np.unique(schedule(epochs).distance_epochs))


def _output(options: argparse.Namespace, folder: Path) -> Path:
    return options.output or results.directory(folder.name)


def _file_name(options: argparse.Namespace, choices: Choices, config: dict) -> str:
    changed = {key: config[key] for key in _NAMED if key in options.given and config[key] != options.defaults[key]}
    fast = _FAST[choices.features.domain]
    if config["solver"] != fast:
        changed |= {"solver": config["solver"]}
    if (config["solver"], config["dtype"]) != (fast, cli.FAST_SOLVERS[fast][0]):
        changed |= {"dtype": "tf32" if "tf32" in config else config["dtype"]}
    return names.shallow(config, changed, options.name)


def _read_data(options: argparse.Namespace) -> tuple[dict | None, str | None]:
    """The tensors of ``--data`` and a label for them: the file's stem and eight digits of its content's hash."""
    if options.data is None:
        return None, None
    clashing = sorted(options.given & {"gamma", "samples", "teacher_width"})
    if clashing:
        raise cli.UsageError(f"--{clashing[0]}: has no effect with --data; leave one of the two out")
    try:
        tensors = results.load(options.data)
    except results.ResultError as error:
        raise cli.UsageError(f"--data {error}") from None
    digest = hashlib.sha256(options.data.read_bytes()).hexdigest()[:8]
    return tensors, f"{options.data.stem}-{digest}"


def _problem(options: argparse.Namespace, features: FeatureMap, seed: int, tensors: dict | None) -> teachers.Problem:
    numbers = (options.student_width, options.teacher_width, options.gamma)
    if tensors is None:
        if features.domain == "circle":
            return teachers.circle_problem(seed, options.samples, *numbers)
        return teachers.torus_problem(features, seed, options.samples, *numbers)
    draws = teachers.circle_draws if features.domain == "circle" else teachers.torus_draws
    try:
        problem = teachers.problem_from_tensors(
            tensors, features.project, lambda samples: draws(seed, samples, *numbers).student
        )
    except ValueError as error:
        raise cli.UsageError(f"--data {options.data}: {error}") from None
    if features.domain == "torus":  # in float64, before whole periods cost digits
        problem = replace(problem, inputs=features.project(problem.inputs))
    if "student_width" in options.given and len(problem.student) != options.student_width:
        raise cli.UsageError(
            f"--student_width {options.student_width}: the student in --data has {len(problem.student)} neurons"
        )
    return problem


def _solver(choices: Choices, problem: teachers.Problem, config: dict) -> Solver:
    shared = (config["lambda"], choices.centre, config["time_scale"], choices.outer_update)
    if config["solver"] == "linear":
        if not compiled(choices.outer_update):
            print("compiling the linear-time solver, once per machine: about 40 s", flush=True)
        return CircleSolver(problem.inputs.numpy(), problem.targets[:, 0].numpy(), *shared)
    if config["solver"] == "cg" and config["device"] == "cpu":
        if not torus.compiled(config["dtype"]):
            print("compiling the cg solver, once per machine: about 20 s", flush=True)
            torus.compile_apart(config["dtype"])
        torus.warm_up(config["dtype"])  # not in the time of the training
        kernel = choices.features.kernel.name
        data = (problem.inputs.numpy(), problem.targets[:, 0].numpy())
        return torus.TorusSolver(kernel, *data, *shared[:3], config["dtype"])
    place = {"dtype": getattr(torch, config["dtype"]), "device": config["device"]}
    inputs, targets = problem.inputs.to(**place), problem.targets.to(config["device"])
    if config["solver"] == "cg":
        return GraphSolver(choices.features, inputs, targets, *shared[:3])
    return DenseSolver(choices.features, inputs, targets.to(inputs), *shared, tf32="tf32" in config)
