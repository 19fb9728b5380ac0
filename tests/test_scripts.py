"""The scripts as a user runs them: tiny runs, what they write, what they keep, and what they refuse."""

import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script
from problems import random_problem
from tolerances import EXACT, FLOAT32_STATE, ROUNDED, SOLVE, TRAJECTORY

from varpro import cli, results
from varpro.domains.circle import CIRCLE as CIRCLE_DOMAIN
from varpro.domains.torus import TORUS as TORUS_DOMAIN
from varpro.paper import grid
from varpro.runs import experiment
from varpro.runs.limits import LIMITS
from VarPro_resnet.Experiment import parser as resnet_parser

BIASED, UNBIASED, TWO_TIMESCALE = (f"{name}/Experiment.py" for name in (grid.BIASED, grid.UNBIASED, grid.TWO_TIMESCALE))
CIRCLE = (BIASED, UNBIASED, TWO_TIMESCALE)
TORUS = f"{grid.TORUS_UNBIASED}/Experiment.py"
MEAN_FIELD = f"{grid.MEAN_FIELD}/Experiment.py"
TINY = ["--epochs", "6", "--student_width", "8", "--samples", "64", "--teacher_width", "32"]


def run(script: str, *arguments: str) -> None:
    load_script(script).main(list(arguments))


def refuse(script: str, *arguments: str, code: int = 2) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(script, *arguments)
    assert stopped.value.code == code


def only_result(folder: Path) -> dict:
    (path,) = (path for path in folder.glob("*.pt") if not path.name.startswith("diffusion"))
    return results.load(path)


@pytest.mark.parametrize("script", CIRCLE)
@pytest.mark.parametrize("solver", ["linear", "dense"])
def test_a_run_writes_what_the_definitions_say(script, solver, tmp_path):
    run(script, *TINY, "--solver", solver, "--seed", "3", "--output", str(tmp_path))
    found = only_result(tmp_path)
    assert found["weights"].shape == (7, 8, 2)
    assert found["outer"].shape == (7, 8)
    assert found["snapshot_epochs"].tolist() == list(range(7))
    assert found["loss"].shape == (6,)
    assert found["loss"].dtype == torch.float64
    assert found["teacher_weights"].shape == (32, 2)
    for name in ("distance_epochs", "distance_teacher", "distance_diffusion"):
        assert found[name].shape == (1001,)
        assert torch.isfinite(found[name]).all()
    assert found["elapsed_time"] > 0
    config = found["config"]
    assert (config["seed"], config["solver"], config["epochs"], config["student_width"]) == (3, solver, 6, 8)
    assert config["dtype"] == ("float64" if solver == "linear" else "float32")
    assert config["centre"] == (0.0 if script == BIASED else 1.0)
    if script == TWO_TIMESCALE:
        assert found["rate_ratio"] == pytest.approx(1e-3 / 2**-10, rel=EXACT)
    lengths = found["weights"].double().norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=FLOAT32_STATE)


@pytest.mark.parametrize("script", CIRCLE)
def test_both_solvers_give_the_same_run(script, tmp_path):
    for solver in ("linear", "dense"):
        run(script, *TINY, "--solver", solver, "--dtype", "float64", "--output", str(tmp_path / solver))
    linear, dense = only_result(tmp_path / "linear"), only_result(tmp_path / "dense")
    for name in ("weights", "outer", "loss", "distance_teacher", "distance_diffusion"):
        within = ROUNDED if linear[name].dtype == torch.float32 else TRAJECTORY
        torch.testing.assert_close(linear[name], dense[name], rtol=within, atol=within)


def test_several_seeds_make_one_file_each_and_existing_ones_are_kept(tmp_path, capsys):
    arguments = [*TINY, "--output", str(tmp_path)]
    run(UNBIASED, *arguments, "--seed", "1")
    (first,) = tmp_path.glob("lambda*")
    before = (first.read_bytes(), first.stat().st_mtime_ns)
    capsys.readouterr()
    run(UNBIASED, *arguments, "--seed", "0", "1", "2")
    assert f"seed 1: kept {first}" in capsys.readouterr().out
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    seeds = [results.load(path)["config"]["seed"] for path in tmp_path.glob("lambda*")]
    assert sorted(seeds) == [0, 1, 2]
    run(UNBIASED, *arguments, "--seed", "1", "--force")
    assert first.stat().st_mtime_ns > before[1]


def test_the_file_name_tells_runs_apart(tmp_path):
    for extra in ([], ["--lambda", "1e-2"], ["--time_scale", "1e-4"], ["--saving_step", "2"], ["--name", "mine"]):
        run(UNBIASED, *TINY, *extra, "--output", str(tmp_path))
    names = {path.name for path in tmp_path.glob("*.pt")} - {path.name for path in tmp_path.glob("diffusion*")}
    assert len(names) == 5
    assert "lambda=0.01_width=8_gamma=100_epochs=6_teacher_width=32_samples=64_seed=0.pt" in names


def test_lambda_has_two_spellings_and_scripts_run_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(BIASED, *TINY, "--lmbda", "1e-2", "--output", "here")
    assert only_result(tmp_path / "here")["config"]["lambda"] == 1e-2


def test_results_go_beside_the_script_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    run(BIASED, *TINY)
    assert only_result(tmp_path / "VarPro_ReLU_1d" / "results")
    assert list((tmp_path / "results").glob("diffusion_gamma=100_epochs=6.pt"))


def test_an_evenly_spread_start_on_the_torus(tmp_path):
    run(TORUS, *TINY, "--init", "quantile", "--output", str(tmp_path))
    (path,) = tmp_path.glob("lambda*_init=quantile_*.pt")
    found = results.load(path)
    torch.testing.assert_close(found["weights"][0], TORUS_DOMAIN.spread(8).float(), rtol=0, atol=0)
    assert found["loss"][-1] < found["loss"][0]
    assert torch.isfinite(found["distance_diffusion"]).all()


# --- infinite data, limits ---------------------------------------------------------------------------------------


def test_infinite_data_beside_both_limits(tmp_path):
    infinite = ["--samples", "inf", "--teacher_width", "inf", "--init", "quantile", "--student_width", "512"]
    arguments = [*infinite, "--epochs", "40", "--lambda", "1e-4", "--distances", "diffusion", "projected"]
    run(UNBIASED, *arguments, "--output", str(tmp_path))
    (path,) = tmp_path.glob("lambda*")
    named = "teacher_width=inf_samples=inf_init=quantile_distances=diffusion+projected_seed=0.pt"
    assert path.name == f"lambda=0.0001_width=512_gamma=100_epochs=40_{named}"
    found = results.load(path)
    assert "teacher_weights" not in found
    assert (found["config"]["samples"], found["config"]["teacher_width"]) == (math.inf, math.inf)
    assert found["loss"][-1] < found["loss"][0]
    # what ReLU features follow is the projected one
    assert found["distance_projected"][-1] < 0.5 * found["distance_diffusion"][-1]
    assert {file.name.partition("_")[0] for file in tmp_path.glob("*.pt")} == {
        "diffusion",
        "projected",
        "lambda=0.0001",
    }


def test_finite_samples_of_the_law_itself(tmp_path):
    run(BIASED, *TINY, "--teacher_width", "inf", "--distances", "--output", str(tmp_path))
    found = only_result(tmp_path)
    assert torch.isfinite(found["distance_teacher"]).all()
    assert "distance_diffusion" not in found


@pytest.mark.parametrize(
    ("script", "arguments", "line"),
    [
        (
            "torus",
            ["--teacher_width", "inf"],
            "--teacher_width inf: the law of the teacher on the torus is not",
        ),
        ("torus", ["--samples", "inf"], "--samples inf: --solver linear computes ReLU features on the circle, not"),
        ("circle", ["--samples", "inf", "--dtype", "float32"], "--samples inf: --solver linear computes in float64"),
        ("circle", ["--samples", "inf", "--solver", "dense"], "takes a finite number of samples; allowed here: linear"),
        ("circle", ["--samples", "0"], "'0' is not allowed: a whole number from 1 to 1000000000, or inf"),
        ("circle", ["--distances", "teacher"], "invalid choice: 'teacher'"),
        ("circle", ["--distances", "diffusion", "diffusion"], "--distances: diffusion diffusion names a limit twice"),
        ("circle", ["--epochs", "5", "--saving_step", "10"], "--saving_step 10: allowed here: at most --epochs 5"),
        ("circle", ["--distances", "projected", "--optimizer", "lm"], "--distances: goes with --optimizer gd"),
        (
            "torus",
            ["--distances", "diffusion", "--gamma", "inf", "--teacher_width", "2"],
            "--distances diffusion: goes with --gamma up to 10000",
        ),
        (
            "torus",
            ["--gamma", "-1"],
            "--teacher_width 32: has no effect here; with --gamma inf the teacher has 2 neurons",
        ),
    ],
)
def test_what_cannot_be_infinite_is_refused(script, arguments, line, tmp_path, capsys):
    tiny = [option for pair in zip(TINY[::2], TINY[1::2], strict=True) if pair[0] not in arguments for option in pair]
    refuse({"torus": TORUS, "circle": UNBIASED}[script], *tiny, *arguments, "--output", str(tmp_path))
    output = capsys.readouterr()
    assert line in output.err
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "name", "shape"),
    [
        (["--limit", "projected", "--grid_size", "128"], "projected_gamma=10_epochs=50_grid_size=128.pt", (51, 128)),
        (
            ["--domain", "torus", "--grid_size", "16"],
            "torus_diffusion_gamma=10_epochs=50_grid_size=16.pt",
            (51, 16, 16),
        ),
    ],
)
def test_make_diffusion_of_other_limits(arguments, name, shape, tmp_path):
    run("make_diffusion.py", *arguments, "--gamma", "10", "--epochs", "50", "--output", str(tmp_path))
    found = results.load(tmp_path / name)
    assert found["density"].shape == shape
    assert (found["energy"].diff() <= 0).all()


# --- optimizers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["momentum", "lbfgs", "lm"])
@pytest.mark.parametrize("script", [BIASED, UNBIASED, TORUS])
def test_an_optimizer_lowers_the_risk_and_states_its_cost(script, name, tmp_path):
    arguments = [*TINY, "--optimizer", name, "--epochs", "12", "--dtype", "float64", "--output", str(tmp_path)]
    run(script, *arguments)
    (path,) = tmp_path.iterdir()  # no diffusion was made
    assert f"optimizer={name}" in path.name
    found = results.load(path)
    assert any(key.startswith("worst_") for key in found["inner_solves"])
    done = len(found["loss"])
    assert 0 < done <= 12
    assert found["snapshot_epochs"].tolist() == list(range(done + 1))
    for cost in ("evaluations", "seconds"):
        assert found[cost].shape == (done + 1,)
        assert (found[cost].diff() > 0).all()
    assert found["loss"].min() < found["loss"][0]  # with momentum it may rise now and then
    run(script, *TINY, "--dtype", "float64", "--output", str(tmp_path / "gd"))
    (descent,) = (tmp_path / "gd").glob("lambda*.pt")  # has the same first state
    assert found["loss"][0].item() == pytest.approx(results.load(descent)["loss"][0].item(), rel=SOLVE)
    assert torch.isfinite(found["distance_teacher"]).all()
    assert found["distance_epochs"][-1] == done
    assert "distance_diffusion" not in found  # its time is that of gradient descent
    assert (found["config"]["optimizer"], done < 12) == (name, "ending" in found)


def test_an_optimizer_ends_within_its_tolerance_and_says_so(tmp_path, capsys):
    arguments = [*TINY, "--optimizer", "lm", "--epochs", "500", "--tolerance", "1e-3", "--output", str(tmp_path)]
    run(UNBIASED, *arguments)
    assert "ended before its 500 epochs: the risk changes by less than 0.001 of itself" in capsys.readouterr().out
    found = only_result(tmp_path)
    assert 1 < len(found["loss"]) < 500
    assert len(found["weights"]) == len(found["snapshot_epochs"]) == len(found["evaluations"])
    run(UNBIASED, *arguments)
    assert "kept" in capsys.readouterr().out


def test_continuation_begins_with_larger_lambda(tmp_path):
    arguments = [*TINY, "--optimizer", "lm", "--epochs", "6", "--output", str(tmp_path)]
    run(UNBIASED, *arguments)
    run(UNBIASED, *arguments, "--continuation", "0.1")
    continued, plain = (
        results.load(path) for path in sorted(tmp_path.iterdir(), key=lambda path: len(path.name))[::-1]
    )
    assert continued["config"]["continuation"] == 0.1
    assert continued["evaluations"][0] > plain["evaluations"][0] == 1
    assert continued["loss"][0] < plain["loss"][0]
    refuse(UNBIASED, *TINY, "--continuation", "0.1", "--output", str(tmp_path))
    refuse(UNBIASED, *arguments, "--lambda", "0.1", "--continuation", "0.1")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_resumed_run_does_not_repeat_its_continuation(tmp_path, monkeypatch):
    """Its checkpoint holds where that led, and what it took."""
    monkeypatch.setenv("VARPRO_CHECKPOINT_SECONDS", "0")
    arguments = [*TINY[2:], "--epochs", "12", "--optimizer", "lm", "--continuation", "0.1"]
    run(UNBIASED, *arguments, "--output", str(tmp_path / "whole"))

    class Ended(BaseException):
        pass

    def ended(place, weights):
        if place == 4:
            raise Ended
        return {}

    usual = experiment._measurement
    monkeypatch.setattr(experiment, "_measurement", lambda run: ended)
    with pytest.raises(Ended):
        run(UNBIASED, *arguments, "--output", str(tmp_path / "stopped"))
    monkeypatch.setattr(experiment, "_measurement", usual)
    monkeypatch.setattr(experiment, "continued", None)
    run(UNBIASED, *arguments, "--output", str(tmp_path / "stopped"))
    whole, found = (only_result(tmp_path / name) for name in ("whole", "stopped"))
    assert torch.equal(found["weights"], whole["weights"])
    assert torch.equal(found["evaluations"], whole["evaluations"])


def test_gradient_descent_states_its_seconds(tmp_path):
    run(UNBIASED, *TINY, "--output", str(tmp_path))
    found = only_result(tmp_path)
    assert found["seconds"].shape == found["snapshot_epochs"].shape
    assert (found["seconds"].diff() > 0).all()
    assert 0 < found["seconds"][0] < found["seconds"][-1] < found["elapsed_time"] + found["seconds"][0]
    assert "evaluations" not in found  # one more than epochs


def test_optimizers_refuse_what_they_do_not_train(tmp_path, capsys):
    refuse(TWO_TIMESCALE, *TINY, "--optimizer", "lm", "--output", str(tmp_path))
    line = "--optimizer lm: works on the reduced risk, not on two-timescale descent; allowed here: gd"
    assert line in capsys.readouterr().err
    refuse(UNBIASED, *TINY, "--tolerance", "1e-3", "--output", str(tmp_path))
    assert "--tolerance: has no effect here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the user's own data -----------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    problem = random_problem(50, 6)
    path = tmp_path / "mine.pt"
    torch.save(
        {
            "inputs": torch.from_numpy(problem.inputs),
            "targets": torch.from_numpy(problem.targets),
            "student_weights": torch.from_numpy(problem.weights),
        },
        path,
    )
    return path


def test_own_data_leave_out_the_distances_they_cannot_have(data, tmp_path):
    run(BIASED, "--data", str(data), "--epochs", "4", "--output", str(tmp_path / "out"))
    found = only_result(tmp_path / "out")
    assert found["weights"].shape == (5, 6, 2)
    student = torch.load(data)["student_weights"]
    torch.testing.assert_close(found["weights"][0].double(), student, rtol=0, atol=ROUNDED)
    assert not {"distance_diffusion", "distance_teacher", "teacher_weights"} & set(found)
    tensors = torch.load(data) | {"teacher_weights": torch.eye(2)}
    torch.save(tensors, data)
    run(BIASED, "--data", str(data), "--epochs", "4", "--output", str(tmp_path / "with teacher"))
    found = only_result(tmp_path / "with teacher")
    assert "distance_teacher" in found
    assert "distance_diffusion" not in found


def test_own_data_with_many_outputs_take_the_dense_solver(data, tmp_path):
    torch.save({"inputs": torch.randn(30, 2), "targets": torch.randn(30, 3)}, data)
    run(BIASED, "--data", str(data), "--epochs", "4", "--student_width", "5", "--output", str(tmp_path / "out"))
    found = only_result(tmp_path / "out")
    assert found["config"]["solver"] == "dense"
    assert found["outer"].shape == (5, 5, 3)
    refuse(BIASED, "--data", str(data), "--solver", "linear", "--output", str(tmp_path / "out"))


def test_own_data_start_as_the_script_does(data, tmp_path, capsys):
    """Evenly spread where that is its default, unless there is a student among them."""
    tensors = torch.load(data)
    students = {"mine": tensors.pop("student_weights").float(), "spread": CIRCLE_DOMAIN.spread(6).float()}
    torch.save(tensors, tmp_path / "spread.pt")
    data.rename(tmp_path / "mine.pt")
    for name, student in students.items():
        own = [] if name == "mine" else ["--student_width", "6"]
        arguments = ["--data", str(tmp_path / f"{name}.pt"), *own, "--epochs", "2", "--output", str(tmp_path / name)]
        run(MEAN_FIELD, *arguments)
        found = only_result(tmp_path / name)
        torch.testing.assert_close(found["weights"][0], student, rtol=0, atol=ROUNDED)
        assert found["config"].get("init") == ("quantile" if name == "spread" else None)
        capsys.readouterr()
        refuse(MEAN_FIELD, *arguments, "--seed", "0", "1")
        assert "--seed: several have no effect here, where nothing is drawn" in capsys.readouterr().err


def test_a_teacher_too_sharp_for_the_grid_of_the_limit_trains_without_it(tmp_path, capsys):
    run(TORUS, *TINY, "--gamma", "20000", "--output", str(tmp_path))
    assert "--distances diffusion: goes with --gamma up to 10000; that distance is not" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()  # no limit was made
    found = results.load(path)
    assert "distance_teacher" in found
    assert "distance_diffusion" not in found


def test_the_grid_knows_which_limits_can_be_had():
    assert {(each.domain.name, each.name): each.most_gamma for each in LIMITS} == grid._MOST_GAMMA
    assert grid.Run(grid.TORUS_UNBIASED, gamma=2e4).diffusions == ()
    assert [each.limit for each in grid.Run(grid.MEAN_FIELD, gamma=2e4).diffusions] == ["diffusion"]


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TB")])
def test_a_lack_of_memory_is_one_line(error, capsys):
    @cli.command
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert re.fullmatch(r".*: error: not enough memory for a problem of this size; .*\n", capsys.readouterr().err)


def test_a_warning_that_nobody_reads_stops_nothing(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stderr", Closed())
    cli.warn("the run goes on")


def test_results_with_tf32_have_a_name_of_their_own():
    options = load_script(TWO_TIMESCALE).parser().parse_args([])
    options.given, options.defaults = set(), vars(options)
    config = {"lambda": 1e-3, "seed": 0, "solver": "dense", "dtype": "float32"}
    config |= {"student_width": 8, "gamma": 100.0, "epochs": 6}
    plain, rounded = (experiment._file_name(options, config | more, (), usual=True) for more in ({}, {"tf32": True}))
    assert plain != rounded
    assert "dtype=tf32" in rounded


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--student_width", "-3"], "--student_width: '-3' is not allowed: a whole number from 1 to 1000000000"),
        (["--student_width", "2.5"], "--student_width: '2.5' is not allowed"),
        (["--gamma", "abc"], "--gamma: 'abc' is not allowed: a number from 0 to 1e+08"),
        (["--gamma", "inf"], "--gamma: 'inf' is not allowed"),
        (["--lambda", "0"], "--lambda/--lmbda: '0' is not allowed: a finite number above 0"),
        (["--lambda", "-1e-3"], "--lambda/--lmbda: '-1e-3' is not allowed: a finite number above 0"),
        (["--lmbda", "-.5"], "--lambda/--lmbda: '-.5' is not allowed: a finite number above 0"),
        (["--gamma", "-inf"], "--gamma: '-inf' is not allowed: a number from 0 to 1e+08"),
        (
            ["--student_width", "10000000"],
            "_width 10000000: takes 120 GB of memory at least with 1001 states kept, and",
        ),
        (["--samples", "900000000"], "--samples 900000000: takes 22 GB of memory at least, and there are 17 GB here"),
        (["--time_scale", "nan"], "--time_scale: 'nan' is not allowed"),
        (["--epochs", "0"], "--epochs: '0' is not allowed"),
        (["--seed", "-1"], "--seed: '-1' is not allowed: a whole number from 0 to 4294967295"),
        (["--seed", "0", "5000000000"], "--seed: '5000000000' is not allowed"),
        (["--time_scale", "1e300"], "--time_scale: '1e300' is not allowed: a number above 0, at most 1e6"),
        (
            ["--optimizer", "lm", "--time_scale", "0.1"],
            "--time_scale: has no effect here; it goes with --optimizer gd, momentum",
        ),
        (["--seed", "1", "1"], "--seed: 1 1 names a seed twice"),
        (["--solver", "magic"], "'magic' (choose from"),
        (["--widht", "3"], "unrecognized arguments: --widht 3"),
        (["--student", "3"], "unrecognized arguments: --student 3"),
        (["--name", "a/b"], "--name: 'a/b' is not allowed"),
        (["--data", "none.pt"], "--data none.pt: no such file"),
        (["--solver", "linear", "--dtype", "float32"], "--solver linear: computes in float64"),
        (["--output", __file__], "is a file, not a folder"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: no CUDA device is available here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_bad_options_give_one_line_and_write_nothing(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    monkeypatch.setattr(experiment, "memory", lambda: 2**34)
    refuse(UNBIASED, *arguments)
    output = capsys.readouterr()
    assert output.out == ""
    assert named in output.err
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unreadable_data_give_one_line(tmp_path, capsys):
    path = tmp_path / "data.pt"
    path.write_text("not tensors")
    refuse(BIASED, "--data", str(path), "--output", str(tmp_path))
    assert re.fullmatch(r".*error: --data .*data\.pt: not a file of tensors.*\n", capsys.readouterr().err)
    torch.save({"inputs": torch.ones(3, 5), "targets": torch.ones(3)}, path)
    refuse(BIASED, "--data", str(path), "--output", str(tmp_path))
    assert "'inputs' has shape (3, 5); allowed: (N, 2)" in capsys.readouterr().err
    refuse(BIASED, "--data", str(path), "--gamma", "3")
    assert "--gamma: has no effect with --data" in capsys.readouterr().err


def test_a_damaged_or_foreign_result_is_never_overwritten(tmp_path, capsys):
    arguments = [*TINY, "--output", str(tmp_path)]
    run(UNBIASED, *arguments)
    (path,) = tmp_path.glob("lambda*")
    run(BIASED, *TINY, "--output", str(tmp_path / "other"))
    (foreign,) = (tmp_path / "other").glob("lambda*")
    path.write_bytes(foreign.read_bytes())
    before = path.read_bytes()
    refuse(UNBIASED, *arguments)
    assert "was made with experiment = VarPro_ReLU_1d" in capsys.readouterr().err
    assert path.read_bytes() == before
    path.write_bytes(b"damaged")
    refuse(UNBIASED, *arguments)
    assert "not a file of tensors" in capsys.readouterr().err
    assert path.read_bytes() == b"damaged"
    run(UNBIASED, *arguments, "--force")
    assert results.load(path)["config"]["experiment"] == "VarPro_ReLU_1d_unbiased"


@pytest.mark.parametrize("arguments", [["--output", "/proc/none"], ["--name", "a" * 300]])
def test_a_place_that_cannot_be_written_is_refused_before_training(arguments, data, tmp_path, capsys):
    refuse(BIASED, "--data", str(data), "--epochs", "4", "--output", str(tmp_path), *arguments)
    output = capsys.readouterr()
    assert "cannot be written there" in output.err
    assert "ms an epoch" not in output.out


def test_single_precision_warns_where_it_loses_digits(tmp_path, capsys):
    run(BIASED, *TINY, "--solver", "dense", "--lambda", "1e-6", "--dtype", "float32", "--output", str(tmp_path))
    assert "warning: float32 loses digits at --lambda 1e-06" in capsys.readouterr().err


def test_students_of_any_length_are_put_on_the_circle(data, tmp_path):
    tensors = torch.load(data)
    for number, scale in enumerate((1e200, 1e-200)):
        torch.save(tensors | {"student_weights": tensors["student_weights"] * scale}, data)
        run(BIASED, "--data", str(data), "--epochs", "2", "--output", str(tmp_path / str(number)))
        found = only_result(tmp_path / str(number))["weights"][0].double()
        torch.testing.assert_close(found, tensors["student_weights"], rtol=0, atol=ROUNDED)


def test_a_diverging_run_exits_with_1_and_leaves_no_result(data, tmp_path, capsys):
    tensors = torch.load(data)
    torch.save(tensors | {"targets": tensors["targets"] * 1e150}, data)
    refuse(TWO_TIMESCALE, "--data", str(data), "--epochs", "4", "--output", str(tmp_path / "out"), code=1)
    assert "the loss is not finite at epoch" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_exit_codes_of_the_real_command():
    command = [sys.executable, str(ROOT / BIASED), "--gamma", "abc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "Experiment.py: error: argument --gamma: 'abc' is not allowed: a number from 0 to 1e+08\n"


# --- the diffusion -----------------------------------------------------------------------------------------------


def test_make_diffusion(tmp_path, capsys):
    arguments = ["--gamma", "10", "--epochs", "50", "--grid_size", "128", "--output", str(tmp_path)]
    run("make_diffusion.py", *arguments)
    (path,) = tmp_path.iterdir()
    assert path.name == "diffusion_gamma=10_epochs=50_grid_size=128.pt"
    found = results.load(path)
    assert found["density"].shape == (51, 128)
    assert found["density"].dtype == torch.float32
    assert found["grid"].shape == (128,)
    assert found["snapshot_epochs"].tolist() == list(range(51))
    assert (found["gamma"], found["time_scale"]) == (10.0, 2**-10)
    masses = found["density"].double().mean(dim=1) * 2 * np.pi
    torch.testing.assert_close(masses, torch.ones_like(masses), rtol=0, atol=ROUNDED)
    capsys.readouterr()
    run("make_diffusion.py", *arguments)
    assert "kept" in capsys.readouterr().out
    run("make_diffusion.py", *arguments, "--saving_step", "20")
    (kept,) = tmp_path.glob("*saving_step=20*")
    assert results.load(kept)["snapshot_epochs"].tolist() == [0, 20, 40, 50]


def test_a_run_makes_the_diffusion_it_needs_once(tmp_path, capsys):
    run(UNBIASED, *TINY, "--output", str(tmp_path))
    assert capsys.readouterr().out.startswith("diffusion: wrote")
    run(UNBIASED, *TINY, "--lambda", "1e-2", "--output", str(tmp_path))
    assert capsys.readouterr().out.startswith("diffusion: kept")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--gamma", "-1"], "--gamma: '-1' is not allowed"),
        (["--gamma", "1e9"], "--gamma: '1e9' is not allowed"),
        (["--grid_size", "4"], "--grid_size: '4' is not allowed"),
        (["--epochs", "x"], "--epochs: 'x' is not allowed"),
        (["--epochs", "5", "--saving_step", "10"], "--saving_step 10: allowed here: at most --epochs 5"),
        (
            ["--domain", "torus", "--limit", "projected"],
            "--limit projected: not on the torus; allowed there: diffusion",
        ),
        (["--limit", "projected", "--grid_size", "65"], "--grid_size 65: grid_size must be even, not 65"),
        (
            ["--limit", "projected", "--gamma", "1e5"],
            "--gamma 100000: the limit projected on the circle goes up to 10000",
        ),
        (["--domain", "torus", "--gamma", "inf"], "--gamma inf: the limit diffusion on the torus goes up to 10000"),
        (["--domain", "torus", "--grid_size", "34"], "--grid_size 34: grid_size must be an odd number up to 15 times"),
    ],
)
def test_make_diffusion_refuses(arguments, line, tmp_path, capsys):
    refuse("make_diffusion.py", *arguments, "--output", str(tmp_path / "new"))
    assert line in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the README and the pages --------------------------------------------------------------------------------------


def commands_of(page: str) -> list[tuple[str, list[str]]]:
    """(script, arguments) of every ``python ...`` line; a script not at the top is in the folder named last."""
    commands, folder = [], None
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        named = re.search(r"located in the directory `([^`]+)`", line)
        folder = named.group(1) if named else folder
        if line.startswith("python ") and not line.startswith("python -m"):
            _, script, *arguments = shlex.split(line)
            commands.append((script if (ROOT / script).exists() else f"{folder}/{script}", arguments))
    return commands


def test_the_readme_lists_no_run_twice_by_mistake():
    commands = commands_of("README.md")
    assert len(commands) == len(set(map(str, commands))) + 5  # five experiments list one run as width and as lambda


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{name}.md" for name in ("scripts", "resnets", "stochastic_varpro"))]
)
def test_every_command_of_a_page_is_one_the_scripts_take(page):
    commands = commands_of(page)
    assert commands
    for script, arguments in commands:
        module = load_script(script)
        resnet = script.startswith("VarPro_resnet/CIFAR10_")
        parser = resnet_parser(**module.CHOICES) if resnet else module.parser()
        parser.parse_args(arguments)


@pytest.mark.parametrize("script", [MEAN_FIELD, *CIRCLE, TORUS, "make_diffusion.py", "VarPro_resnet/Experiment.py"])
def test_every_command_in_the_text_of_a_script_is_one_it_takes(script):
    text = load_script(script).__doc__
    named = re.findall(r"^    python (\S+) ?([^#\n]*)", text, flags=re.MULTILINE)
    assert named
    for name, arguments in named:
        path = str(Path(script).parent / name) if not (ROOT / name).exists() else name
        module = load_script(path)
        parser = resnet_parser(**module.CHOICES) if "CIFAR10_" in path else module.parser()
        parser.parse_args(shlex.split(arguments))


def test_the_own_data_of_the_page_are_trained_on(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    make, look = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(make, "docs/scripts.md", "exec"), {})
    ((script, arguments),) = [found for found in commands_of("docs/scripts.md") if "--data" in found[1]]
    run(script, *arguments)
    assert "distance to teacher" in capsys.readouterr().out
    exec(compile(look, "docs/scripts.md", "exec"), {})
    assert (tmp_path / "mine.png").stat().st_size > 10_000


@pytest.mark.parametrize("script", [*CIRCLE, "make_diffusion.py"])
def test_help_states_defaults(script, capsys):
    refuse(script, "--help", code=0)
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "(default: 32000)" in text
    assert "(default: 100.0)" in text
    assert "None" not in text


def test_the_readme_lists_every_run_of_the_grid_that_the_user_asked_for():
    listed = set()
    for script, arguments in commands_of("README.md"):
        experiment = script.partition("/")[0]
        if "--student_width" in arguments and "--lambda" in arguments:
            options = load_script(script).parser().parse_args(arguments)
            listed.add(grid.Run(experiment, options.lmbda, options.student_width, options.gamma, options.epochs))
    assert len(listed) == 22 + 12  # circle and torus
    runs = {run for section in grid.SECTIONS.values() for run in section.runs}
    assert {replace(run, epochs=grid.EPOCHS) for run in listed} <= runs


SMALL = ("--student_width", "8", "--epochs", "4")


def test_the_limit_experiment_names_every_choice_that_is_not_its_own(tmp_path):
    """The paper's choices are the defaults elsewhere and options here; both limits are measured."""
    plain = (*SMALL, "--output", str(tmp_path))
    run(MEAN_FIELD, *plain)
    run(MEAN_FIELD, *plain, "--init", "quantile", "--distances", "projected", "diffusion")  # the same run
    run(MEAN_FIELD, *plain, "--saving_step", "1")  # the usual one
    run(MEAN_FIELD, *plain, "--init", "random")
    run(MEAN_FIELD, *plain, "--distances", "diffusion")
    stem = "lambda=1e-06_width=8_gamma=100_epochs=4"
    names = {path.name for path in tmp_path.glob("lambda*")}
    assert names == {f"{stem}{more}_seed=0.pt" for more in ("", "_init=random", "_distances=diffusion")}
    found = results.load(tmp_path / f"{stem}_seed=0.pt")
    assert {"distance_teacher", "distance_diffusion", "distance_projected"} <= found.keys()
    assert found["config"]["samples"] == found["config"]["teacher_width"] == math.inf
    assert "distance_projected" not in results.load(tmp_path / f"{stem}_distances=diffusion_seed=0.pt")


def test_a_law_that_is_too_sharp_for_infinite_data_is_one_line(tmp_path, capsys):
    refuse(
        UNBIASED, *TINY[:4], "--samples", "inf", "--teacher_width", "inf", "--gamma", "1e8", "--output", str(tmp_path)
    )
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: --samples inf: teacher: the density is too sharp or not smooth" in line


def test_features_that_see_everything_need_samples(tmp_path, capsys):
    squared = (*SMALL, "--features", "squared_relu_circle", "--output", str(tmp_path))
    refuse(MEAN_FIELD, *squared)
    assert "not squared_relu_circle, and no other takes them; allowed here: a whole number" in capsys.readouterr().err
    run(MEAN_FIELD, *squared, "--samples", "64", "--dtype", "float64")
    (path,) = tmp_path.glob("lambda*")
    assert results.load(path)["config"]["features"] == "squared_relu_circle"
    assert "_features=squared_relu_circle_" in path.name


def test_the_outer_rate_scales_the_ratio_of_the_rates(tmp_path, capsys):
    run(TWO_TIMESCALE, *SMALL, "--samples", "64", "--outer_rate", "2.5", "--output", str(tmp_path))
    (path,) = tmp_path.glob("lambda*")
    assert "_outer_rate=2.5_" in path.name
    found = results.load(path)
    assert found["rate_ratio"] == pytest.approx(2.5 * 1e-3 / 2**-10, rel=EXACT)
    assert found["config"]["outer_rate"] == 2.5
    refuse(TWO_TIMESCALE, "--outer_rate", "0")
    assert "--outer_rate: '0' is not allowed: a finite number above 0" in capsys.readouterr().err
    diverging = [*SMALL, "--epochs", "400", "--samples", "64", "--outer_rate", "50", "--output", str(tmp_path)]
    refuse(TWO_TIMESCALE, *diverging, code=1)
    assert "; try a smaller --outer_rate" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "varpro.paper", "--section", "resnets-cifar10"]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait() == 1
