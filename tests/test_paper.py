"""The grid, the published numbers, ours beside them, and what it all costs."""

import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script, pretend_resnet
from networks import tiny_images
from tolerances import EXACT, PUBLISHED, PUBLISHED_TORUS

from varpro import image_files, names, results
from varpro.paper import __main__ as command
from varpro.paper import arrivals, cost, fidelity, grid, published, records, work
from VarPro_resnet import cifar


@pytest.fixture(autouse=True)
def empty_results(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    return tmp_path


def pretend(run: grid.AnyRun, *seeds: int) -> None:
    """An empty file in the place of a result: enough for what only looks whether it is there."""
    for seed in seeds:
        run.path(seed).parent.mkdir(parents=True, exist_ok=True)
        run.path(seed).touch()


def pretend_published(curve: published.RunCurve, seeds, factor: float = 1.0) -> None:
    """Results of a run that are the published curve, times ``factor``."""
    epochs = torch.arange(0, 32001, 32)
    values = torch.from_numpy(factor * np.interp(epochs, curve.curve.x, curve.curve.y))
    loss = torch.from_numpy(factor * np.interp(np.arange(32000), curve.curve.x, curve.curve.y))
    contents = {"distance_epochs": epochs, "distance_teacher": values, "distance_diffusion": values, "loss": loss}
    for seed in seeds:
        results.save(curve.run.path(seed), contents)


# --- seeds and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("0-5", [0, 1, 2, 3, 4, 5]), ("7,0-1", [0, 1, 7]), ("2 3", [2, 3])]
)
def test_seeds(text, seeds):
    assert grid.parse_seeds(text) == seeds
    assert grid.parse_seeds(grid.ranges(seeds)) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "1,,2", "5-2", "4294967296", "0-1000", "0,0", "0-5,2"])
def test_bad_seeds(text):
    with pytest.raises(ValueError, match="allowed are"):
        grid.parse_seeds(text)


def test_names_state_options_in_one_order():
    config = {"lambda": 1e-3, "student_width": 8, "gamma": math.inf, "epochs": 5, "seed": 3}
    stated = {"mine": 1, "dtype": "float32", "solver": "dense", "samples": 64}
    expected = "x_lambda=0.001_width=8_gamma=inf_epochs=5_samples=64_solver=dense_dtype=float32_mine=1_seed=3.pt"
    assert names.shallow(config, stated, "x") == expected
    assert names.shallow(config | {"data": "own-12"}) == "lambda=0.001_width=8_data=own-12_epochs=5_seed=3.pt"
    assert names.limit("diffusion", {"gamma": 10.0, "epochs": 5}, {"saving_step": 2, "grid_size": 64}) == (
        "diffusion_gamma=10_epochs=5_grid_size=64_saving_step=2.pt"
    )


def test_the_grid_needs_no_torch():
    """The workflow reads it, at every start."""
    program = "import sys; from varpro.paper import grid, published, work; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


# --- the grid -----------------------------------------------------------------------------------------------------


def test_the_grid_holds_each_run_once():
    # but for gradient descent, which the optimizers are compared with, and two runs of 6.1 that the study shows too
    runs = grid.runs_of(name for name in grid.SECTIONS if name != "optimizers")
    assert Counter(run.experiment for run in runs) == {
        grid.BIASED: 7,
        grid.UNBIASED: 17 + 7,
        grid.TWO_TIMESCALE: 12 + 20,
        grid.MEAN_FIELD: 59,
        grid.TORUS_BIASED: 7,
        grid.TORUS_UNBIASED: 8,
        names.RESNET: 15 + 8 + 4,
    }
    everywhere = {run for section in grid.SECTIONS.values() for run in section.runs}  # some serve two sections
    assert len({run.path(0) for run in everywhere}) == len(everywhere) == len({run.label for run in everywhere})
    assert len({f"{run.experiment}, {run.parameters}" for run in everywhere}) == len(everywhere)


def test_every_run_of_the_optimizers_has_its_gradient_descent():
    section = grid.SECTIONS["optimizers"]
    wanted = section.wanted()
    for run, seeds in wanted.items():
        assert set(seeds) <= set(wanted[arrivals.reference(run)])
        assert run.epochs <= grid.METHODS[run.method].iterations
        assert bool(run.inputs) == (run.method == grid.GRADIENT_DESCENT)
    assert section.epochs == grid.EPOCHS
    assert {run.method for run in wanted} == grid.METHODS.keys()


def test_each_run_wants_the_seeds_of_its_published_figures():
    wanted = grid.SECTIONS["6.1"].wanted()
    assert wanted[grid.Run(grid.TWO_TIMESCALE)] == [0]
    assert wanted[grid.Run(grid.UNBIASED, 1e-2, 128)] == [0]  # in the comparison with two-timescale descent alone
    assert wanted[grid.Run(grid.UNBIASED, 1e-2)] == [0, 1, 2, 3, 4, 5]  # in that of lambda, too
    assert wanted[grid.Run(grid.UNBIASED, 1e-1, gamma=10.0)] == [0]  # in no figure
    assert set(map(tuple, grid.SECTIONS["6.1"].wanted([2, 0]).values())) == {(0, 2)}
    assert set(map(tuple, grid.SECTIONS["appendix-b"].wanted().values())) == {(0,)}
    assert set(map(tuple, grid.SECTIONS["resnets"].wanted().values())) == {(0, 1, 2)}


def test_figures_are_found_by_name():
    section, figure = grid.find("convolution_animation")
    assert (section, figure.file) == ("appendix-b", "convolution_animation.gif")
    with pytest.raises(ValueError, match="figure 'nothing': there are gamma_densities, "):
        grid.find("nothing")
    listed = [figure.name for section in grid.SECTIONS.values() for figure in section.figures]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    "run",
    [
        grid.Run(grid.UNBIASED, lmbda=1e-1, width=8, gamma=10.0, epochs=5),
        grid.Run(grid.TORUS_UNBIASED, lmbda=1e-2, width=8, gamma=math.inf, epochs=5),
        grid.Run(grid.TORUS_BIASED, width=8, epochs=5, activation="cos"),
        grid.Run(grid.TORUS_UNBIASED, width=8, epochs=5, options=grid.METHODS["lbfgs"].options),
        grid.Run(grid.UNBIASED, width=8, epochs=5, options=grid.METHODS["continuation"].options),
        grid.Run(
            grid.UNBIASED,
            width=8,
            epochs=5,
            options=(("teacher_width", math.inf), ("samples", math.inf), *grid.METHODS["momentum"].options),
        ),
        grid.Run(grid.MEAN_FIELD, width=8, epochs=4, options=(("time_scale", 2**-11),), snapshots=2),
        grid.with_both_limits(width=8, epochs=128),
        grid.Run(grid.MEAN_FIELD, width=8, epochs=4, options=(("init", "random"), ("samples", 64), ("distances", ()))),
        grid.Run(
            grid.MEAN_FIELD, width=8, epochs=4, options=tuple((grid.DENSE | {"distances": ("diffusion",)}).items())
        ),
        grid.Run(grid.TWO_TIMESCALE, width=8, epochs=4, options=(("outer_rate", 2.5), ("init", "quantile"))),
    ],
)
def test_paths_are_those_that_the_scripts_write(run):
    seeds = [0] if run.deterministic else [0, 1]
    load_script(run.script).main(run.arguments(seeds))
    assert all(run.path(seed).exists() for seed in seeds)
    assert abs(run.path(0).stat().st_size / 1e6 - cost.megabytes(run)) < 0.1
    assert all(path.exists() for path in run.inputs)


@pytest.mark.parametrize(
    "run",
    [
        grid.ResNetRun("sgdm", 16, "digits", epochs=1, final_epochs=0),
        grid.ResNetRun("shampoo", 20, "digits", "gupta", epochs=1, final_epochs=0),
    ],
)
def test_paths_of_resnets_are_those_that_the_script_writes(run, monkeypatch):
    """Of few images: of the size of a result their losses are next to nothing."""
    monkeypatch.setattr(cifar, "load", lambda *_, **__: tiny_images(20))
    load_script(run.script).main(run.arguments([0]))
    contents = results.load(run.path(0))
    assert len(contents["accuracy"]) == run.passes + 1
    assert abs(run.path(0).stat().st_size / 1e6 - cost.megabytes(run)) < 0.2


@pytest.mark.parametrize(("domain", "more"), [("circle", ""), ("torus", " --domain torus")])
def test_path_and_command_of_a_diffusion(domain, more):
    diffusion = grid.Diffusion(10.0, 5, domain=domain)
    load_script(diffusion.script).main(diffusion.arguments())
    assert diffusion.path.exists()
    assert diffusion.command() == f"python make_diffusion.py --epochs 5 --gamma 10{more}"


def test_a_teacher_of_two_diracs_has_no_diffusion():
    assert grid.SECTIONS["appendix-b"].diffusions == [grid.Diffusion(domain="torus")]
    assert grid.Run(grid.TORUS_UNBIASED, 1e-2, gamma=math.inf).diffusions == ()


# --- several sections ---------------------------------------------------------------------------------------------


def pictures(folder) -> None:
    """CIFAR-10 in class folders, for what only looks whether it is there."""
    for part in image_files.PARTS:
        (folder / part).mkdir(parents=True)


def test_sections_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv(image_files.DATA, str(tmp_path / "data"))
    assert grid.parse_sections("6.1") == ["6.1"]
    assert grid.parse_sections("mean-field,6.1,mean-field") == ["6.1", "mean-field"]
    assert grid.left_out("6.1,resnets") == ""
    without = grid.parse_sections("all")
    assert without == [name for name in grid.SECTIONS if name not in ("resnets-start", "resnets-cifar10")]
    assert "SECTION=resnets-start downloads it" in grid.left_out("all")
    assert f"CIFAR-10 is not in {tmp_path / 'data'}. Put cifar-10-python.tar.gz there" in grid.left_out("all")
    pictures(tmp_path / "data")
    assert grid.parse_sections("all") == list(grid.SECTIONS)
    assert grid.left_out("all") == ""
    for text in ("", "7", "6.1,"):
        with pytest.raises(ValueError, match=r"is not allowed: all, 6\.1, "):
            grid.parse_sections(text)
    with pytest.raises(ValueError, match=r"section 'all,6\.1' is not allowed: all stands alone"):
        grid.parse_sections("all,6.1")


def test_cifar10_in_class_folders_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv(image_files.DATA, str(tmp_path / "data"))
    run = grid.CIFAR_RUNS[0]
    assert run.inputs == [tmp_path / "data" / "cifar-10-batches-py" / "batches.meta"]
    pictures(tmp_path / "data")
    assert run.inputs == []
    assert grid.DIGITS_RUNS[0].inputs == []


def test_a_run_of_several_sections_is_made_once_with_all_of_its_seeds():
    names = ["6.1", "mean-field", "optimizers", "resnets", "resnets-cifar10"]
    wanted = grid.runs_of(names)
    parts = [grid.SECTIONS[name].wanted() for name in names]
    assert len(wanted) == len(set().union(*parts)) < sum(map(len, parts))
    for run, seeds in wanted.items():
        assert seeds == sorted({seed for part in parts for seed in part.get(run, ())})
    assert grid.diffusions_of(names) == sorted({d for name in names for d in grid.SECTIONS[name].diffusions})
    assert len(grid.notebooks_of(names)["Results_resnets"]) == 4


def test_a_run_that_keeps_little_states_its_saving_step():
    run = grid.with_both_limits(width=32, epochs=32000)
    assert run.saving_step == 500
    assert "_saving_step=500_distances=diffusion+projected_seed=0" in run.path(0).name
    assert run.training == grid.Run(grid.UNBIASED, width=32, epochs=32000)
    assert replace(run, epochs=127).saving_step is None


# --- published curves ---------------------------------------------------------------------------------------------


def test_every_published_curve_belongs_to_a_run_of_the_grid():
    curves = published.run_curves()
    assert Counter(curve.table for curve in curves) == {
        "relu1d_width_distance_evolution": 16,
        "relu1d_width_risk_evolution": 8,
        "relu1d_lmbda_distance_evolution": 16,
        "relu1d_2ts": 72,
        "relu1d_gamma_diffusion": 9,
        "convolution_width_distance": 8,
        "convolution_width_risk": 8,
        "density_evolution": 12,
        "gamma_densities": 4,
    }
    sections = [section for section in grid.SECTIONS.values() if section.compares]
    wanted = {run: seeds for section in sections for run, seeds in section.wanted(None).items()}
    for curve in curves:
        if curve.quantity != "density_target":
            assert curve.run in wanted
            assert curve.run.on_torus or set(curve.seeds) <= set(wanted[curve.run])
    named = {(c.table, c.run, c.quantity, c.epoch) for c in curves}
    assert len(named) == len(curves) - 1  # the target stands in both panels of the densities
    for table in ("convolution_width_risk", "relu1d_2ts"):
        (last,) = {curve.curve.x[-1] for curve in curves if curve.table == table and curve.quantity == "loss"}
        assert last == 31999


def test_a_new_table_is_one_file(tmp_path, monkeypatch):
    text = """# made up
# runs: domain=torus, M=64, seeds=0-1
panel,quantity,series,linestyle,iteration,value
lambda=1e-1,risk_biased,gamma=10,solid,0,2
lambda=1e-1,risk_biased,gamma=10,solid,5,1
left,distance_teacher,gamma=1000,dashed,0,0.5
"""
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    (tmp_path / "other.csv").write_text(text.replace("# runs:", "# no runs:"), encoding="utf-8")
    monkeypatch.setattr(published, "_FOLDER", tmp_path)
    published.table.cache_clear()
    try:
        risk, distance = published.run_curves.__wrapped__()
    finally:
        published.table.cache_clear()
    assert (risk.run, risk.quantity) == (grid.Run(grid.TORUS_BIASED, 0.1, 64, 10.0), "loss")
    assert (distance.run, distance.quantity) == (grid.Run(grid.TORUS_BIASED, 1e-3, 64, 1000.0), "distance_teacher")
    assert (risk.table, risk.seeds, risk.curve.y.tolist()) == ("mine", (0, 1), [2, 1])


_COLUMNS = "panel,quantity,series,linestyle,iteration,value\n"


@pytest.mark.parametrize("line", ["domain=plane, seeds=0", "domain=torus, seeds=x", "domain=torus, width=3"])
def test_a_table_that_says_something_unknown_is_named(line, tmp_path, monkeypatch):
    text = f"# runs: {line}\n{_COLUMNS}left,risk_biased,M=8,solid,0,2\n"
    (tmp_path / "wrong.csv").write_text(text, encoding="utf-8")
    monkeypatch.setattr(published, "_FOLDER", tmp_path)
    try:
        with pytest.raises(published.TableError, match=r"wrong\.csv: left,risk_biased,M=8,solid: .* is not known"):
            published.run_curves.__wrapped__()
    finally:
        published.table.cache_clear()


@pytest.mark.parametrize(
    "text", ["panel,quantity,series,linestyle,iteration\nl,risk,,solid,0\n", f"{_COLUMNS}l,r,,s,0,x\n"]
)
def test_a_row_that_is_none_is_named_with_its_file(text, tmp_path, monkeypatch):
    (tmp_path / "wrong.csv").write_text(text, encoding="utf-8")
    monkeypatch.setattr(published, "_FOLDER", tmp_path)
    try:
        with pytest.raises(published.TableError, match=r"wrong\.csv: .* in the row l,r"):
            published.table("wrong")
    finally:
        published.table.cache_clear()


def test_published_curves_of_no_run_are_named(monkeypatch):
    """A width that the grid does not have."""
    own = replace(curve("loss", width=32), run=grid.Run(grid.UNBIASED, width=33), table="mine")
    monkeypatch.setattr(published, "run_curves", lambda: (own,))
    assert fidelity.check(["6.1"])[0].endswith(
        "mine.csv has curves of runs that are not in the grid: loss, unbiased, M = 33."
    )


@pytest.mark.parametrize(
    "run",
    [
        grid.Run(grid.UNBIASED, lmbda=1e-1, width=512),
        grid.Run(grid.UNBIASED, gamma=10.0),
        grid.Run(grid.UNBIASED, epochs=7),
        grid.Run(grid.TWO_TIMESCALE),
        grid.Run(grid.TORUS_BIASED, activation="cos"),
    ],
)
def test_other_runs_have_no_published_mean(run):
    assert published.curve_of(run, "distance_teacher") is None


def test_one_run_may_have_curves_of_other_seeds():
    run = grid.Run(grid.UNBIASED, 1e-2)
    mean, single = (published.curve_of(run, "distance_teacher", seeds) for seeds in (grid.SEEDS, [0]))
    assert mean.y[0] != single.y[0]


# --- ours beside the published ones -------------------------------------------------------------------------------


def test_a_missing_run_is_named_with_its_command():
    with pytest.raises(results.ResultError, match=r"make it with: python VarPro_ReLU_1d/Experiment\.py --seed 0"):
        records.mean_curve(grid.Run(grid.BIASED), [0], "loss")


def test_results_of_other_choices_are_none_of_the_papers(tmp_path):
    """They have the same names: a script's choices stand in the config alone."""
    run = grid.Run(grid.BIASED, width=32)
    for changed, said in (({"centre": 0.5}, "centre = 0.5, not 0.0"), ({"features": "mine"}, "features = mine, not")):
        results.save(run.path(0), {"config": run.choices | changed, "loss": torch.ones(3)})
        with pytest.raises(results.ResultError, match=f"was made with {said}.*: remove it, or give it a --name"):
            records.curves(run, [0], "loss")


def test_a_result_without_a_quantity_names_it(tmp_path):
    """Of an experiment that is compared with no limit."""
    run = grid.Run(grid.UNBIASED, width=32)
    results.save(run.path(0), {"config": run.choices, "loss": torch.ones(3)})
    with pytest.raises(results.ResultError, match=r"has no distance_diffusion, which its script did not measure"):
        records.curves(run, [0], "distance_diffusion")


def test_an_experiment_of_ones_own_is_a_line_of_the_grid(monkeypatch):
    with pytest.raises(ValueError, match=r"experiment 'Mine' is not allowed: .*a line of EXPERIMENTS"):
        grid.Run("Mine")
    own = grid.Experiment(features="relu_three_bumps", centre=0.0, limits=(), solver="dense")
    monkeypatch.setitem(grid.EXPERIMENTS, "Mine", own)
    run = grid.Run("Mine", width=32)
    assert run.biased
    assert run.choices == {"features": "relu_three_bumps", "centre": 0.0, "outer_update": "ridge"}
    assert run.diffusions == ()
    assert cost.seconds(run) > 10 * cost.seconds(grid.Run(grid.BIASED, width=32))


def curve(quantity: str, **parameters) -> published.RunCurve:
    """The first published curve of a quantity of an unbiased run on the circle."""
    run = grid.Run(grid.UNBIASED, **parameters)
    return next(each for each in published.run_curves() if (each.run, each.quantity) == (run, quantity))


def test_comparison_is_exact_for_the_published_curve_itself():
    """A fake run that is the published curve, and one that is 2 % above it."""
    theirs = curve("distance_teacher", width=32, lmbda=1e-3)
    theirs = replace(theirs, seeds=(0, 1))
    pretend_published(theirs, [0])
    pretend_published(theirs, [1], 1.02)
    exact, between = fidelity.compare(theirs, (0,)), fidelity.compare(theirs, (0, 1))
    assert exact.worst < EXACT
    assert (exact.ours, exact.vertices) == (theirs.curve.y[-1], len(theirs.curve.x))
    assert between.median == pytest.approx(0.01, abs=EXACT)
    assert not replace(between, median=0.0101).met


@pytest.mark.parametrize(("quantity", "bound"), [("distance_teacher", 0.01), ("loss", 0.03)])
def test_a_curve_is_met_up_to_its_bound(quantity, bound):
    theirs = curve(quantity, width=32)
    for seeds, factor, met in ((0, 1 + 0.9 * bound, True), (1, 1 - 0.9 * bound, True), (2, 1 + 1.1 * bound, False)):
        pretend_published(theirs, [seeds], factor)
        found = fidelity.compare(theirs, (seeds,))
        assert (found.met, found.allowed) == (met, bound)


def test_risks_below_the_round_off_of_float32_are_not_compared():
    theirs = curve("loss", lmbda=1e-4)
    pretend_published(theirs, [0])
    path = theirs.run.path(0)
    contents = results.load(path)
    contents["loss"][contents["loss"] < 1e-5] = 1e-8  # as in float64
    results.save(path, contents)
    found = fidelity.compare(theirs, (0,))
    assert found.worst < EXACT
    assert 0 < found.vertices < len(theirs.curve.x) == found.vertices + found.below
    assert f"{found.below} vertices below 1.3e-05" in found.note
    assert found.ours == 1e-8
    contents["loss"] *= 1.1
    results.save(path, contents)
    assert fidelity.compare(theirs, (0,)).median == pytest.approx(0.1, abs=EXACT)


def test_a_shortened_run_is_compared_as_far_as_it_goes():
    theirs = curve("distance_teacher", width=32)
    short = replace(theirs, run=replace(theirs.run, epochs=3200))
    epochs = torch.arange(0, 3201, 32)
    values = torch.from_numpy(np.interp(epochs, theirs.curve.x, theirs.curve.y))
    results.save(short.run.path(0), {"distance_epochs": epochs, "distance_teacher": values, "loss": torch.ones(3200)})
    found = fidelity.compare(short, (0,))
    assert found.vertices == (theirs.curve.x <= 3200).sum() < len(theirs.curve.x)
    assert found.worst < EXACT


def density(quantity: str, epoch: int) -> published.RunCurve:
    return next(each for each in published.run_curves() if (each.quantity, each.epoch) == (quantity, epoch))


def test_densities_of_the_diffusion_are_compared_at_their_own_epochs():
    theirs = density("density_diffusion", 1000)
    shown = torch.from_numpy(theirs.curve.y)
    contents = {"snapshot_epochs": torch.tensor([0, 1000]), "grid": torch.from_numpy(theirs.curve.x)}
    results.save(theirs.run.diffusions[0].path, contents | {"density": torch.stack([2 * shown, shown])})
    assert fidelity.compare(theirs, ()).worst < EXACT
    short = replace(theirs, run=replace(theirs.run, epochs=500))
    results.save(short.run.diffusions[0].path, contents | {"density": torch.stack([2 * shown, shown])})
    assert fidelity.compare(short, ()).command == "longer runs (EPOCHS)"


def test_learned_densities_are_those_of_the_neurons_of_all_seeds():
    theirs = density("density_learned", 1000)
    angles = np.random.default_rng(0).uniform(-math.pi, math.pi, (2, 2, 9))  # seed, snapshot, neuron
    weights = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=-1))
    for seed in (0, 1):
        contents = {"snapshot_epochs": torch.tensor([0, 1000]), "weights": weights[seed]}
        results.save(theirs.run.path(seed), contents)
    expected = records.smoothed_density(angles[:, 1], theirs.curve.x)
    np.testing.assert_allclose(fidelity._ours(theirs, (0, 1)), expected, rtol=EXACT)
    assert np.abs(fidelity._ours(theirs, (0,)) / expected - 1).max() > 0.01


@pytest.mark.parametrize(("text", "usual", "length"), [("5", 100, 5), ("2000", 100, 100), ("2000", 32000, 2000)])
def test_runs_are_shortened_and_never_lengthened(text, usual, length, monkeypatch):
    monkeypatch.setenv(grid.EPOCHS_VARIABLE, text)
    assert grid._length(usual) == length


@pytest.mark.parametrize("module", ["varpro.paper", "varpro.paper.work"])
def test_a_length_that_is_none_is_one_line(module):
    command = [sys.executable, "-m", module]
    found = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, env=os.environ | {grid.EPOCHS_VARIABLE: "0"}
    )
    assert found.returncode == 2
    assert re.fullmatch(
        rf"{re.escape(module)}: error: \$VARPRO_EPOCHS .*: allowed are whole numbers .*\n", found.stderr
    )


def test_the_tables_group_curves_by_their_figure():
    theirs = curve("distance_teacher", width=32, lmbda=1e-3)
    pretend_published(theirs, [0, 1], 1.01)
    text = fidelity.comparison_table("6.1", [0, 1])
    assert "Some runs are missing; make reproduce SEEDS=0-1 makes them." in text
    assert "expect seed noise" in text
    assert "`published/relu1d_2ts.csv`, seeds 0-1:" in text
    assert "`published/gamma_densities.csv`:" in text  # from the formula
    assert "1.00% | 1.00% |" in text
    assert "expect seed noise" not in fidelity.comparison_table("6.1")


def test_densities_are_compared_with_the_formula():
    text = fidelity.comparison_table("6.1")
    row = next(line for line in text.splitlines() if line.startswith("| density of the teacher, gamma 1000 "))
    assert row.endswith("| 122 | 0.00% | 0.00% |")


def test_accuracy_table():
    run = grid.ResNetRun("sgdm", 64)
    pretend_resnet(run, [0, 1])  # final and best accuracy are .992 and .982
    table = fidelity.accuracy_table({run: [0, 1, 2]})
    assert (
        table.splitlines()[-1] == "| sgdm, batch size 64, cifar10 | 2 | 0.987 ± 0.005 | 0.987 ± 0.005 | 0.905 | 0.907 |"
    )
    assert "| 0.905 | 0.907 |" in fidelity.accuracy_table({run: [2]})
    assert fidelity.accuracy_table({grid.DIGITS_RUNS[0]: [0]}).count("\n") == 3  # nothing ours, nothing published


def test_pass_table():
    run, new = (replace(grid.ResNetRun(name, 128), final_epochs=0, epochs=12) for name in ("sgdm", "varpro-running"))
    published_curve = published.accuracy(run)
    np.testing.assert_array_equal(published_curve.x, np.arange(13))  # of 110 passes
    accuracy = torch.tensor([0.1, 0.3, 0.5, *[0.6] * 6, 0.9, 0.7, 0.75, 0.8], dtype=torch.float64)
    for each in (run, new):
        results.save(each.path(1), {"accuracy": accuracy})
    lines = fidelity.pass_table({run: [0, 1], new: [1]}).splitlines()
    assert lines[2].startswith("| run | pass 2 | pass 4 | pass 6 | pass 8 | pass 10 | pass 12 | last 10: ")
    away = np.abs(accuracy.numpy() - published_curve.y)[1:].mean()
    noise = f"{accuracy[-10:].mean():.3f}, 0.300, 0.200"  # from .6 to .9; .9 to .7
    assert lines[4] == f"| sgdm, seed 1 | 0.500 | 0.600 | 0.600 | 0.600 | 0.700 | 0.800 | {noise} | {away:.3f} |"
    assert re.match(r"\| sgdm, published \| 0\.562 \| .* \|  \|$", lines[5])
    assert lines[6] == f"| varpro-running, seed 1 | 0.500 | 0.600 | 0.600 | 0.600 | 0.700 | 0.800 | {noise} |  |"


@pytest.mark.parametrize(
    ("changed", "vertices"),
    [
        ({}, 111),
        ({"epochs": 30, "final_epochs": 0}, 31),
        ({"epochs": 100, "final_epochs": 0}, 101),
        ({"epochs": 110, "final_epochs": 0}, 101),  # the published ones slow down there
        ({"dataset": "digits"}, None),
        ({"variant": "gupta"}, None),
        ({"optimizer": "varpro-running"}, None),
        ({"batch_size": 100}, None),
    ],
)
def test_published_accuracies_reach_as_far_as_the_rates_agree(changed, vertices):
    curve = published.accuracy(replace(grid.ResNetRun("shampoo", 128), **changed))
    assert (curve and len(curve.x)) == vertices


@pytest.mark.parametrize("experiment", [grid.UNBIASED, grid.BIASED, grid.TORUS_UNBIASED, grid.TORUS_BIASED])
def test_six_seeds_meet_the_published_curves(experiment):
    """The real thing at the smallest width: six seeds against the paper's own numbers, all 32000 epochs on the circle.

    On the torus, where an epoch costs ten times as much, the first quarter: the published vertices up to there.
    """
    published_run = grid.Run(experiment, width=32, epochs=32000)
    run = replace(published_run, epochs=8000) if published_run.on_torus else published_run
    with subprocess.Popen([sys.executable, run.script, *run.arguments(grid.SEEDS[3:])], cwd=ROOT) as other_core:
        load_script(run.script).main(run.arguments(grid.SEEDS[:3]))
    assert other_core.returncode == 0
    theirs = [each for each in published.run_curves() if each.run == published_run and each.seeds == grid.SEEDS]
    curves = [replace(each, run=run) for each in theirs]
    assert len(curves) == (2 if run.on_torus else 3)
    for found in (fidelity.compare(each, each.seeds) for each in curves):
        assert found.median < (PUBLISHED_TORUS if run.on_torus else PUBLISHED)
        assert found.met
        assert found.vertices + found.below >= 20


# --- arrivals -----------------------------------------------------------------------------------------------------


def pretend_way(run: grid.Run, seed: int, risks, distances, seconds, evaluations=None) -> None:
    """A result of ``run`` with these numbers at epochs 0, 1, ...; the risk of the last one is not in the file."""
    epochs = torch.arange(len(risks) + 1)
    contents = {"snapshot_epochs": epochs, "distance_epochs": epochs, "loss": torch.tensor(risks)}
    contents |= {"distance_teacher": torch.tensor([*distances, 0.0]), "seconds": torch.tensor([*seconds, 9.0])}
    contents |= {} if evaluations is None else {"evaluations": torch.tensor([*evaluations, 99.0])}
    results.save(run.path(seed), contents)


@pytest.fixture
def two_runs():
    """Gradient descent to risk 1 and distance 2, and a method that has that risk after 4 evaluations, in one seed."""
    descent = grid.Run(grid.UNBIASED)
    run = replace(descent, options=grid.METHODS["lm"].options, epochs=100)
    for seed in (0, 1):
        pretend_way(descent, seed, [8.0, 4.0, 1.0], [8.0, 4.0, 2.0], [0.0, 1.0, 2.0])
    pretend_way(run, 0, [8.0, 2.0, 0.5], [8.0, 5.0, 3.0], [5.0, 5.5, 6.5], [1.0, 2.0, 4.0])
    pretend_way(run, 1, [8.0, 2.0, 1.5], [8.0, 3.0, 1.0], [5.0, 5.5, 6.5], [1.0, 2.0, 4.0])
    return descent, run


def test_arrivals_count_evaluations_to_a_mark(two_runs):
    descent, run = two_runs
    own, method = arrivals.trials(descent, range(3)), arrivals.trials(run, range(3))
    assert own.arrivals("risk", 1.0) == [3.0, 3.0]  # after two epochs
    assert own.arrivals("distance", 2.0) == [2.0, 2.0]
    assert method.arrivals("risk", 1.0) == [4.0]
    assert method.arrivals("risk", 2.0) == [2.0, 2.0]
    assert method.arrivals("distance", 1.5) == [4.0, 2.0]
    assert (
        arrivals.evaluation_seconds(method.ways.values()) == 0.5
    )  # of the first iteration nothing counts but what it added
    assert arrivals.trials(run, [2]).ways == {}
    one = records.Way(*np.ones((4, 1)))  # what a run of one epoch leaves
    assert math.isnan(arrivals.evaluation_seconds([one]))


def test_the_table_of_arrivals(two_runs):
    descent, run = two_runs
    text = arrivals.table({run: [0, 1], descent: [0, 1]}, [("risk", 1.0), ("distance", 1.5)])
    first, second = text.splitlines()[-2:]
    problem = "| gamma 100, lambda 0.001, M = 1024 |"
    assert first == f"{problem} gradient descent | 2 | 3: 3 s | 3: 3 s | 1 | 2 |"
    assert second == f"{problem} Levenberg-Marquardt | 2 | 4, 1 of 2: 2 s | 3 (2 to 4): 1.5 s | 1 | 2 |"
    assert arrivals.table({}) == "No results at hand."
    text = fidelity.report(["optimizers"], [0, 1])
    assert "| Levenberg-Marquardt | 2 |" in text


def test_less_risk_and_yet_farther(two_runs):
    descent, run = two_runs
    text = arrivals.lower_risk_but_farther({run: [0, 1], descent: [0, 1]})
    row = "| gamma 100, lambda 0.001, M = 1024 | Levenberg-Marquardt | 1 of 2 | 0.5 | 1.5 |"
    assert text.splitlines()[-1] == row
    assert "Nowhere" in arrivals.lower_risk_but_farther({descent: [0, 1]})


# --- the check as a command ---------------------------------------------------------------------------------------


def test_the_check_fails_where_a_curve_is_not_met():
    theirs = replace(curve("distance_teacher", width=32, lmbda=1e-3), seeds=grid.SEEDS)
    theirs = next(each for each in published.run_curves() if each.run == theirs.run and each.seeds == grid.SEEDS)
    pretend_published(theirs, theirs.seeds)
    pretend_published(theirs, theirs.seeds[:1], 10.0)
    text, verdict = fidelity.check(["6.1"])
    assert not verdict
    assert "NOT MET |" in text
    assert f"Not met: {fidelity.compare(theirs, theirs.seeds).title} ({theirs.table}): " in text


def test_the_check_says_how_many_are_missing():
    words = [sys.executable, "-m", "varpro.paper", "--check", "--section", "6.1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    # teacher densities need no results
    assert done.returncode == 0, done.stderr
    assert "131 of 137 are missing (10 of density_evolution, 72 of relu1d_2ts, " in done.stdout
    assert "); make reproduce makes them." in done.stdout
    assert done.stdout.splitlines()[-1] == "6 published curves at hand, 6 of them met."


def test_the_check_of_nothing_is_not_passed():
    text, verdict = fidelity.check(["appendix-b", "resnets-cifar10"])
    assert not verdict
    missing = "16 of 16 are missing (8 of convolution_width_distance, 8 of convolution_width_risk); "
    assert f"{missing}make reproduce SECTION=appendix-b SEEDS=0-5 makes them." in text
    assert "so none is checked" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--check", "--seeds", "0"], "--seeds: has no effect here; "),
        (["--check", "--plan"], "--plan: has no effect here; "),
        (["--seeds", "x"], "seeds 'x': allowed are "),
        (["--section", "7"], "section '7' is not allowed: all, 6.1, "),
        (["--section", "6.1,,appendix-b"], "section '' is not allowed: "),
        (["--check", "--section", ""], "section '' is not allowed: "),
        (["--check", "--section", "mean-field"], "--check: section mean-field has no published curves to be checked"),
        (["--plan", "--section", "6.1,all"], "section '6.1,all' is not allowed: all stands alone"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"varpro.paper: error: {said}")
    assert line.count("\n") == 1


def test_a_table_is_kept_whole_or_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fidelity, "report", lambda sections, seeds: "the table")
    command.main(["--output", str(tmp_path / "new" / "table.md")])
    assert (tmp_path / "new" / "table.md").read_text(encoding="utf-8") == "the table\n"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command.main(["--output", str(tmp_path / "new" / "table.md" / "more.md")])
    assert stopped.value.code == 2
    assert re.fullmatch(r"\S+: error: \S+more\.md: cannot be written: [^\n]*\n", capsys.readouterr().err)


# --- costs --------------------------------------------------------------------------------------------------------

SAME = {"circle": 1.0, "torus": 1.0, "resnet": 1.0}


def test_plan_counts_what_is_missing():
    text = cost.plan(["appendix-b"], [0, 1], SAME)
    assert "seeds 0-1: 30 runs, 30 of them to be computed after 1 diffusion: about " in text
    diffusion = grid.Diffusion(domain="torus")
    lacking = cost.estimate(grid.SECTIONS["appendix-b"].wanted([0]), SAME)
    diffusion.path.parent.mkdir(parents=True)
    diffusion.path.touch()
    there = cost.estimate(grid.SECTIONS["appendix-b"].wanted([0]), SAME)
    assert "30 of them to be computed: about " in cost.plan(["appendix-b"], [0, 1], SAME)
    assert lacking.seconds > there.seconds
    assert lacking.megabytes - there.megabytes == pytest.approx(36.7, rel=EXACT)
    for run in grid.SECTIONS["appendix-b"].runs:
        pretend(run, 0, 1)
    assert "30 runs, all at hand" in cost.plan(["appendix-b"], [0, 1], SAME)
    assert "all at hand" in cost.plan(["appendix-b"], None, SAME)
    assert "all at hand" not in cost.plan(["appendix-b"], [2], SAME)


def test_the_plan_of_several_counts_a_shared_run_once():
    names = ["6.1", "mean-field"]
    *single, total, left = cost.plan(names, None, SAME).replace(" Then", "\nThen").splitlines()
    counts = [int(line.split(": ")[1].split()[0]) for line in (*single, total)]
    assert len(single) == 2
    assert counts[2] == sum(counts[:2]) - 12  # two runs of six seeds
    assert total.startswith("In all: ")
    assert "GB of results." in total
    assert left.startswith("Then the notebooks")


def test_the_plan_of_all_says_how_to_get_what_is_not_at_hand(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv(image_files.DATA, str(tmp_path))
    monkeypatch.setattr(cost, "speed", lambda kinds: SAME)
    command.main(["--plan", "--section", "all"])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if " of them to be computed" in line]) == 6
    assert lines[-1].startswith("Without resnets-start and resnets-cifar10: ")


def test_the_report_of_several_ends_with_the_verdict():
    text = fidelity.report(["6.1", "mean-field", "optimizers", "resnets"], [0, 1])
    titles = [line for line in text.splitlines() if line.startswith("# ")]
    assert titles[:4] == [f"# {grid.SECTIONS[name].title}" for name in ("6.1", "mean-field", "optimizers", "resnets")]
    assert "`published/gamma_densities.csv`:" in text
    assert "No results at hand that reach far enough." in text  # of the study
    assert "No results at hand.\n" in text  # of the optimizers
    assert "Test accuracy, mean over seeds" in text
    assert titles[4:] == ["# Are the published curves met?"]
    assert text.splitlines()[-1] == "6 published curves at hand, 6 of them met."


def test_costs_grow_with_the_factor_of_this_machine():
    wanted = grid.SECTIONS["appendix-b"].wanted()
    quick, slow = (cost.estimate(wanted, SAME | {"torus": factor}).seconds for factor in (1.0, 5.0))
    assert slow - cost.START_SECONDS == pytest.approx(5 * (quick - cost.START_SECONDS), rel=EXACT)


def test_one_long_run_is_not_shared_out():
    run = grid.Run(grid.TORUS_UNBIASED)
    (diffusion,) = run.diffusions
    diffusion.path.parent.mkdir(parents=True)
    diffusion.path.touch()
    assert cost.estimate({run: [0]}, SAME).seconds == pytest.approx(cost.seconds(run) + cost.START_SECONDS, rel=EXACT)
    both = {run: [0], replace(run, lmbda=1e-2): [0]}
    assert cost.estimate(both, SAME).seconds == pytest.approx(cost.seconds(run) + cost.START_SECONDS, rel=EXACT)


def test_the_probes_measure_something():
    """Every kind of run has one; none is compiled, and the fastest of several turns is no shorter than the clock."""
    runs = [run for section in grid.SECTIONS.values() for run in section.runs]
    kinds = {cost.kind(run) for run in runs}
    factors = cost.speed(kinds)
    assert factors.keys() == kinds
    assert all(0.05 < factor < 50 for factor in factors.values())
    assert all(cost.seconds(run) > 0 and cost.memory(run) > 0 for run in runs)


# --- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [None, [0], list(range(6))])
@pytest.mark.parametrize("name", grid.SECTIONS)
def test_batches_hold_every_run_once_and_are_even(name, seeds):
    wanted = grid.SECTIONS[name].wanted(seeds)
    batches = work.batches(wanted)
    found: dict = {}
    for batch in batches:
        for run, of in batch.items():
            found.setdefault(run, []).extend(of)
            assert len(of) == 1 or cost.seconds(run) < cost.BATCH_SECONDS  # of a long run every seed by itself
    assert found == wanted
    assert sum(map(len, batches)) == sum(
        len(seeds) if cost.seconds(run) >= cost.BATCH_SECONDS else 1 for run, seeds in wanted.items()
    )
    spent = [sum(cost.seconds(run) * len(of) for run, of in batch.items()) for batch in batches]
    alone = [
        len(batch) == 1 and cost.seconds(*batch) * len(wanted[next(iter(batch))]) >= cost.BATCH_SECONDS
        for batch in batches
    ]
    short = [total for total, long in zip(spent, alone, strict=True) if not long]
    assert len(short) % 2 == 0
    longest = max((cost.seconds(run) for run in wanted if cost.seconds(run) < cost.BATCH_SECONDS), default=0.0)
    assert not short or max(short) - min(short) < max(1.5, longest)  # seconds: two cores end together


def test_a_batch_goes_on_after_a_run_that_fails(capsys, monkeypatch):
    good = [grid.Run(grid.BIASED, width=width, epochs=5) for width in (8, 9)]
    bad = [grid.Run(grid.BIASED, lmbda=-1.0, width=8, epochs=5), grid.Run(grid.BIASED, width=10, epochs=5)]
    script = work._script(good[0].script)
    usual = script.main
    broken = bad[1].arguments([0])
    monkeypatch.setattr(script, "main", lambda argv: 1 / 0 if argv == broken else usual(argv))
    assert work.perform({good[0]: [0, 1], bad[0]: [0], bad[1]: [0], good[1]: [0]}) == 2
    assert [good[0].path(seed).exists() for seed in (0, 1)] == [True, True]
    assert good[1].path(0).exists()
    said = capsys.readouterr()
    assert "argument --lambda" in said.err
    assert "ZeroDivisionError" in said.err
    assert said.err.count("failed: VarPro_ReLU_1d, lambda ") == 2


def test_a_batch_stops_where_a_signal_stops_its_run(monkeypatch):
    runs = [grid.Run(grid.BIASED, width=width, epochs=5) for width in (8, 9)]
    monkeypatch.setattr(work._script(runs[0].script), "main", lambda argv: sys.exit(143))
    with pytest.raises(SystemExit, match="143"):
        work.perform({run: [0] for run in runs})


def test_a_batch_adds_what_is_missing_and_leaves_the_rest_alone(capsys):
    run = grid.Run(grid.BIASED, width=8, epochs=5)
    assert work.perform({run: [0]}) == 0
    before = run.path(0).read_bytes()
    assert work.perform({run: [0, 1]}) == 0
    assert run.path(0).read_bytes() == before
    assert run.path(1).exists()
    capsys.readouterr()
    assert work.perform({run: [0, 1]}) == 0
    assert capsys.readouterr().out == ""


def test_runs_of_a_batch_are_those_of_the_script_alone():
    """What ran before in the same process leaves no trace in the numbers."""
    other, run = grid.Run(grid.TWO_TIMESCALE, width=16, epochs=40), grid.Run(grid.UNBIASED, width=16, epochs=40)
    work.perform({other: [0], run: [0]})
    found = results.load(run.path(0))
    run.path(0).unlink()
    subprocess.run([sys.executable, *run.command([0]).split()[1:]], cwd=ROOT, check=True, capture_output=True)
    alone = results.load(run.path(0))
    assert torch.equal(found["weights"], alone["weights"])
    assert torch.equal(found["loss"], alone["loss"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "99"], "argument --batch: 99 is not allowed: there are "),
        (["--batch", "1", "--seeds", "x"], "seeds 'x': allowed are "),
        ([], "the following arguments are required: --batch"),
    ],
)
def test_the_batch_command_refuses_in_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        work.main(arguments)
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"varpro.paper.work: error: {said}")
    assert line.count("\n") == 1
