"""The solver of captured graphs on the CPU: trajectories, the promised residual, failures taken back, no host reads."""

import numpy as np
import pytest
import torch
from problems import drawn, random_problem, relative_residual, system, wrap
from tolerances import EXACT, FEATURE, FLOAT32, FOLLOWS, GROWN, OUTER, RESIDUAL, ROUNDED, SOLVE, TRAJECTORY
from torch.utils._python_dispatch import TorchDispatchMode

from varpro import capture
from varpro.domains.torus import wrap_torus
from varpro.features import RADIAL_KERNELS, RadialKernel, RadialTorus, ReLUCircle
from varpro.problem import Problem
from varpro.runs.bookkeeping import Checkpoint
from varpro.runs.descent import GradientDescent
from varpro.runs.schedule import schedule
from varpro.runs.training import STATE_VERSION, _Run, train
from varpro.solvers import epochs
from varpro.solvers.base import Objective
from varpro.solvers.dense import DenseSolver
from varpro.solvers.graphs import GraphSolver
from varpro.solvers.torus import KERNELS, TorusSolver

LMBDA, TIME_SCALE = 1e-3, 2**-10
kernels = pytest.mark.parametrize("kernel", KERNELS)
centres = pytest.mark.parametrize("centre", [0.0, 1.0])
precisions = pytest.mark.parametrize("dtype", ["float32", "float64"])


pytestmark = pytest.mark.usefixtures("one_thread")


def solver(kernel, inputs, targets, centre=1.0, time_scale=TIME_SCALE, dtype="float64", kind=GraphSolver):
    inputs, targets = torch.from_numpy(inputs).to(getattr(torch, dtype)), torch.from_numpy(targets)
    feature_map = RadialTorus(RADIAL_KERNELS[kernel])
    return kind(feature_map, inputs, targets.reshape(len(inputs), -1), LMBDA, centre, time_scale)


def dense(of):
    """The dense float64 solver of the same problem."""
    problem = of.problem
    constants = problem.lmbda, problem.centre, problem.time_scale
    return DenseSolver(problem.feature_map, problem.inputs.double(), problem.targets, *constants, "ridge")


def trained(one, weights, epochs):
    """Losses, weights and outer weights of a solver from ``weights``."""
    w = torch.from_numpy(weights).clone()
    u = one.solve(w)
    return one.advance(w, u, epochs).numpy(), w.numpy(), u


def growth(one, weights, epochs):
    """By how much training with this solver magnifies a small change of the start; at least 1.

    With the Laplace kernel by a thousand: the first steps are as long as the kernel is wide, and where a neuron passes
    a sample at the distance r its force turns by 1 / r of the change. At centre 0 one passes at 1e-4 in epoch 146.
    """
    losses, w, _ = trained(one, weights, epochs)
    factors, size = [1.0], 1e-10
    for seed in range(3):
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=weights.shape)
        other_losses, other_w, _ = trained(one, weights + size * signs, epochs)
        factors += [np.abs(wrap(other_w - w)).max() / size, np.abs(other_losses / losses - 1).max() / size]
    return max(factors)


def follow(model, other, weights, epochs, within):
    """Both solvers from ``weights``: losses relative to their size, weights absolutely, times the growth."""
    losses, w, u = trained(model, weights, epochs)
    expected, dense_w, dense_u = trained(other, weights, epochs)
    within = within * growth(other, weights, epochs)
    assert np.max(np.abs(wrap(dense_w - weights))) > 1e-3  # something happened
    np.testing.assert_allclose(losses, expected, rtol=within)
    assert np.max(np.abs(wrap(w - dense_w))) < within
    return u, dense_u


# --- trajectories ------------------------------------------------------------------------------------------------


@kernels
@centres
def test_trajectory_against_the_dense_solver(kernel, centre):
    """With the inner solves carried further than promised only the arithmetic of the epochs is left to differ."""
    inputs, targets, weights = drawn(kernel)
    model = solver(kernel, inputs, targets, centre)
    model._tolerance = 1e-13
    follow(model, dense(model), weights, 200, GROWN["carried on"])
    assert model.report()["epochs"] == 200


@kernels
def test_float32_features_follow_float64(kernel):
    inputs, targets, weights = drawn(kernel, 1000, 64)
    model = solver(kernel, inputs, targets, dtype="float32")
    follow(model, dense(model), weights, 50, GROWN["float32"])


def test_the_two_cg_solvers_agree():
    inputs, targets, weights = drawn("laplace")
    model = solver("laplace", inputs, targets)
    other = TorusSolver("laplace", inputs, targets, LMBDA, 1.0, TIME_SCALE, "float64")
    model._tolerance = other._tolerance = 1e-13
    w, other_w = torch.from_numpy(weights.copy()), weights.copy()
    losses = model.advance(w, model.solve(w), 80)
    other_losses = other.advance(other_w, other.solve(other_w), 80)
    np.testing.assert_allclose(losses.numpy(), other_losses, rtol=FOLLOWS)
    assert np.max(np.abs(wrap(w.numpy() - other_w))) < FOLLOWS


@pytest.mark.parametrize("features", [RadialTorus(RADIAL_KERNELS["laplace"]), ReLUCircle()], ids=["laplace", "relu"])
def test_a_state_that_cannot_be_solved_does_no_harm_to_the_next(features):
    """The outer weights that a failed solve leaves are no start for another one."""
    inputs, targets, weights = (torch.from_numpy(each) for each in drawn("laplace"))
    constants = features, inputs, targets[:, None], LMBDA, 1.0, TIME_SCALE
    model, bad = GraphSolver(*constants), weights.clone()
    expected = model.reduced(weights)
    bad[0] = torch.nan
    with pytest.raises(FloatingPointError):
        model.reduced(bad)
    found = model.reduced(weights)
    assert found.risk == pytest.approx(expected.risk, rel=SOLVE)
    torch.testing.assert_close(found.outer, expected.outer, rtol=0, atol=OUTER)


def test_many_outputs():
    inputs, targets, weights = drawn("laplace")
    targets = np.stack([targets, np.sin(inputs[:, 0]), np.zeros(len(inputs))], axis=1)
    model = solver("laplace", inputs, targets, centre=0.0)
    outer, expected = follow(model, dense(model), weights, 30, GROWN["float64"])
    assert outer.shape == (30, 3)
    assert torch.equal(outer[:, 2], torch.zeros(30, dtype=torch.float64))
    torch.testing.assert_close(outer, expected, rtol=0, atol=OUTER)


def test_other_feature_maps_train_as_they_are():
    """A radial kernel without passes of its own, and features that are not radial at all."""
    gauss = RadialKernel("gauss", value=lambda r: torch.exp(-r.square()), slope=lambda r: -2 * torch.exp(-r.square()))
    inputs, targets, weights = drawn("laplace")
    data = torch.from_numpy(inputs), torch.from_numpy(targets)[:, None]
    model = GraphSolver(RadialTorus(gauss), *data, 1e-2, 1.0, TIME_SCALE)
    follow(model, dense(model), weights, 30, GROWN["float64"])
    problem = random_problem(200, 10)
    data = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)[:, None]
    model = GraphSolver(ReLUCircle(), *data, 1e-2, 1.0, TIME_SCALE)
    follow(model, dense(model), problem.weights, 30, GROWN["float64"])


def test_translation_on_the_torus():
    inputs, targets, weights = drawn("laplace")
    shift = np.array([1.25, -3.5])
    runs = []
    for x, start in ((inputs, weights), (inputs + shift, weights + shift)):
        model, w = solver("laplace", x, targets), torch.from_numpy(start.copy())
        runs.append((model.advance(w, model.solve(w), 20).numpy(), w.numpy()))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=FOLLOWS)
    assert np.max(np.abs(wrap(runs[0][1] + shift - runs[1][1]))) < FOLLOWS


@precisions
@kernels
def test_passes_in_place_are_those_of_the_feature_map(kernel, dtype):
    """Features and derivatives, with neurons at samples, on the seam and outside the fundamental square."""
    inputs, targets, weights = drawn(kernel)
    weights[:5] = [[-2, -2], [2, 1.5], [1.999, -1.999], inputs[10], inputs[11] + 4]
    inputs, weights = inputs.astype(np.float32).astype(np.float64), weights.astype(np.float32).astype(np.float64)
    model = solver(kernel, inputs, targets, dtype=dtype)
    passes = epochs.passes_of(model.problem.feature_map, model.problem.inputs, len(weights))
    assert type(passes) is epochs.RadialPasses
    weights = torch.from_numpy(weights)
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(len(inputs), 2, dtype=torch.float64, generator=generator).to(model.problem.inputs)
    outer = torch.randn(len(weights), 2, dtype=torch.float64, generator=generator)
    passes.fill(weights)
    x, feature_map = model.problem.inputs.double(), model.problem.feature_map
    expected = feature_map(weights, x)
    within = FEATURE[dtype]
    assert (passes.features - expected).abs().max() < within * expected.max()
    found = passes.pull_back(weights, residual, outer)
    expected = feature_map.pull_back(weights, x, expected, residual.double() @ outer.T)
    assert (found - expected).abs().max() < 10 * within * expected.abs().max()


# --- the inner solve ---------------------------------------------------------------------------------------------


@precisions
@kernels
def test_every_epoch_meets_the_residual(kernel, dtype):
    inputs, targets, weights = drawn(kernel, 500, 40)
    model, weights = solver(kernel, inputs, targets, dtype=dtype), torch.from_numpy(weights)
    outer = model.solve(weights)
    for _ in range(40):
        model.advance(weights, outer, 1)
        assert relative_residual(kernel, inputs, targets, weights.numpy(), outer[:, 0].numpy()) < RESIDUAL[dtype]
    assert 0 < model.report()["worst_residual"] < RESIDUAL[dtype]


@precisions
@centres
@pytest.mark.parametrize(("samples", "width"), [(300, 30), (1, 1), (129, 5), (40, 90)])
def test_project_is_the_dense_solution(samples, width, centre, dtype):
    inputs, targets, weights = drawn("laplace", samples, width)
    outer = solver("laplace", inputs, targets, centre, dtype=dtype).solve(torch.from_numpy(weights))[:, 0].numpy()
    matrix, right = system("laplace", inputs, targets, weights, centre)
    assert np.linalg.norm(right - matrix @ outer) < RESIDUAL[dtype] * np.linalg.norm(right)


def test_epochs_with_too_few_steps_are_taken_back_and_made_again():
    """However badly the steps were planned, the run is the same within what the residual allows."""
    inputs, targets, weights = drawn("laplace")
    model = solver("laplace", inputs, targets)
    reference = dense(model)
    w, dense_w = torch.from_numpy(weights.copy()), torch.from_numpy(weights.copy())
    u, dense_u = model.solve(w), reference.solve(dense_w)
    for _ in range(5):
        before = model.report()
        model._steps, model._stretch = 1, 8
        losses, expected = model.advance(w, u, 8), reference.advance(dense_w, dense_u, 8)
        np.testing.assert_allclose(losses, expected, rtol=FOLLOWS)
        assert (
            model.report()["repeated"] >= before["repeated"] + 8
        )  # the first epoch missed, and all eight were in vain
        assert model.report()["epochs"] == before["epochs"] + 8
    assert wrap_torus(w - dense_w).abs().max() < FOLLOWS
    assert model.report()["worst_residual"] < RESIDUAL["float64"]


def test_the_epochs_before_a_failure_are_kept(monkeypatch):
    """Failures in the midst of stretches: training goes on from the very state before each."""
    inputs, targets, weights = drawn("laplace")
    model = solver("laplace", inputs, targets)
    attempt, failures = model._attempt, []

    def failing(length):
        record, good = attempt(length)
        if length >= 4 and len(failures) < 3:
            failures.append(good := 2)
            record[good][epochs.AFTER] = 1e-9
        return record, good

    monkeypatch.setattr(model, "_attempt", failing)
    follow(model, dense(model), weights, 60, GROWN["float64"])
    assert len(failures) == 3
    assert model.report()["epochs"] == 60


def test_solves_without_epochs_are_booked_too():
    inputs, targets, weights = drawn("laplace")
    model, w = solver("laplace", inputs, targets), torch.from_numpy(weights)
    model.solve(w)
    first = model.report()
    model.reduced(w + 1e-3)
    second = model.report()
    assert 0 < first["worst_residual"] <= second["worst_residual"] < RESIDUAL["float64"]
    assert 0 < first["steps"] < second["steps"]
    assert second["epochs"] == 0


@kernels
def test_training_goes_on_from_a_reduced_risk(kernel):
    """Its gradient used up what the next step of the weights starts from."""
    inputs, targets, weights = drawn(kernel)
    model = solver(kernel, inputs, targets)
    w, reference = torch.from_numpy(weights), dense(model)
    v = w.clone()
    losses = model.advance(w, model.reduced(w).outer, 3)
    expected = reference.advance(v, reference.solve(v), 3)
    np.testing.assert_allclose(losses, expected, rtol=FOLLOWS)
    np.testing.assert_allclose(wrap(w.numpy() - v.numpy()), 0, rtol=0, atol=FOLLOWS)


def test_a_useless_preconditioner_is_replaced():
    inputs, targets, weights = drawn("laplace")
    model, w = solver("laplace", inputs, targets), torch.from_numpy(weights.copy())
    outer = model.solve(w)
    model.advance(w, outer, 1)
    before = model.report()["factorisations"]
    model._epoch.inverse.copy_(torch.diag(torch.logspace(0, 12, 30, dtype=torch.float64)))
    model.advance(w, outer, 3)
    assert model.report()["factorisations"] > before
    assert relative_residual("laplace", inputs, targets, w.numpy(), outer[:, 0].numpy()) < RESIDUAL["float64"]


def test_a_new_preconditioner_where_neurons_move():
    inputs, targets, weights = drawn("laplace", 500, 40)
    made = []
    for time_scale in (1e-12, 2**-6):
        model, w = solver("laplace", inputs, targets, time_scale=time_scale), torch.from_numpy(weights.copy())
        model.advance(w, model.solve(w), 60)
        made.append(model.report()["factorisations"])
    assert made[0] == 1
    assert made[1] > 1


def test_a_student_that_fits_exactly_stays():
    """u = 1 has no residual to begin with: nothing may be divided by zero."""
    inputs, _, weights = drawn("laplace")
    w = torch.from_numpy(weights.copy())
    targets = RadialTorus(RADIAL_KERNELS["laplace"])(w, torch.from_numpy(inputs)).mean(dim=1)
    model = solver("laplace", inputs, targets.numpy())
    outer = model.solve(w)
    losses = model.advance(w, outer, 40)
    assert losses.abs().max() < EXACT
    torch.testing.assert_close(outer, torch.ones_like(outer), rtol=0, atol=TRAJECTORY)


# --- states ------------------------------------------------------------------------------------------------------


def test_one_solver_takes_up_other_states():
    inputs, targets, weights = drawn("laplace")
    model = solver("laplace", inputs, targets)
    for width in (30, 29, 30, 8):
        w = torch.from_numpy(weights[:width].copy())
        outer = model.solve(w)
        assert relative_residual("laplace", inputs, targets, w.numpy(), outer[:, 0].numpy()) < RESIDUAL["float64"]
        other = torch.from_numpy(weights[-width:].copy())
        expected = dense(model)
        other_outer = expected.solve(other)
        losses = model.advance(other.clone(), other_outer.clone(), 5)
        np.testing.assert_allclose(losses, expected.advance(other, other_outer, 5), rtol=FOLLOWS)


def test_the_division_into_calls_is_immaterial():
    inputs, targets, weights = drawn("laplace")
    ends = []
    for parts in ([40], [1, 9, 30]):
        model, w = solver("laplace", inputs, targets), torch.from_numpy(weights.copy())
        outer = model.solve(w)
        losses = torch.cat([model.advance(w, outer, epochs) for epochs in parts])
        ends.append((losses, w))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=FOLLOWS, atol=0)
    assert wrap_torus(ends[0][1] - ends[1][1]).abs().max() < FOLLOWS


def test_own_copies_in_float64():
    tensor = torch.ones(3, 2)
    inputs, targets, _ = drawn("laplace")
    owned = solver("laplace", inputs, targets, dtype="float32").own(tensor)
    owned.fill_(2)
    assert owned.dtype == torch.float64
    assert torch.equal(tensor, torch.ones(3, 2))


def test_training_goes_as_on_the_other_solvers(tmp_path):
    """Snapshots, losses and resumption: a run interrupted half-way ends as one that was not."""
    inputs, targets, weights = drawn("laplace")
    plan, start = schedule(24, 6), torch.from_numpy(weights)
    checkpoint = Checkpoint(tmp_path / "state", {"seed": 0}, STATE_VERSION)
    whole = train(GradientDescent(solver("laplace", inputs, targets), start), plan)
    other = train(
        GradientDescent(TorusSolver("laplace", inputs, targets, LMBDA, 1.0, TIME_SCALE, "float64"), start), plan
    )
    run = _Run(GradientDescent(solver("laplace", inputs, targets), start), plan, None)
    run.record()
    for epoch in (6, 12):
        while run.epoch < epoch:
            run.advance(epoch)
    checkpoint.write(run.state())
    resumed = train(GradientDescent(solver("laplace", inputs, targets), start), plan, checkpoint=checkpoint)
    within = GROWN["float64"] * growth(dense(solver("laplace", inputs, targets)), weights, 24)
    for found in (resumed, other):
        torch.testing.assert_close(found.loss, whole.loss, rtol=within, atol=0)
        torch.testing.assert_close(found.weights, whole.weights, rtol=ROUNDED, atol=ROUNDED + within)
        torch.testing.assert_close(found.outer, whole.outer, rtol=ROUNDED, atol=ROUNDED + within)
    assert whole.outer.shape == (5, 30)


# --- failures ----------------------------------------------------------------------------------------------------


def test_a_diverging_run_ends_with_nan():
    inputs, targets, weights = drawn("laplace")
    w = torch.from_numpy(weights)
    model = solver("laplace", inputs, targets, time_scale=float("inf"))
    assert model.advance(w, model.solve(w), 40).isnan().all()


def test_what_cannot_be_solved_is_an_error():
    inputs, targets, weights = drawn("laplace")
    weights[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        solver("laplace", inputs, targets).solve(torch.from_numpy(weights))


def test_an_epoch_that_cannot_be_solved_is_an_error(monkeypatch):
    inputs, targets, weights = drawn("laplace")
    model, w = solver("laplace", inputs, targets), torch.from_numpy(weights)
    outer = model.solve(w)
    monkeypatch.setattr(model, "_renew", lambda: None)
    model._epoch.inverse.copy_(torch.diag(torch.logspace(0, 12, 30, dtype=torch.float64)))
    with pytest.raises(FloatingPointError, match=r"residual stays at .* in float64 at lambda 0\.001"):
        model.advance(w, outer, 1)


# --- nothing waits for the device --------------------------------------------------------------------------------

_READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique2", "_unique2"}


class HostReads(TorchDispatchMode):
    """Counts the operations that hand a value to the host, and raises at the first one more than allowed."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self.left = allowed

    def __torch_dispatch__(self, operation, kinds, arguments=(), keywords=None):
        places = arguments[1] if operation.overloadpacket.__name__ in ("index", "index_put_") else ()
        by_mask = any(place is not None and place.dtype == torch.bool for place in places)
        if by_mask or operation.overloadpacket.__name__ in _READS:
            self.left -= 1
            if self.left < 0:
                raise AssertionError(f"{operation} hands a value to the host")
        return operation(*arguments, **(keywords or {}))


def test_the_counter_of_host_reads_counts():
    numbers = torch.arange(3.0)
    for read in (numbers.sum().item, numbers.nonzero, lambda: bool(numbers[0]), lambda: numbers[numbers > 1].sum()):
        with pytest.raises(AssertionError, match="host"), HostReads(0):
            read()
    with HostReads(1):
        numbers.sum().item()


@precisions
@kernels
def test_an_epoch_hands_nothing_to_the_host(kernel, dtype):
    inputs, targets, weights = drawn(kernel)
    model, w = solver(kernel, inputs, targets, dtype=dtype), torch.from_numpy(weights)
    model.solve(w)
    epoch = model._epoch
    with HostReads(0):
        epoch.begin()
        for _ in range(3):
            epoch.step()
        epoch.end()


@pytest.mark.parametrize("feature_map", [*(RadialTorus(kernel) for kernel in RADIAL_KERNELS.values()), ReLUCircle()])
def test_an_epoch_runs_without_any_values(feature_map):
    """On the meta device there is nothing to read or to send: what runs there cannot depend on values on the host."""
    meta = {"device": "meta"}
    inputs, targets = torch.zeros(50, 2, dtype=torch.float32, **meta), torch.zeros(50, 1, dtype=torch.float64, **meta)
    epoch = epochs.TensorEpoch(epochs.EpochProblem(feature_map, inputs, targets, LMBDA, 1.0, TIME_SCALE), 8)
    places = [tensor for tensor in vars(epoch).values() if isinstance(tensor, torch.Tensor)]
    epoch.begin()
    epoch.step()
    epoch.end()
    assert all(any(tensor is place for place in places) for tensor in vars(epoch).values() if torch.is_tensor(tensor))


@pytest.mark.parametrize("outer_update", ["ridge", "gradient"])
def test_the_dense_solver_reads_once_a_call(outer_update):
    problem = random_problem(60, 6)
    data = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)[:, None]
    model = DenseSolver(ReLUCircle(), *data, 1e-2, 1.0, TIME_SCALE, outer_update)
    weights = torch.from_numpy(problem.weights)
    outer = model.solve(weights)
    for count in (1, 20):
        with HostReads(1):
            model.advance(weights, outer, count)


# --- graphs ------------------------------------------------------------------------------------------------------


def test_a_failed_capture_is_an_error(monkeypatch):
    """No silent fall back to epochs that are several times slower."""

    def refuse(device, *actions, memory):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(capture, "captured", refuse)
    inputs, targets, weights = drawn("laplace")
    model, w = solver("laplace", inputs, targets), torch.from_numpy(weights)
    with pytest.raises(RuntimeError, match="capturing"):
        model.advance(w, model.solve(w), 1)


def test_generic_features_lie_as_their_map_makes_them():
    inputs, _, weights = drawn("laplace")
    x, w = torch.from_numpy(inputs), torch.from_numpy(weights)
    generic, radial = (epochs.passes_of(of, x, len(w)) for of in (ReLUCircle(), RadialTorus(RADIAL_KERNELS["cos"])))
    assert generic.features.stride() == ReLUCircle()(w, x).stride()
    assert radial.features.stride() == (1, len(x))


def test_too_wide_a_student_is_refused():
    problem = Problem(torch.ones(2, 2), torch.ones(2, 1), torch.empty(1, 2).expand(20001, 2), None)
    goal = Objective(ReLUCircle(), LMBDA, 0.0, TIME_SCALE, "ridge")
    assert "more than 20000 neurons" in GraphSolver.obstacle(goal, problem)


class Warming(GraphSolver):
    """Runs what a capture demands before every state that it takes up, not only before the first."""

    def _set(self, weights, outer):
        self._warm_up()
        super()._set(weights, outer)


def test_the_runs_before_a_capture_leave_no_trace():
    inputs, targets, weights = drawn("laplace")
    ends = []
    for kind in (GraphSolver, Warming):
        model, w = solver("laplace", inputs, targets, kind=kind), torch.from_numpy(weights.copy())
        outer = model.solve(w)
        ends.append((model.advance(w, outer, 20), w, outer))
    for first, second in zip(*ends, strict=True):
        assert torch.equal(first, second)


def test_a_graph_for_every_number_of_steps(monkeypatch):
    """Captured at its first use, in the midst of the training, and by an action that is not run meanwhile."""
    inputs, targets, weights = drawn("laplace")
    model, w = solver("laplace", inputs, targets), torch.from_numpy(weights)
    made, memories = [], []

    def captured(device, *actions, memory):
        made.append(actions[0].args[0])
        memories.append(memory)
        return actions

    monkeypatch.setattr(capture, "captured", captured)
    outer = model.solve(w)
    for steps in (3, 2, 3, 2):
        model._steps = steps
        model._attempt(2)
    assert made == [3, 2]
    model.solve(w[:20])
    model._attempt(1)
    assert len(made) == 3  # others for another width
    assert memories[0] is memories[1] is not memories[2]
    assert outer.shape == (30, 1)


# --- on a device -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@precisions
@kernels
def test_on_cuda_the_run_is_that_of_the_cpu(kernel, dtype):
    """Both solve to round-off in float64: they make their preconditioners anew at other epochs."""
    inputs, targets, weights = drawn(kernel, 1000, 64)
    reference = solver(kernel, inputs, targets)
    problem = reference.problem
    data = problem.inputs.to("cuda", getattr(torch, dtype)), problem.targets.cuda()
    model = GraphSolver(problem.feature_map, *data, LMBDA, 1.0, TIME_SCALE)
    if dtype == "float64":
        model._tolerance = reference._tolerance = 1e-13
    w, cuda_w = torch.from_numpy(weights.copy()), torch.from_numpy(weights.copy()).cuda()
    losses, cuda_losses = (one.advance(v, one.solve(v), 50) for one, v in ((reference, w), (model, cuda_w)))
    assert model._graphs  # captured
    np.testing.assert_allclose(cuda_losses, losses, rtol={"float32": FLOAT32, "float64": FOLLOWS}[dtype])
    assert wrap_torus(cuda_w.cpu() - w).abs().max() < {"float32": FLOAT32, "float64": FOLLOWS}[dtype]
