"""Signals to real interpreters that import or compile: one line and the exit code, from our first line on."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import ledger
import pytest
from processes import CIRCLE, ROOT, SCRIPTS, SECONDS, farewell

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc about a process")

LONG = ["--epochs", "1000000"]  # none ends before its signal comes
CASES = {  # what is started, and seconds from its first line in which the signal comes
    **{name: ([script, *LONG], 3.0) for name, script in SCRIPTS.items()},
    "diffusion": ([SCRIPTS["diffusion"], *LONG, "--limit", "projected"], 3.0),
    "mean field": (["Mean_field_limit/Experiment.py", *LONG], 3.0),
    "VarProM": (["VarPro_resnet/CIFAR10_VarProM.py"], 0.3),
    "table": (["-m", "varpro.paper"], 0.3),
    "batch": (["-m", "varpro.paper.work", "--batch", "1", "--seeds", "0"], 3.0),
    "download": (["-m", "VarPro_resnet.cifar", "--data-dir", "nowhere"], 0.3),
    "compiles": ([SCRIPTS["circle"], *CIRCLE, *LONG], 30.0),
    "compiles apart": ([SCRIPTS["torus"], *CIRCLE, "--distances", *LONG], 30.0),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ANSWER = "seconds from a signal to the end, during imports and compilation"
EARLY = "signals to real interpreters during imports and compilation"
PROMISED = {EARLY: len(CASES) * len(SIGNALS)}


def has_begun(process: subprocess.Popen) -> bool:
    """Whether it answers SIGHUP itself, as no interpreter does: it has done our first line then."""
    with suppress(FileNotFoundError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGHUP - 1) & 1)
    return False


@pytest.mark.parametrize("how", SIGNALS if ledger.LONG else SIGNALS[:1], ids=lambda how: how.name)
@pytest.mark.parametrize("name", CASES if ledger.LONG else ["circle"])
def test_a_signal_during_imports_ends_in_one_line(name, how, tmp_path):
    arguments, length = CASES[name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VARPRO_RESULTS": str(tmp_path / "results")}
    if name.startswith("compiles"):
        environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")  # empty
    module = arguments[0] == "-m"
    command = [sys.executable, *arguments] if module else [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        keywords = {"cwd": tmp_path, "env": environment, "stdout": out, "stderr": err, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(command, **keywords, start_new_session=True)
    try:
        given_up = time.monotonic() + SECONDS
        while not has_begun(process):
            assert process.poll() is None, (tmp_path / "err").read_text()
            assert time.monotonic() < given_up
            time.sleep(0.002)
        time.sleep(random.Random(f"{name} {how}").uniform(0.0, length))
        sent = time.monotonic()
        os.killpg(process.pid, how)  # as a terminal does: to what it has started, too
        code = process.wait(SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = (tmp_path / "err").read_text().splitlines()
    assert code == 128 + how, (code, said)
    assert said == [farewell(arguments[1] if module else arguments[0], how)]
    ledger.took(ANSWER, time.monotonic() - sent)
    ledger.count(f"kills by {how.name}")
    ledger.count(EARLY)
