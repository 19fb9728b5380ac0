"""ResNet-20: its definition in functional operations, its size, its shapes, its gradients."""

import pytest
import torch
import torch.nn.functional as F
from tolerances import RESNET

from VarPro_resnet.resnet import WIDTH, Features, ResNet20

PROJECTED = ["stages.1.0", "stages.2.0"]  # the two blocks that change the shape
BLOCKS = [f"stages.{stage}.{block}" for stage in range(3) for block in range(3)]


def network(dtype=torch.float64, **options):
    """A ResNet-20 with drawn weights, batch-norm parameters and statistics (the default ones are 0 and 1)."""
    torch.manual_seed(0)
    model = ResNet20(**options).to(dtype)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running" in name or tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, dtype=dtype) + 0.5)
    return model


def images(count=3, dtype=torch.float64):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=dtype)


def normed(maps, state, name, training):
    """Batch normalisation by its formula, with biased variance over samples and places in training."""
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean, variance = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3), correction=0)
    scale = state[f"{name}.weight"] / (variance + 1e-5).sqrt()
    shift = state[f"{name}.bias"] - mean * scale
    return maps * scale[:, None, None] + shift[:, None, None]


def reference(state, maps, training):
    """phi (N, 64) by the text of He et al., Section 4.2."""

    def conv(maps, name, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(maps, weight, stride=stride, padding=weight.shape[-1] // 2)

    maps = normed(conv(maps, "conv"), state, "bn", training).clamp(min=0)
    for block in BLOCKS:
        stride = 2 if block in PROJECTED else 1
        inner = normed(conv(maps, f"{block}.conv1", stride), state, f"{block}.bn1", training).clamp(min=0)
        inner = normed(conv(inner, f"{block}.conv2"), state, f"{block}.bn2", training)
        if block in PROJECTED:
            maps = normed(conv(maps, f"{block}.shortcut.0", stride), state, f"{block}.shortcut.1", training)
        maps = (inner + maps).clamp(min=0)
    return maps.flatten(2).mean(dim=2)


@pytest.mark.parametrize("training", [True, False])
def test_features_are_those_of_the_definition(training):
    model = network().train(training)
    state = {name.removeprefix("features."): tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        found, expected = model.features(images()), reference(state, images(), training)
    assert found.shape == (3, WIDTH)
    assert expected.abs().max() > 0.1  # so that an absolute tolerance says something
    torch.testing.assert_close(found, expected, rtol=0, atol=RESNET["definition"])


@pytest.mark.parametrize("classes", [10, 3])
def test_output_is_features_times_outer_over_width(classes):
    model = network(classes=classes).eval()
    with torch.no_grad():
        phi = model.features(images())
        assert model.outer.shape == (WIDTH, classes)
        torch.testing.assert_close(model(images()), phi @ model.outer / 64, rtol=0, atol=RESNET["definition"])


def test_outer_is_a_view_through_which_gradients_flow():
    model = network()
    assert model.outer.data_ptr() == model.readout.weight.data_ptr()
    model.outer.sum().backward()
    assert torch.equal(model.readout.weight.grad, torch.ones(10, WIDTH, dtype=torch.float64))


def test_number_of_parameters():
    """A 3 x 3 convolution from a to b channels has 9ab weights, a batch normalisation of b channels 2b.

    Stem: 9*3*16 + 2*16. A stage of c channels, 6 convolutions: 6*9*c*c + 6*2*c. For the two stages that double their
    channels the first convolution has half the weights, -9*c*c/2, and the shortcut adds c*c/2 + 2*c: -4*c*c + 2*c.
    """
    stages = sum(54 * c * c + 12 * c for c in (16, 32, 64)) + sum(-4 * c * c + 2 * c for c in (32, 64))
    model = ResNet20()
    assert sum(p.numel() for p in model.features.parameters()) == 432 + 32 + stages == 271_824
    assert sum(p.numel() for p in model.parameters()) == 271_824 + 64 * 10


def test_names_and_shortcuts():
    names = set(ResNet20().state_dict())
    stem = {"features.conv.weight", "features.bn.weight", "features.bn.running_mean"}
    assert names >= stem | {"readout.weight"}
    assert "readout.bias" not in names
    assert not any("conv" in name and name.endswith("bias") for name in names)
    shortcuts = {name.split(".shortcut")[0] for name in names if ".shortcut." in name}
    assert shortcuts == {f"features.{block}" for block in PROJECTED}


def test_default_initialisation():
    """That of a network built from the framework's layers in the order of the forward pass."""
    torch.manual_seed(3)
    model = ResNet20()
    torch.manual_seed(3)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in convolutions:
        fresh = torch.nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False)
        assert torch.equal(conv.weight, fresh.weight)
    assert torch.equal(model.readout.weight, torch.nn.Linear(64, 10, bias=False).weight)
    assert len(convolutions) == 19 + 2


def test_gradients_reach_every_parameter():
    model = network()
    model(images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_gradient_agrees_with_finite_differences():
    """In-place operations leave the gradient right; training mode, along a random direction, in every parameter."""
    model, direction = network(), torch.Generator().manual_seed(2)
    moves = [torch.randn(p.shape, generator=direction, dtype=p.dtype) * 0.1 for p in model.parameters()]

    def value(step):
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter.add_(move, alpha=step)
            result = model(images()).square().sum().item()
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter.sub_(move, alpha=step)
        return result

    model(images()).square().sum().backward()
    slope = sum((p.grad * move).sum() for p, move in zip(model.parameters(), moves, strict=True)).item()
    step = 1e-7  # small, since kinks of the network lie close by
    assert slope == pytest.approx((value(step) - value(-step)) / (2 * step), rel=RESNET["gradient"])


def test_evaluation_is_deterministic_and_per_image():
    """In training mode an image's features depend on its batch, in evaluation mode they do not."""
    model, batch = network(), images()
    with torch.no_grad():
        assert (model(batch)[:2] - model(batch[:2])).abs().max() > 1e-3
        model.eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert torch.equal(model(batch), model(batch))
        torch.testing.assert_close(model(batch)[:2], model(batch[:2]), rtol=0, atol=RESNET["definition"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_memory_format_changes_nothing_but_round_off():
    model = network().eval()
    with torch.no_grad():
        plain = model(images())
        other = model.to(memory_format=torch.channels_last)(images().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other, plain, rtol=0, atol=RESNET["definition"])


def test_features_alone_are_a_module():
    assert Features()(images(2, torch.float32)).shape == (2, 64)
