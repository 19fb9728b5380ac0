"""Real processes that run the scripts, at a fraction of the cost of a start.

A server has imported torch and the package and runs nothing; every process is forked from it and then does what
``python script arguments`` does. It has a log of its own and an environment of its own.
"""

import faulthandler
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ledger
import torch

from varpro.domains.torus import wrap_torus

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ["varpro.runs.experiment", "varpro.runs.options", "VarPro_resnet.Experiment", "preloaded", "processes"]
if ledger.LONG:
    PRELOADED += ["sklearn.datasets", "torch._dynamo"]  # which a ResNet imports late
SECONDS = 300.0  # after which a process is taken to hang

CIRCLE = ["--samples", "256", "--teacher_width", "64", "--student_width", "32"]
SCRIPTS = {
    "circle": "VarPro_ReLU_1d_unbiased/Experiment.py",
    "biased": "VarPro_ReLU_1d/Experiment.py",
    "two-timescale": "2TS_ReLU_1d_unbiased/Experiment.py",
    "torus": "VarPro_convolution_2d_unbiased/Experiment.py",
    "resnet": "VarPro_resnet/Experiment.py",
    "diffusion": "make_diffusion.py",
}


@dataclass(frozen=True)
class Experiment:
    """One command line: a name of :data:`SCRIPTS` and its options."""

    script: str
    options: tuple[str, ...]
    tolerance: float = 0.0  # of a run that was carried on, relative to the largest entry; 0 is the same bits


def _execute(
    script: str, arguments: Sequence[str], environment: Mapping[str, str], log: str, folder: str, begun: Connection
) -> None:
    """In the new process: what the interpreter does with a script."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # however the tests were started
    os.environ.update(environment)
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    os.close(0)
    faulthandler.enable()  # says where, if it crashes
    sys.argv = [str(ROOT / script), *arguments]
    sys.path.insert(0, str(ROOT))
    begun.close()
    runpy.run_path(str(ROOT / script), run_name="__main__")


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    if "processes" not in os.environ.get("VARPRO_FAULTS_SERVER", ""):
        os.environ["VARPRO_FAULTS_SERVER"] = "processes"
        here = [str(ROOT), str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, here))  # the server does not take over sys.path
        context.set_forkserver_preload(PRELOADED)
    return context


class Running:
    """A process under way. Its exit code is that of :mod:`subprocess`: negative where a signal ended it."""

    def __init__(
        self,
        script: str,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> None:
        self.log = log
        log.write_bytes(b"")
        context = _context()
        reader, begun = context.Pipe(duplex=False)
        given = (script, list(arguments), dict(environment or {}), str(log), str(folder), begun)
        self._process = context.Process(target=_execute, args=given)
        self._process.start()
        begun.close()
        with reader, suppress(EOFError):  # it comes when the script begins: no signal meets multiprocessing
            reader.recv()

    def send(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code. Raises TimeoutError after ``seconds``, and ends the process."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"still running after {seconds} s: {self.output()}")
        return self._process.exitcode

    def ended(self) -> bool:
        return self._process.exitcode is not None

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str) -> None:
        """Until its output holds ``text``."""
        begin = time.monotonic()
        while text not in self.output():
            if self.ended() or time.monotonic() - begin > SECONDS:
                raise AssertionError(f"{text!r} does not come: {self.output()}")
            time.sleep(0.005)


def finish(script: str, arguments: Sequence[str], log: Path, **keywords: Any) -> tuple[int, str]:
    """Run to the end; returns the exit code and the output."""
    running = Running(script, arguments, log, **keywords)
    return running.wait(), running.output()


def without_make() -> dict[str, str]:
    """The environment of a user: without what a make that runs these tests has put there."""
    outer = ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "SEEDS", "EPOCHS", "SECTION", "CORES", "VARPRO_EPOCHS")
    return {name: value for name, value in os.environ.items() if name not in outer}


def farewell(script: str, how: int) -> str:
    """The last line of ``script`` where the signal ``how`` has ended it."""
    goes_on = "the same command goes on from the last checkpoint, if there is one"
    return f"{Path(script).name}: stopped by {signal.Signals(how).name}; {goes_on}"


_OF_A_PROCESS = {"elapsed_time", "seconds", "images_per_second", "provenance", "inner_solves", "elapsed", "testing"}


def difference(
    found: Mapping[str, Any], expected: Mapping[str, Any], place: str = "", periodic: Collection[str] = ()
) -> tuple[float, str]:
    """How far two results are apart, and where most: tensors relative to their largest entry, 0 for the same bits and
    infinity for other shapes or other entries that are no tensors. Times and machines are left out; tensors of names
    ``periodic`` are points of the torus."""
    worst = (0.0, "")
    for name in (found.keys() | expected.keys()) - _OF_A_PROCESS:
        one, other, here = found.get(name), expected.get(name), f"{place}{name}"
        if isinstance(one, list) and isinstance(other, list):
            one, other = dict(enumerate(one)), dict(enumerate(other))
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            worst = max(worst, difference(one, other, f"{here}.", periodic))
        elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            if one.shape != other.shape or one.dtype != other.dtype:
                return float("inf"), here
            if not torch.equal(one, other):
                scale = other.double().abs().max().item() or 1.0
                apart = one.double() - other.double()
                if name in periodic:
                    apart = wrap_torus(apart)  # a neuron may have crossed the seam in one of the two
                worst = max(worst, (apart.abs().max().item() / scale, here))
        elif one != other:
            return float("inf"), here
    return worst


KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
