"""The grid, and published numbers beside ours."""

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script, pretend_resnet
from tolerances import PUBLISHED, PUBLISHED_TORUS

from varpro import paper, results


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("0-5", [0, 1, 2, 3, 4, 5]), ("7,0-1", [0, 1, 7]), ("2 3", [2, 3])]
)
def test_seeds(text, seeds):
    assert paper.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "1,,2", "5-2", "4294967296", "0-1000"])
def test_bad_seeds(text):
    with pytest.raises(ValueError, match="allowed are"):
        paper.parse_seeds(text)


def test_the_grid_holds_each_run_once():
    runs = [run for section in paper.SECTIONS.values() for run in section.runs]
    assert Counter(run.experiment for run in runs) == {
        paper.BIASED: 7,
        paper.UNBIASED: 17,
        paper.TWO_TIMESCALE: 12,
        paper.TORUS_BIASED: 7,
        paper.TORUS_UNBIASED: 8,
        paper.RESNET: 15 + 8,
    }
    assert len({run.path(0) for run in runs}) == len(runs) == len({run.label for run in runs})


@pytest.mark.parametrize(
    "run",
    [
        paper.Run(paper.UNBIASED, lmbda=1e-1, width=8, gamma=10.0, epochs=5),
        paper.Run(paper.TORUS_UNBIASED, lmbda=1e-2, width=8, gamma=math.inf, epochs=5),
        paper.Run(paper.TORUS_BIASED, width=8, epochs=5, activation="cos"),
    ],
)
def test_paths_are_those_that_the_scripts_write(run, tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    load_script(f"{run.experiment}/Experiment.py").main(run.arguments([0, 1]))
    assert run.path(0).exists()
    assert run.path(1).exists()
    assert abs(run.path(0).stat().st_size / 1e6 - run.megabytes) < 0.1
    assert all(path.exists() for path in run.inputs)


@pytest.mark.parametrize(
    "run",
    [
        paper.ResNetRun("sgdm", 256, "digits", epochs=1, final_epochs=0),
        paper.ResNetRun("shampoo", 1500, "digits", "gupta", epochs=1, final_epochs=0),
    ],
)
def test_paths_of_resnets_are_those_that_the_script_writes(run, tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    load_script("VarPro_resnet/Experiment.py").main(run.arguments([0]))
    contents = results.load(run.path(0))
    assert len(contents["accuracy"]) == run.passes + 1
    assert abs(run.path(0).stat().st_size / 1e6 - run.megabytes) < 0.2


def test_accuracy_table(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    run = paper.ResNetRun("sgdm", 64)
    pretend_resnet(run, [0, 1])  # final and best accuracy are .992 and .982
    table = paper.accuracy_table([run], [0, 1, 2])
    assert (
        table.splitlines()[-1] == "| sgdm, batch size 64, cifar10 | 2 | 0.987 ± 0.005 | 0.987 ± 0.005 | 0.905 | 0.907 |"
    )
    assert "| 0.905 | 0.907 |" in paper.accuracy_table([run], [2])
    assert paper.accuracy_table([paper.DIGITS_RUNS[0]], [0]).count("\n") == 3  # nothing ours, nothing published


def test_path_and_command_of_a_diffusion(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    load_script("make_diffusion.py").main(["--epochs", "5", "--gamma", "10"])
    diffusion = paper.Diffusion(10.0, 5)
    assert diffusion.path.exists()
    assert diffusion.command() == "python make_diffusion.py --epochs 5 --gamma 10"


def test_mean_curve_names_the_command_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    with pytest.raises(results.ResultError, match=r"make it with: python VarPro_ReLU_1d/Experiment\.py --seed 0"):
        paper.mean_curve(paper.Run(paper.BIASED), [0], "loss")


def test_comparison_is_exact_for_the_published_curve_itself(tmp_path, monkeypatch):
    """A fake run that is the published curve, and one that is 1 % above it."""
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    curve = paper.published("relu1d_width_distance_evolution")["left", "distance_teacher", "M=32", "solid"]
    epochs = torch.arange(0, 32001, 32)
    for seed, factor in ((0, 1.0), (1, 1.02)):
        values = torch.from_numpy(factor * np.interp(epochs, curve.x, curve.y))
        contents = {"distance_epochs": epochs, "distance_teacher": values, "distance_diffusion": values}
        results.save(paper.Run(paper.UNBIASED, width=32).path(seed), contents | {"loss": torch.ones(32000)})
    rows = {row.title: row for row in paper.comparisons(paper.SECTIONS["6.1"], [0])}
    assert rows["distance to teacher, unbiased, M = 32"].worst < 1e-12
    rows = {row.title: row for row in paper.comparisons(paper.SECTIONS["6.1"], [0, 1])}
    assert rows["distance to teacher, unbiased, M = 32"].median == pytest.approx(0.01)
    table = paper.comparison_table("6.1", [0, 1])
    assert "| distance to teacher, unbiased, M = 32 | 0.038193 | 0.037815 | 1.00% | 1.00% |" in table
    assert "Some runs are missing; make reproduce SEEDS=0,1 makes them." in table


def test_plan_counts_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    text = paper.plan("appendix-b", [0, 1])
    assert "seeds 0,1: 30 runs, 30 of them to be computed" in text
    for run in paper.SECTIONS["appendix-b"].runs:
        for seed in (0, 1):
            run.path(seed).parent.mkdir(parents=True, exist_ok=True)
            run.path(seed).touch()
    assert "30 runs, all at hand" in paper.plan("appendix-b", [0, 1])
    assert "all at hand" not in paper.plan("appendix-b", [2])


@pytest.mark.parametrize("experiment", [paper.UNBIASED, paper.BIASED, paper.TORUS_UNBIASED, paper.TORUS_BIASED])
def test_six_seeds_meet_the_published_curves(experiment, tmp_path, monkeypatch):
    """The real thing at the smallest width: 32000 epochs, six seeds, against the paper's own numbers."""
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    run = paper.Run(experiment, width=32, epochs=32000)
    script = f"{experiment}/Experiment.py"
    with subprocess.Popen([sys.executable, script, *run.arguments(paper.SEEDS[3:])], cwd=ROOT) as other_core:
        load_script(script).main(run.arguments(paper.SEEDS[:3]))
    assert other_core.returncode == 0
    for quantity in ("distance_teacher",) if run.on_torus else ("distance_teacher", "distance_diffusion", "loss"):
        curve = paper.published_curve(run, quantity)
        ours = np.interp(curve.x, *paper.mean_curve(run, paper.SEEDS, quantity))
        assert np.median(np.abs(ours / curve.y - 1)) < (PUBLISHED_TORUS if run.on_torus else PUBLISHED)
