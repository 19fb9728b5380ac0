"""The playground: its trainings, and its widgets without a browser."""

import math
from dataclasses import replace

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from tolerances import EXACT, SOLVE

from varpro.distances import CircleMeasure
from varpro.domains.base import Draws
from varpro.domains.circle import Circle
from varpro.features import LAPLACE, RadialTorus, ReLUCircle, SquaredReLUCircle
from varpro.figures import playground
from varpro.figures.playground import Playground, Setting, kept_epochs, train
from varpro.problem import drawn_problem
from varpro.solvers.circle import CircleSolver

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"width": 8, "samples": 64}


@pytest.mark.parametrize("optimizer", ["gd", *playground.OPTIMIZERS])
def test_every_optimizer_trains(optimizer):
    course = train(Setting(**SMALL, optimizer=optimizer))
    count = len(course.epochs)
    assert course.epochs[0] == 0
    assert (np.diff(course.epochs) > 0).all()
    assert course.weights.shape == (count, 8, 2)
    assert course.outer.shape == (count, 8)
    assert course.risks.shape == course.distances.shape == (count,)
    assert course.risks[-1] < 0.5 * course.risks[0]
    np.testing.assert_allclose(np.linalg.norm(course.weights, axis=2), 1.0, rtol=0, atol=EXACT)
    problem = drawn_problem(ReLUCircle(), 0, 64, 8, playground.TEACHER_WIDTH, 100.0)
    solver = CircleSolver(problem.inputs.numpy(), problem.targets[:, 0].numpy(), 1e-3, 1.0)
    teacher = CircleMeasure(problem.teacher.numpy())
    for k in (0, count // 2, count - 1):
        assert course.risks[k] == pytest.approx(solver.reduced(course.weights[k]).risk, rel=SOLVE)
        assert course.distances[k] == pytest.approx(
            CircleMeasure(course.weights[k]).energy_distance(teacher), rel=EXACT
        )


def test_optimizers_find_a_lower_risk_than_descent():
    assert train(Setting()).risks[-1] < train(Setting(optimizer="gd")).risks[-1]


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"optimizer 'adam' is not allowed: gd, momentum, lbfgs, lm"):
        train(Setting(optimizer="adam"))


@pytest.mark.parametrize("last", [3, 100, playground.EPOCHS])
def test_kept_epochs(last):
    kept = kept_epochs(last)
    assert kept[0] == 0
    assert kept[-1] == last
    assert (np.diff(kept) > 0).all()


def test_a_slider_moves_and_the_picture_changes(monkeypatch):
    """Drawn once each; the time that a training took, which the picture states, is no difference."""
    monkeypatch.setattr(playground, "_spoken", lambda seconds: "no time")
    drawn, usual = [], playground.picture
    monkeypatch.setattr(playground, "picture", lambda *state: drawn.append(state) or usual(*state))
    play = Playground()
    assert play.setting == Setting()
    seen = [bytes(play.image.value)]
    assert seen[0].startswith(b"\x89PNG")
    moves = {"width": 8, "samples": 256.0, "lmbda": 1e-2, "gamma": 10.0, "seed": 3, "centre": 0.0, "optimizer": "gd"}
    for name, value in moves.items():
        play.controls[name].value = value
        assert getattr(play.setting, name) == value
        assert play.message.value == ""
        seen.append(bytes(play.image.value))
    assert play.epoch.value == play.epoch.max == len(kept_epochs(playground.EPOCHS)) - 1
    play.epoch.value = 3
    seen.append(bytes(play.image.value))
    assert len(set(seen)) == len(seen) == len(drawn)
    assert math.inf in dict(play.controls["samples"].options).values()


def test_features_and_a_law_of_ones_own():
    class Quadrant(Circle):
        """All neurons of the teacher in the first quadrant."""

        name = "quadrant"

        def law(self, gamma: float) -> None:
            return None

        def draws(self, *numbers) -> Draws:
            usual = super().draws(*numbers)
            return replace(usual, teacher=usual.teacher.abs())

    play = Playground(ReLUCircle(Quadrant()))
    assert play.setting.features.name == "relu_quadrant"
    assert play.message.value == ""
    squared = Playground(SquaredReLUCircle())
    assert not np.array_equal(squared._course.target, Playground()._course.target)
    squared.controls["samples"].value = math.inf
    assert squared.message.value.startswith("This cannot be trained: --samples inf: ")
    with pytest.raises(ValueError, match="features on the domain 'torus' are not allowed: on a circle"):
        train(Setting(features=RadialTorus(LAPLACE)))


def test_a_training_that_breaks_down_says_so(monkeypatch):
    play = Playground()
    before = bytes(play.image.value)

    def broken(setting: Setting) -> None:
        raise FloatingPointError("the risk is not finite")

    monkeypatch.setattr(playground, "train", broken)
    play.controls["seed"].value = 5
    assert play.message.value == "This training breaks down: the risk is not finite."
    assert bytes(play.image.value) == before


def test_committed_notebook():
    notebook = nbformat.read(ROOT / "Playground.ipynb", as_version=4)
    nbformat.validate(notebook)
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code")
    (output,) = cell.outputs
    assert "image/png" in output.data  # what is seen where there are no widgets
    assert "widgets" not in notebook.metadata  # no state of an old kernel
