"""The figures' arithmetic, messages and files; the figures themselves are drawn in test_notebooks.py."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY_EPOCHS, pretend_resnet
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tolerances import EXACT, FEATURE, FIGURE, FLOAT32_STATE

from varpro import results
from varpro.figures import animation, circle, mean_field, optimizers, panels, publish, resnets, torus
from varpro.paper import grid, published, records, study

GRID = np.linspace(-math.pi, math.pi, 512, endpoint=False)
scales = st.floats(0.03, 3.0)
some_angles = st.lists(st.floats(-10, 10), min_size=1, max_size=20).map(np.array)


@pytest.fixture
def empty_results(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("VARPRO_SEEDS", raising=False)
    return tmp_path / "results"


def pretend(run: grid.Run, *seeds: int) -> None:
    """An empty file in the place of a result: enough for what only looks whether it is there."""
    for seed in seeds:
        run.path(seed).parent.mkdir(parents=True, exist_ok=True)
        run.path(seed).touch()


# --- smoothing ----------------------------------------------------------------------------------------------------


@given(some_angles, scales)
def test_smoothed_density_has_mass_one_and_is_not_negative(angles, scale):
    density = records.smoothed_density(angles, GRID, scale)
    assert density.mean() * 2 * math.pi == pytest.approx(1, abs=EXACT)
    assert -density.min() < EXACT


@given(st.floats(-math.pi, math.pi), scales)
def test_one_neuron_is_a_wrapped_gaussian(angle, scale):
    windings = 2 * math.pi * np.arange(-6, 7)[:, None]
    gaussians = np.exp(-((GRID - angle + windings) ** 2) / (2 * scale**2)) / (scale * math.sqrt(2 * math.pi))
    density = records.smoothed_density([angle], GRID, scale)
    np.testing.assert_allclose(density, gaussians.sum(axis=0), rtol=0, atol=10 * EXACT)  # up to 13


def test_the_published_scale_at_a_neuron():
    peak = records.smoothed_density(np.array([3.0]), np.array([3.0, 3.0 - 2 * math.pi]))
    np.testing.assert_allclose(peak, 1 / (0.04 * math.sqrt(2 * math.pi)), rtol=EXACT)


def test_smoothing_averages_over_neurons_and_seeds():
    angles = np.random.default_rng(0).uniform(-math.pi, math.pi, (3, 5))  # (seeds, M)
    one_by_one = [records.smoothed_density(angle, GRID) for angle in angles.ravel()]
    found = records.smoothed_density(angles, GRID)
    np.testing.assert_allclose(found, np.mean(one_by_one, axis=0), rtol=0, atol=EXACT)


def test_smoothing_on_the_torus_is_a_wrapped_gaussian_of_mass_one():
    grid, scale = torus.centres(64), 0.2
    points = np.array([[1.9, -0.3], [-1.2, 1.95]])
    windings = 4 * np.arange(-3, 4)
    offsets = grid[:, None, None, None] - points + windings[:, None, None]  # (G, windings, M, 2)
    gaussians = np.exp(-(offsets**2) / (2 * scale**2)).sum(axis=1) / (scale * math.sqrt(2 * math.pi))  # (G, M, 2)
    expected = np.einsum("am,bm->ab", gaussians[..., 0], gaussians[..., 1]) / len(points)
    density = torus.smoothed_density(points, grid, scale)
    np.testing.assert_allclose(density, expected, rtol=0, atol=EXACT)
    assert density.mean() * 16 == pytest.approx(1, abs=EXACT)


def test_smoothed_cells_are_smoothed_neurons_in_their_centres():
    rng = np.random.default_rng(0)
    cells, places = rng.uniform(0, 3, (12, 12)), torus.centres(20)
    x = torus.centres(12)
    neurons = [torus.smoothed_density(np.array([[a, b]]), places, 0.2) for a in x for b in x]
    expected = np.average(neurons, axis=0, weights=cells.ravel())
    np.testing.assert_allclose(torus.smoothed_cells(cells, places, 0.2), expected, rtol=0, atol=EXACT)


def test_densities_of_torus_runs_are_those_of_their_files(tiny_results, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tiny_results))
    (run,) = (replace(run, epochs=TINY_EPOCHS) for run in grid.find("convolution_density")[1].runs)
    (diffusion,) = run.diffusions
    learned, limit = torus.feature_density(run, (0,)), torus.diffusion_density(diffusion)
    kept = results.load(run.path(0))["weights"]
    np.testing.assert_array_equal(learned.at(40), torus.smoothed_density(kept[40].numpy(), learned.places))
    np.testing.assert_allclose(limit.at(0), 1 / 16, rtol=FLOAT32_STATE)
    assert limit.at(TINY_EPOCHS).mean() * 16 == pytest.approx(1, abs=EXACT)
    modes = limit.at(TINY_EPOCHS)[[20, 60], [40, 60]]  # at (-1, 0) and (1, 1), up to half a cell
    assert modes.min() == pytest.approx(limit.at(TINY_EPOCHS).max(), rel=FIGURE["mode"])


def test_teacher_signal_of_one_neuron_peaks_there():
    grid = np.linspace(-2, 2, 33)
    signal = torus.teacher_signal(torch.tensor([[1.0, -0.5]]), grid)
    assert np.unravel_index(signal.argmax(), signal.shape) == (24, 12)
    assert signal.max() == pytest.approx(8, rel=FEATURE["float32"])  # 2 / s^2 with s = 1/2
    np.testing.assert_allclose(signal[0], signal[-1], rtol=0, atol=8 * FEATURE["float32"])  # -2 and 2 are one


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30).map(np.array), st.integers(1, 40))
def test_moving_average(values, window):
    averages = resnets.moving_average(values, window)
    window = min(window, len(values))
    expected = [values[first : first + window].mean() for first in range(len(values) - window + 1)]
    np.testing.assert_allclose(averages, expected, rtol=0, atol=EXACT)


def test_the_loss_of_a_pass_stands_at_its_end(empty_results):
    run = replace(grid.DIGITS_RUNS[0], epochs=3, final_epochs=1)
    results.save(run.path(0), {"loss": torch.arange(12.0)})  # three steps a pass
    axes = Figure().subplots()
    resnets.loss_panel(axes, run, [0], (0, 0, 0, 1))
    (line,) = axes.lines
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (1, 4)
    assert (line.get_ydata()[0], line.get_ydata()[-1]) == (1, 10)  # means of 0 1 2 and 9 10 11


def test_the_start_shows_each_run_beside_the_published_one(empty_results, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VARPRO_FIGURES", str(tmp_path))
    ours, theirs = {"sgdm", "varpro-running"}, {"varprom", "sgdm", "shampoo"}
    for run in grid.START_RUNS:
        if run.optimizer in ours:
            pretend_resnet(run, [0])
    accuracy, loss = resnets.publish("resnet_start").axes
    assert "2 results (first: VarPro_resnet, varprom, batch size 128, cifar10, the first" in capsys.readouterr().out
    dotted = [line for line in accuracy.lines if line.get_linestyle() != "-"]
    assert len(dotted) == len(theirs)
    assert len(accuracy.lines) - len(dotted) == len(loss.lines) == len(ours)
    colours = [line.get_color() for line in accuracy.lines]
    assert len(set(colours)) == len(ours | theirs)


# --- snapshots ----------------------------------------------------------------------------------------------------


def test_state_at_is_linear_between_snapshots():
    epochs, states = np.array([0, 32, 64]), np.array([[0.0, 1.0], [32.0, 3.0], [0.0, 3.0]])
    for epoch, expected in ((0, [0, 1]), (8, [8, 1.5]), (32, [32, 3]), (48, [16, 3]), (64, [0, 3])):
        np.testing.assert_array_equal(records.state_at(epoch, epochs, states), expected)


@pytest.mark.parametrize("epochs", [np.arange(0, 32001, 32), np.arange(65), np.arange(2)])
def test_animation_frames_are_snapshots_and_reach_the_end(epochs):
    frames = animation.frame_epochs(epochs, 100)
    assert frames[0] == 0
    assert frames[-1] == min(epochs[-1], 9984)  # the last snapshot before 10000
    assert len(frames) <= 100
    assert np.all(np.diff(frames) > 0)
    assert np.all(np.isin(frames, epochs))


# --- published curves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quantities"),
    [
        ("risk_width", ["loss"]),
        ("distance_width", ["distance_teacher", "distance_diffusion"]),
        ("distance_lambda", ["distance_teacher", "distance_diffusion"]),
        ("distance_gamma", ["loss", "distance_teacher", "distance_diffusion"]),
        ("two_timescale", ["loss", "distance_teacher", "distance_diffusion"]),
        ("convolution_risk_width", ["loss"]),
        ("convolution_distance_width", ["distance_teacher"]),
    ],
)
def test_every_line_of_a_published_figure_has_its_published_curve(name, quantities):
    lines = panels.lines_of(grid.find(name)[1], None)
    curves = [line.theirs(quantity) for line in lines for quantity in quantities]
    assert all(curve is not None for curve in curves)
    assert len({curve.y.tobytes() for curve in curves}) == len(curves)


def test_runs_that_measure_more_have_the_published_curves_of_their_training():
    """In the figure of both limits, and in the study of the limit that shows two of its runs."""
    runs = grid.find("distance_projected")[1].runs
    assert {(run.lmbda, run.width) for run in runs} == {(1e-3, 32), (1e-3, 128), (1e-3, 512)} | {
        (lmbda, 1024) for lmbda in (1e-1, 1e-2, 1e-3, 1e-4)
    }
    for run in runs:
        line = panels.Line(run, (0,), (0, 0, 0, 1))
        for quantity in ("distance_teacher", "distance_diffusion"):
            usual = grid.Run(grid.UNBIASED, run.lmbda, run.width)
            assert line.theirs(quantity) is published.curve_of(usual, quantity) is not None
        assert line.theirs("distance_projected") is None
    assert len(set(runs) & set(grid.find("mean_field_ladder")[1].runs)) == 2


def test_the_figure_of_both_limits_draws_them_on_one_scale(tiny_results, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tiny_results))
    usual = grid.find("distance_projected")[1]
    spec = replace(usual, runs=[replace(run, epochs=TINY_EPOCHS) for run in usual.runs])
    top, bottom = circle.distances_to_limits(spec, [0]).subfigs
    of_rows = [run for run in spec.runs if run.lmbda == 1e-3], [run for run in spec.runs if run.width == 1024]
    for part, runs in zip((top, bottom), of_rows, strict=True):
        teacher, plain, projected = part.axes
        assert teacher.get_ylim() == plain.get_ylim() == projected.get_ylim()
        for run, line in zip(runs, projected.lines, strict=True):
            record = results.load(run.path(0))
            where = np.searchsorted(record["distance_epochs"].numpy(), line.get_xdata())
            np.testing.assert_array_equal(line.get_ydata(), record["distance_projected"].numpy()[where])
        (apart,) = (line for line in plain.lines if line.get_linestyle() == "--")
        expected = study.between_limits(apart.get_xdata() * grid.TIME_SCALE, runs[0])
        np.testing.assert_array_equal(apart.get_ydata(), expected)
        assert expected[-1] > 1e-3


# --- seeds and what is missing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seeds"), [("0", [0]), ("0-5", [0, 1, 2, 3, 4, 5]), ("3,0-1", [0, 1, 3]), ("", None)])
def test_requested_seeds(monkeypatch, text, seeds):
    monkeypatch.setenv("VARPRO_SEEDS", text)
    assert publish.requested_seeds() == seeds


@pytest.mark.parametrize("text", ["a", "-1", "0;1", "5-x"])
def test_requested_seeds_refuses_anything_else(monkeypatch, text):
    monkeypatch.setenv("VARPRO_SEEDS", text)
    with pytest.raises(ValueError, match="allowed are"):
        publish.requested_seeds()


LAMBDA = grid.find("distance_lambda")[1]


def test_missing_names_the_first_of_several_and_its_command(empty_results):
    spec = replace(LAMBDA, diffusions=[grid.Diffusion(100.0)])
    sentence = publish.missing("6.1", spec)
    assert "'distance_lambda': 9 results (first: the diffusion with gamma 100)" in sentence
    assert f"python make_diffusion.py --epochs {grid.EPOCHS} --gamma 100" in sentence
    assert "make all with: make reproduce" in sentence
    assert "\n" not in sentence


def test_missing_names_the_only_one(empty_results):
    first, *others = LAMBDA.runs
    for run in others:
        pretend(run, 4)  # any seed of the figure will do where none is asked for
    label = f"{first.experiment}, lambda {first.lmbda:g}, width 1024, gamma 100, seed 0"
    expected = f"Missing for the figure 'distance_lambda': {label}; make it with: {first.command([0])}"
    assert publish.missing("6.1", LAMBDA) == expected


def test_missing_counts_requested_seeds(empty_results):
    run = LAMBDA.runs[0]
    spec = replace(LAMBDA, runs=[run])
    pretend(run, 1)
    assert publish.missing("6.1", spec, [0, 1, 2]).endswith(run.command([0, 2]))
    assert "seed 0,2;" in publish.missing("6.1", spec, [0, 1, 2])
    pretend(run, 0, 2)
    assert publish.missing("6.1", spec, [0, 1, 2]) == ""
    assert records.seeds_at_hand(run) == (0, 1, 2)


MODULES = {
    "6.1": circle,
    "appendix-b": torus,
    "mean-field": mean_field,
    "resnets": resnets,
    "resnets-start": resnets,
    "resnets-cifar10": resnets,
    "optimizers": optimizers,
}
FIGURES = [(section, spec.name) for section in grid.SECTIONS for spec in grid.SECTIONS[section].figures]


def test_every_layout_is_used_and_there():
    for module in (circle, torus, mean_field, resnets, optimizers):
        named = {grid.find(name)[1].layout for section, name in FIGURES if MODULES[section] is module}
        assert module.publish._layouts.keys() == named


def test_an_unknown_figure_is_refused():
    with pytest.raises(ValueError, match="figure 'x': there are"):
        circle.publish("x")
    with pytest.raises(
        ValueError, match="figure 'convolution_density' is one of section appendix-b: here are those of"
    ):
        circle.publish("convolution_density")  # its layout has the name of one here


def test_lines_may_be_told_apart_by_anything(tiny_results, monkeypatch):
    """A property of runs that has no symbol and no colours of its own."""
    monkeypatch.setenv("VARPRO_RESULTS", str(tiny_results))
    runs = [grid.Run(experiment, width=32, epochs=TINY_EPOCHS) for experiment in (grid.BIASED, grid.UNBIASED)]
    spec = grid.Figure("mine", "distances", runs, by="experiment")
    legend = circle.distances(spec, [0]).legends[0]
    assert [text.get_text() for text in legend.get_texts()][:2] == [grid.BIASED, grid.UNBIASED]


def test_both_limits_are_those_of_the_teacher(tmp_path, monkeypatch):
    """Of another gamma and time step the two are another distance apart."""
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    run = grid.Run(grid.UNBIASED, gamma=10.0, epochs=8, options=(("time_scale", 0.5),))
    assert panels.limits_entry(run) == []
    for name, density in (("diffusion", torch.ones(2, 16)), ("projected", torch.arange(32.0).reshape(2, 16) + 1)):
        angles = torch.linspace(-3, 3, 16, dtype=torch.float64)
        contents = {"snapshot_epochs": torch.tensor([0, 8]), "grid": angles, "density": density.double() / 16}
        results.save(run.limit(name).path, contents)
    assert [label for label, _ in panels.limits_entry(run)] == ["the two limits from each other"]
    apart = study.between_limits([0.0, 4.0, 5.0], run)
    assert apart[0] > apart[1] > 0
    assert math.isnan(apart[2])


def test_the_state_that_a_way_has_reached():
    ways = [
        records.Way(np.array([1.0, 3.0, 9.0]), np.zeros(3), np.array([4.0, 2.0, 1.0]), np.zeros(3)),
        records.Way(np.array([2.0, 3.0, 4.0]), np.zeros(3), np.array([8.0, 6.0, 5.0]), np.zeros(3)),
    ]
    costs, values = optimizers.reached(ways, "risk")
    assert (costs[0], costs[-1]) == (2.0, pytest.approx(9.0, rel=EXACT))
    for way, row in zip(ways, values, strict=True):
        expected = [way.risk[way.evaluations <= cost * (1 + 1e-9)][-1] for cost in costs]
        np.testing.assert_array_equal(row, expected)


# --- drawing ------------------------------------------------------------------------------------------------------


def test_run_panel_draws_the_mean_over_seeds_and_a_band(empty_results, tiny_results, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tiny_results))
    run = replace(grid.Run(grid.UNBIASED, width=32), epochs=TINY_EPOCHS)
    first = results.load(run.path(0))
    scaled = dict(first, distance_teacher=3 * first["distance_teacher"], loss=2 * first["loss"])
    monkeypatch.setenv("VARPRO_RESULTS", str(empty_results))
    results.save(run.path(0), first)
    results.save(run.path(1), scaled)
    axes = Figure().subplots()
    panels.run_panel(axes, [panels.Line(run, (0, 1), (0, 0, 0, 1))], "distance_teacher", log_epochs=False)
    (line,) = axes.lines
    expected = 2 * first["distance_teacher"][first["distance_epochs"] == line.get_xdata()[-1]][0]
    assert line.get_xdata()[-1] == TINY_EPOCHS
    assert line.get_ydata()[-1] == pytest.approx(float(expected), rel=EXACT)
    assert len(axes.collections) == 1
    axes = Figure().subplots()
    panels.run_panel(axes, [panels.Line(run, (0,), (0, 0, 0, 1))], "loss", log_epochs=True)
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(TINY_EPOCHS))
    np.testing.assert_array_equal(line.get_ydata(), first["loss"].numpy())
    assert len(axes.collections) == 0


def test_two_timescale_and_varpro_are_compared_over_the_same_seeds(empty_results):
    spec = replace(grid.find("two_timescale")[1], runs=[grid.Run(e) for e in (grid.UNBIASED, grid.TWO_TIMESCALE)])
    pretend(spec.runs[0], 0, 1, 2)
    assert [line.seeds for line in circle.compared(panels.lines_of(spec, range(6)))] == [(0, 1, 2), ()]
    pretend(spec.runs[1], 0)
    assert [line.seeds for line in circle.compared(panels.lines_of(spec, range(6)))] == [(0,), (0,)]


def test_what_is_fixed_stands_above_the_legend(empty_results):
    specs = {name: grid.find(name)[1] for name in NOTES}
    notes = {name: panels.note_of(spec, panels.lines_of(spec, None)) for name, spec in specs.items()}
    assert notes == {name: f"{fixed}; no results" for name, fixed in NOTES.items()}


NOTES = {
    "distance_width": r"$\lambda = 10^{-3}$, $\gamma = 100$",
    "distance_gamma": r"unbiased, $M = 1024$, $\lambda = 10^{-4}$",
    "convolution_distance_gamma": r"unbiased, $M = 1024$, $\lambda = 10^{-2}$",
    "convolution_diffusion_width": r"unbiased, $\lambda = 10^{-3}$, $\gamma = 100$",
    "convolution_activation": r"$M = 1024$, $\lambda = 10^{-3}$, $\gamma = 100$",
}


@pytest.mark.parametrize(("section", "name"), FIGURES)
def test_without_results_a_figure_is_skipped_with_a_sentence(
    empty_results, tmp_path, monkeypatch, capsys, section, name
):
    folder = tmp_path / "figures"
    monkeypatch.setenv("VARPRO_FIGURES", str(folder))
    figure, said = MODULES[section].publish(name), capsys.readouterr().out
    if name in ("gamma_densities", "convolution_teacher", "convolution_harmonics"):  # drawn without results
        assert figure is not None
        assert said == ""
    else:
        assert (figure is None) == (name not in ("resnet_start", "resnet_accuracy_cifar10"))  # published curves alone
        assert re.fullmatch(rf"Missing for the figure '{name}': .* with: python \S+\.py .*\n", said)
        assert (figure is None) == (not (folder / f"{name}.pdf").exists())


def test_a_saved_figure_is_a_pdf_with_the_same_bytes_every_time(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_FIGURES", str(tmp_path / "new" / "folder"))
    path = tmp_path / "new" / "folder" / "gamma_densities.pdf"
    first = circle.publish("gamma_densities") and path.read_bytes()
    second = circle.publish("gamma_densities") and path.read_bytes()
    assert first == second
    assert first.startswith(b"%PDF")


def test_harmonics_of_the_features_stand_beside_those_of_the_projected_diffusion(tiny_results, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tiny_results))
    times = [epochs * grid.TIME_SCALE for epochs in (0, TINY_EPOCHS // 2, TINY_EPOCHS)]
    monkeypatch.setattr(study, "TIMES", times)
    (run,) = grid.find("mean_field_harmonics")[1].runs
    spec = replace(grid.find("mean_field_harmonics")[1], runs=[replace(run, epochs=TINY_EPOCHS)])
    for axes in mean_field.harmonics(spec, [0]).axes:
        marked = [line.get_marker() not in ("", "None", None) for line in axes.lines]
        assert marked == [True, True, False, False]  # mu and u mu of the features, then of the limit
        assert all(len(line.get_ydata()) == len(axes.lines[0].get_xdata()) for line in axes.lines)


def test_an_error_alone_is_the_distance_from_the_last_run_of_the_same_seed(monkeypatch):
    def states(run, seed):
        angles = np.linspace(0, 5, 8) * (1 + 1 / run.width) + seed
        points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        return study.States(np.array([0, *study.TIMES]), np.stack([points] * 4), np.ones((4, 8)))

    monkeypatch.setattr(study, "states", states)
    runs = [grid.Run(grid.MEAN_FIELD, width=width) for width in (8, 16, 32)]
    found = mean_field._errors_alone([panels.Line(run, (0, 1), "black", {}, (0, 1)) for run in runs])
    for run, rows in zip(runs[:2], found, strict=True):
        expected = [[study.gap(states(run, s), states(runs[2], s), t) for t in study.TIMES] for s in (0, 1)]
        np.testing.assert_allclose(rows, expected, rtol=EXACT)


@pytest.mark.parametrize(("module", "name"), [(circle, "diffusion_animation"), (torus, "convolution_animation")])
def test_both_densities_of_a_film_move(module, name, tiny_results, monkeypatch):
    """Below the clock, in the left part and in the right one."""
    monkeypatch.setenv("VARPRO_RESULTS", str(tiny_results))
    usual = grid.find(name)[1]
    parts = {
        part: [replace(each, epochs=TINY_EPOCHS) for each in getattr(usual, part)] for part in ("runs", "diffusions")
    }
    film = module.animation(replace(usual, **parts), [0])
    first, last = (np.asarray(film.frames[k]) for k in (0, -1))
    moved = (first != last).any(axis=2)[len(first) // 5 :].any(axis=0)
    assert moved[: len(moved) // 4].any()
    assert moved[len(moved) // 3 :].any()
