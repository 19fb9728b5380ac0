"""The same seed, version and machine give the same bits, whatever the number of threads where that is promised."""

import os
import subprocess
import sys
from pathlib import Path

import ledger
import pytest
from processes import CIRCLE, ROOT, SCRIPTS, difference

from varpro import results

DIGITS = ["--epochs", "1", "--final_epochs", "0", "--batch_size", "250", "--threads", "1"]
PAIRS = {  # alike with any number of threads
    "circle": ("circle", [*CIRCLE, "--epochs", "500"]),
    "two-timescale": ("two-timescale", [*CIRCLE, "--epochs", "500"]),
    "circle, wide": ("circle", ["--epochs", "40", "--distances"]),
    "lbfgs": ("circle", [*CIRCLE, "--optimizer", "lbfgs", "--epochs", "60"]),
    "lm": ("circle", [*CIRCLE, "--optimizer", "lm", "--epochs", "20"]),
    "resnet": ("resnet", DIGITS),  # --threads 1 says it
    "torus": ("torus", [*CIRCLE, "--gamma", "inf", "--epochs", "50"]),
    "circle limit": ("diffusion", ["--epochs", "500", "--grid_size", "512"]),
}
PROMISED = {"pairs of runs in one and in two threads, with the same bits": len(PAIRS)}


def run(script: str, options: list[str], folder: Path, **environment: str) -> dict:
    """A fresh interpreter, since numbers of threads are read at its start."""
    command = [sys.executable, str(ROOT / SCRIPTS[script]), *options, "--output", str(folder)]
    whole = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (path for path in folder.glob("*.pt") if script == "diffusion" or not path.name.startswith("diffusion"))
    return results.load(path)


@pytest.mark.parametrize("name", PAIRS if ledger.LONG else ["circle"])
def test_the_number_of_threads_changes_no_bit(name, tmp_path):
    script, options = PAIRS[name]
    found = []
    for threads in ("1", "2"):
        variables = dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        found.append(run(script, options, tmp_path / threads, PYTHONHASHSEED=threads, **variables))
    assert difference(*found) == (0.0, "")
    ledger.count(*PROMISED)
