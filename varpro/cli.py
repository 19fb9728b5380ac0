"""Command-line options shared by the scripts: one place for names, help, parsing and refusal.

Bad input ends in one line that names the option, the value and what is allowed, with exit code 2, before anything
is computed or written.
"""

import argparse
import functools
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from varpro.diffusion.circle import MAX_GAMMA
from varpro.results import ResultError

FAST_SOLVERS = {"linear": ("float64",), "cg": ("float32", "float64")}  # their precisions, the default one first
LAST_SEED = 2**32 - 1  # of numpy's generator
_FAST_DEVICES = {"linear": ("cpu",), "cg": ("cpu", "cuda")}


_NO_MEMORY = "not enough memory for a problem of this size; fewer neurons, samples or epochs would fit"


class UsageError(Exception):
    """The user asked for something impossible; the message is one line that says what and what is allowed."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser(description: str) -> argparse.ArgumentParser:
    """An empty parser whose help opens with the script's docstring."""
    return _Parser(description=description, formatter_class=_Formatter, allow_abbrev=False, argument_default=None)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Docstring as written, defaults shown where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default is not None and action.default is not argparse.SUPPRESS and action.option_strings
        if not shown or isinstance(action.default, bool) or "%(default)" in (action.help or ""):
            return action.help
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else "%(default)s"
        return f"{action.help} (default: {default})"


def command(main: Callable) -> Callable:
    """Wrap a script's ``main(argv=None, **keywords)``: expected failures become one line and an exit code (2 input, 1
    numerics)."""

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None, **keywords) -> None:
        program = Path(sys.argv[0]).name
        try:
            main(argv, **keywords)
        except (UsageError, ResultError) as error:
            _stop(2, f"{program}: error: {error}")
        except FloatingPointError as error:
            _stop(1, f"{program}: {error}")
        except RuntimeError as error:
            if "allocate memory" not in str(error):  # what torch says in place of MemoryError
                raise
            _stop(2, f"{program}: error: {_NO_MEMORY}")
        except MemoryError:
            _stop(2, f"{program}: error: {_NO_MEMORY}")
        except BrokenPipeError:  # the reader has seen enough, as in `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing fails when Python flushes
            raise SystemExit(1) from None
        except OSError as error:
            _stop(2, f"{program}: error: {error.filename or ''}: {error.strerror or error}")
        except KeyboardInterrupt:
            _stop(
                130,
                f"{program}: interrupted; the same command goes on from the last checkpoint, if there is one",
            )

    return guarded


def _stop(code: int, message: str) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(code)


def duration(seconds: float) -> str:
    """A length of time for people: ``3 s``, ``2 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- values ------------------------------------------------------------------------------------------------------


def whole(least: int, most: int = 10**9) -> Callable[[str], int]:
    """Parser of a whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a whole number from {least} to {most}")
        return value

    return parse


def positive(text: str) -> float:
    """Parser of a finite number above 0."""
    value = _number(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a finite number above 0")
    return value


def pace(text: str) -> float:
    """Parser of a time scale: a number above 0, at most 1e6."""
    value = _number(text)
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number above 0, at most 1e6")
    return value


def concentration(text: str) -> float:
    """Parser of gamma on the circle: a number from 0 to the largest that the diffusion can be solved for."""
    value = _number(text)
    if not 0 <= value <= MAX_GAMMA:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number from 0 to {MAX_GAMMA:g}")
    return value


def torus_concentration(text: str) -> float:
    """Parser of gamma on the torus: a finite number from 0 up, or infinity, which negative numbers also stand for."""
    value = _number(text)
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number from 0 up, or inf")
    return math.inf if value < 0 else value


def momentum(text: str) -> float:
    """Parser of a momentum: a number from 0 to below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number from 0 to below 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: letters, digits, '.', '+' and '-', for a file name")
    return text


# --- groups of options -------------------------------------------------------------------------------------------


def add_seeds(group) -> None:
    """The seeds of the runs."""
    group.add_argument(
        "--seed",
        type=whole(0, LAST_SEED),
        nargs="+",
        default=[0],
        metavar="S",
        help="random seeds, one run and one file each",
    )


def add_lambda(group, default: float) -> None:
    """The strength of the penalty, under both of its names."""
    group.add_argument(
        "--lambda",
        "--lmbda",
        dest="lmbda",
        type=positive,
        default=default,
        metavar="L",
        help="regularisation strength",
    )


def _add_gamma(group, default: float, kind: Callable[[str], float] = concentration) -> None:
    infinity = "inf (or -1) is two Diracs" if kind is torus_concentration else "inf would be two Diracs"
    group.add_argument(
        "--gamma",
        type=kind,
        default=default,
        metavar="G",
        help=f"shape of the teacher law: 0 is uniform, {infinity}",
    )


def add_problem(
    to: argparse.ArgumentParser,
    *,
    lmbda: float,
    student_width: int,
    gamma: float,
    samples: int,
    teacher_width: int,
    gamma_kind: Callable[[str], float] = concentration,
) -> None:
    """The learning problem; the keywords are the experiment's defaults, ``gamma_kind`` is the parser of gamma."""
    group = to.add_argument_group("problem")
    add_seeds(group)
    add_lambda(group, lmbda)
    group.add_argument(
        "--student_width",
        type=whole(1),
        default=student_width,
        metavar="M",
        help="number of student neurons",
    )
    _add_gamma(group, gamma, gamma_kind)
    group.add_argument("--samples", type=whole(1), default=samples, metavar="N", help="number of training samples")
    group.add_argument(
        "--teacher_width", type=whole(1), default=teacher_width, metavar="T", help="number of teacher neurons"
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="train on the tensors of FILE (torch.save of a dict: inputs (N, 2), targets (N,) or (N, k), and if you "
        "like teacher_weights (T, 2) and student_weights (M, 2)) instead of drawn ones",
    )


def add_activation(to: argparse.ArgumentParser, *, kernels: Sequence[str]) -> None:
    """The radial kernel, by its name; the first one is the default."""
    to.add_argument(
        "--activation",
        choices=kernels,
        default=kernels[0],
        help="radial kernel: 2/s^2 exp(-r/s), s = 1/2, or raised cosine",
    )


def add_training(to: argparse.ArgumentParser, *, epochs: int, time_scale: float) -> None:
    """Length and pace of the training; the keywords are the experiment's defaults."""
    group = to.add_argument_group("training")
    group.add_argument("--epochs", type=whole(1), default=epochs, metavar="E", help="number of epochs")
    group.add_argument(
        "--time_scale",
        type=pace,
        default=time_scale,
        metavar="H",
        help="learning rate of the weights, per neuron: eta = M * time_scale; also the time of one epoch",
    )
    group.add_argument(
        "--saving_step",
        type=whole(1),
        metavar="K",
        help="keep every K-th state (default: about 1000 states in all)",
    )


def add_diffusion(to: argparse.ArgumentParser, *, gamma: float, epochs: int, time_scale: float, grid_size: int) -> None:
    """The diffusion equation and its discretisation; the keywords are the defaults."""
    group = to.add_argument_group("diffusion")
    _add_gamma(group, gamma)
    group.add_argument("--epochs", type=whole(1), default=epochs, metavar="E", help="last epoch")
    group.add_argument("--time_scale", type=pace, default=time_scale, metavar="H", help="time of one epoch")
    group.add_argument(
        "--grid_size", type=whole(16), default=grid_size, metavar="G", help="number of cells of the density grid"
    )
    group.add_argument(
        "--saving_step", type=whole(1), metavar="K", help="keep every K-th epoch (default: about 1000 in all)"
    )


def add_run(to: argparse.ArgumentParser, *, solvers: Sequence[str]) -> None:
    """How and where to run. ``solvers`` are the solvers of the experiment, the preferred one first."""
    group = to.add_argument_group("run")
    group.add_argument(
        "--solver",
        choices=["auto", *solvers],
        default="auto",
        help=f"how the inner problem is solved; auto is {solvers[0]} where it applies",
    )
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help=f"where to compute; auto is the CPU for {solvers[0]}, and for dense CUDA where there is a device",
    )
    group.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        help=f"precision (default: {FAST_SOLVERS[solvers[0]][0]} for {solvers[0]}, float32 for dense)",
    )
    group.add_argument(
        "--tf32",
        action="store_true",
        help="let float32 matrix products of dense on CUDA use TF32, which keeps 10 bits of every factor",
    )
    add_output(to)


def add_output(to: argparse.ArgumentParser) -> None:
    """Where the file goes, and what is shown on the way."""
    group = to.add_argument_group("output")
    group.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the result files (default: results/ beside the script)",
    )
    group.add_argument("--name", type=_label, metavar="NAME", help="put NAME in front of the file name")
    group.add_argument("--force", action="store_true", help="compute again and replace an existing result")
    group.add_argument(
        "-p",
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show a progress bar (default: where the output is a terminal)",
    )


def parse(of: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options; ``given`` is the set of those named on the command line, the others have their defaults."""
    unset = object()
    names = [action.dest for action in of._actions if action.dest != "help"]
    options = of.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset)))
    options.given = {name for name in names if getattr(options, name) is not unset}
    for name in set(names) - options.given:
        setattr(options, name, of.get_default(name))
    options.defaults = {name: of.get_default(name) for name in names}
    options.name = options.name or ""
    if options.progress is None:
        options.progress = sys.stderr.isatty()
    if hasattr(options, "seed") and len(set(options.seed)) < len(options.seed):
        of.error(f"argument --seed: {' '.join(map(str, options.seed))} names a seed twice")
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        of.error(f"argument --output: {str(options.output)!r} is a file, not a folder")
    return options


def resolve_device(options: argparse.Namespace) -> str:
    """``cpu`` or ``cuda`` for ``--device``; raises UsageError where there is no such device."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is available here; allowed: auto, cpu")
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return options.device


def resolve_solver(options: argparse.Namespace, fast: str, obstacle: str, wide: bool = False) -> tuple[str, str, str]:
    """(solver, device, dtype) for the options of :func:`add_run`; raises UsageError on combinations that cannot be.

    ``fast`` is the experiment's own solver, and ``obstacle`` says what keeps it from the data, if anything does;
    ``--solver auto`` is that solver wherever it can be, unless a student is so ``wide`` that the dense one is faster.
    """
    solver, device, dtype = _resolve(options, fast, obstacle, wide)
    if options.tf32 and (solver, device, dtype) != ("dense", "cuda", "float32"):
        raise UsageError("--tf32: has no effect here; it goes with --solver dense --device cuda --dtype float32")
    return solver, device, dtype


def _resolve(options: argparse.Namespace, fast: str, obstacle: str, wide: bool) -> tuple[str, str, str]:
    available = resolve_device(options)
    dtypes, device = FAST_SOLVERS[fast], "cuda" if options.device == "cuda" else "cpu"
    suits = not obstacle and device in _FAST_DEVICES[fast] and options.dtype in (None, *dtypes)
    solver = (fast if suits and not wide else "dense") if options.solver == "auto" else options.solver
    if solver == fast:
        if obstacle:
            raise UsageError(f"--solver {fast}: {obstacle}; allowed here: dense")
        if device not in _FAST_DEVICES[fast]:
            raise UsageError(f"--solver {fast}: runs on the CPU; use --device cpu, or --solver dense --device cuda")
        if not suits:
            raise UsageError(f"--solver {fast}: computes in {dtypes[0]}; use --dtype {dtypes[0]}, or --solver dense")
        return fast, device, options.dtype or dtypes[0]
    return solver, available, options.dtype or "float32"
