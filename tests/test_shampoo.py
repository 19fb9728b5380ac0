"""Shampoo: two published implementations, first steps by hand, rotations, exact resumption."""

import contextlib
import io

import pytest
import pytorch_optimizer
import torch
import torch_optimizer
from tolerances import EXACT, SHAMPOO

from varpro import results
from VarPro_resnet.shampoo import VARIANTS, Shampoo, _roots, roots_on_host

# as in a ResNet-20: convolutions (3 x 3 and 1 x 1), batch normalisation, outer weights; and a tensor of order 3
SHAPES = [(16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3), (32, 16, 1, 1), (64, 8, 3, 3), (16,), (16,), (64,), (10, 64)]
SHAPES += [(6, 5, 4)]
EPSILON = 1e-4


pytestmark = pytest.mark.usefixtures("one_thread")


def normal(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(shapes=SHAPES, dtype=torch.float64):
    return [normal(shape, 1000 + place, dtype) for place, shape in enumerate(shapes)]


def descend(optimizer, weights, steps, first=0, scale=1.0):
    """``steps`` steps with random gradients, which depend on the number of the step only."""
    for step in range(first, first + steps):
        for place, weight in enumerate(weights):
            weight.grad = scale * normal(weight.shape, 100 * step + place, weight.dtype)
        optimizer.step()


def moves(make, steps=10, shapes=SHAPES, dtype=torch.float64, scale=1.0):
    """What ``steps`` steps of the optimizer ``make(parameters)`` add to each parameter, in float64."""
    weights = parameters(shapes, dtype)
    start = [weight.clone().double() for weight in weights]
    descend(make(weights), weights, steps, scale=scale)
    return [weight.double() - begin for weight, begin in zip(weights, start, strict=True)]


def relative(found, expected):
    """The largest relative distance of two lists of tensors."""
    pairs = zip(found, expected, strict=True)
    return max(((mine - other).norm() / other.norm()).item() for mine, other in pairs)


def one_step(gradient, **options):
    """The descent direction of the first step."""
    weight = torch.zeros_like(gradient)
    weight.grad = gradient.clone()
    Shampoo([weight], lr=1.0, **options).step()
    return -weight


@pytest.mark.parametrize("update_every", [1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_default_is_torch_optimizer(momentum, update_every):
    # Momentum and old roots together feed gradients of 1e8 back at epsilon 1e-4: no two solvers could agree.
    epsilon = 0.1 if momentum and update_every > 1 else EPSILON
    options = {"lr": 0.1, "momentum": momentum, "epsilon": epsilon}
    expected = moves(lambda weights: torch_optimizer.Shampoo(weights, update_freq=update_every, **options))
    found = moves(lambda weights: Shampoo(weights, update_every=update_every, **options))
    assert relative(found, expected) < SHAMPOO["oracle"]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_other_variant_is_pytorch_optimizer(momentum):
    expected = moves(lambda weights: pytorch_optimizer.Shampoo(weights, lr=0.1, momentum=momentum, matrix_eps=EPSILON))
    found = moves(lambda weights: Shampoo(weights, lr=0.1, momentum=momentum, variant="gupta"))
    assert relative(found, expected) < SHAMPOO["oracle"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [1e-2, 1.0])
def test_float32_parameters_follow_float64_ones(variant, scale):
    """Fewer gradients than rows: P has eigenvalues at epsilon, and float32 preconditioners would lose the vectors."""
    shapes = [(64,), (10, 64), (64, 8, 3, 3)]
    found, expected = (
        moves(lambda weights: Shampoo(weights, lr=0.1, variant=variant), 20, shapes, dtype, scale)
        for dtype in (torch.float32, torch.float64)
    )
    assert relative(found, expected) < SHAMPOO["float32 parameters"]


@pytest.mark.parametrize(("variant", "power"), [("torch_optimizer", 1.0), ("gupta", 0.5)])
def test_first_step_of_a_vector(variant, power):
    """g is an eigenvector of epsilon I + g g^T, with eigenvalue epsilon + |g|^2."""
    gradient = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    expected = gradient / (0.5 + 25.0) ** power
    found = one_step(gradient, epsilon=0.5, variant=variant)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_first_step_of_a_matrix(variant, momentum):
    """The singular vectors of G stay, its singular values s go through both preconditioners."""
    gradient = normal((5, 8), 0)
    left, s, right = torch.linalg.svd(gradient, full_matrices=False)
    if variant == "gupta":
        s = s * (EPSILON + s**2) ** -0.25 * (EPSILON + s**2) ** -0.25
    else:
        s = s * (EPSILON + s**2) ** -0.5
        s = s * (EPSILON + s**2) ** -0.5  # the second preconditioner has seen the first one's result only
    found = one_step(gradient, variant=variant, momentum=momentum)
    torch.testing.assert_close(found, (left * s) @ right, rtol=0, atol=SHAMPOO["closed form"])


def test_a_scalar_takes_plain_gradient_steps():
    assert one_step(torch.tensor(3.0)).item() == 3.0


@pytest.mark.parametrize(("variant", "power"), [("torch_optimizer", 1.0), ("gupta", 0.5)])
def test_four_steps_of_one_number_by_hand(variant, power):
    """Momentum mixes in the last descent direction; roots are those of steps 1 and 4, P grows in every step."""
    gradients, momentum, epsilon, lr = [2.0, 1.0, -3.0, 0.5], 0.25, 0.5, 0.1
    weight = torch.zeros(1, dtype=torch.float64)
    optimizer = Shampoo([weight], lr, momentum, epsilon, update_every=3, variant=variant)
    expected, buffer, matrix = 0.0, gradients[0], epsilon
    for step, gradient in enumerate(gradients):
        mixed = (1 - momentum) * gradient + momentum * buffer
        matrix += mixed**2
        if step in (0, 3):
            root = matrix**-power
        buffer = root * mixed
        expected -= lr * buffer
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        assert weight.item() == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotated_gradients_give_rotated_steps(variant):
    rows, _ = torch.linalg.qr(normal((7, 7), 1))
    columns, _ = torch.linalg.qr(normal((4, 4), 2))
    plain, turned = torch.zeros(7, 4, dtype=torch.float64), torch.zeros(7, 4, dtype=torch.float64)
    optimizer = Shampoo([plain, turned], lr=0.1, momentum=0.5, variant=variant)
    for step in range(8):
        plain.grad = normal((7, 4), 10 + step)
        turned.grad = rows @ plain.grad @ columns
        optimizer.step()
    torch.testing.assert_close(turned, rows @ plain @ columns, rtol=0, atol=SHAMPOO["rotation"])


@pytest.mark.parametrize(
    ("variant", "shape"),
    [
        ("torch_optimizer", (6, 3)),
        ("torch_optimizer", (6, 2, 2)),
        ("gupta", (6,)),
        ("gupta", (6, 3)),
        ("gupta", (6, 2, 2)),
    ],
)
def test_a_quadratic_is_minimised(variant, shape):
    """1/2 sum_i c_i (w - goal)_i^2 with curvatures c from 1 to 100 along the first axis.

    Not torch_optimizer's vectors: with the power -1 their loss falls by no more than the logarithm of det P does rise.
    """
    curvature = torch.logspace(0, 2, 6, dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    goal, weight = normal(shape, 3), torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = Shampoo([weight], lr=1.0, epsilon=1.0, variant=variant)

    def closure():
        optimizer.zero_grad()
        loss = (curvature * (weight - goal) ** 2).sum() / 2
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(300)]
    assert losses[-1] < 1e-6 * losses[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_do_not_depend_on_their_company(variant):
    """Matrices of equal size are decomposed together; each parameter moves as if it were alone."""
    options = {"lr": 0.1, "momentum": 0.5, "variant": variant}
    together = moves(lambda weights: Shampoo(weights, **options), steps=4)
    apart = moves(lambda weights: Shampoo([{"params": [weight]} for weight in weights], **options), steps=4)
    assert relative(together, apart) < SHAMPOO["oracle"]


def test_parameters_without_gradient_are_left_alone_and_start_late():
    early, late = parameters([(6, 4), (6, 4)])
    begin = late.clone()
    optimizer = Shampoo([early, late], lr=0.1, update_every=2)
    early.grad = normal((6, 4), 0)
    optimizer.step()
    assert torch.equal(late, begin)
    assert late not in optimizer.state
    gradients = [normal((6, 4), seed) for seed in range(3)]
    alone = begin.clone()
    reference = Shampoo([alone], lr=0.1, update_every=2)
    for gradient in gradients:  # its own first step: roots are taken now, though not those of its neighbour
        late.grad, alone.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(late, alone, rtol=0, atol=EXACT)


def test_gradients_are_left_as_they_are():
    weight = normal((4, 3), 0)
    optimizer = Shampoo([weight], lr=0.1, momentum=0.5)
    descend(optimizer, [weight], 2)
    assert torch.equal(weight.grad, normal((4, 3), 100))


def through_torch(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [1, 5])
def test_a_reloaded_optimizer_goes_on_to_the_last_bit(tmp_path, dtype, variant, stop):
    def make(weights):
        halves = [{"params": weights[:4]}, {"params": weights[4:], "lr": 0.02}]
        return Shampoo(halves, lr=0.1, momentum=0.5, epsilon=0.1, update_every=3, variant=variant)

    through = parameters(dtype=dtype)
    optimizer = make(through)
    descend(optimizer, through, stop)
    results.save(tmp_path / "state.pt", optimizer.state_dict())
    for state in (through_torch(optimizer.state_dict()), results.load(tmp_path / "state.pt")):
        resumed = [weight.clone() for weight in through]
        other = make(resumed)
        other.load_state_dict(state)
        assert all(root.dtype == torch.float64 for weight in resumed for root in other.state[weight]["roots"])
        expected = [weight.clone() for weight in through]
        reference = make(expected)
        reference.load_state_dict(optimizer.state_dict())
        descend(other, resumed, 5, first=stop)
        descend(reference, expected, 5, first=stop)
    descend(optimizer, through, 5, first=stop)
    for mine, copy, whole in zip(resumed, expected, through, strict=True):
        assert torch.equal(mine, whole)
        assert torch.equal(copy, whole)


@pytest.mark.parametrize("scale", [1e6, 1e9])
def test_preconditioners_beyond_float64_keep_the_step_small(scale):
    """|g|^2 = 1e12 and more: epsilon drowns in round-off, and a Cholesky factor is noise where there is one at all."""
    for seed in range(20):
        gradient = scale * normal((4,), seed)
        expected = gradient / (gradient @ gradient)
        assert (one_step(gradient) - expected).norm() < expected.norm()


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_reported(shape, value):
    weight = torch.zeros(shape)
    weight.grad = torch.full(shape, value)
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        Shampoo([weight], lr=0.1).step()


@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_the_number_of_threads_is_restored(value):
    """After a step, and after one that fails."""
    weight = torch.zeros(4)
    weight.grad = torch.full((4,), value)
    torch.set_num_threads(2)
    with contextlib.suppress(FloatingPointError):
        Shampoo([weight], lr=0.1).step()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", torch.nan),
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("epsilon", 0.0),
        ("epsilon", torch.inf),
        ("update_every", 0),
        ("update_every", 1.5),
        ("variant", "Gupta"),
    ],
)
def test_bad_options_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: .*{value}.* is not allowed"):
        Shampoo([torch.zeros(3)], **{"lr": 0.1, name: value})
    with pytest.raises(ValueError, match=rf"^{name}: "):
        Shampoo([{"params": [torch.zeros(3)], name: value}], lr=0.1)


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match=r"^params: .*complex64"):
        Shampoo([torch.zeros(3, dtype=torch.complex64)], lr=0.1)


@pytest.mark.parametrize("inverse", [False, True])
def test_roots_in_a_pool_of_threads_are_the_same(inverse):
    stream = torch.Generator().manual_seed(0)
    factors = torch.randn(7, 16, 16, dtype=torch.float64, generator=stream)
    matrices = factors @ factors.mT + 1e-4 * torch.eye(16, dtype=torch.float64)
    powers = torch.tensor([[-1.0 if inverse else -1 / (k + 1)] for k in range(7)], dtype=torch.float64)
    found, expected = (take(matrices, powers, inverse, 1e-4) for take in (roots_on_host, _roots))
    torch.testing.assert_close(found, expected, rtol=SHAMPOO["closed form"], atol=0)
