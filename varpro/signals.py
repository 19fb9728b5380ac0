"""What a signal does to a script: one line and an exit code, from the first moment on.

A script calls :func:`end_on_signals` before its heavy imports, where it is run as a program. What waits longer for a
signal to be served, like a training that keeps its state first, takes over while it lasts. Nothing here needs PyTorch.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # of schedulers, of Ctrl-C, of a terminal that closes


def end_on_signals() -> None:
    """From now on SIGTERM, SIGINT and SIGHUP end the process with one line and the exit code 128 plus their number.

    Python's own answer to Ctrl-C is an exception, which a half-done import or numba's compiler turns into others. A
    signal that the process was started to ignore (``nohup``) is ignored.
    """
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def farewell(number: int) -> str:
    """The line of a script that the signal ``number`` has stopped."""
    name = signal.Signals(number).name
    return f"{program()}: stopped by {name}; the same command goes on from the last checkpoint, if there is one"


def program() -> str:
    """The name of this script, or of the module that ``python -m`` runs, in one line."""
    spec = sys.modules["__main__"].__spec__
    return printable(Path(sys.argv[0]).name if spec is None else spec.name.removesuffix(".__main__"))


def printable(message: str) -> str:
    """``message`` in one line, also where it quotes a line break or what a terminal would act on."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)


def _end(number: int, frame: object) -> None:
    with suppress(OSError):  # nobody reads it
        os.write(2, f"{farewell(number)}\n".encode(sys.stderr.encoding, "backslashreplace"))
    os._exit(128 + number)  # at once: nothing is kept that a clean-up could save, and the next start removes the rest
