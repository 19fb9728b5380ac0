"""VarProLoss: gradient of the re-solved risk, known answers, averaging, kinds of targets, state, moves, training."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import EXACT, FEATURE, FLOAT32_STATE, LOSS, SOLVE
from torch import nn

from varpro import loss, ridge
from varpro.loss import VarProLoss

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3))
LAMBDAS = st.sampled_from([1.0, 1e-2, 1e-4])
CENTRES = st.sampled_from([0.0, 1.0, -0.5])


def problem(samples=12, width=5, outputs=3, seed=0, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """ReLU features (N, M) and targets (N, k), of size 1."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator, dtype=torch.float64).clamp(min=0)
    targets = torch.randn(samples, outputs, generator=generator, dtype=torch.float64)
    return features.to(dtype), targets.to(dtype)


def least_squares(features: torch.Tensor, targets: torch.Tensor, lmbda: float, centre: float) -> torch.Tensor:
    """argmin_u L (M, k) as the least squares of stacked rows, in float64: no normal equations."""
    samples, width = features.shape
    rows = torch.cat([features.double() / width / samples**0.5, (lmbda / width) ** 0.5 * torch.eye(width).double()])
    penalty = torch.full((width, targets.shape[1]), centre * (lmbda / width) ** 0.5, dtype=torch.float64)
    return torch.linalg.lstsq(rows, torch.cat([targets.double() / samples**0.5, penalty])).solution


def reduced_risk(features: torch.Tensor, targets: torch.Tensor, lmbda: float, centre: float) -> float:
    """min_u L, written out."""
    outer = least_squares(features, targets, lmbda, centre)
    residual = features @ outer / features.shape[1] - targets
    return ((residual**2).mean() / (2 * lmbda) + ((outer - centre) ** 2).mean() / 2).item()


def gradient(criterion: VarProLoss, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    leaf = features.clone().requires_grad_()
    criterion(leaf, targets).backward()
    return leaf.grad


# --- value and gradient ------------------------------------------------------------------------------------------


@given(SHAPES, LAMBDAS, CENTRES, st.integers(0, 2**16))
def test_loss_and_outer_weights_are_those_of_least_squares(shape, lmbda, centre, seed):
    """N < M takes the dual form, N >= M the primal."""
    features, targets = problem(*shape, seed)
    criterion = VarProLoss(lmbda, centre)
    loss = criterion(features, targets)
    expected = least_squares(features, targets, lmbda, centre)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(criterion.outer, expected, rtol=0, atol=10 * SOLVE * scale)
    assert loss.item() == pytest.approx(reduced_risk(features, targets, lmbda, centre), rel=SOLVE, abs=EXACT)


@pytest.mark.parametrize("shape", [(14, 5), (5, 14)], ids=["primal", "dual"])
@pytest.mark.parametrize(("lmbda", "centre"), [(1e-1, 1.0), (1e-3, 0.0)])
def test_gradient_is_that_of_the_risk_solved_anew(shape, lmbda, centre):
    """Along random directions, by central differences of a risk whose outer weights are solved for at every point."""
    features, targets = problem(*shape)
    found = gradient(VarProLoss(lmbda, centre), features, targets)
    generator, step = torch.Generator().manual_seed(1), 1e-5
    for _ in range(3):
        direction = torch.randn(features.shape, generator=generator, dtype=torch.float64)
        ends = [reduced_risk(features + sign * step * direction, targets, lmbda, centre) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        scale = found.norm() * direction.norm()
        assert abs((found * direction).sum() - slope) < LOSS["gradient"] * scale


def test_with_averaging_the_gradient_is_that_at_fixed_outer_weights_and_no_other():
    features, targets = problem()
    start = torch.ones(5, 3, dtype=torch.float64)
    criterion = VarProLoss(1e-2, averaging=0.5, outer=start)
    found = gradient(criterion, features, targets)
    leaf = features.clone().requires_grad_()
    ridge.loss(leaf, targets, criterion.outer, 1e-2, 0.0).backward()
    torch.testing.assert_close(found, leaf.grad, rtol=EXACT, atol=EXACT)
    reduced = gradient(VarProLoss(1e-2), features, targets)
    assert (found - reduced).norm() > 0.1 * reduced.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [6, 40])
def test_targets_from_the_features_give_unit_outer_weights_and_no_gradient(width, dtype):
    """f = phi 1 / M with the unbiased penalty: u = 1 to the last bit, risk 0."""
    features, _ = problem(20, width, dtype=dtype)
    criterion = VarProLoss(1e-6, centre=1.0, dtype=dtype)
    targets = ridge.predict(features, torch.ones(width, 1, dtype=dtype))
    exact = features.mean(dim=1, keepdim=True)
    criterion(features, exact)
    assert torch.equal(criterion.outer, torch.ones(width, 1, dtype=dtype))
    loss = criterion(features, targets)  # summed in another order
    name = str(dtype).removeprefix("torch.")
    assert loss.item() < LOSS[f"perfect fit {name}"]
    within = FEATURE[name] * targets.abs().max()
    torch.testing.assert_close(criterion.predict(features), targets, rtol=0, atol=within)


def test_primal_and_dual_give_the_same():
    """A batch five times over has the same means, and more samples than features."""
    features, targets = problem(8, 20)
    found = []
    for copies in (1, 5):
        criterion = VarProLoss(1e-3, 1.0)
        slope = gradient(criterion, features.repeat(copies, 1), targets.repeat(copies, 1))
        found.append((criterion.outer, slope.view(copies, 8, 20).sum(dim=0)))
    for dual, primal in zip(*found, strict=True):
        torch.testing.assert_close(primal, dual, rtol=0, atol=10 * SOLVE)


@pytest.mark.parametrize(("shape", "lmbda"), [((200, 100), 1e-4), ((20, 100), 1e-6), ((20, 100), 1e-3)])
def test_float32_features_have_the_gradient_of_float64(shape, lmbda):
    """In float32 alone it would not be: dual systems of small lambda have residuals of that size."""
    features, targets = problem(*shape, dtype=torch.float32)
    exact = gradient(VarProLoss(lmbda), features.double(), targets.double())

    def error(criterion):
        return ((gradient(criterion, features, targets) - exact).norm() / exact.norm()).item()

    assert error(VarProLoss(lmbda)) < LOSS["float32 features"]
    if lmbda == 1e-6:
        assert error(VarProLoss(lmbda, dtype=torch.float32)) > 10 * LOSS["float32 features"]


# --- averaging and modes -----------------------------------------------------------------------------------------


def test_averaging_is_the_recursion():
    """u_n = m u_{n-1} + (1 - m) argmin; the first one is the first solution."""
    criterion, expected = VarProLoss(1e-2, 1.0, averaging=0.7), None
    for seed in range(4):
        features, targets = problem(seed=seed)
        loss = criterion(features, targets)
        solution = least_squares(features, targets, 1e-2, 1.0)
        expected = solution if expected is None else 0.7 * expected + 0.3 * solution
        torch.testing.assert_close(criterion.outer, expected, rtol=0, atol=10 * SOLVE)
        assert loss.item() == pytest.approx(ridge.loss(features, targets, expected, 1e-2, 1.0).item(), rel=SOLVE)


@pytest.mark.parametrize("options", [{}, {"averaging": 0.5}, {"memory": 0.5}])
@pytest.mark.parametrize("lmbda", [1e-2, 1e-4])
def test_a_call_has_two_halves(options, lmbda):
    """To the same bits, gradient, loss and state, also where the loss of float32 features is in float64."""
    whole, halves = (VarProLoss(lmbda, 1.0, **options) for _ in range(2))
    for seed in range(3):
        features, targets = problem(seed=seed, dtype=torch.float32)
        one, other = (features.clone().requires_grad_() for _ in range(2))
        loss = whole(one, targets)
        found = halves.at(other, targets, halves.solve(other, targets))
        loss.backward()
        found.backward()
        assert torch.equal(found, loss)
        assert torch.equal(other.grad, one.grad)
    assert all(map(torch.equal, whole.state_dict().values(), halves.state_dict().values()))


def test_evaluation_solves_nothing():
    criterion = VarProLoss(1e-2)
    criterion(*problem())
    kept = criterion.outer.clone()
    other = problem(seed=1)
    loss = criterion.eval()(*other)
    assert torch.equal(criterion.outer, kept)
    assert loss.item() == pytest.approx(ridge.loss(*other, kept, 1e-2, 0.0).item(), rel=EXACT)
    assert criterion.train()(*other) < loss


def test_losses_of_several_batches_can_go_back_together():
    """The outer weights of the first are not those that the second leaves."""
    batches = [problem(seed=seed) for seed in range(2)]
    alone = [gradient(VarProLoss(1e-2), *batch) for batch in batches]
    criterion = VarProLoss(1e-2)
    leaves = [features.clone().requires_grad_() for features, _ in batches]
    losses = [criterion(leaf, targets) for leaf, (_, targets) in zip(leaves, batches, strict=True)]
    sum(losses).backward()
    for leaf, expected in zip(leaves, alone, strict=True):
        assert torch.equal(leaf.grad, expected)


def test_outer_weights_of_a_network_are_updated_in_place():
    features, targets = problem()
    layer = nn.Linear(5, 3, bias=False).double().requires_grad_(False)
    criterion = VarProLoss(1e-2, outer=layer.weight.T)
    criterion(features, targets)
    torch.testing.assert_close(layer.weight.T, least_squares(features, targets, 1e-2, 0.0), rtol=0, atol=10 * SOLVE)
    torch.testing.assert_close(layer(features) / 5, criterion.predict(features), rtol=0, atol=EXACT)


# --- memory ------------------------------------------------------------------------------------------------------


def remembered(batches, memory: float, lmbda: float, centre: float) -> tuple[torch.Tensor, float, float]:
    """u, min_u R and the weight of the last batch, for R the mean of the batches' data terms with weights m^age, by
    least squares of all rows."""
    weights = torch.tensor([memory**age for age in reversed(range(len(batches)))], dtype=torch.float64)
    weights /= weights.sum()
    scaled = [
        (features * (len(batches) * weight).sqrt(), targets * (len(batches) * weight).sqrt())
        for (features, targets), weight in zip(batches, weights, strict=True)
    ]
    features, targets = (torch.cat(each) for each in zip(*scaled, strict=True))  # batches of one size
    outer = least_squares(features, targets, lmbda, centre)
    return outer, reduced_risk(features, targets, lmbda, centre), weights[-1].item()


@pytest.mark.parametrize("samples", [12, 3], ids=["wide batches", "narrow batches"])
@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_memory_minimises_the_risk_of_all_batches_so_far(samples, centre):
    criterion, batches = VarProLoss(1e-2, centre, memory=0.8), []
    for seed in range(5):
        batches.append(problem(samples, seed=seed))
        loss = criterion(*batches[-1])
        expected, _, _ = remembered(batches, 0.8, 1e-2, centre)
        torch.testing.assert_close(criterion.outer, expected, rtol=0, atol=10 * SOLVE)
        assert loss.item() == pytest.approx(ridge.loss(*batches[-1], expected, 1e-2, centre).item(), rel=SOLVE)


def test_gradient_with_memory_is_that_of_the_remembered_risk_solved_anew():
    """Up to the weight of the batch, by central differences in its features, those of older batches held."""
    batches = [problem(seed=seed) for seed in range(3)]
    criterion = VarProLoss(1e-2, 1.0, memory=0.7)
    for batch in batches[:-1]:
        criterion(*batch)
    features, targets = batches[-1]
    found = gradient(criterion, features, targets)
    generator, step = torch.Generator().manual_seed(1), 1e-5
    for _ in range(3):
        direction = torch.randn(features.shape, generator=generator, dtype=torch.float64)
        risks = []
        for sign in (1, -1):
            moved = [*batches[:-1], (features + sign * step * direction, targets)]
            _, risk, weight = remembered(moved, 0.7, 1e-2, 1.0)
            risks.append(risk)
        slope = (risks[0] - risks[1]) / (2 * step) / weight
        assert abs((found * direction).sum() - slope) < LOSS["gradient"] * found.norm() * direction.norm()


def test_memory_of_one_batch_is_its_solution():
    features, targets = problem()
    criterion = VarProLoss(1e-2, 1.0, memory=0.9)
    for _ in range(3):  # the same again and again
        criterion(features, targets)
        expected = least_squares(features, targets, 1e-2, 1.0)
        torch.testing.assert_close(criterion.outer, expected, rtol=0, atol=10 * SOLVE)


@pytest.mark.parametrize("moved", [False, True])
def test_memory_is_in_the_state(moved):
    first, fresh, twin = (VarProLoss(1e-2, memory=0.9) for _ in range(3))
    for seed in range(3):
        first(*problem(seed=seed))
    fresh.load_state_dict(first.state_dict())
    twin.load_state_dict(first.state_dict())
    assert set(first.state_dict()) == {"outer", "second_moment", "cross_moment", "remembered"}
    batch = problem(seed=3)
    expected = first(*batch)
    if moved:
        assert twin.float().second_moment.dtype == torch.float32
        torch.testing.assert_close(twin(*batch), expected, rtol=LOSS["float32 features"], atol=0)
    assert torch.equal(fresh(*batch), expected)
    assert torch.equal(fresh.outer, first.outer)


def test_what_cannot_be_solved_is_not_remembered():
    features, targets = problem()
    criterion, twin = VarProLoss(1e-2, memory=0.9), VarProLoss(1e-2, memory=0.9)
    for each in (criterion, twin):
        each(features, targets)
    broken = targets.clone()
    broken[3] = torch.nan
    with pytest.raises(FloatingPointError, match="features are not finite"):
        criterion(features * torch.nan, targets)
    with pytest.raises(FloatingPointError, match="targets are not finite"):
        criterion(features, broken)
    other = problem(seed=1)
    assert torch.equal(criterion(*other), twin(*other))


@pytest.mark.parametrize("options", [{}, {"averaging": 0.5}, {"memory": 0.5}])
def test_fit_is_the_solution_of_all_batches_together(options):
    features, targets = problem(30)
    criterion = VarProLoss(1e-2, 1.0, **options)
    criterion(*problem(seed=1))
    before = {name: tensor.clone() for name, tensor in criterion.state_dict().items() if name != "outer"}
    sizes = [7, 16, 1, 6]  # some of them narrower than the features
    criterion.fit(zip(features.split(sizes), targets.split(sizes), strict=True))
    expected = least_squares(features, targets, 1e-2, 1.0)
    torch.testing.assert_close(criterion.outer, expected, rtol=0, atol=10 * SOLVE)
    assert all(torch.equal(tensor, criterion.state_dict()[name]) for name, tensor in before.items())


def test_fit_of_what_cannot_be():
    criterion = VarProLoss(1e-2, classes=3)
    features, labels = problem()[0], torch.arange(12) % 3
    criterion.fit([(features, labels)])
    assert criterion.outer.shape == (5, 3)
    for batches, says in (([], "batches: there are none"), ([(features, labels + 1)], "class labels from 1 to 3")):
        with pytest.raises(ValueError, match=says):
            criterion.fit(batches)
    with pytest.raises(FloatingPointError, match="features or targets are not finite"):
        criterion.fit([(features * torch.nan, labels)])
    with pytest.raises(FloatingPointError, match="features or targets are not finite"):
        VarProLoss(1e-2).fit([(features, torch.full((12,), torch.nan))])
    for second in (torch.ones(12), torch.ones(12, 2)):
        with pytest.raises(ValueError, match=r"outer would be \(5, 3\) after the first ones, \(5(, 2)?,?\) after this"):
            VarProLoss(1e-2).fit([(features, torch.ones(12, 3)), (features, second)])
    row = VarProLoss(1e-2)
    row.fit([(features, labels.double())])
    torch.testing.assert_close(
        row.outer, least_squares(features, labels.double()[:, None], 1e-2, 0.0)[:, 0], rtol=0, atol=10 * SOLVE
    )


# --- targets -----------------------------------------------------------------------------------------------------


def test_kinds_of_targets():
    features, _ = problem()
    labels = torch.arange(12) % 3
    vectors = torch.eye(4, dtype=torch.float64)[labels]  # class 3 has no sample, and is there
    losses, outer = [], []
    for targets in (vectors, vectors.float(), vectors.long(), labels, labels.to(torch.uint8)):
        criterion = VarProLoss(1e-2, classes=4)
        losses.append(criterion(features, targets).item())
        outer.append(criterion.outer)
    assert len(set(losses)) == 1
    assert all(torch.equal(each, outer[0]) for each in outer)
    assert outer[0].shape == (5, 4)


def test_targets_of_one_number_each():
    features, targets = problem(outputs=1)
    column, row = VarProLoss(1e-2, 1.0, averaging=0.5), VarProLoss(1e-2, 1.0, averaging=0.5)
    for _ in range(2):
        assert column(features, targets).item() == row(features, targets[:, 0]).item()
    assert torch.equal(column.outer[:, 0], row.outer)
    assert row.predict(features).shape == (12,)
    assert column.predict(features).shape == (12, 1)


# --- state, devices, precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [True, False])
def test_a_state_dict_goes_into_a_fresh_module(alone):
    """Whether it is the loss's own or that of a module that holds it; through a file that is read safely."""
    features, targets = problem()

    def module():
        criterion = VarProLoss(1e-2, averaging=0.5)
        return criterion if alone else nn.ModuleDict({"criterion": criterion})

    def loss_of(holder):
        return holder if alone else holder["criterion"]

    first, fresh = module(), module()
    loss_of(first)(features, targets)
    stream = io.BytesIO()
    torch.save(first.state_dict(), stream)
    stream.seek(0)
    fresh.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(loss_of(fresh).predict(features), loss_of(first).predict(features))
    other = problem(seed=1)
    assert torch.equal(loss_of(fresh)(*other), loss_of(first)(*other))
    assert list(first.state_dict()) == ["outer" if alone else "criterion.outer"]
    assert not module().state_dict()
    loss_of(first).load_state_dict(loss_of(fresh).state_dict())  # one that has its shape
    with pytest.raises(RuntimeError, match="size mismatch for outer"):
        loss_of(fresh).load_state_dict({"outer": torch.zeros(2, 3)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module().load_state_dict({"inner": torch.zeros(2, 3)})


def test_dtype_and_device_move():
    criterion = VarProLoss(1e-2)
    features, targets = problem()
    criterion(features, targets)
    assert criterion.outer.dtype == torch.float64
    narrow = copy.deepcopy(criterion).float()
    assert narrow.outer.dtype == torch.float32
    assert narrow(features.float(), targets).dtype == torch.float32
    assert narrow.predict(features).dtype == torch.float64  # the wider of the two
    torch.testing.assert_close(narrow.predict(features), criterion.predict(features), rtol=0, atol=FLOAT32_STATE)
    for memory in (0.0, 0.9):  # shapes alone, and as on a GPU no wait; what has no shape yet need not be moved
        fresh = VarProLoss(1e-2, memory=memory)
        for _ in range(2):
            loss = fresh(features.to("meta"), targets.to("meta"))
        assert (loss.device.type, loss.shape) == ("meta", ())
        assert fresh.predict(features.to("meta")).shape == targets.shape
    moved = copy.deepcopy(criterion).to("meta")
    assert {tensor.device.type for tensor in moved.buffers()} == {"meta"}
    with pytest.raises(ValueError, match="outer on meta: move the loss"):
        moved(features, targets)


@pytest.mark.parametrize("lmbda", [1e-2, 1e-4])
def test_autocast_and_half_precision(lmbda):
    """Nothing but the features is narrow: the loss is that of the rounded features in full precision."""
    torch.manual_seed(0)
    network, inputs = nn.Linear(7, 30), torch.randn(40, 7)
    targets = torch.randn(40, 2)
    criterion, plain = VarProLoss(lmbda), VarProLoss(lmbda)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(inputs)
        assert features.dtype == torch.bfloat16
        loss = criterion(features, targets)
        outputs = criterion.predict(features)
    assert loss.dtype == outputs.dtype == criterion.outer.dtype == torch.float32
    assert torch.equal(loss, plain(features.float(), targets))
    assert torch.equal(outputs, plain.predict(features.float()))
    loss.backward()
    assert network.weight.grad.dtype == torch.float32
    assert network.weight.grad.abs().max() > 0


def test_options_are_shown():
    expected = "VarProLoss(lmbda=0.001, centre=1, averaging=0.5, memory=0, classes=10)"
    assert repr(VarProLoss(1e-3, 1, 0.5, classes=10)) == expected


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lmbda": 0.0}, "lmbda: 0.0 is not allowed: a finite number above 0"),
        ({"lmbda": float("inf")}, "lmbda: inf is not allowed"),
        ({"lmbda": 1, "centre": float("nan")}, "centre: nan is not allowed"),
        ({"lmbda": 1, "averaging": 1.0}, "averaging: 1.0 is not allowed: a number from 0 to below 1"),
        ({"lmbda": 1, "memory": -0.1}, "memory: -0.1 is not allowed: a number from 0 to below 1"),
        ({"lmbda": 1, "averaging": 0.5, "memory": 0.5}, "averaging and memory: one of them may be above 0"),
        ({"lmbda": 1, "classes": 0}, "classes: 0 is not allowed"),
        ({"lmbda": 1, "outer": torch.zeros(2, 2, 2)}, r"outer: \(2, 2, 2\) of torch.float32 is not allowed"),
        ({"lmbda": 1, "dtype": torch.float16}, "dtype: torch.float16 is not allowed"),
    ],
)
def test_options_that_are_refused(options, says):
    with pytest.raises(ValueError, match=f"^{says}") as caught:
        VarProLoss(**options)
    assert "\n" not in str(caught.value)


LABELS = torch.zeros(12, dtype=torch.int64)


@pytest.mark.parametrize(
    ("features", "targets", "options", "says"),
    [
        (torch.zeros(12), torch.zeros(12), {}, r"features \(12,\) of torch.float32 are not allowed: \(N, M\)"),
        (torch.zeros(0, 3), torch.zeros(0), {}, r"features \(0, 3\)"),
        (torch.zeros(12, 3).long(), torch.zeros(12), {}, "features .* of torch.int64 are not allowed"),
        (torch.zeros(12, 3), torch.zeros(11), {}, r"targets \(11,\) are not allowed with features \(12, 3\)"),
        (torch.zeros(12, 3), torch.zeros(12, 1, 1), {}, r"targets \(12, 1, 1\) are not allowed"),
        (torch.zeros(12, 3), torch.zeros(12, 1) * 1j, {}, "targets of torch.complex64"),
        (torch.zeros(12, 3), torch.zeros(12, device="meta"), {}, "targets are on meta, features on cpu"),
        (torch.zeros(12, 3), LABELS, {}, r"are class labels: say how many there are, VarProLoss\(..., classes=K\)"),
        (torch.zeros(12, 3), LABELS.double(), {"classes": 3}, r"torch.float64 are not allowed with classes=3"),
        (torch.zeros(12, 3), LABELS[:, None], {"classes": 3}, r"targets \(12, 1\) are not allowed with classes=3"),
        (torch.zeros(12, 3), LABELS + 3, {"classes": 3}, "class labels from 3 to 3 are not allowed with classes=3"),
        (torch.zeros(12, 3), LABELS - 1, {"classes": 3}, "class labels from -1 to -1"),
        (torch.zeros(12, 3), torch.zeros(12, 2), {"outer": torch.zeros(4, 2)}, r"need outer \(3, 2\), .* \(4, 2\)"),
        (torch.zeros(12, 3), torch.zeros(12), {"outer": torch.zeros(3, 1)}, r"need outer \(3,\), .* \(3, 1\)"),
    ],
)
def test_batches_that_are_refused(features, targets, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        VarProLoss(1e-2, **options)(features, targets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("targets", "outer"), [((12,), (3, 1)), ((12, 1), (3,)), ((12, 2), (3, 1)), ((12,), (4,))])
def test_an_outer_that_would_be_broadcast_is_refused(targets, outer):
    with pytest.raises(ValueError, match=r"^outer \(.*\) is not allowed here: \(3,.*\)$"):
        VarProLoss(1e-2).at(torch.zeros(12, 3), torch.zeros(targets), torch.zeros(outer))


def test_what_was_fitted_in_inference_mode_can_be_trained_on():
    criterion, (features, targets) = VarProLoss(1e-2, averaging=0.5), problem()
    with torch.inference_mode():
        criterion.fit([(features, targets)])
    fitted = criterion.outer.clone()
    criterion(features.requires_grad_(), targets).backward()
    torch.testing.assert_close(criterion.outer, fitted, rtol=SOLVE, atol=SOLVE)


def test_nothing_to_predict_with():
    for call in (lambda loss: loss.predict(torch.zeros(2, 3)), lambda loss: loss.eval()(*problem())):
        with pytest.raises(RuntimeError, match="no outer weights yet"):
            call(VarProLoss(1e-2))
    with pytest.raises(ValueError, match=r"features \(2, 3\): outer is for 4 features"):
        VarProLoss(1e-2, outer=torch.zeros(4)).predict(torch.zeros(2, 3))


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_what_cannot_be_solved_raises_and_changes_nothing(memory):
    criterion = VarProLoss(1e-12, memory=memory, dtype=torch.float32, outer=torch.ones(20))
    with pytest.raises(FloatingPointError, match=r"20 x 20 system.*float32.*1e-12"):
        criterion(torch.ones(30, 20), torch.ones(30))
    with pytest.raises(FloatingPointError, match="features are not finite"):
        criterion(torch.full((30, 20), torch.nan), torch.ones(30))
    with pytest.raises(FloatingPointError, match="targets are not finite"):
        criterion(torch.randn(30, 20), torch.full((30,), torch.inf))
    assert torch.equal(criterion.outer, torch.ones(20))
    criterion.check()
    criterion._failed.fill_(True)  # as a GPU leaves it
    with pytest.raises(FloatingPointError, match="not positive definite at lambda 1e-12; use a larger lambda"):
        criterion.check()
    criterion.check()


@pytest.mark.parametrize("options", [{}, {"averaging": 0.5}, {"memory": 0.5}])
@pytest.mark.parametrize("first", [True, False])
def test_a_failure_that_the_host_does_not_see_is_forgotten(options, first, monkeypatch):
    """As on a GPU: NaN for the mini-batch that failed, and the next ones as if it had not been."""
    monkeypatch.setattr(loss, "_host_knows", lambda features: False)
    criterion, twin = VarProLoss(1e-2, **options), VarProLoss(1e-2, **options)
    if not first:
        criterion(*problem(seed=1))
        if "averaging" not in options:  # it is not known what it was before: an average starts anew
            twin(*problem(seed=1))
    features, targets = problem(seed=2)
    assert criterion(features * torch.nan, targets).isnan()
    assert criterion.outer.isnan().all()
    for seed in (3, 4):
        assert torch.equal(criterion(*problem(seed=seed)), twin(*problem(seed=seed)))
    assert torch.equal(criterion.outer, twin.outer)
    with pytest.raises(FloatingPointError):
        criterion.check()


def test_what_was_there_does_not_count_in_a_fit():
    features, targets = problem()
    expected = VarProLoss(1e-2)
    expected.fit([(features, targets)])
    for before in (torch.nan, torch.inf, 1e308):
        criterion = VarProLoss(1e-2, outer=torch.full((5, 3), before, dtype=torch.float64))
        criterion.fit([(features, targets)])
        torch.testing.assert_close(criterion.outer, expected.outer.double(), rtol=0, atol=10 * SOLVE)


# --- end to end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [256, 32])
def test_a_network_learns_and_its_risk_is_that_of_the_best_outer_weights(batch_size):
    """Three rings in the plane, with mini-batches wider and narrower than the features."""
    torch.manual_seed(0)
    labels = torch.arange(256) % 3
    angles, radii = 2 * torch.pi * torch.rand(256), 0.5 + labels + 0.2 * torch.randn(256)
    inputs = torch.stack([radii * angles.cos(), radii * angles.sin()], dim=1)
    network = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 48), nn.ReLU())
    criterion = VarProLoss(1e-2, classes=3)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    first = criterion(network(inputs), labels).item()
    for _ in range(batch_size):  # always as many steps
        for batch in torch.randperm(256).split(batch_size):
            optimizer.zero_grad()
            criterion(network(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    last = criterion(network(inputs), labels).item()
    assert last < 0.6 * first
    answers = criterion.predict(network(inputs)).argmax(dim=1)
    assert (answers == labels).double().mean() > 0.9
