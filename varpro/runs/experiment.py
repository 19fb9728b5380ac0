"""From the options of a shallow experiment to its result files: which runs, with which solver, and what is written."""

import argparse
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varpro import cli, names, results
from varpro.features import FeatureMap
from varpro.optimizers.base import Optimizer
from varpro.optimizers.continuation import continued
from varpro.problem import Problem, drawn, drawn_problem, initial_weights, problem_from_tensors
from varpro.runs.bookkeeping import Checkpoint, StopSignals, already_there, once
from varpro.runs.descent import Descent, GradientDescent, Iterations
from varpro.runs.limits import Limit
from varpro.runs.options import GRADIENT_DESCENT, INITS, OPTIMIZERS, chosen_schedule
from varpro.runs.schedule import Schedule, schedule
from varpro.runs.training import REMEDY, STATE_VERSION, Measurement, Training, train
from varpro.solvers.base import Objective, Solver
from varpro.solvers.choose import Choice, Refusal, choose
from varpro.threads import memory

_NAMED = (
    "teacher_width",
    "samples",
    "time_scale",
    "saving_step",
    "activation",
    "optimizer",
    "tolerance",
    "features",
    "outer_rate",
    "continuation",
    "init",
    "distances",
)  # in the file name where they are not the default


@dataclass(frozen=True)
class Choices:
    """What tells the shallow experiments apart."""

    features: FeatureMap
    centre: float  # c of the penalty (u - c)^2 / 2: 0 biased, 1 unbiased
    outer_update: str  # "ridge": u solves the inner problem at every epoch; "gradient": one step, rate lam M by default
    limits: tuple[Limit, ...] = ()  # what the features can be compared with besides the teacher; usual: the first one
    own: tuple[str, ...] = ()  # options of one script alone: results state them, in their names where they are changed

    def __post_init__(self) -> None:
        for limit in self.limits:
            if limit.domain is not self.features.domain:  # it is that of another law, or on another domain
                found, own = limit.domain.name, self.features.domain.name
                raise ValueError(f"the limit {limit.name!r} is that of the domain {found!r}, not of {own!r}")


@dataclass(frozen=True)
class ShallowRun:
    """One seed of one experiment, ready to train."""

    config: dict[str, Any]
    path: Path
    problem: Problem
    objective: Objective
    choice: Choice
    plan: Schedule
    limits: tuple[Limit, ...]
    folder: Path | None  # of the limits, where it is not the usual one

    @property
    def label(self) -> str:
        """What lines about this run begin with."""
        return f"seed {self.config['seed']}"

    @property
    def identity(self) -> dict[str, Any]:
        """The options that decide the numbers of its result."""
        return {key: value for key, value in self.config.items() if key != "device"}


def runs(options: argparse.Namespace, choices: Choices, folder: Path) -> Iterator[ShallowRun]:
    """The runs that ``options`` ask for and that do not exist yet; the others are reported and skipped.

    ``folder`` is the experiment's folder. Raises UsageError or ResultError, each a line for the user, before the first
    run starts.
    """
    drawn_on = options.domain_of_problem
    if drawn_on is not choices.features.domain:
        own = choices.features.domain.name
        raise ValueError(f"add_problem has the domain {drawn_on.name!r}, and the features live on another one, {own!r}")
    tensors, data_label = _read_data(options)
    cli.resolve_device(options)
    for name in ("tolerance", "continuation"):
        if options.optimizer == GRADIENT_DESCENT and name in options.given:
            raise cli.UsageError(f"--{name}: has no effect here; it goes with --optimizer {', '.join(OPTIMIZERS)}")
    if options.continuation is not None and options.continuation <= options.lmbda:
        raise cli.UsageError(
            f"--continuation {options.continuation:g}: has no effect here; allowed: above --lambda {options.lmbda:g}"
        )
    kind = OPTIMIZERS.get(options.optimizer)
    if kind is not None and "epochs" not in options.given:
        options.epochs = kind.usual_iterations
    if kind is not None and not kind.takes_time_scale and "time_scale" in options.given:
        able = [GRADIENT_DESCENT, *(name for name, other in OPTIMIZERS.items() if other.takes_time_scale)]
        raise cli.UsageError(f"--time_scale: has no effect here; it goes with --optimizer {', '.join(able)}")
    for name in choices.own:
        if not isinstance(getattr(options, name), bool | int | float | str | None):
            raise ValueError(f"the option {name!r} of one's own is no number and no text: results could not be read")
    limits = _limits(options, choices, tensors)
    if len(options.seed) > 1 and _nothing_is_drawn(options, tensors):
        raise cli.UsageError("--seed: several have no effect here, where nothing is drawn; allowed: one")
    wanted = []
    ready = partial(_run, options, choices, folder, tensors, data_label, limits)
    only = ready(options.seed[0]) if len(options.seed) == 1 else None
    for seed in options.seed:
        run = only or ready(seed)
        if not options.force and already_there(run.path, run.identity, partial(_say, run)):
            continue
        results.prepare(run.path)
        wanted.append(seed)
    for seed in wanted:
        run = only or ready(seed)  # anew: the data of all seeds together may not fit
        warning = run.choice.solver.warning(run.objective, run.choice.dtype)
        if warning:
            cli.warn(warning)
        run.config["device"] = run.choice.device
        yield run
        del run


def _nothing_is_drawn(options: argparse.Namespace, tensors: dict[str, Any] | None) -> bool:
    """Whether runs of all seeds are the same run."""
    spread = options.init != INITS[0]
    if tensors is not None:
        return spread or "student_weights" in tensors
    return spread and math.isinf(options.samples) and math.isinf(options.teacher_width)


def _run(
    options: argparse.Namespace,
    choices: Choices,
    folder: Path,
    tensors: dict[str, Any] | None,
    data_label: str | None,
    limits: tuple[Limit, ...],
    seed: int,
) -> ShallowRun:
    outer_rate = options.outer_rate if "outer_rate" in options else 1.0
    plan = chosen_schedule(options)
    _check_memory(options, choices.features.domain.dimension, len(plan.snapshot_epochs))
    problem = _problem(options, choices.features, seed, tensors)
    constants = options.lmbda, choices.centre, options.time_scale, choices.outer_update, outer_rate
    try:
        objective = Objective(choices.features, *constants)
    except ValueError as error:
        raise cli.UsageError(str(error)) from None
    choice = _choice(options, objective, problem)
    config = {
        "experiment": folder.name,
        "features": choices.features.name,
        "centre": choices.centre,
        "outer_update": choices.outer_update,
        "seed": seed,
        "lambda": options.lmbda,
        "student_width": len(problem.student),
        "teacher_width": problem.teacher_width,
        "gamma": None if tensors else options.gamma,
        "samples": problem.samples,
        "epochs": options.epochs,
        "time_scale": options.time_scale,
        "saving_step": int(plan.snapshot_epochs[1]),
        "solver": choice.solver.name,
        "dtype": choice.dtype,
        "data": data_label,
        "name": options.name,
    }
    if "activation" in options:
        config["activation"] = options.activation
    if outer_rate != 1.0:
        config["outer_rate"] = outer_rate
    given = tensors is not None and "student_weights" in tensors
    if not given and not options.init == INITS[0] == options.defaults["init"]:
        config["init"] = options.init
    if options.tf32:
        config["tf32"] = True
    if options.optimizer != GRADIENT_DESCENT:
        config |= {"optimizer": options.optimizer, "tolerance": options.tolerance}
    if options.continuation is not None:
        config["continuation"] = options.continuation
    config |= {name: getattr(options, name) for name in choices.own}
    if limits not in ((), choices.limits[:1]) or _is_changed(options, "distances"):
        config["distances"] = "+".join(limit.name for limit in limits) or "none"
    path = (options.output or names.directory(folder)) / _file_name(options, config, choices.own, usual=choice.usual)
    return ShallowRun(config, path, problem, objective, choice, plan, limits, options.output)


def perform(run: ShallowRun, *, progress: bool, force: bool = False) -> None:
    """Train, measure and save one run; an interrupted one goes on from its checkpoint.

    Where another process works on it, wait for that one. A result that exists then is kept, unless ``force``.
    """
    once(run.path, run.identity, lambda: _perform(run, progress), partial(_say, run), force=force)


def _perform(run: ShallowRun, progress: bool) -> None:
    checkpoint = Checkpoint(results.checkpoint(run.path), run.config, STATE_VERSION, report=partial(_say, run))
    measure = _measurement(run)  # before the training: it may have to be made
    kind, _, dtype, _ = run.choice
    seconds = kind.compilation(run.objective, run.problem, dtype)
    if seconds:
        cli.say(f"compiling the {kind.name} solver, once per machine: about {seconds} s")
    try:
        solver = _solver(run, run.objective)
    except ValueError as error:  # of a law
        raise cli.UsageError(f"--samples {run.problem.samples:g}: {error}") from None
    descent = _descent(run, solver, checkpoint)
    with StopSignals() as signals:  # one that comes when the training is over waits for the result
        training = train(
            descent,
            run.plan,
            measure,
            checkpoint=checkpoint,
            signals=signals,
            progress=progress,
            label=run.label,
            report=None if progress else partial(_say, run),
            remedy=_remedy(run),
        )
        results.save_result(run.path, _contents(run, training))
        checkpoint.remove()
        if solver.caution():
            cli.warn(solver.caution())
    distances = "".join(f", {name.replace('_', ' to ')} {values[-1]:.5f}" for name, values in training.measured.items())
    last = f", loss {training.loss[-1]:.5g}" if len(training.loss) else ""
    _say(run, f"{len(training.loss)} epochs in {training.elapsed:.2f} s{last}{distances}")
    if training.ending:
        _say(run, f"ended before its {run.plan.epochs} epochs: {training.ending}")
    _say(run, f"wrote {run.path}")
    signals.check()


def _remedy(run: ShallowRun) -> str:
    """What to try where numbers grow without bound."""
    if run.objective.outer_rate != 1.0:
        return "a smaller --outer_rate"
    kind = _optimizer(run)
    return REMEDY if kind is None or kind.takes_time_scale else "a larger --lambda"


def _optimizer(run: ShallowRun) -> type[Optimizer] | None:
    """None for gradient descent."""
    return OPTIMIZERS.get(run.config.get("optimizer", GRADIENT_DESCENT))


def _descent(run: ShallowRun, solver: Solver[Any], checkpoint: Checkpoint) -> Descent:
    """A training at its start; where its state is to come from ``checkpoint``, what leads up to it is left out."""
    kind = _optimizer(run)
    tolerance, first = run.config.get("tolerance", 0.0), run.config.get("continuation")
    try:
        if kind is None:
            return GradientDescent(solver, run.problem.student)
        if first is None or checkpoint.usable():
            return Iterations(kind(solver, run.objective, run.problem, tolerance=tolerance))
        optimizer = continued(
            kind,
            lambda stage: solver if stage == run.objective else _solver(run, stage),
            run.objective,
            run.problem,
            first=first,
            tolerance=tolerance,
        )
        return Iterations(optimizer)
    except FloatingPointError as error:  # of the first inner solve, with a hint
        raise FloatingPointError(f"epoch 0: {error}") from None


def _solver(run: ShallowRun, objective: Objective) -> Solver[Any]:
    kind, device, dtype, _ = run.choice
    return kind.build(objective, run.problem, device=device, dtype=dtype, tf32=run.config.get("tf32", False))


def _say(run: ShallowRun, line: str) -> None:
    cli.say(f"{run.label}: {line}")


def _choice(options: argparse.Namespace, objective: Objective, problem: Problem) -> Choice:
    try:
        choice = choose(objective, problem, solver=options.solver, device=options.device, dtype=options.dtype)
    except Refusal as error:
        raise cli.UsageError(str(error)) from None
    if options.tf32 and not (choice.solver.takes_tf32 and (choice.device, choice.dtype) == ("cuda", "float32")):
        raise cli.UsageError("--tf32: has no effect here; it goes with --solver dense --device cuda --dtype float32")
    if options.optimizer != GRADIENT_DESCENT:
        obstacle = OPTIMIZERS[options.optimizer].obstacle(choice.solver, objective, problem)
        if obstacle:
            raise cli.UsageError(f"--optimizer {options.optimizer}: {obstacle}; allowed here: {GRADIENT_DESCENT}")
    return choice


def _contents(run: ShallowRun, training: Training) -> dict[str, Any]:
    contents = {
        "config": run.config,
        "snapshot_epochs": training.snapshot_epochs,
        "weights": training.weights,
        "outer": training.outer,
        "loss": training.loss,
        "elapsed_time": training.elapsed,
        "provenance": results.provenance(run.config["device"]),
    }
    contents |= training.cost
    if training.report:
        contents["inner_solves"] = training.report
    if training.ending:
        contents["ending"] = training.ending
    if run.config["outer_update"] == "gradient":
        # eta_u / eta_w = (outer_rate lam M) / (M time_scale)
        contents["rate_ratio"] = run.objective.outer_rate * run.config["lambda"] / run.config["time_scale"]
    if run.problem.teacher is not None:
        contents["teacher_weights"] = run.problem.teacher.float()
    if training.measured:
        contents["distance_epochs"] = training.distance_epochs
        contents.update(training.measured)
    return contents


def _limits(options: argparse.Namespace, choices: Choices, tensors: dict[str, Any] | None) -> tuple[Limit, ...]:
    """The limits that the features are compared with: those asked for, else the script's own where they can be had.

    Says a line where one of the latter cannot for the sake of gamma.
    """
    asked = "distances" in options and "distances" in options.given
    chosen = options.distances if "distances" in options else [limit.name for limit in choices.limits[:1]]
    if len(set(chosen)) < len(chosen):
        raise cli.UsageError(f"--distances: {' '.join(chosen)} names a limit twice")
    wanted = [limit for limit in choices.limits if limit.name in chosen]
    obstacle = ""
    if tensors is not None:
        obstacle = "has no effect with --data, whose teacher has no known limit"
    elif options.optimizer != GRADIENT_DESCENT:
        obstacle = "goes with --optimizer gd, whose time is that of the limits"
    if obstacle and asked and wanted:
        raise cli.UsageError(f"--distances: {obstacle}")
    if obstacle:
        return ()
    for limit in wanted:
        if options.gamma > limit.most_gamma:
            option = f"--distances {limit.name}" if "distances" in options else f"the limit {limit.name}"
            reason = f"{option}: goes with --gamma up to {limit.most_gamma:g}"
            if asked:
                raise cli.UsageError(reason)
            if math.isfinite(options.gamma):
                cli.say(f"{reason}; that distance is not measured here")
    return tuple(limit for limit in wanted if options.gamma <= limit.most_gamma)


def _measurement(run: ShallowRun) -> Measurement | None:
    """Energy distances of the student to the teacher and to limits at the same time (docs/definitions.md, 2 and 4).

    None where the user's own data leave nothing to compare with.
    """
    domain = run.objective.features.domain
    teacher = run.problem.teacher_measure(domain)
    numbers = {"gamma": run.config["gamma"], "epochs": run.plan.epochs, "time_scale": run.config["time_scale"]}
    epochs, folder = run.plan.measured_epochs, run.folder or names.directory()
    contents = [limit.contents(**numbers, snapshot_epochs=epochs, folder=folder) for limit in run.limits]
    if teacher is None and not run.limits:
        return None

    def measure(place: int, weights: np.ndarray) -> dict[str, float]:
        student, distances = domain.measure(weights), {}
        if teacher is not None:
            distances["distance_teacher"] = student.energy_distance(teacher)
        for limit, content in zip(run.limits, contents, strict=True):
            density = limit.measure(content, int(epochs[place]))
            distances[f"distance_{limit.name}"] = density.energy_distance(student)
        return distances

    return measure


def _is_changed(options: argparse.Namespace, key: str) -> bool:
    """Whether the option ``key`` was given, with a value that means something else than its default."""
    if key not in options.given:
        return False
    value, usual = getattr(options, key), options.defaults[key]
    if key == "saving_step":
        kept, usually = (schedule(options.epochs, step).snapshot_epochs for step in (value, usual))
        return not np.array_equal(kept, usually)
    if key == "distances":  # in whatever order
        value, usual = set(value), set(usual)
    return value != usual


def _file_name(options: argparse.Namespace, config: dict[str, Any], own: Sequence[str], *, usual: bool) -> str:
    changed = {key: config[key] for key in (*_NAMED, *own) if key in config and _is_changed(options, key)}
    if not usual or "tf32" in config:
        changed |= {"solver": config["solver"], "dtype": "tf32" if "tf32" in config else config["dtype"]}
    return names.shallow(config, changed, options.name)


def _read_data(options: argparse.Namespace) -> tuple[dict[str, Any] | None, str | None]:
    """The tensors of ``--data`` and a label for them: the file's stem and eight digits of its content's hash."""
    if options.data is None:
        return None, None
    clashing = sorted(options.given & {"gamma", "samples", "teacher_width", "init"})
    if clashing:
        raise cli.UsageError(f"--{clashing[0]}: has no effect with --data; leave one of the two out")
    try:
        tensors = results.load(options.data)
    except results.ResultError as error:
        raise cli.UsageError(f"--data {error}") from None
    digest = hashlib.sha256(options.data.read_bytes()).hexdigest()[:8]
    return tensors, f"{options.data.stem}-{digest}"


def _check_memory(options: argparse.Namespace, dimension: int, states: int) -> None:
    """Raise UsageError where what is drawn, in both precisions, and the ``states`` that are kept cannot fit."""
    drawn = {name: getattr(options, name) for name in ("student_width", "samples", "teacher_width")}
    sizes = {name: 12 * dimension * count for name, count in drawn.items() if not math.isinf(count)}
    sizes["student_width"] += 4 * (dimension + 1) * options.student_width * states  # float32
    largest = max(sizes, key=sizes.__getitem__)
    needed, here = sum(sizes.values()), memory()
    if needed > here:
        kept = f" with {states} states kept" if largest == "student_width" else ""
        raise cli.UsageError(
            f"--{largest} {drawn[largest]}: takes {needed / 1e9:,.0f} GB of memory at least{kept}, and there are "
            f"{here / 1e9:,.0f} GB here"
        )


def _problem(options: argparse.Namespace, features: FeatureMap, seed: int, tensors: dict[str, Any] | None) -> Problem:
    numbers = (options.student_width, options.teacher_width, options.gamma)
    spread = options.init != INITS[0]
    if tensors is None:
        try:
            problem = drawn_problem(features, seed, options.samples, *numbers, spread=spread)
        except ValueError as error:
            raise cli.UsageError(str(error)) from None
        if "teacher_width" in options.given and problem.teacher_width != options.teacher_width:
            raise cli.UsageError(
                f"--teacher_width {options.teacher_width}: has no effect here; with --gamma {options.gamma} the "
                f"teacher has {problem.teacher_width} neurons"
            )
        return problem
    domain = features.domain

    def start(samples: int) -> torch.Tensor:
        return initial_weights(domain, drawn(domain, seed, samples, *numbers), spread=spread)

    try:
        problem = problem_from_tensors(tensors, domain, start)
    except ValueError as error:
        raise cli.UsageError(f"--data {options.data}: {error}") from None
    if "student_width" in options.given and len(problem.student) != options.student_width:
        raise cli.UsageError(
            f"--student_width {options.student_width}: the student in --data has {len(problem.student)} neurons"
        )
    return problem
