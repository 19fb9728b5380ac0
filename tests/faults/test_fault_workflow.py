"""``make reproduce EPOCHS=...`` itself, killed with all that it has started, and called again."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ledger
import pytest
from processes import KILLS, ROOT, difference, without_make

from varpro import results

pytestmark = pytest.mark.skipif(not ledger.LONG, reason="minutes: in the long run")
EPOCHS = 11
NOT_CLONED = ("results", "figures", "logs", "data", "build", "dist", "site", "docs", "tests", ".*")
PROMISED = {"kills of make reproduce with all that it has started": 2 * len(KILLS)}


@pytest.fixture
def clone(tmp_path) -> Path:
    """A copy of the repository with its machine code, which is used where the sources are the same."""
    shutil.copytree(ROOT, tmp_path / "clone", ignore=shutil.ignore_patterns(*NOT_CLONED))
    (tmp_path / "clone" / "ready").touch()
    return tmp_path / "clone"


def reproduce(clone: Path, folder: Path, cores: int) -> subprocess.Popen:
    """The shortest run of Section 6.1, seed 0, with notebooks, figures and table."""
    environment = without_make() | {"VARPRO_RESULTS": str(folder), "PYTHONPATH": str(clone)}
    values = {"BIN": Path(sys.executable).parent, "READY": "ready", "SEEDS": 0, "EPOCHS": EPOCHS, "CORES": cores}
    return subprocess.Popen(
        ["make", "reproduce", *(f"{name}={value}" for name, value in values.items())],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def contents(folder: Path) -> dict[str, dict]:
    return {str(path.relative_to(folder)): results.load(path) for path in sorted(folder.rglob("*.pt"))}


def test_a_killed_make_reproduce_is_finished_by_the_same_command(clone):
    undisturbed, killed = clone / "undisturbed", clone / "killed"
    begin, draw = time.monotonic(), random.Random(0)
    made = reproduce(clone, undisturbed, cores=1)
    said, _ = made.communicate()
    assert made.returncode == 0, said
    ledger.count("runs of make reproduce with CORES=1")
    length = time.monotonic() - begin
    figures = sorted(path.name for path in (clone / "figures").iterdir())
    shutil.rmtree(clone / "figures")
    for how in (*KILLS, *KILLS):
        process = reproduce(clone, killed, cores=2)
        time.sleep(draw.uniform(0.1, 0.4) * length)  # what was done is kept, and so six of these do not reach the end
        if process.poll() is None:
            os.killpg(process.pid, how)
            ledger.count(f"kills by {signal.Signals(how).name}")
            ledger.count("kills of make reproduce with all that it has started")
        process.communicate()
        contents(killed)  # each can be read whole
    again = reproduce(clone, killed, cores=2)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    assert sorted(path.name for path in (clone / "figures").iterdir()) == figures
    found, expected = contents(killed), contents(undisturbed)
    assert found.keys() == expected.keys()
    for name in found:
        assert difference(found[name], expected[name]) == (0.0, ""), name
    assert not [path for path in killed.rglob("*") if path.name.endswith((".tmp", ".checkpoint", ".lock"))]
