"""The Snakefile: every run of the grid is in the graph, and a job fills in the seeds that are missing."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from varpro import paper

EPOCHS = 7  # nobody else's runs have as many


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for results inside the repository: Snakemake keeps its backups beside where it runs."""
    (ROOT / "logs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "logs") as name:
        yield Path(name)


def snakemake(results: Path, *arguments: str) -> str:
    environment = {**os.environ, "VARPRO_RESULTS": str(results)}
    environment.pop("VARPRO_EPOCHS", None)
    command = [str(Path(sys.executable).with_name("snakemake")), "--cores", "1", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", paper.SECTIONS)
def test_the_graph_holds_the_whole_grid(name, folder):
    """A dry run: diffusions, every run, notebooks, the table, and the rule that asks for all."""
    options = ("--config", f"section={name}", "seeds=0-5", f"epochs={EPOCHS}")
    output = snakemake(folder, "--dry-run", "--forceall", *options)
    section = paper.SECTIONS[name]
    jobs = len(section.diffusions) + len(section.runs) + len(section.files) + 2
    jobs += name == "resnets-cifar10"  # the download
    assert f"total {jobs}" in " ".join(output.split())
    for run in section.runs:
        assert f"{run.experiment}, {run.parameters}, seeds [0, 1, 2, 3, 4, 5]" in output


def test_missing_seeds_are_added_and_others_left_alone(folder):
    place = folder / paper.BIASED / "results"
    names = [paper.Run(paper.BIASED, width=32, epochs=EPOCHS).path(seed).name for seed in (0, 1)]
    targets = [os.path.relpath(place / name, ROOT) for name in names]
    snakemake(folder, targets[0], "--config", "seeds=0", f"epochs={EPOCHS}")
    assert [path.name for path in place.iterdir()] == names[:1]
    before = (place / names[0]).read_bytes()
    snakemake(folder, *targets, "--config", "seeds=0-1", f"epochs={EPOCHS}")
    assert sorted(path.name for path in place.iterdir()) == names
    assert (place / names[0]).read_bytes() == before  # made again it would hold another elapsed time
