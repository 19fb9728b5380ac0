"""Command-line options and exit codes that all scripts share.

Bad input ends in one line that names the option, the value and what is allowed, with exit code 2, before anything
is computed or written.
"""

import argparse
import functools
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

from varpro.results import ResultError
from varpro.signals import farewell, printable, program

LAST_SEED = 2**32 - 1  # of numpy's generator
_NO_MEMORY = "not enough memory for a problem of this size; fewer neurons, samples or epochs would fit"


class UsageError(Exception):
    """The user asked for something impossible; the message is one line that says what and what is allowed."""


class Stopped(BaseException):
    """A signal asked the run to stop, and it has; its state is in the checkpoint, if it has one."""

    def __init__(self, number: int) -> None:
        super().__init__(farewell(number))
        self.exit_code = 128 + number


_NEGATIVE = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)  # how a number below 0 begins


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As in the base class, which takes -1e-3 after an option for another option, not for its value."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            after_option = words and words[-1].startswith("--") and "=" not in words[-1]
            if after_option and _NEGATIVE.match(word):
                words[-1] += f"={word}"
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def parser(description: str) -> argparse.ArgumentParser:
    """An empty parser whose help opens with the script's docstring."""
    return _Parser(description=description, formatter_class=_Formatter, allow_abbrev=False, argument_default=None)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Docstring as written, defaults shown where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default is not None and action.default is not argparse.SUPPRESS and action.option_strings
        if not shown or isinstance(action.default, bool) or "%(default)" in (action.help or ""):
            return action.help or ""
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else "%(default)s"
        return f"{action.help} (default: {default})"


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a script's ``main(argv=None, **keywords)``: expected failures become one line and an exit code (2 input, 1
    numerics)."""

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None, **keywords: Any) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a letter that the terminal does not have is no reason to stop
                stream.reconfigure(errors="backslashreplace")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"torch\.")  # of the library about itself; not for its users
                main(argv, **keywords)
        except (UsageError, ResultError) as error:
            _stop(2, f"{program()}: error: {error}")
        except FloatingPointError as error:
            _stop(1, f"{program()}: {error}")
        except (MemoryError, torch.OutOfMemoryError):  # of the host, of a GPU
            _stop(2, f"{program()}: error: {_NO_MEMORY}")
        except RuntimeError as error:
            if "allocate memory" not in str(error):  # what torch says of the host's
                raise
            _stop(2, f"{program()}: error: {_NO_MEMORY}")
        except BrokenPipeError:  # the reader has seen enough, as in `... | head`
            _mute()
            raise SystemExit(1) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _stop(2, f"{program()}: error: {place}{error.strerror or error}")
        except Stopped as stopped:
            _stop(stopped.exit_code, str(stopped))
        except KeyboardInterrupt:
            _stop(130, farewell(signal.SIGINT))

    return guarded


def _stop(code: int, message: str) -> None:
    with suppress(OSError):  # nobody reads it
        print(printable(message), file=sys.stderr, flush=True)
    raise SystemExit(code)


def say(line: str) -> None:
    """Print ``line`` at once. Where its reader has gone, work goes on and says nothing any more."""
    try:
        print(line, flush=True)
    except OSError:  # also a terminal that has closed, and a full disk
        _mute()


def warn(line: str) -> None:
    """Tell the user on the error stream, at once. Where nobody reads that any more, work goes on."""
    with suppress(OSError):
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _mute() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing fails when Python flushes


def duration(seconds: float) -> str:
    """A length of time, as shown: ``3 s``, ``2 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- values ------------------------------------------------------------------------------------------------------


def integer(least: int, most: int = 10**9) -> Callable[[str], int]:
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


def integer_or_infinity(least: int) -> Callable[[str], float]:
    """Parser of a whole number from ``least`` up, or infinity."""
    finite = integer(least)

    def parse(text: str) -> float:
        if text == "inf":
            return math.inf
        try:
            return finite(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or inf") from None

    return parse


def positive(text: str) -> float:
    """Parser of a finite number above 0."""
    value = number(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a finite number above 0")
    return value


def time_scale(text: str) -> float:
    """Parser of a time scale: a number above 0, at most 1e6."""
    value = number(text)
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number above 0, at most 1e6")
    return value


def passes(text: str) -> float:
    """Parser of a number of passes over the data, not always whole: from 0 to 1e6."""
    value = number(text)
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number from 0 to 1e6")
    return value


def momentum(text: str) -> float:
    """Parser of a momentum: a number from 0 to below 1."""
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number from 0 to below 1")
    return value


def number(text: str) -> float:
    """The number that ``text`` spells, NaN where it spells none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: letters, digits, '.', '+' and '-', for a file name")
    return text


# --- options of every script ---------------------------------------------------------------------------------------


def add_seeds(group: argparse._ArgumentGroup) -> None:
    """The seeds of the runs."""
    group.add_argument(
        "--seed",
        type=integer(0, LAST_SEED),
        nargs="+",
        default=[0],
        metavar="S",
        help="random seeds, one run and one file each",
    )


def add_lambda(group: argparse._ArgumentGroup, default: float) -> None:
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


def add_output(to: argparse.ArgumentParser) -> None:
    """Where the file goes, and what is shown on the way."""
    group = to.add_argument_group("output")
    group.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the result files, and of what is made for them: limits, decoded images (default: results/ "
        "beside the script)",
    )
    group.add_argument("--name", type=_label, metavar="NAME", help="put NAME in front of the file name")
    group.add_argument(
        "--force",
        action="store_true",
        help="compute again and replace an existing result; an interrupted run still goes on",
    )
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
