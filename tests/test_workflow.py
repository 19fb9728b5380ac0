"""The Snakefile: every run of the grid is in the graph, a job fills in the seeds that are missing, any path will do."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

from varpro import image_files
from varpro.paper import grid

EPOCHS = 7  # nobody else's runs have as many


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for results inside the repository: Snakemake keeps its backups beside where it runs."""
    (ROOT / "logs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "logs") as name:
        yield Path(name)


def snakemake(results: Path, *arguments: str, program: Path | None = None, at: Path = ROOT) -> str:
    """Run it in ``at``, by the Python ``program``, with CIFAR-10 in ``results / "data"``; returns what it says."""
    packages = sysconfig.get_path("purelib")  # for a Python that has none of its own
    environment = {**os.environ, "VARPRO_RESULTS": str(results), "PYTHONPATH": f"{at}{os.pathsep}{packages}"}
    environment[image_files.DATA] = str(results / "data")
    environment["VARPRO_EPOCHS"] = "5"  # what --config says counts, not what a shell still holds
    command = [str(program or sys.executable), "-m", "snakemake", "--cores", "1", *arguments]
    done = subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def shortened(names: Sequence[str], seeds: Sequence[int] | None) -> dict[str, list[int]]:
    """The runs of sections at :data:`EPOCHS`, as the workflow names them, and their seeds."""
    found: dict[str, set[int]] = {}
    for name in names:
        section = grid.mean_field(EPOCHS) if name == "mean-field" else grid.SECTIONS[name]
        for run, own in section.wanted(seeds).items():
            short = replace(run, epochs=EPOCHS) if section is grid.SECTIONS[name] else run
            found.setdefault(f"{short.experiment}, {short.parameters}", set()).update(own)
    return {run: sorted(own) for run, own in found.items()}


@pytest.mark.parametrize("name", ["6.1", "resnets-start", grid.ALL])
def test_the_graph_holds_the_whole_grid(name, folder, monkeypatch):
    """A dry run: diffusions, every run, notebooks, the table, and the rule that asks for all.

    CIFAR-10 is downloaded for its own section; for all of them it lies in class folders.
    """
    monkeypatch.setenv(image_files.DATA, str(folder / "data"))
    for part in image_files.PARTS if name == grid.ALL else ():
        (folder / "data" / part).mkdir(parents=True)
    options = ("--config", f"section={name}", "seeds=0-5", f"epochs={EPOCHS}")
    output = snakemake(folder, "--dry-run", "--forceall", *options)
    names = list(grid.SECTIONS) if name == grid.ALL else [name]
    jobs = len(grid.notebooks_of(names)) + 2
    jobs += name in ("resnets-start", "resnets-cifar10")  # the download
    batches = {line.split()[0] for line in output.splitlines() if line.startswith(f"runs_{name}_")}
    limits = {line.split()[0] for line in output.splitlines() if line.startswith("limit_")}
    assert bool(limits) == bool(grid.diffusions_of(names))
    assert f"total {jobs + len(batches) + len(limits)}" in " ".join(output.split())
    for run, seeds in shortened(names, range(6)).items():
        together = output.count(f"{run}, seeds {seeds}\n")
        assert together or all(output.count(f"{run}, seeds {[seed]}\n") == 1 for seed in seeds)
        assert together <= 1


def test_without_seeds_those_of_the_published_figures_are_made(folder):
    output = snakemake(folder, "--dry-run", "--config", f"epochs={EPOCHS}")
    for run, seeds in shortened(["6.1"], None).items():
        assert output.count(f"{run}, seeds {seeds}\n") == 1


def test_missing_seeds_are_added_and_others_left_alone(folder):
    place = folder / grid.BIASED / "results"
    names = [grid.Run(grid.BIASED, width=32, epochs=EPOCHS).path(seed).name for seed in (0, 1)]
    targets = [os.path.relpath(place / name, ROOT) for name in names]
    snakemake(folder, targets[0], "--config", "seeds=0", f"epochs={EPOCHS}")
    assert (place / names[0]).exists()
    assert not (place / names[1]).exists()
    before = (place / names[0]).read_bytes()
    snakemake(folder, *targets, "--config", "seeds=0-1", f"epochs={EPOCHS}")
    assert (place / names[1]).exists()
    assert (place / names[0]).read_bytes() == before  # made again it would hold another elapsed time


def test_a_clone_and_a_python_under_any_path(tmp_path):
    """A space, an umlaut and a quote in the path of the repository, of its interpreter, and of the results."""
    clone = tmp_path / "Übung's two words"
    limits = [grid.Diffusion(10.0, EPOCHS), grid.Diffusion(100.0, EPOCHS, limit="projected")]
    for name in ("varpro", "profiles"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "make_diffusion.py"):
        shutil.copy(ROOT / name, clone)
    venv.create(clone / ".venv", symlinks=True)
    snakemake(
        clone / "a b",
        *(f"limit_{each.label}" for each in limits),
        "--config",
        f"epochs={EPOCHS}",
        program=clone / ".venv" / "bin" / "python",
        at=clone,
    )
    made = [path.name for path in (clone / "a b" / "results").iterdir()]
    assert sorted(made) == sorted(each.path.name for each in limits)
