"""What a stranger adds goes through a whole experiment: a domain, and a feature map, each in some thirty lines.

Draws, targets, solver, training, distances, result file and resumption, against a literal loop in float64.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from tolerances import EXTENSION, ROUNDED

from varpro import cli, results
from varpro.distances import EuclideanMeasure
from varpro.domains.base import Domain, Draws
from varpro.features import FeatureMap, ReLUCircle
from varpro.runs import bookkeeping, experiment, training
from varpro.runs.experiment import Choices, perform, runs
from varpro.runs.options import add_problem, add_run, add_training

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

    name, domain = "leaky_circle", ReLUCircle.domain

    def __call__(self, weights, inputs):
        return torch.nn.functional.leaky_relu(inputs @ weights.T, 0.1)

    def pull_back(self, weights, inputs, features, cotangent):
        return cotangent.where(features > 0, 0.1 * cotangent).T @ inputs


EXTENSIONS = [pytest.param(ReLUSphere(), id="domain"), pytest.param(LeakyCircle(), id="feature map")]
UPDATES = pytest.mark.parametrize("outer_update", ["ridge", "gradient"])


def script(features, centre, outer_update):
    """The ``main`` of an Experiment.py with these choices."""

    @cli.command
    def main(argv, folder):
        parser = cli.parser("A stranger's experiment.")
        numbers = {"lmbda": 1e-2, "student_width": 1024, "gamma": 10.0, "samples": 4096, "teacher_width": 4096}
        add_problem(parser, features.domain, **numbers)
        add_training(parser, epochs=32000, time_scale=2**-10)
        add_run(parser)
        options = cli.parse(parser, argv)
        for run in runs(options, Choices(features, centre, outer_update), folder):
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


@pytest.mark.parametrize("features", EXTENSIONS)
def test_solvers_made_for_something_else_refuse(features, tmp_path, capsys):
    arguments = [*TINY, "--solver", "linear", "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        script(features, 1.0, "ridge")(arguments, folder=tmp_path)
    assert stopped.value.code == 2
    line = f"--solver linear: computes ReLU features on the circle, not {features.name}; allowed here: dense\n"
    assert capsys.readouterr().err.endswith(line)
    assert list(tmp_path.iterdir()) == []
