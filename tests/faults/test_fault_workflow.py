"""The workflow as ``make reproduce`` calls it, killed with all that it has started, and called again."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ledger
import pytest
from processes import KILLS, ROOT, difference

from varpro import results
from varpro.paper import grid

pytestmark = pytest.mark.skipif(not ledger.LONG, reason="minutes: in the long run")
EPOCHS = 11  # nobody else's runs have as many


@pytest.fixture
def folders() -> Iterator[tuple[Path, Path]]:
    """Two places for results inside the repository, where Snakemake keeps its backups."""
    (ROOT / "logs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "logs") as name:
        yield Path(name) / "undisturbed", Path(name) / "killed"


def workflow(folder: Path) -> subprocess.Popen:
    """Diffusions and one seed of the narrowest run of each experiment of Section 6.1."""
    environment = {**os.environ, "VARPRO_RESULTS": str(folder), "PYTHONPATH": str(ROOT)}
    environment.pop("VARPRO_EPOCHS", None)
    experiments = (grid.BIASED, grid.UNBIASED, grid.TWO_TIMESCALE)
    names = [grid.Run(experiment, width=32, epochs=EPOCHS).path(0).name for experiment in experiments]
    places = zip(experiments, names, strict=True)
    targets = [os.path.relpath(folder / experiment / "results" / name, ROOT) for experiment, name in places]
    options = ["--cores", "2", *targets, "--config", "section=6.1", "seeds=0", f"epochs={EPOCHS}"]
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def contents(folder: Path) -> dict[str, dict]:
    return {str(path.relative_to(folder)): results.load(path) for path in sorted(folder.rglob("*.pt"))}


def test_a_killed_workflow_is_finished_by_the_same_command(folders):
    undisturbed, killed = folders
    begin, draw = time.monotonic(), random.Random(0)
    made = workflow(undisturbed)
    said, _ = made.communicate()
    assert made.returncode == 0, said
    length = time.monotonic() - begin
    for how in (*KILLS, *KILLS):
        process = workflow(killed)
        time.sleep(draw.uniform(0.2, 0.9) * length)
        if process.poll() is None:
            os.killpg(process.pid, how)
            ledger.count(f"kills by {signal.Signals(how).name}")
            ledger.count("of these, of the whole workflow")
        process.communicate()
        contents(killed)  # each can be read whole
    again = workflow(killed)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    found, expected = contents(killed), contents(undisturbed)
    assert found.keys() == expected.keys()
    for name in found:
        assert difference(found[name], expected[name]) == (0.0, ""), name
    assert not [path for path in killed.rglob("*") if path.name.endswith((".tmp", ".checkpoint", ".lock"))]
