"""What all solvers have in common: the reduced risk, which of them is chosen, and what they refuse."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import build, random_problem, reduced_risk
from tolerances import EXACT, GRADIENT, SHORT_STEP, SOLVE

from varpro.features import LAPLACE, RADIAL_KERNELS, RadialTorus, ReLUCircle
from varpro.problem import Problem, drawn_problem
from varpro.solvers import choose
from varpro.solvers.base import Objective, merged
from varpro.solvers.circle import CircleSolver
from varpro.solvers.dense import DenseSolver
from varpro.solvers.graphs import GraphSolver
from varpro.solvers.torus import TorusSolver

pytestmark = pytest.mark.usefixtures("one_thread")

LMBDA, TIME_SCALE = 1e-2, 2**-10
CIRCLE = drawn_problem(ReLUCircle(), 0, 200, 12, 40, 10.0)
TORUS = {name: drawn_problem(RadialTorus(kernel), 0, 150, 10, 40, 10.0) for name, kernel in RADIAL_KERNELS.items()}


class LeakySubclass(ReLUCircle):
    """A reader's own, max(w . x, 0) + 0.1 min(w . x, 0): still no ReLU, whatever ``isinstance`` says."""

    name = "leaky_circle"

    def __call__(self, weights, inputs):
        return torch.nn.functional.leaky_relu(inputs @ weights.T, 0.1)

    def pull_back(self, weights, inputs, features, cotangent):
        return cotangent.where(features > 0, 0.1 * cotangent).T @ inputs


def objective(features, centre=1.0, outer_update="ridge") -> Objective:
    return Objective(features, LMBDA, centre, TIME_SCALE, outer_update)


CASES = [
    pytest.param(CircleSolver, ReLUCircle(), CIRCLE, id="linear"),
    pytest.param(DenseSolver, ReLUCircle(), CIRCLE, id="dense-circle"),
    pytest.param(DenseSolver, LeakySubclass(), CIRCLE, id="dense-leaky"),
    pytest.param(GraphSolver, ReLUCircle(), CIRCLE, id="graphs-circle"),
    *(
        pytest.param(kind, RadialTorus(kernel), TORUS[name], id=f"{kind.__name__}-{name}")
        for kind in (TorusSolver, GraphSolver, DenseSolver)
        for name, kernel in RADIAL_KERNELS.items()
    ),
]


@pytest.mark.parametrize("centre", [0.0, 1.0])
@pytest.mark.parametrize(("kind", "features", "problem"), CASES)
def test_reduced_risk_against_dense_solves_and_finite_differences(kind, features, problem, centre):
    """Risk, u and gradient at a state, and again at others near it, where some solvers start from the state before."""
    solver = build(kind, objective(features, centre), problem)
    domain, width = features.domain, len(problem.student)
    stream = torch.Generator().manual_seed(0)

    def risk_of(weights):
        phi = features(weights, problem.inputs)
        system = phi.T @ phi / phi.numel() + LMBDA * torch.eye(width, dtype=torch.float64)
        right = phi.T @ problem.targets / len(phi) + LMBDA * centre
        outer = torch.linalg.solve(system, right)
        data = (phi @ outer / width - problem.targets).square().mean() / (2 * LMBDA)
        return (data + (outer - centre).square().mean() / 2).item(), outer[:, 0]

    for scale in (0.0, 1e-3, 1e-1):
        shift = scale * torch.randn(width, 2, dtype=torch.float64, generator=stream)
        weights = domain.project(problem.student + shift)
        found = solver.reduced(solver.own(weights))
        risk, outer = risk_of(weights)
        assert found.risk == pytest.approx(risk, rel=SOLVE)
        np.testing.assert_allclose(torch.as_tensor(found.outer).flatten(), outer, rtol=0, atol=10 * SOLVE)
        gradient, step = torch.as_tensor(found.gradient), 2e-6
        for _ in range(3):
            direction = torch.randn(width, 2, dtype=torch.float64, generator=stream)
            direction = domain.tangent(weights, direction)
            ahead, behind = (risk_of(domain.project(weights + sign * step * direction))[0] for sign in (1, -1))
            assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / (2 * step), abs=GRADIENT)
        within = EXACT * gradient.abs().max()
        torch.testing.assert_close(gradient, domain.tangent(weights, gradient), rtol=0, atol=within)


@pytest.mark.parametrize(("kind", "features", "problem"), CASES)
def test_a_step_of_gradient_descent_is_one_along_the_gradient(kind, features, problem):
    """advance goes M time_scale against the gradient, up to the square of the step, which the projection changes."""
    slow = replace(objective(features), time_scale=2**-30)
    solver = build(kind, slow, problem)
    weights = solver.own(problem.student)
    outer = solver.solve(weights)
    losses = solver.advance(weights, outer, 1)
    other = build(kind, slow, problem)
    found = other.reduced(other.own(problem.student))
    assert losses[0] == pytest.approx(found.risk, rel=SOLVE)
    step = len(outer) * slow.time_scale * torch.as_tensor(found.gradient)
    moved = torch.as_tensor(weights) - problem.student
    torch.testing.assert_close(moved, -step, rtol=0, atol=SHORT_STEP * step.abs().max())


def test_the_circle_solvers_risk_is_the_definition():
    problem = random_problem(60, 9)
    solver = CircleSolver(problem.inputs, problem.targets, LMBDA, 1.0, TIME_SCALE, "ridge")
    assert solver.reduced(problem.weights).risk == pytest.approx(reduced_risk(problem, LMBDA, 1.0), rel=SOLVE)


# --- choice ------------------------------------------------------------------------------------------------------

TWO_OUTPUTS = Problem(CIRCLE.inputs, CIRCLE.targets.expand(-1, 2), CIRCLE.student, None)
WIDE = Problem(CIRCLE.inputs[:1], CIRCLE.targets[:1], CIRCLE.student, None)


@pytest.mark.parametrize(
    ("goal", "problem", "options", "expected"),
    [
        (objective(ReLUCircle()), CIRCLE, {}, ("linear", "cpu", "float64")),
        (objective(ReLUCircle(), outer_update="gradient"), CIRCLE, {}, ("linear", "cpu", "float64")),
        (objective(ReLUCircle()), CIRCLE, {"dtype": "float32"}, ("dense", "cpu", "float32")),
        (objective(ReLUCircle()), TWO_OUTPUTS, {}, ("dense", "cpu", "float32")),
        (objective(LeakySubclass()), CIRCLE, {}, ("dense", "cpu", "float32")),
        (objective(RadialTorus(LAPLACE)), TWO_OUTPUTS, {}, ("dense", "cpu", "float32")),
        (objective(RadialTorus(LAPLACE)), CIRCLE, {}, ("cg", "cpu", "float32")),
        (objective(RadialTorus(LAPLACE)), CIRCLE, {"dtype": "float64"}, ("cg", "cpu", "float64")),
        (objective(RadialTorus(LAPLACE)), CIRCLE, {"solver": "dense"}, ("dense", "cpu", "float32")),
        (objective(RadialTorus(LAPLACE)), WIDE, {}, ("dense", "cpu", "float32")),
        (objective(RadialTorus(LAPLACE)), WIDE, {"solver": "cg"}, ("cg", "cpu", "float32")),
        (objective(RadialTorus(LAPLACE), outer_update="gradient"), CIRCLE, {}, ("dense", "cpu", "float32")),
    ],
)
def test_the_first_solver_that_computes_it_is_chosen(goal, problem, options, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = choose.choose(goal, problem, **options)
    assert (found.solver.name, found.device, found.dtype) == expected
    assert found.usual == (not options or found[:3] == choose.choose(goal, problem)[:3])


def test_what_is_usual_is_the_same_beside_a_gpu(monkeypatch):
    """There another solver is taken for features of one's own, and its results say so in their names."""
    goal = objective(LeakySubclass())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = choose.choose(goal, CIRCLE)
    assert (found.solver.name, found.device, found.usual) == ("cg", "cuda", False)
    assert choose.choose(goal, CIRCLE, device="cpu").usual


@pytest.mark.parametrize(
    ("goal", "options", "expected"),
    [
        (objective(RadialTorus(LAPLACE)), {"device": "cuda"}, ("cg", "cuda", "float32")),
        (objective(RadialTorus(LAPLACE)), {"device": "cuda", "dtype": "float64"}, ("cg", "cuda", "float64")),
        (objective(RadialTorus(LAPLACE)), {"device": "cuda", "solver": "dense"}, ("dense", "cuda", "float32")),
        (objective(RadialTorus(LAPLACE)), {}, ("cg", "cpu", "float32")),
        (objective(ReLUCircle()), {}, ("linear", "cpu", "float64")),
        (objective(ReLUCircle(), outer_update="gradient"), {"device": "cuda"}, ("dense", "cuda", "float32")),
        (objective(LeakySubclass()), {"solver": "dense"}, ("dense", "cuda", "float32")),
    ],
)
def test_where_there_is_cuda(goal, options, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = choose.choose(goal, CIRCLE, **options)
    assert (found.solver.name, found.device, found.dtype) == expected


@pytest.mark.parametrize(
    ("goal", "problem", "options", "line"),
    [
        (objective(LeakySubclass()), CIRCLE, "linear", "computes ReLU features on the circle, not leaky_circle"),
        (objective(ReLUCircle()), TWO_OUTPUTS, "linear", "takes targets with one output"),
        (objective(RadialTorus(LAPLACE)), TWO_OUTPUTS, "cg", "takes targets with one output"),
        (objective(ReLUCircle()), CIRCLE, "cg", "is compiled for the kernels laplace and cos on the torus"),
        (objective(RadialTorus(LAPLACE), outer_update="gradient"), CIRCLE, "cg", "not two-timescale descent"),
    ],
)
def test_the_others_refuse_in_one_line(goal, problem, options, line, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(choose.Refusal, match=f"^--solver {options}: .*{line}.*; allowed here: [a-z, ]*dense$"):
        choose.choose(goal, problem, solver=options)


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"device": "cuda"}, {"device": "cuda", "solver": "dense"}])
def test_where_no_solver_is_left_each_says_why(options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(choose.Refusal, match=r"^--solver [^\n]*(not in float16|not on cuda)") as refused:
        choose.choose(objective(ReLUCircle()), CIRCLE, **options)
    assert "--solver dense: " in str(refused.value)
    named = 1 if "solver" in options else len(choose.NAMES)
    assert str(refused.value).count("--solver ") == named


def test_a_subclass_draws_its_targets_from_its_own_features():
    student = CIRCLE.student
    expected = LeakySubclass()(student, CIRCLE.inputs).mean(dim=1)
    assert torch.equal(LeakySubclass().predict(student, CIRCLE.inputs), expected)
    assert (expected - ReLUCircle().predict(student, CIRCLE.inputs)).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "features", "problem"), CASES)
@pytest.mark.parametrize("what", ["weights", "targets"])
def test_what_is_not_finite_is_never_solved(kind, features, problem, what):
    """No solver returns numbers for a NaN, with or without a state from before; a training has no losses then."""
    start, targets = problem.student.clone(), problem.targets.clone()
    (start if what == "weights" else targets)[0, 0] = torch.nan
    solver = build(kind, objective(features), replace(problem, targets=targets))
    if what == "weights":
        solver.reduced(solver.own(problem.student))
    weights = solver.own(start)
    for call in (solver.solve, solver.reduced):
        with pytest.raises(FloatingPointError):
            call(weights)
    outer = torch.ones(len(start)) if isinstance(weights, np.ndarray) else torch.ones(len(start), 1)
    with suppress(FloatingPointError):
        assert np.isnan(np.asarray(solver.advance(weights, solver.own(outer), 3))).all()


@pytest.mark.parametrize("kind", [CircleSolver, DenseSolver])
def test_the_outer_rate_is_that_of_the_objective(kind):
    """At u = c the penalty has no slope: du = -rate mean phi r."""
    goal = replace(objective(ReLUCircle(), outer_update="gradient"), outer_rate=2.5)
    solver = build(kind, goal, CIRCLE)
    ones = torch.ones(12) if kind is CircleSolver else torch.ones(12, 1)
    weights, outer = solver.own(CIRCLE.student), solver.own(ones)
    solver.advance(weights, outer, 1)
    phi = ReLUCircle()(CIRCLE.student, CIRCLE.inputs)
    expected = 1 - 2.5 * (phi.T @ (phi.mean(dim=1) - CIRCLE.targets[:, 0]) / len(phi))
    np.testing.assert_allclose(np.asarray(outer).ravel(), expected, rtol=0, atol=SOLVE)


def test_reports_of_processes_are_merged():
    first, second = {"worst_residual": 2.0, "steps": 3}, {"worst_residual": 1.0, "steps": 4}
    assert merged(first, second) == {"worst_residual": 2.0, "steps": 7}
    assert merged({}, second) == second


@pytest.mark.parametrize("device", ["meta"])
@pytest.mark.parametrize("kind", [GraphSolver, DenseSolver])
def test_solvers_are_built_where_they_are_told(kind, device):
    """The meta device stands for CUDA: any device other than the CPU."""
    problem = TORUS["cos"]
    made = kind.build(
        objective(RadialTorus(RADIAL_KERNELS["cos"])), problem, device=device, dtype="float32", tf32=False
    )
    data = made.problem if kind is GraphSolver else made
    assert data.inputs.device.type == device
    assert data.inputs.dtype == torch.float32
    assert data.targets.dtype == (torch.float64 if kind is GraphSolver else torch.float32)
