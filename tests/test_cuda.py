"""What runs on a GPU gives what the CPU gives, and waits for nothing; skipped where there is no CUDA device.

``VARPRO_TEST_DEVICE=cpu`` runs the comparisons on the CPU, to try the tests themselves.
"""

import copy
import os
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from networks import PLAN, REPLAYED, chosen_step, network, tiny_images
from problems import BUMP
from tolerances import CUDA

from varpro.domains.torus import wrap_torus
from varpro.features import LAPLACE, RAISED_COSINE, RadialTorus, ReLUCircle
from varpro.problem import Problem, drawn_problem
from varpro.runs.bookkeeping import Checkpoint
from varpro.runs.descent import GradientDescent
from varpro.runs.schedule import schedule
from varpro.runs.training import STATE_VERSION, train
from varpro.solvers.base import Objective
from varpro.solvers.dense import DenseSolver
from varpro.solvers.epochs import TensorEpoch
from varpro.solvers.graphs import GraphSolver
from VarPro_resnet import training
from VarPro_resnet.Experiment import OPTIMIZERS

DEVICE = os.environ.get("VARPRO_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device")

MAPS = [RadialTorus(LAPLACE), RadialTorus(RAISED_COSINE), RadialTorus(BUMP), ReLUCircle()]


def problem_of(features, outputs: int = 1) -> Problem:
    """300 samples; further outputs are smooth functions of the first."""
    drawn = drawn_problem(features, 0, 300, 24, 64, 10.0)
    targets = torch.cat([torch.cos(k * drawn.targets) if k else drawn.targets for k in range(outputs)], dim=1)
    return Problem(drawn.inputs, targets, drawn.student, drawn.teacher)


def run(kind, features, problem, device, dtype="float64", outer_update="ridge", epochs=30):
    objective = Objective(features, 1e-2, 1.0, 2**-12, outer_update)
    solver = kind.build(objective, problem, device=device, dtype=dtype, tf32=False)
    weights = solver.own(problem.student)
    outer = solver.solve(weights)
    losses = solver.advance(weights, outer, epochs)
    return losses.cpu(), weights.cpu().double(), outer.cpu().double()


class TensorGraphs(GraphSolver):
    """With no fused kernels."""

    def __init__(self, *arguments):
        super().__init__(*arguments, kind=TensorEpoch)


@pytest.mark.parametrize("kind", [GraphSolver, TensorGraphs])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("features", MAPS, ids=lambda features: features.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_graphs_follow_dense_float64_on_the_cpu(features, outputs, dtype, kind):
    problem = problem_of(features, outputs)
    losses, weights, _ = run(kind, features, problem, DEVICE, dtype)
    expected, dense_weights, _ = run(DenseSolver, features, problem, "cpu")
    np.testing.assert_allclose(losses, expected, rtol=CUDA[dtype])
    moved = weights - dense_weights
    assert (wrap_torus(moved) if features.domain.name == "torus" else moved).abs().max() < CUDA[dtype]


@pytest.mark.parametrize("kernel", [LAPLACE, RAISED_COSINE], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wide_fused_epochs_are_those_of_tensors(kernel, dtype):
    """Two neurons a program, several passes over them, and sizes that are no multiple of a tile."""
    features = RadialTorus(kernel)
    problem = drawn_problem(features, 0, 1500, 600, 64, 10.0)
    fused, tensors = (run(kind, features, problem, DEVICE, dtype, epochs=5) for kind in (GraphSolver, TensorGraphs))
    np.testing.assert_allclose(fused[0], tensors[0], rtol=CUDA[dtype])
    assert wrap_torus(fused[1] - tensors[1]).abs().max() < CUDA[dtype]


@pytest.mark.parametrize("outer_update", ["ridge", "gradient"])
@pytest.mark.parametrize("features", MAPS, ids=lambda features: features.name)
def test_dense_is_that_of_the_cpu(features, outer_update):
    problem = problem_of(features, 2)
    for found, expected in zip(
        run(DenseSolver, features, problem, DEVICE, outer_update=outer_update),
        run(DenseSolver, features, problem, "cpu", outer_update=outer_update),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=CUDA["float64"], atol=CUDA["float64"])


@pytest.mark.parametrize("kind", [GraphSolver, DenseSolver])
def test_the_reduced_risk_is_that_of_the_cpu(kind):
    features = RadialTorus(LAPLACE)
    problem, goal = problem_of(features), Objective(features, 1e-2, 1.0, 2**-12, "ridge")
    solver, reference = (
        one.build(goal, problem, device=device, dtype="float64", tf32=False)
        for one, device in ((kind, DEVICE), (DenseSolver, "cpu"))
    )
    for shift in (0.0, 1e-2):
        found = solver.reduced(solver.own(problem.student + shift))
        expected = reference.reduced(reference.own(problem.student + shift))
        assert found.risk == pytest.approx(expected.risk, rel=CUDA["float64"])
        np.testing.assert_allclose(found.gradient.cpu(), expected.gradient, rtol=0, atol=CUDA["float64"])


def test_a_run_resumes(tmp_path):
    features = RadialTorus(LAPLACE)
    problem, plan = problem_of(features), schedule(24, 6)

    def descent():
        goal = Objective(features, 1e-2, 1.0, 2**-12, "ridge")
        solver = GraphSolver.build(goal, problem, device=DEVICE, dtype="float64", tf32=False)
        return GradientDescent(solver, problem.student)

    class Interrupted(Exception):
        pass

    def stop(place, _):
        if place == 13:
            raise Interrupted
        return {}

    whole = train(descent(), plan)
    checkpoint = Checkpoint(tmp_path / "state", {}, STATE_VERSION, seconds=0.0, share=1e9)
    with pytest.raises(Interrupted):
        train(descent(), plan, stop, checkpoint=checkpoint)
    resumed = train(descent(), plan, checkpoint=checkpoint)
    np.testing.assert_allclose(resumed.loss, whole.loss, rtol=CUDA["float64"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_the_resnet_is_that_of_the_cpu(optimizer):
    """At a tenth of the published rates: features of 1e4 after a few steps on so few images would magnify round-off."""
    rate = ["--time_scale", str(OPTIMIZERS[optimizer].time_scale / 10)]
    images = torch.rand(16, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.nn.functional.one_hot(torch.arange(16) % 3, 3).double()
    here = network()
    there = copy.deepcopy(here).to(DEVICE)
    losses = []
    for one, device in ((here, "cpu"), (there, DEVICE)):
        step = chosen_step(one.train(), optimizer, *rate)
        losses.append([step(images.to(device), targets.to(device)).item() for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=CUDA["resnet"])
    for found, expected in zip(there.state_dict().values(), here.state_dict().values(), strict=True):
        assert (found.cpu() - expected).abs().max() <= CUDA["resnet"] * expected.abs().max().clamp_min(1)


def flat_weights(of):
    """All parameters of the features, on the CPU."""
    return torch.cat([each.detach().flatten().cpu().double() for each in of.features.parameters()])


@pytest.mark.parametrize(
    ("dtype", "options"), [(torch.float64, []), (torch.float32, ["--mixed_precision"])], ids=["float64", "bfloat16"]
)
@pytest.mark.parametrize("optimizer", REPLAYED)
def test_a_captured_run_is_the_eager_one(optimizer, dtype, options, monkeypatch):
    """With smaller last mini-batches between the replays, a change of rate, and tests on the way.

    At a tenth of the published rates, where round-off does not grow by the million in a few steps on so few images.
    That of bfloat16 does: there the way that weights have come is compared, at a ten thousandth of those rates, after
    replays that follow each other.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    within, ends = CUDA["captured bfloat16" if options else "captured"], []
    rate = ["--time_scale", str(OPTIMIZERS[optimizer].time_scale / (1e4 if options else 10))]
    plan = training.Plan(PLAN.images, 8, 2, 1) if options else PLAN
    for replayed in (False, True):
        of = network(dtype=dtype).to(DEVICE)
        take, images = chosen_step(of, optimizer, *options, *rate), tiny_images().to(DEVICE)
        before = flat_weights(of)
        record = training.train(take, images, plan, seed=1, replay=replayed, threads=1)
        states = [value.cpu().double() for value in of.state_dict().values()]
        ends.append([record.loss, flat_weights(of) - before] if options else [record.loss, *states])
    for found, expected in zip(*ends, strict=True):
        if options:
            assert (found - expected).norm() <= within * expected.norm()
        else:
            assert (found - expected).abs().max() <= within * expected.abs().max().clamp_min(1.0)


needs_a_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def warm_step(optimizer):
    """A step of a network on the device that has been taken before, on the same images."""
    step = chosen_step(network(dtype=torch.float32).to("cuda").train(), optimizer)
    images, targets = torch.rand(16, 3, 32, 32, device="cuda"), torch.eye(16, 3, device="cuda")
    for _ in range(3):
        step(images, targets)
    return partial(step, images, targets)


@contextmanager
def waits_are_errors():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_a_device
@pytest.mark.parametrize("optimizer", REPLAYED)
def test_a_step_waits_for_nothing(optimizer):
    step = warm_step(optimizer)
    with waits_are_errors():
        step()


@needs_a_device
@pytest.mark.parametrize("optimizer", REPLAYED)
def test_the_steps_of_a_pass_wait_for_nothing(optimizer, monkeypatch):
    """Warm, captured and eager ones, with the line that says what the run will cost; a capture waits, and is let."""
    monkeypatch.setattr(training, "_TIMED_SECONDS", 0.0)
    of, lines = network(dtype=torch.float32).to("cuda"), []
    take, plan = chosen_step(of, optimizer), training.Plan(40, 4, 2, 0)
    run = training._Run(take, tiny_images().to("cuda"), plan, 0, torch.contiguous_format, "", None)
    assert run.replay is not None
    watch = training._Watch(run, lines.append)
    run.test(lambda: None)
    steps = run.steps_of_pass()
    for number in range(9):  # of ten: the last one is followed by a look at the losses
        if number in (0, 3):  # the data of a pass; the capture
            next(steps)
        else:
            with waits_are_errors():
                next(steps)
                watch.look()
    torch.cuda.synchronize()
    watch.look()
    assert len(lines) == 1


@needs_a_device
@pytest.mark.parametrize("optimizer", REPLAYED)
def test_the_host_comes_back_while_the_device_still_sleeps(optimizer):
    """No library waits either, of which PyTorch would not know."""
    step = warm_step(optimizer)
    torch.cuda.synchronize()
    torch.cuda._sleep(4_000_000_000)  # cycles: a second or two
    awake = torch.cuda.Event()
    awake.record()
    step()
    assert not awake.query()


@needs_a_device
@pytest.mark.parametrize("kind", [GraphSolver, TensorGraphs])
def test_a_stretch_of_epochs_waits_for_nothing(kind):
    features = RadialTorus(LAPLACE)
    problem = problem_of(features)
    goal = Objective(features, 1e-2, 1.0, 2**-12, "ridge")
    solver = kind.build(goal, problem, device="cuda", dtype="float32", tf32=False)
    weights = solver.own(problem.student)
    solver.advance(weights, solver.solve(weights), 4)
    run = solver._run(2)
    with waits_are_errors():
        solver._epoch.rewind()
        for _ in range(4):
            run()
    assert solver._epoch.records[:4].isfinite().all()
    assert solver.report()["fused"] == (4 if kind is GraphSolver else 0)
