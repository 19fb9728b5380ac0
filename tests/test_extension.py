"""What a stranger adds goes through a whole experiment: a domain, and a feature map, each in some thirty lines.

Draws, targets, solver, training, distances, result file and resumption, against a literal loop in float64.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import EXTENSION, ROUNDED

from varpro import cli, results
from varpro.distances import CircleMeasure, EuclideanMeasure
from varpro.domains.base import Domain, Draws
from varpro.domains.circle import CIRCLE, Circle
from varpro.domains.torus import Torus
from varpro.features import LAPLACE, FeatureMap, RadialTorus, ReLUCircle
from varpro.runs import bookkeeping, experiment, training
from varpro.runs.experiment import Choices, perform, runs
from varpro.runs.limits import CIRCLE_DIFFUSION
from varpro.runs.options import add_problem, add_run, add_training
from varpro.solvers.base import Objective
from varpro.solvers.dense import DenseSolver

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ["--epochs", "40", "--student_width", "6", "--samples", "50", "--teacher_width", "20", "--dtype", "float64"]


class Sphere(Domain):
    """The unit sphere S^2 in R^3; the teacher leans to the north pole, the more the larger gamma is."""

    name, dimension = "sphere", 3

    def project(self, points):
        return torch.nn.functional.normalize(points, dim=1)

    def tangent(self, weights, vectors):
        return vectors - (vectors * weights).sum(dim=1, keepdim=True) * weights

    def measure(self, points, masses=None):
        return EuclideanMeasure(points, masses)

    def draws(self, seed, samples, student_width, teacher_width, gamma):
        stream = torch.Generator().manual_seed(seed)

        def gaussian(count):
            return torch.randn(count, 3, dtype=torch.float64, generator=stream)

        north = torch.tensor([0.0, 0.0, math.log1p(gamma)], dtype=torch.float64)
        return Draws(
            self.project(gaussian(teacher_width) + north), gaussian(samples), self.project(gaussian(student_width))
        )


class ReLUSphere(FeatureMap):
    name, domain = "relu_sphere", Sphere()

    def __call__(self, weights, inputs):
        return torch.relu(inputs @ weights.T)

    def pull_back(self, weights, inputs, features, cotangent):
        return (cotangent * (features > 0)).T @ inputs


class LeakyCircle(FeatureMap):
    """max(w . x, 0) + 0.1 min(w . x, 0) on the circle, whose fast solver is made for ReLU."""

    name, domain = "leaky_circle", CIRCLE

    def __call__(self, weights, inputs):
        return torch.nn.functional.leaky_relu(inputs @ weights.T, 0.1)

    def pull_back(self, weights, inputs, features, cotangent):
        return cotangent.where(features > 0, 0.1 * cotangent).T @ inputs


EXTENSIONS = [pytest.param(ReLUSphere(), id="domain"), pytest.param(LeakyCircle(), id="feature map")]
UPDATES = pytest.mark.parametrize("outer_update", ["ridge", "gradient"])


def script(features, centre, outer_update, domain=None, own=(), kind=float):
    """The ``main`` of an Experiment.py with these choices."""

    @cli.command
    def main(argv, folder):
        parser = cli.parser("A stranger's experiment.")
        numbers = {"lmbda": 1e-2, "student_width": 1024, "gamma": 10.0, "samples": 4096, "teacher_width": 4096}
        add_problem(parser, domain or features.domain, **numbers)
        for name in own:
            parser.add_argument(f"--{name}", type=kind, default=0.5)
        add_training(parser, epochs=32000, time_scale=2**-10)
        add_run(parser)
        options = cli.parse(parser, argv)
        for run in runs(options, Choices(features, centre, outer_update, own=own), folder):
            perform(run, progress=options.progress, force=options.force)

    return main


def literal(features, found, centre, outer_update, epochs=40, lmbda=1e-2, h=2**-10):
    """The loop as the definitions state it (docs/definitions.md, 1), by autograd and a general linear solver."""
    domain = features.domain
    draws = domain.draws(3, 50, 6, 20, 10.0)
    targets = features(draws.teacher, draws.inputs).mean(dim=1)
    w, width, losses = draws.student.clone(), 6, []

    def optimal(w):
        phi = features(w, draws.inputs)
        right = phi.T @ targets / 50 + lmbda * centre
        return torch.linalg.solve(phi.T @ phi / (50 * width) + lmbda * torch.eye(width, dtype=torch.float64), right)

    u = optimal(w)
    for _ in range(epochs):
        w.requires_grad_()
        u.requires_grad_()
        data = (features(w, draws.inputs) @ u / width - targets).square().mean() / (2 * lmbda)
        loss = data + (u - centre).square().mean() / 2
        losses.append(loss.item())
        along_w, along_u = torch.autograd.grad(loss, (w, u))
        w, u = domain.project((w - width * h * along_w).detach()), u.detach() - lmbda * width * along_u
        u = optimal(w) if outer_update == "ridge" else u
    return torch.tensor(losses, dtype=torch.float64), w, u, draws


@UPDATES
@pytest.mark.parametrize("centre", [0.0, 1.0])
@pytest.mark.parametrize("features", EXTENSIONS)
def test_a_whole_experiment(features, centre, outer_update, tmp_path):
    script(features, centre, outer_update)([*TINY, "--seed", "3", "--output", str(tmp_path)], folder=tmp_path)
    (path,) = tmp_path.iterdir()
    found = results.load(path)
    assert found["config"]["features"] == features.name
    assert found["config"]["solver"] == "dense"
    assert found["weights"].shape == (41, 6, features.domain.dimension)
    losses, w, u, draws = literal(features, found, centre, outer_update)
    np.testing.assert_allclose(found["loss"], losses, rtol=EXTENSION)
    torch.testing.assert_close(found["weights"][-1], w.float(), rtol=0, atol=ROUNDED)
    torch.testing.assert_close(found["outer"][-1], u.float(), rtol=ROUNDED, atol=ROUNDED)
    expected = features.domain.measure(w.numpy()).energy_distance(features.domain.measure(draws.teacher.numpy()))
    assert found["distance_teacher"][-1].item() == pytest.approx(expected, rel=EXTENSION)
    assert found["distance_teacher"][-1] < found["distance_teacher"][0]


@pytest.mark.parametrize("features", EXTENSIONS)
def test_an_interrupted_one_resumes(features, tmp_path, monkeypatch):
    main, arguments = script(features, 1.0, "ridge"), [*TINY, "--seed", "3"]
    main([*arguments, "--output", str(tmp_path / "whole")], folder=tmp_path)
    monkeypatch.setattr(experiment, "Checkpoint", partial(bookkeeping.Checkpoint, seconds=0.0, share=1e9))
    advance, calls = training._Run.advance, []

    def interrupted(run, event):
        calls.append(event)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return advance(run, event)

    monkeypatch.setattr(training._Run, "advance", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--output", str(tmp_path / "parts")], folder=tmp_path)
    assert stopped.value.code == 130
    (left,) = (tmp_path / "parts").iterdir()
    assert left.suffix == ".checkpoint"
    main([*arguments, "--output", str(tmp_path / "parts")], folder=tmp_path)
    (whole,), (parts,) = ((tmp_path / name).iterdir() for name in ("whole", "parts"))
    one, other = results.load(whole), results.load(parts)
    for name in ("loss", "weights", "outer", "distance_teacher"):
        assert torch.equal(one[name], other[name])


class ThreeBumps(Circle):
    """The circle with another law of the teacher's neurons: a Gaussian around each of three points."""

    name = "three_bumps"

    def draws(self, seed, samples, student_width, teacher_width, gamma):
        drawn = super().draws(seed, samples, student_width, teacher_width, gamma)
        stream = torch.Generator().manual_seed(seed)
        middle = torch.arange(teacher_width) % 3 * (2 * math.pi / 3)
        angle = middle + 0.2 * torch.randn(teacher_width, dtype=torch.float64, generator=stream)
        return replace(drawn, teacher=torch.stack([torch.cos(angle), torch.sin(angle)], dim=1))

    def law(self, gamma):
        return None


def test_another_teacher_on_the_circle_keeps_the_linear_solver(tmp_path, capsys):
    features = ReLUCircle(ThreeBumps())
    script(features, 1.0, "ridge")([*TINY, "--seed", "3", "--output", str(tmp_path)], folder=tmp_path)
    (path,) = tmp_path.iterdir()
    found = results.load(path)
    assert (found["config"]["features"], found["config"]["solver"]) == ("relu_three_bumps", "linear")
    losses, w, _, draws = literal(features, found, 1.0, "ridge")
    np.testing.assert_allclose(found["loss"], losses, rtol=EXTENSION)
    torch.testing.assert_close(found["weights"][-1], w.float(), rtol=0, atol=ROUNDED)
    expected = CircleMeasure(w.numpy()).energy_distance(CircleMeasure(draws.teacher.numpy()))
    assert found["distance_teacher"][-1].item() == pytest.approx(expected, rel=EXTENSION)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        script(features, 1.0, "ridge")(["--teacher_width", "inf", "--output", str(tmp_path)], folder=tmp_path)
    assert "the law of the teacher on the three_bumps is not at hand; allowed here: a whole number" in (
        capsys.readouterr().err
    )


def test_what_belongs_to_the_papers_teacher_is_refused_for_another(tmp_path):
    """Its results would be taken for those of the paper, and its features compared with another teacher's limit."""
    other = ThreeBumps()
    with pytest.raises(ValueError, match="'diffusion' is that of the domain 'circle', not of 'three_bumps'"):
        Choices(ReLUCircle(other), 1.0, "ridge", (CIRCLE_DIFFUSION,))
    with pytest.raises(ValueError, match=r"add_problem has the domain 'three_bumps', .* live on another one, 'circle'"):
        script(ReLUCircle(), 1.0, "ridge", domain=other)(TINY, folder=tmp_path)
    other.name = "circle"
    with pytest.raises(ValueError, match="a domain with the name 'circle' is not allowed: a name of its own"):
        ReLUCircle(other)


def test_a_limit_of_another_law_has_a_file_of_its_own(tmp_path):
    """Under the name of the paper's, its runs would read it."""
    solution = {"snapshot_epochs": torch.arange(2), "density": torch.ones(2, 4)}
    for domain, name in ((CIRCLE, "diffusion"), (ThreeBumps(), "three_bumps_diffusion")):
        limit = replace(CIRCLE_DIFFUSION, domain=domain, solve=lambda *_, **__: solution)
        limit.contents(gamma=1.0, epochs=1, time_scale=2**-10, snapshot_epochs=np.arange(2), folder=tmp_path)
        assert (tmp_path / f"{name}_gamma=1_epochs=1.pt").exists()


class Corner(Torus):
    """The torus with another law: all neurons of the teacher in one point."""

    name = "corner"

    def draws(self, seed, samples, student_width, teacher_width, gamma):
        drawn = super().draws(seed, samples, student_width, teacher_width, gamma)
        return replace(drawn, teacher=torch.ones_like(drawn.teacher))


def test_another_teacher_on_the_torus_keeps_its_solver(tmp_path):
    features = RadialTorus(LAPLACE, Corner())
    script(features, 1.0, "ridge")([*TINY, "--seed", "3", "--output", str(tmp_path)], folder=tmp_path)
    (path,) = tmp_path.iterdir()
    found = results.load(path)
    assert (found["config"]["features"], found["config"]["solver"]) == ("corner_laplace", "cg")
    assert (found["teacher_weights"] == 1).all()


def test_an_option_of_a_scripts_own_tells_results_apart(tmp_path):
    main = script(LeakyCircle(), 1.0, "ridge", own=("scale",))
    for scale in ("0.5", "0.3"):
        main([*TINY, "--scale", scale, "--output", str(tmp_path)], folder=tmp_path)
    found = {path.name: results.load(path)["config"]["scale"] for path in tmp_path.iterdir()}
    assert sorted(found.values()) == [0.3, 0.5]  # 0.5 is the default, and not in the name
    assert [name for name, scale in found.items() if scale == 0.3] == [name for name in found if "scale=0.3" in name]


def test_an_own_option_that_could_not_be_read_again_is_refused(tmp_path):
    main = script(LeakyCircle(), 1.0, "ridge", own=("scale",), kind=Path)
    with pytest.raises(ValueError, match="the option 'scale' of one's own is no number and no text"):
        main([*TINY, "--scale", "x", "--output", str(tmp_path / "new")], folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


class Misshapen(LeakyCircle):
    """A derivative (M, 1), which would be broadcast over the coordinates."""

    def pull_back(self, weights, inputs, features, cotangent):
        return super().pull_back(weights, inputs, features, cotangent)[:, :1]


def test_shapes_that_would_be_broadcast_are_refused():
    draws = CIRCLE.draws(0, 30, 6, 6, 10.0)
    targets = LeakyCircle().predict(draws.teacher, draws.inputs)[:, None]
    constants = 1e-2, 1.0, 2**-10, "ridge"
    with pytest.raises(ValueError, match=r"pull_back of leaky_circle returns \(6, 1\); allowed: the weights' \(6, 2\)"):
        DenseSolver(Misshapen(), draws.inputs, targets, *constants).reduced(draws.student)
    with pytest.raises(ValueError, match=r"targets \(30,\) are not allowed: \(N, k\)"):
        DenseSolver(LeakyCircle(), draws.inputs, targets[:, 0], *constants)
    for features in (LeakyCircle(), ReLUCircle()):
        with pytest.raises(ValueError, match=r"outer \(6, 1\) is not allowed with 6 neurons: \(6,\)"):
            features.predict(draws.student, draws.inputs, torch.ones(6, 1))
    with pytest.raises(ValueError, match=r"^centre: .* is not allowed: a finite number"):
        Objective(ReLUCircle(), 1e-2, torch.ones(6), 2**-10, "ridge")


def test_an_experiment_elsewhere_has_its_results_beside_it(tmp_path, monkeypatch):
    monkeypatch.delenv("VARPRO_RESULTS", raising=False)
    folder = tmp_path / "my_experiment"
    folder.mkdir()
    script(LeakyCircle(), 1.0, "ridge")(TINY, folder=folder)
    (path,) = (folder / "results").iterdir()
    assert results.load(path)["config"]["experiment"] == "my_experiment"


@pytest.mark.parametrize("features", EXTENSIONS)
def test_solvers_made_for_something_else_refuse(features, tmp_path, capsys):
    arguments = [*TINY, "--solver", "linear", "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        script(features, 1.0, "ridge")(arguments, folder=tmp_path)
    assert stopped.value.code == 2
    line = f"--solver linear: computes ReLU features on the circle, not {features.name}; allowed here: dense\n"
    assert capsys.readouterr().err.endswith(line)
    assert list(tmp_path.iterdir()) == []
