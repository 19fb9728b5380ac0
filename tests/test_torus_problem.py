"""The torus of Appendix B: radial feature maps, seeded draws, distances, and the scripts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from hypothesis import given
from hypothesis import strategies as st
from problems import BUMP
from tolerances import EXACT, FLOAT32_STATE, GRADIENT, PINNED, PRINTED, RESIDUAL, SOLVE, WRAPPED

from varpro import results
from varpro.distances import TorusMeasure
from varpro.domains.torus import TORUS, lattice, wrap_torus
from varpro.features import RADIAL_KERNELS, RadialTorus
from varpro.paper import grid, published
from varpro.solvers.dense import DenseSolver

KERNELS = sorted(RADIAL_KERNELS)
COORDINATES = st.lists(st.floats(-6, 6), min_size=2, max_size=24).map(lambda v: v[: len(v) // 2 * 2])


def points(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 2)


def uniform(count: int, seed: int) -> torch.Tensor:
    return 4 * torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 2


@given(COORDINATES)
def test_wrap_stays_in_the_cell_and_changes_by_whole_periods(values):
    wrapped = wrap_torus(points(values))
    assert ((wrapped >= -2) & (wrapped <= 2)).all()
    periods = (points(values) - wrapped) / 4
    torch.testing.assert_close(periods, periods.round(), rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", KERNELS)
def test_features_are_the_formula_also_across_the_seam(name):
    weights, inputs = points([1.9, -1.9, 0.0, 0.0]), points([-1.9, 1.9, 3.7, -4.1])
    # offsets: 1.9 + 1.9 - 4 and its negative; 0 + 1.9 and 0 - 1.9; 1.9 - 3.7 and -1.9 + 4.1 - 4; -3.7 + 4 and 4.1 - 4
    radii = [[math.hypot(0.2, 0.2), math.hypot(1.9, 1.9)], [math.hypot(1.8, 1.8), math.hypot(0.3, 0.1)]]
    value = {
        "laplace": lambda r: 8 * math.exp(-2 * r),
        "cos": lambda r: (1 + math.cos(math.pi * r / 2)) / 2 if r <= 2 else 0.0,
    }[name]
    found = RadialTorus(RADIAL_KERNELS[name])(weights, inputs)
    expected = torch.tensor([[value(r) for r in row] for row in radii], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kernel", [*RADIAL_KERNELS.values(), BUMP], ids=lambda kernel: kernel.name)
def test_pull_back_is_the_derivative(kernel):
    feature_map, weights, inputs = RadialTorus(kernel), uniform(5, 0), uniform(40, 1)
    cotangent = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = feature_map.pull_back(weights, inputs, feature_map(weights, inputs), cotangent)
    step = 1e-6
    for neuron in range(5):
        for axis in range(2):
            shift = torch.zeros(5, 2, dtype=torch.float64)
            shift[neuron, axis] = step
            ahead, behind = (feature_map(weights + sign * shift, inputs) for sign in (1, -1))
            difference = (cotangent * (ahead - behind)).sum() / (2 * step)
            assert found[neuron, axis].item() == pytest.approx(difference.item(), abs=10 * GRADIENT)


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_is_finite_where_neuron_and_sample_coincide(name):
    feature_map, weights = RadialTorus(RADIAL_KERNELS[name]), uniform(4, 3)
    inputs = torch.cat([weights, weights + 4])
    found = feature_map.pull_back(weights, inputs, feature_map(weights, inputs), torch.ones(8, 4).double())
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("kernel", [*RADIAL_KERNELS.values(), BUMP], ids=lambda kernel: kernel.name)
def test_training_is_invariant_under_translation(kernel):
    inputs, weights, shift = uniform(80, 4), uniform(10, 5), points([0.7, -1.3])
    targets = torch.sin(inputs.sum(dim=1, keepdim=True) * math.pi / 2)
    ends = []
    for moved in (torch.zeros(1, 2).double(), shift):
        solver = DenseSolver(RadialTorus(kernel), inputs + moved, targets, 1e-2, 0.0, 2**-10, "ridge")
        state = wrap_torus(weights + moved)
        losses = solver.advance(state, solver.solve(state), 20)
        assert losses[-1] < losses[0]
        ends.append((wrap_torus(state - moved), losses))
    torch.testing.assert_close(wrap_torus(ends[0][0] - ends[1][0]).abs().max().item(), 0.0, rtol=0, atol=SOLVE)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=SOLVE, atol=0)


# --- draws -------------------------------------------------------------------------------------------------------

FIRST_NUMBERS = {
    "teacher": [[-0.9598902, -0.2726536], [1.5359095, 1.1580436]],
    "inputs": [[-1.089005, -0.9528482], [0.1688316, 0.0145679]],
    "student": [[0.6100461, -0.1081953], [-0.1964974, 0.9408383]],
}


def test_first_numbers_of_seed_0():
    draws = TORUS.draws(0, 4096, 1024, 4096, 100.0)
    for name, expected in FIRST_NUMBERS.items():
        found = getattr(draws, name)[:2].double()
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=PINNED)


@pytest.mark.parametrize(("width", "distance"), [(32, 0.5734915), (128, 0.4821903)])
def test_initial_distances_are_the_published_ones(width, distance):
    """Means over the six seeds; they see nothing but the draws."""
    found = []
    for seed in grid.SEEDS:
        draws = TORUS.draws(seed, 4096, width, 4096, 100.0)
        found.append(TorusMeasure(draws.student).energy_distance(TorusMeasure(draws.teacher)))
    assert np.mean(found) == pytest.approx(distance, rel=PRINTED)
    curve = published.table("convolution_width_distance")["single", "distance_teacher", f"M={width}", "solid"]
    assert curve.y[0] == distance


def test_infinite_gamma_is_two_neurons():
    draws = TORUS.draws(0, 10, 8, 4096, math.inf)
    assert draws.teacher.tolist() == [[-1.0, 0.0], [1.0, 1.0]]


# --- distances ---------------------------------------------------------------------------------------------------


@given(COORDINATES, COORDINATES)
def test_energy_distance_is_the_double_sum(first, second):
    x, y = points(first), points(second)

    def mean(a, b):
        return wrap_torus(a[:, None] - b[None]).norm(dim=2).mean().item()

    found = TorusMeasure(x.numpy()).energy_distance(TorusMeasure(y.numpy()))
    assert found**2 == pytest.approx(max(2 * mean(x, y) - mean(x, x) - mean(y, y), 0), abs=10 * EXACT)


# --- scripts -----------------------------------------------------------------------------------------------------

TINY = ["--epochs", "5", "--student_width", "8", "--samples", "64", "--teacher_width", "32"]


@pytest.mark.parametrize("folder", ["VarPro_convolution_2d", "VarPro_convolution_2d_unbiased"])
@pytest.mark.parametrize(
    "extra",
    [[], ["--solver", "dense"], ["--dtype", "float64"], ["--activation", "cos"], ["--gamma", "-1"], ["--gamma", "inf"]],
)
def test_a_run_writes_its_result(folder, extra, tmp_path):
    tiny = TINY if "--gamma" not in extra else TINY[: TINY.index("--teacher_width")]  # two Diracs are two neurons
    load_script(f"{folder}/Experiment.py").main([*tiny, *extra, "--output", str(tmp_path)])
    (path,) = tmp_path.glob("lambda*")
    found = results.load(path)
    assert found["weights"].shape == (6, 8, 2)
    assert found["distance_teacher"].shape == (1001,)
    assert ("distance_diffusion" in found) == ("--gamma" not in extra)  # two Diracs have no density
    assert found["config"]["centre"] == (1.0 if folder.endswith("unbiased") else 0.0)
    assert found["teacher_weights"].shape == ((2 if "--gamma" in extra else 32), 2)
    assert ("activation=cos" in path.name) == ("cos" in extra)
    assert found["weights"].abs().max() <= 2


SCRIPT = "VarPro_convolution_2d_unbiased/Experiment.py"


def result(folder: Path, *arguments: str) -> dict:
    load_script(SCRIPT).main([*TINY, *arguments, "--output", str(folder)])
    (path,) = folder.glob("lambda*.pt")
    return results.load(path)


def test_a_kernel_that_a_reader_adds_runs_without_further_ado(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RADIAL_KERNELS, BUMP.name, BUMP)
    found = result(tmp_path, "--activation", BUMP.name)
    assert (found["config"]["solver"], found["config"]["activation"]) == ("dense", "bump")
    with pytest.raises(SystemExit):
        load_script(SCRIPT).main([*TINY, "--activation", BUMP.name, "--solver", "cg", "--output", str(tmp_path / "no")])
    assert (
        "is compiled for the kernels laplace and cos on the torus, not for torus_bump; allowed here: dense"
        in capsys.readouterr().err
    )


def test_distances_are_those_of_the_states(tmp_path):
    found = result(tmp_path)
    teacher = TorusMeasure(found["teacher_weights"].numpy())
    for epoch, weights in zip(found["snapshot_epochs"], found["weights"], strict=True):
        place = int(np.searchsorted(found["distance_epochs"].numpy(), int(epoch)))
        expected = TorusMeasure(weights.numpy()).energy_distance(teacher)
        assert found["distance_teacher"][place].item() == pytest.approx(expected, rel=FLOAT32_STATE)
    assert found["inner_solves"]["worst_residual"] <= RESIDUAL["float32"]
    assert found["inner_solves"]["solves"] >= 5


@pytest.mark.parametrize(("width", "solver"), [("512", "cg"), ("513", "dense")])
def test_far_more_neurons_than_samples_take_the_dense_solver(width, solver, tmp_path):
    assert result(tmp_path, "--student_width", width)["config"]["solver"] == solver


def test_inputs_any_number_of_periods_away_are_the_same_data(tmp_path):
    inputs, student = uniform(64, 6), uniform(8, 7)
    losses = []
    for periods in (0, 1000000):
        data = {"inputs": inputs + 4.0 * periods, "targets": torch.sin(inputs.sum(dim=1)), "student_weights": student}
        folder = tmp_path / str(periods)
        results.save(folder / "data" / "mine.pt", data)
        load_script(SCRIPT).main(["--epochs", "6", "--data", f"{folder}/data/mine.pt", "--output", str(folder)])
        (path,) = folder.glob("[lm]*.pt")
        losses.append(results.load(path)["loss"])
    torch.testing.assert_close(*losses, rtol=WRAPPED, atol=0)


# --- evenly spread points -----------------------------------------------------------------------------------------


@given(st.integers(1, 200))
def test_a_lattice_looks_the_same_from_each_of_its_points(count):
    spread = lattice(count)
    assert spread.shape == (count, 2)
    assert ((spread >= -2) & (spread < 2)).all()
    grid_points = {tuple(point) for point in ((spread + 2) * count / 4 - 0.5).round().long().tolist()}
    for shift in ((spread - spread[0]) * count / 4).round().long():
        assert {((x + shift[0].item()) % count, (y + shift[1].item()) % count) for x, y in grid_points} == grid_points


@pytest.mark.parametrize("count", [32, 44, 100, 1000, 1024])
def test_a_lattice_is_nearly_as_wide_as_hexagons(count):
    radii = wrap_torus(lattice(count) - lattice(count)[0]).norm(dim=1)[1:]
    hexagons = 4 * math.sqrt(2 / math.sqrt(3) / count)
    assert 0.89 * hexagons < radii.min() < 1.001 * hexagons
