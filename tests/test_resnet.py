"""Training of ResNets: steps against literal ones and finite differences, resuming to the last bit, and the scripts."""

import copy
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, load_script
from networks import CLASSES, PLAN, chosen_step, network, tiny_images
from tolerances import RESNET_TRAINING, SOLVE

from benchmarks import resnet_noise
from varpro import image_files, results, ridge
from varpro.cli import Stopped, UsageError
from varpro.runs.bookkeeping import Checkpoint
from varpro.threads import ThreadChoice
from VarPro_resnet import cifar, runs, training
from VarPro_resnet.Experiment import OPTIMIZERS, main
from VarPro_resnet.polyak import PolyakAverage
from VarPro_resnet.resnet import WIDTH, ResNet20
from VarPro_resnet.shampoo import Shampoo
from VarPro_resnet.training import Plan, VarProM, train

LMBDA = 1e-3


pytestmark = pytest.mark.usefixtures("one_thread")


def batch(count: int, side: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Small random images and one-hot targets; the network takes any size."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return images, torch.nn.functional.one_hot(labels, CLASSES).double()


def varprom(of: ResNet20, averaging: float, rate: float = 0.0) -> VarProM:
    return VarProM(of, torch.optim.SGD(of.features.parameters(), rate), LMBDA, averaging)


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# --- one step ----------------------------------------------------------------------------------------------------


def slope(risk, of: ResNet20, direction: list[torch.Tensor], size: float = 1e-6) -> float:
    """Derivative of ``risk()`` when the parameters of the features move along ``direction``."""
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, part in zip(of.features.parameters(), direction, strict=True):
                parameter.add_(part, alpha=sign * size)
            values.append(risk().item())
            for parameter, part in zip(of.features.parameters(), direction, strict=True):
                parameter.sub_(part, alpha=sign * size)
    return (values[0] - values[1]) / (2 * size)


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_gradient_is_that_at_fixed_outer_weights_and_of_the_reduced_loss_where_they_are_exact(averaging):
    of = network()
    images, targets = batch(12)
    take = varprom(of, averaging)
    take(images, targets)
    gradient = [parameter.grad for parameter in of.features.parameters()]

    def fixed():
        return ridge.loss(of.features(images), targets, of.outer, LMBDA, 0.0)

    def reduced():
        features = of.features(images)
        return ridge.loss(features, targets, ridge.solve(features, targets, LMBDA, 0.0), LMBDA, 0.0)

    scale = flat(gradient).norm().item()
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        noise = [torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in gradient]
        length = flat(noise).norm()
        direction = [part / scale + other / length for part, other in zip(gradient, noise, strict=True)]
        predicted = sum((part * other).sum() for part, other in zip(gradient, direction, strict=True)).item()
        assert slope(fixed, of, direction) == pytest.approx(predicted, abs=RESNET_TRAINING["gradient"] * scale)
        if averaging == 0:
            assert slope(reduced, of, direction) == pytest.approx(predicted, abs=RESNET_TRAINING["gradient"] * scale)
        else:
            assert abs(slope(reduced, of, direction) - predicted) > 0.05 * scale


def test_batch_norm_sees_every_batch_once():
    of = network()
    before = copy.deepcopy(of)
    images, targets = batch(10)
    take = varprom(of, 0.5)
    take(images, targets)
    norm, maps = of.features.bn, before.features.conv(images).detach()
    torch.testing.assert_close(
        norm.running_mean, 0.1 * maps.mean(dim=(0, 2, 3)), rtol=0, atol=RESNET_TRAINING["statistics"]
    )
    variance = maps.var(dim=(0, 2, 3), correction=1)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance, rtol=0, atol=RESNET_TRAINING["statistics"])
    take(images, targets)
    counts = [value for name, value in of.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counts) == 21
    assert all(count == 2 for count in counts)


def test_outer_weights_are_a_running_average():
    """With features that stay, u after n steps on one batch is m^n u_0 + (1 - m^n) u*."""
    of = network()
    images, targets = batch(10)
    start = of.outer.detach().clone()
    solution = ridge.solve(of.features(images).detach(), targets, LMBDA, 0.0)
    take = varprom(of, 0.75)
    for _ in range(3):
        take(images, targets)
    expected = 0.75**3 * start + (1 - 0.75**3) * solution
    torch.testing.assert_close(of.outer, expected, rtol=SOLVE, atol=SOLVE)


def test_primal_and_dual_steps_are_equal():
    """A batch three times over has the same means, and the larger system."""
    images, targets = batch(30)
    found = []
    for copies in (1, 3):
        of = network()
        loss = varprom(of, 0.0)(images.repeat(copies, 1, 1, 1), targets.repeat(copies, 1))
        found.append((loss[None], flat([of.outer]), flat(part.grad for part in of.features.parameters())))
    for dual, primal in zip(*found, strict=True):
        assert relative(primal, dual) < RESNET_TRAINING["trajectory"]


def test_float32_features_have_float64_outer_weights_rounded_once():
    of = network(dtype=torch.float32)
    images, targets = (tensor.float() for tensor in batch(20))
    features = of.features(images).detach()
    varprom(of, 0.0)(images, targets)
    expected = ridge.solve(features.double(), targets.double(), LMBDA, 0.0).float()
    torch.testing.assert_close(of.outer, expected, rtol=torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.parametrize("optimizer", ["varprom", "sgdm"])
def test_mixed_precision_is_in_the_features_only(optimizer):
    images, targets = (tensor.float() for tensor in batch(16))
    losses = []
    for arguments in ([], ["--mixed_precision"]):
        of = network(dtype=torch.float32)
        take = chosen_step(of, optimizer, *arguments)
        loss = take(images, targets)
        assert loss.dtype == torch.float32
        assert all(parameter.dtype == torch.float32 for parameter in of.parameters())
        losses.append(loss)
    assert losses[1] != losses[0]
    torch.testing.assert_close(losses[1], losses[0], rtol=RESNET_TRAINING["bfloat16"], atol=0)


# --- a run -------------------------------------------------------------------------------------------------------


def literal_run(
    of: ResNet20, optimizer: str, images: cifar.Images, plan: Plan, seed: int, time_scale: float
) -> list[float]:
    """The training of docs/definitions.md as it is written down, with the published momenta."""
    generator = torch.Generator().manual_seed(seed)
    features, everything = list(of.features.parameters()), list(of.parameters())
    outer = of.readout.weight.detach().T.clone()
    buffers, seen = None, []
    shampoo = Shampoo(everything, lr=1.0)
    losses = []
    for number in range(plan.epochs + plan.final_epochs):
        draws = cifar.draw(plan.images, generator, images.flips)
        shown = cifar.augment(images.train, draws, images.mean, images.std, dtype=torch.float64)
        labels = images.train_labels[draws.order]
        slower = 1.0 if number < plan.epochs else 0.5
        for first in range(0, plan.images, plan.batch_size):
            x = shown[first : first + plan.batch_size]
            y = torch.eye(CLASSES, dtype=torch.float64)[labels[first : first + plan.batch_size]]
            phi = of.features(x)
            if optimizer == "varprom":
                outer = 0.5 * outer + 0.5 * literal_solution([(1.0, phi.detach(), y)])
                u, moved = outer, features
            elif optimizer == "varpro-running":
                seen = [(0.9 * weight, *batch) for weight, *batch in seen] + [(0.1, phi.detach(), y)]
                u, moved = literal_solution(seen), features
            else:
                u, moved = of.readout.weight.T, everything
            loss = ((phi @ u / 64 - y) ** 2).sum() / (2 * LMBDA * y.numel()) + (u**2).sum() / (2 * u.numel())
            gradients = torch.autograd.grad(loss, moved)
            losses.append(loss.item())
            if optimizer == "shampoo":
                shampoo.param_groups[0]["lr"] = 64 * time_scale * slower
                for parameter, gradient in zip(moved, gradients, strict=True):
                    parameter.grad = gradient
                shampoo.step()
                continue
            momentum = 0.0 if optimizer == "varprom" else 0.9
            if buffers is None:
                buffers = [torch.zeros_like(gradient) for gradient in gradients]
            buffers = [momentum * buffer + gradient for buffer, gradient in zip(buffers, gradients, strict=True)]
            with torch.no_grad():
                for parameter, buffer in zip(moved, buffers, strict=True):
                    parameter.sub_(64 * time_scale * slower * buffer)
    if optimizer == "varpro-running":  # for a test, from the training images as they are, as the network is in a test
        of.eval()
        shown = cifar.normalise(images.train, images.mean, images.std, torch.float64)
        y = torch.eye(CLASSES, dtype=torch.float64)[images.train_labels]
        outer = literal_solution([(1.0, of.features(shown).detach(), y)])
    if optimizer.startswith("varpro"):
        of.readout.weight.data.copy_(outer.T)
    return losses


def literal_solution(batches: list[tuple[float, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The ridge solution of batches with weights w: least squares of the stacked rows sqrt(w / N) phi / M, where the
    weights sum to one, and sqrt(lam / M) I."""
    total = sum(weight for weight, _, _ in batches)
    scales = [(weight / total / len(phi)) ** 0.5 for weight, phi, _ in batches]
    rows = [scale * phi / WIDTH for scale, (_, phi, _) in zip(scales, batches, strict=True)]
    right = [scale * y for scale, (_, _, y) in zip(scales, batches, strict=True)]
    rows.append((LMBDA / WIDTH) ** 0.5 * torch.eye(WIDTH, dtype=torch.float64))
    right.append(torch.zeros(WIDTH, CLASSES, dtype=torch.float64))
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(right)).solution


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_run_is_the_literal_one(optimizer):
    """Order, augmentation, steps, half rate, and the last test with the network as it is then.

    At a tenth of the published rates, where round-off does not grow by the million in a few steps on so few images.
    """
    images, plan = tiny_images(), Plan(PLAN.images, PLAN.batch_size, 1, 1)
    ours, literal = network(), network()
    torch.rand(7)  # what else is drawn in the process does not matter
    time_scale = OPTIMIZERS[optimizer].time_scale / 10
    record = train(chosen_step(ours, optimizer, "--time_scale", str(time_scale)), images, plan, seed=5)
    losses = literal_run(literal, optimizer, images, plan, seed=5, time_scale=time_scale)
    assert relative(record.loss, torch.tensor(losses, dtype=torch.float64)) < RESNET_TRAINING["trajectory"]
    found, expected = ours.state_dict(), literal.state_dict()
    for name in expected:
        solved_last = name == "readout.weight" and optimizer == "varpro-running"
        allowed = RESNET_TRAINING["fit in evaluation mode" if solved_last else "trajectory"]
        assert relative(found[name].double(), expected[name].double()) < allowed, name
    assert record.learning_rate.tolist() == [64 * time_scale, 32 * time_scale]
    literal.eval()
    answers = literal(cifar.normalise(images.test, images.mean, images.std, torch.float64)).argmax(dim=1)
    assert record.accuracy[-1] == (answers == images.test_labels).double().mean()
    assert record.accuracy.shape == (3,)


def test_memory_format_and_seed():
    """The layout in memory changes round-off at most; the seed changes the order."""
    losses = {}
    for seed, layout in ((0, torch.channels_last), (0, torch.contiguous_format), (1, torch.channels_last)):
        step_ = chosen_step(network(), "varprom")
        plan = Plan(PLAN.images, PLAN.batch_size, 1, 0)
        losses[seed, layout] = train(step_, tiny_images(), plan, seed=seed, memory_format=layout).loss
    same = relative(losses[0, torch.contiguous_format], losses[0, torch.channels_last])
    assert same < RESNET_TRAINING["trajectory"]
    assert relative(losses[1, torch.channels_last], losses[0, torch.channels_last]) > 1e-3


def always_kept(path: Path, config: dict) -> Checkpoint:
    """A checkpoint that is written after every step."""
    return Checkpoint(path, config, training.STATE_VERSION, seconds=0.0, share=math.inf)


class Killed(BaseException):
    """What ends a process."""


def killed_after(take: training.Descent, steps: int) -> training.Descent:
    """``take`` that is killed on entering the step after ``steps`` of this process."""
    original, calls = type(take).__call__, iter(range(steps))

    class Mortal(type(take)):
        def __call__(self, images, targets):
            if next(calls, None) is None:
                raise Killed
            return original(self, images, targets)

    take.__class__ = Mortal
    return take


@pytest.mark.parametrize(
    "arguments", [["varprom"], ["varpro-running"], ["sgdm"], ["shampoo", "--update_every", "2", "--momentum", "0.5"]]
)
def test_a_run_killed_three_times_ends_with_the_same_bits(arguments, tmp_path):
    """Killed in the middle of the first pass, between two passes, and in the pass at half the rate; its average too."""
    images, lines = tiny_images(), []
    checkpoint = always_kept(tmp_path / "run.checkpoint", {"optimizer": arguments[0]})

    def process(steps: int | None, **keywords):
        of = network(dtype=torch.float32)
        take = chosen_step(of, *arguments)
        take = take if steps is None else killed_after(take, steps)
        return train(take, images, PLAN, seed=3, average=1.5, **keywords), of

    whole, expected = process(None)
    for steps, done in ((2, 2), (1, 3), (5, 8)):
        with pytest.raises(Killed):
            process(steps, checkpoint=checkpoint)
        assert checkpoint.restore()["step"] == done
    record, found = process(None, checkpoint=checkpoint, report=lines.append)
    assert lines[0] == "goes on after step 8 of 9"
    for name in ("loss", "accuracy", "learning_rate"):
        assert torch.equal(getattr(record, name), getattr(whole, name)), name
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in found.state_dict().items())
    assert record.loss.isfinite().all()
    assert record.learning_rate[2] == record.learning_rate[0] / 2


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_two_steps_with_all_kept(signal_, tmp_path):
    """Also where the next checkpoint is not due."""
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", {}, training.STATE_VERSION, seconds=1e9)
    take = chosen_step(network(dtype=torch.float32), "sgdm")
    original, calls = type(take).__call__, iter(range(2))

    class Interrupted(type(take)):
        def __call__(self, *batch):
            loss = original(self, *batch)
            if next(calls, None) is None:
                os.kill(os.getpid(), signal_)
            return loss

    take.__class__ = Interrupted
    with pytest.raises(Stopped):
        train(take, tiny_images(8), Plan(8, 2, 2, 0), seed=0, checkpoint=checkpoint)
    assert checkpoint.restore()["step"] == 3


@pytest.mark.parametrize("passes", [0, 1, 3])
@pytest.mark.parametrize("optimizer", ["sgdm", "varpro-running"])
def test_a_signal_in_a_test_does_not_wait_for_its_end(optimizer, passes, tmp_path):
    """What is kept is the state before the test, which is taken by whoever goes on."""
    images, checkpoint = tiny_images(), Checkpoint(tmp_path / "run.checkpoint", {}, training.STATE_VERSION, seconds=1e9)

    def process(**keywords):
        of = network(dtype=torch.float32)
        return train(chosen_step(of, optimizer), images, PLAN, seed=3, threads=1, average=1.5, **keywords), of

    whole, expected = process()
    take, calls = chosen_step(network(dtype=torch.float32), optimizer), iter(range(passes))
    original = type(take).before_test

    class Interrupted(type(take)):
        def before_test(self, batches):
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, batches)

    take.__class__ = Interrupted
    with pytest.raises(Stopped):
        train(take, images, PLAN, seed=3, threads=1, average=1.5, checkpoint=checkpoint)
    kept = checkpoint.restore()
    assert kept["step"] == passes * PLAN.steps_per_pass
    assert len(kept["accuracy"]) == passes
    record, found = process(checkpoint=checkpoint)
    assert equal(vars(record), vars(whole))
    assert equal(dict(found.state_dict()), dict(expected.state_dict()))


def test_a_state_of_another_network_is_one_line(tmp_path):
    checkpoint, plan = always_kept(tmp_path / "run.checkpoint", {}), Plan(8, 4, 1, 0)
    train(chosen_step(network(dtype=torch.float32), "sgdm"), tiny_images(8), plan, seed=0, checkpoint=checkpoint)
    other = chosen_step(ResNet20(CLASSES + 1), "sgdm")
    says = r"^here: the state on disk does not fit this network \(.*\); --no-resume starts anew$"
    with pytest.raises(UsageError, match=says):
        train(other, tiny_images(8), plan, seed=0, checkpoint=checkpoint, label="here")


def test_losses_that_are_not_finite_are_not_kept(tmp_path):
    """In the midst of a pass too: the last checkpoint is that of a sound state."""
    checkpoint = always_kept(tmp_path / "run.checkpoint", {})
    take = chosen_step(network(dtype=torch.float32), "sgdm")
    original, calls = type(take).__call__, iter(range(2))

    class Diverging(type(take)):
        def __call__(self, *batch):
            loss = original(self, *batch)
            return loss if next(calls, None) is not None else loss * math.nan

    take.__class__ = Diverging
    with pytest.raises(FloatingPointError, match="pass 1, step 3: the loss is not finite"):
        train(take, tiny_images(8), Plan(8, 2, 1, 0), seed=0, checkpoint=checkpoint)
    assert checkpoint.restore()["step"] == 2


def test_momenta_have_the_layout_of_their_parameters_after_a_checkpoint(tmp_path):
    """A file keeps values alone; other strides would take the slow way through every step."""
    images, path = tiny_images(8), tmp_path / "run.checkpoint"
    checkpoint, take = always_kept(path, {}), chosen_step(network(dtype=torch.float32), "sgdm", "--momentum", "0.9")
    train(take, images, Plan(8, 4, 1, 0), seed=0, checkpoint=checkpoint)
    again = chosen_step(network(dtype=torch.float32), "sgdm", "--momentum", "0.9")
    again.network.to(memory_format=torch.channels_last)
    again.load_state_dict(checkpoint.restore()["training"])
    momenta = [(parameter, kept["momentum_buffer"]) for parameter, kept in again.optimizer.state.items()]
    assert any(not parameter.is_contiguous() for parameter, _ in momenta)
    for parameter, momentum in momenta:
        assert momentum.stride() == parameter.stride()


def test_a_test_that_fails_says_where(monkeypatch):
    def failing(self, batches):
        raise FloatingPointError("inner solve: numbers are not finite")

    take = chosen_step(network(dtype=torch.float32), "varpro-running")
    monkeypatch.setattr(type(take), "before_test", failing)
    with pytest.raises(FloatingPointError, match=r"^here: test after 0 passes: inner solve: .*; try a smaller"):
        train(take, tiny_images(8), Plan(8, 4, 1, 0), seed=0, label="here")


def test_what_is_not_to_be_gone_on_from(tmp_path):
    checkpoint, plan = always_kept(tmp_path / "run.checkpoint", {}), Plan(8, 4, 1, 0)
    train(chosen_step(network(dtype=torch.float32), "sgdm"), tiny_images(8), plan, seed=0, checkpoint=checkpoint)
    take = killed_after(chosen_step(network(dtype=torch.float32), "sgdm"), 0)
    with pytest.raises(Killed):  # on entering the first step
        train(take, tiny_images(8), plan, seed=0, checkpoint=checkpoint, resume=False)


class Threads:
    """Counts of threads as they are set, with two to start from; one is ``faster``."""

    def __init__(self, patch: pytest.MonkeyPatch, faster: int) -> None:
        self.now, self.trials = 2, []
        patch.setattr(torch, "get_num_threads", lambda: self.now)
        patch.setattr(torch, "set_num_threads", lambda number: setattr(self, "now", number))
        patch.setattr(ThreadChoice, "note", lambda _, number, *rest: self.trials.append(number))
        patch.setattr(
            ThreadChoice, "plan", lambda *_: (faster if len(self.trials) == 3 else 1 + len(self.trials) % 2, 1)
        )


@pytest.mark.parametrize("faster", [1, 2])
def test_threads_are_chosen_once_and_kept(faster, tmp_path, monkeypatch):
    """By a trial that leaves no trace; who goes on from a checkpoint keeps the number, unless told another."""
    checkpoint, plan, lines, seen = always_kept(tmp_path / "run.checkpoint", {}), Plan(8, 4, 2, 0), [], []

    def process(steps=None, threads=None, **keywords):
        of = network(dtype=torch.float32)
        take = chosen_step(of, "sgdm")
        original, counts = type(take).__call__, Threads(monkeypatch, faster)

        class Watched(type(take)):
            def __call__(self, *batch):
                seen.append(counts.now)
                return original(self, *batch)

        take.__class__ = Watched
        if steps is not None:
            take = killed_after(take, steps + 6)  # those of the trial: one that is timed, one before it
        keywords = {"checkpoint": checkpoint, "report": lines.append} | keywords
        record = train(take, tiny_images(8), plan, seed=0, threads=threads, **keywords)
        assert counts.now == 2  # as it was
        return record, counts

    alone, counts = process(threads=faster, checkpoint=None)
    assert (alone.threads, counts.trials) == ([faster], [])
    seen.clear()
    with pytest.raises(Killed):
        process(steps=3)
    assert seen == [1, 1, 2, 2, 1, 1, *[faster] * 3]
    record, counts = process()
    assert (record.threads, counts.trials) == ([faster], [])
    assert torch.equal(record.loss, alone.loss)
    other = 3 - faster
    record, _ = process(threads=other)
    assert record.threads == [faster, other]
    assert f"goes on with {other} threads, not {faster}: the last bits are those of neither" in lines


def test_cost_is_said_once(monkeypatch):
    monkeypatch.setattr(training, "_TIMED_SECONDS", 0.0)
    lines = []
    train(
        chosen_step(network(dtype=torch.float32), "sgdm"), tiny_images(8), Plan(8, 2, 1, 0), seed=0, report=lines.append
    )
    (line,) = lines
    assert "images/s, about" in line
    assert line.endswith("to go; the result will take 3.3 MB")


class Event:
    """A device that is one second further at every mark, and late."""

    made = 0

    def __init__(self, enable_timing):
        Event.made += 1
        self.second, self.looks = Event.made, iter([False, False, True])

    def record(self):
        pass

    def query(self):
        return next(self.looks)

    def elapsed_time(self, later):
        return 1e3 * (later.second - self.second)


def test_the_cost_on_a_gpu_is_that_of_its_own_clock_and_nobody_waits(monkeypatch):
    monkeypatch.setattr(training, "_TIMED_SECONDS", 0.0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    lines = []
    there = SimpleNamespace(device=torch.device("cuda"))
    run = SimpleNamespace(
        step=1, testing=0.0, tests=1, losses=there, plan=Plan(80, 8, 1, 0), network=network(), average=None
    )
    run.take_step, run.replay = chosen_step(run.network, "sgdm"), SimpleNamespace(replays=[])
    watch = training._Watch(run, lines.append)
    watch.look()  # before the capture nothing is timed
    assert watch.first is None
    run.replay.replays = [None]
    for run.step in range(1, 6):
        assert not lines
        watch.look()
        if run.step == 2:
            run.testing = 0.5  # a test between the two marks is not training
    assert len(lines) == 1
    assert lines[0].startswith("32 images/s")  # two steps of 8 images in half a second


@pytest.mark.parametrize(
    ("optimizer", "time_scale", "passes"),
    [("varprom", "3e-5", 5), ("sgdm", "3e-5", 5), ("shampoo", "1e-3", 8), ("varpro-running", "1e-5", 5)],
    ids=list(OPTIMIZERS),
)
def test_colours_are_learned(optimizer, time_scale, passes):
    """At rates for so few images, where batch-norm's running averages can follow (Shampoo's cannot always at 3e-3)."""
    of = network(dtype=torch.float32)
    plan = Plan(96, 24, passes, 1)
    record = train(chosen_step(of, optimizer, "--time_scale", time_scale), tiny_images(96), plan, seed=0)
    fitted = optimizer == "varpro-running"  # outer weights for the features drawn: colours need no others
    assert record.accuracy[0] > 0.9 if fitted else record.accuracy[0] < 0.5
    assert record.accuracy[-1] > 0.9
    assert record.loss[-4:].mean() < 0.5 * record.loss[:4].mean()


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_the_first_loss_that_is_not_finite_is_reported(optimizer):
    of = network(dtype=torch.float32)
    take = chosen_step(of, optimizer)
    original, calls = type(take).__call__, iter(range(4))

    class Spoiled(type(take)):
        def __call__(self, images, targets):
            if next(calls) == 3:
                of.features.conv.weight.data.fill_(torch.nan)
            return original(self, images, targets)

    take.__class__ = Spoiled
    with pytest.raises(
        FloatingPointError,
        match=f"^{optimizer}: pass 2, step 2: .* not finite.*smaller --time_scale( or a larger --lambda)?$",
    ):
        train(take, tiny_images(8), Plan(8, 4, 2, 0), seed=0, label=optimizer)


def test_an_inner_system_that_is_not_definite_is_reported(monkeypatch):
    solve = ridge.solve_unchecked
    monkeypatch.setattr(ridge, "solve_unchecked", lambda *arguments: (solve(*arguments)[0], torch.tensor(1)))
    with pytest.raises(FloatingPointError, match="pass 1, step 1: inner solve: the 4 x 4 system is not positive"):
        train(chosen_step(network(dtype=torch.float32), "varprom"), tiny_images(8), Plan(8, 4, 1, 0), seed=0)


@pytest.mark.parametrize(("tf32", "name"), [(False, "ieee"), (True, "tf32")])
def test_every_step_of_a_training_is_in_its_arithmetic(tf32, name):
    seen, take = set(), chosen_step(network(dtype=torch.float32), "sgdm")
    original = type(take).__call__

    class Watched(type(take)):
        def __call__(self, *batch):
            seen.add((torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
            return original(self, *batch)

    take.__class__ = Watched
    train(take, tiny_images(8), Plan(8, 4, 1, 0), seed=0, tf32=tf32)
    assert seen == {(name, name)}


def test_a_test_is_one_of_all_images_and_u_before_it_of_images_from_everywhere(monkeypatch):
    """In batches; training images may be sorted by class, or come from one after the other in turn."""
    monkeypatch.setattr(training, "_TEST_BATCH", 7)
    monkeypatch.setattr(training, "_SAMPLES", 13)
    images, of = tiny_images(), network().eval()
    shown = cifar.normalise(images.test, images.mean, images.std, torch.float64)
    with torch.no_grad():
        right = (of(shown).argmax(dim=1) == images.test_labels).double().mean().item()
    assert len(shown) > 7
    assert training.accuracy(of, shown, images.test_labels) == right
    run = training._Run(chosen_step(of, "sgdm"), images, PLAN, 0, torch.contiguous_format, "", None)
    parts = list(run._samples(lambda: None))
    assert max(len(batch) for batch, _ in parts) <= 7
    stride = math.ceil(len(images.train_labels) / 13)
    shown = torch.cat([targets for _, targets in parts]).argmax(dim=1)
    assert torch.equal(shown.sort()[0], images.train_labels.sort()[0][::stride])
    assert not torch.equal(shown, shown.sort()[0])  # a mini-batch has images of all classes


def test_the_arithmetic_is_restored():
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul

    def now():
        return cudnn.conv.fp32_precision, products.fp32_precision, cudnn.benchmark

    usual = now()
    for tf32, name in ((False, "ieee"), (True, "tf32")):
        with training.arithmetic(tf32=tf32):
            assert now() == (name, name, True)
    assert now() == usual


@pytest.mark.parametrize("variant", ["VarProM", "VarPro running", "SGDM"])
def test_who_watches_a_training_does_not_change_it(variant):
    """And reads first what the training reads itself."""
    images, losses, networks = tiny_images(), [], []
    for watched in (False, True):
        torch.manual_seed(0)
        of = ResNet20(CLASSES)
        take = resnet_noise.VARIANTS[variant](of)
        if watched:
            take.before_test = resnet_noise.Watch(of, images, PolyakAverage(of, 0.5))
        else:
            take.before_test = lambda _: None
        record = train(take, images, PLAN, seed=0)
        losses.append(record.loss)
        networks.append(of)
    assert torch.equal(*losses)
    assert all(map(torch.equal, networks[0].state_dict().values(), networks[1].state_dict().values()))
    readings = torch.tensor(take.before_test.readings)
    assert readings.shape == (4, 6)
    assert torch.equal(readings[:, 0].double(), record.accuracy.float().double())


def test_readings_are_those_of_the_last_passes(capsys):
    """The network before its first step is in none."""
    found = resnet_noise.readings(tiny_images(), "SGDM", PLAN, 3, 0, average=1.0, mixed_precision=False)
    assert found.shape == (3, 6)
    shown = capsys.readouterr().out
    assert shown.startswith("SGDM, seed 0: loss of the last pass ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--passes", "3", "--last", "4"], "--last 4 is not allowed: from 1 to 3 of --passes 3"),
        (["--passes", "5", "--final", "5"], "--final 5 is not allowed: from 0 to 4 of --passes 5"),
    ],
)
def test_passes_of_the_noise_benchmark_that_there_are_not(arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        resnet_noise.main(arguments)
    assert said in capsys.readouterr().err


# --- the average of a network -------------------------------------------------------------------------------------


def test_an_average_is_the_weighted_mean_of_the_states_so_far():
    of = network()
    average, states = PolyakAverage(of, 0.75), []
    for number in range(4):
        for tensor in of.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(number + 1.5)
        average.update()
        states.append(copy.deepcopy(of.state_dict()))
    weights = torch.tensor([0.75**age for age in (3, 2, 1, 0)], dtype=torch.float64)
    before = copy.deepcopy(of.state_dict())
    with average.in_place():
        for name, tensor in of.state_dict().items():
            if tensor.is_floating_point():
                expected = sum(w * state[name] for w, state in zip(weights / weights.sum(), states, strict=True))
                torch.testing.assert_close(tensor, expected, rtol=SOLVE, atol=SOLVE)
    assert all(map(torch.equal, of.state_dict().values(), before.values()))


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_an_average_leaves_the_training_alone_and_is_what_is_tested(optimizer):
    """Also of VarProM and the running one, whose outer weights the test solves for or the next step needs."""
    runs_ = []
    for average in (0.0, 1.0, 1e-6):
        of = network(dtype=torch.float32)
        record = train(chosen_step(of, optimizer), tiny_images(), PLAN, seed=0, average=average)
        runs_.append((record, of))
    (plain, last), (averaged, mean), (same, one) = runs_
    assert torch.equal(plain.loss, averaged.loss)
    assert torch.equal(plain.accuracy, same.accuracy)  # a memory of one step
    assert all(map(torch.equal, last.state_dict().values(), one.state_dict().values()))
    assert not torch.equal(last.features.conv.weight, mean.features.conv.weight)
    images = tiny_images()
    shown = cifar.normalise(images.test, images.mean, images.std)
    assert training.accuracy(mean, shown, images.test_labels) == averaged.accuracy[-1]


@pytest.mark.parametrize("weight", [0, 3.0])
def test_a_proximal_step_minimises_what_it_says(weight):
    """The gradient of L(v) + (weight / 2) mean (v - u)^2 vanishes at the new u; a weight of 0 is VarProM's m = 0."""
    of, (images, targets) = network(), batch(12)
    features = of.features(images).detach()
    old = of.outer.clone()
    take = resnet_noise.ProximalVarPro(of, torch.optim.SGD(of.features.parameters(), 0.0), LMBDA, weight)
    new = take.solve(features, targets).clone().requires_grad_()
    objective = ridge.loss(features, targets, new, LMBDA, 0.0) + weight / 2 * (new - old).square().mean()
    (slope_,) = torch.autograd.grad(objective, new)
    (alone,) = torch.autograd.grad(ridge.loss(features, targets, new, LMBDA, 0.0), new)
    (data,) = torch.autograd.grad((ridge.predict(features, new) - targets).square().mean() / (2 * LMBDA), new)
    assert slope_.norm() < SOLVE * data.norm()
    if weight == 0:
        assert relative(new.detach(), varprom(of, 0.0).solve(features, targets)) < SOLVE
    else:
        assert alone.norm() > 1e-3 * data.norm()


def test_parts_of_the_images_are_even():
    images = tiny_images(40)
    found = resnet_noise.part(images, 20)
    assert torch.equal(found.train, images.train[::2])
    assert torch.equal(found.train_labels, images.train_labels[::2])
    assert len(found.test) == 8
    assert len(resnet_noise.part(images, 30).train) == 30  # also where that is no whole part of them
    assert [len(part) for part in (resnet_noise.part(images, 1).train, resnet_noise.part(images, 1).test)] == [1, 1]
    assert torch.equal(resnet_noise.part(images, 50).train, images.train)


# --- the scripts -------------------------------------------------------------------------------------------------


TINY = ["--batch_size", "16", "--epochs", "1", "--final_epochs", "1", "--device", "cpu"]


@pytest.fixture
def tiny_data(monkeypatch):
    monkeypatch.setattr(cifar, "load", lambda name, folder, **_: tiny_images(20))


def only_result(folder: Path) -> dict:
    (path,) = folder.glob("*.pt")
    return results.load(path)


@pytest.mark.usefixtures("tiny_data")
def test_a_run_writes_what_the_definitions_say(tmp_path, capsys):
    main([*TINY, "--optimizer", "shampoo", "--shampoo_variant", "gupta", "--seed", "2", "--output", str(tmp_path)])
    (path,) = tmp_path.iterdir()  # no checkpoint is left
    assert path.name == (
        "dataset=digits_optimizer=shampoo_batch_size=16_lambda=0.001_epochs=1_final_epochs=1_shampoo_variant=gupta_"
        "seed=2.pt"
    )
    found = torch.load(path, weights_only=True)
    assert found["loss"].shape == (4,)
    assert found["loss"].dtype == torch.float64
    assert found["accuracy"].shape == (3,)
    assert found["learning_rate"].tolist() == [0.64, 0.32]
    config = found["config"]
    assert (config["optimizer"], config["time_scale"], config["momentum"]) == ("shampoo", 1e-2, 0.0)
    assert (config["shampoo_variant"], config["device"]) == ("gupta", "cpu")
    assert found["images_per_second"] == 2 * 20 / found["elapsed_time"]
    assert "torchvision" in found["provenance"]
    of = ResNet20(CLASSES)
    of.load_state_dict(found["network"])
    images = tiny_images(20)
    test = cifar.normalise(images.test, images.mean, images.std)
    assert training.accuracy(of, test, images.test_labels) == found["accuracy"][-1]
    assert f"wrote {path}" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_data")
def test_an_averaged_run_has_a_name_of_its_own_and_goes_on_from_a_shorter_one(tmp_path, capsys):
    arguments = ["--batch_size", "16", "--optimizer", "varpro-running", "--threads", "1"]
    longer = [*arguments, "--epochs", "2", "--final_epochs", "1", "--average", "1.5"]
    main([*arguments, "--epochs", "2", "--final_epochs", "1", "--output", str(tmp_path / "plain")])
    main([*longer, "--output", str(tmp_path / "whole")])
    main([*arguments, "--epochs", "1", "--final_epochs", "0", "--average", "1.5", "--output", str(tmp_path)])
    capsys.readouterr()
    main([*longer, "--output", str(tmp_path)])
    assert "goes on after step 2 of 6" in capsys.readouterr().out
    (path,) = (tmp_path / "whole").glob("*.pt")
    assert "_average=1.5_" in path.name
    whole, found = results.load(path), results.load(tmp_path / path.name)
    plain = only_result(tmp_path / "plain")
    assert equal(found, whole)
    assert "average" not in plain["config"]
    assert whole["config"] == plain["config"] | {"average": 1.5}
    assert torch.equal(whole["loss"], plain["loss"])
    assert not equal(whole["network"], plain["network"])


@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        (["varprom", "--momentum", "0.3", "--lmbda", "0.2"], {"averaging": 0.3, "lmbda": 0.2}),
        (["varprom", "--time_scale", "0.5", "--mixed_precision"], {"lr": 32.0, "momentum": 0, "mixed_precision": True}),
        (["sgdm", "--momentum", "0.3", "--lmbda", "0.2"], {"momentum": 0.3, "lr": 0.064, "lmbda": 0.2}),
        (
            ["shampoo", "--momentum", "0.3", "--lmbda", "0.2"],
            {"momentum": 0.3, "lr": 0.64, "lmbda": 0.2, "epsilon": 1e-4},
        ),
        (["varpro-running"], {"memory": 0.9, "averaging": 0.0, "momentum": 0.9, "lr": 0.064}),
        (["varpro-running", "--memory", "0.5", "--momentum", "0.3"], {"memory": 0.5, "momentum": 0.3, "lmbda": 1e-3}),
        (["shampoo"], {"variant": "torch_optimizer", "update_every": 1, "momentum": 0.0, "mixed_precision": False}),
        (["shampoo", "--shampoo_variant", "gupta", "--update_every", "3"], {"variant": "gupta", "update_every": 3}),
    ],
)
def test_options_reach_the_step(arguments, state):
    chosen = chosen_step(network(), *arguments)
    (group,) = chosen.optimizer.param_groups
    criterion = getattr(chosen, "criterion", None)
    found = {name: getattr(chosen, name, getattr(criterion, name, group.get(name))) for name in state}
    assert found == state


@pytest.mark.usefixtures("tiny_data")
def test_options_reach_the_run(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(cifar, "load", lambda name, folder, **_: folders.append((name, folder)) or tiny_images(20))
    arguments = [*TINY, "--dataset", "cifar10", "--optimizer", "sgdm", "--dtype", "float64", "--output", str(tmp_path)]
    main([*arguments, "--data-dir", "somewhere", "--time_scale", "1e-4"])
    assert folders == [("cifar10", Path("somewhere"))]
    (path,) = tmp_path.iterdir()
    assert "_time_scale=0.0001_" in path.name
    assert "_dtype=float64_" in path.name
    found = results.load(path)
    assert {value.dtype for value in found["network"].values()} == {torch.float64, torch.int64}
    before = path.stat().st_mtime_ns
    main([*arguments, "--time_scale", "1e-4", "--force"])
    assert path.stat().st_mtime_ns > before
    assert folders[1] == ("cifar10", image_files.folder())


@pytest.mark.usefixtures("tiny_data")
@pytest.mark.parametrize("resume", [True, False])
def test_resuming_is_an_option(resume, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "train", lambda *_, **keywords: seen.append(keywords["resume"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*TINY, "--output", str(tmp_path), *([] if resume else ["--no-resume"])])
    assert seen == [resume]


@pytest.mark.usefixtures("tiny_data")
def test_seeds_are_runs_of_their_own_and_results_are_kept(tmp_path, capsys, monkeypatch):
    arguments = [*TINY, "--optimizer", "sgdm", "--output"]
    main([*arguments, str(tmp_path / "both"), "--seed", "0", "1"])
    main([*arguments, str(tmp_path / "one"), "--seed", "1"])
    both, alone = sorted((tmp_path / "both").iterdir()), only_result(tmp_path / "one")
    assert len(both) == 2
    assert torch.equal(results.load(both[1])["loss"], alone["loss"])
    assert not torch.equal(results.load(both[0])["loss"], alone["loss"])
    before = both[1].stat().st_mtime_ns
    capsys.readouterr()
    monkeypatch.setattr(cifar, "load", None)  # what is kept needs no data
    main([*arguments, str(tmp_path / "both"), "--seed", "1"])
    assert capsys.readouterr().out == f"sgdm seed 1: kept {both[1]}\n"
    assert both[1].stat().st_mtime_ns == before


def interrupted(steps: int, arguments: list[str]) -> None:
    """The command with ``arguments``, which train by VarProM, until Ctrl-C in its step number ``steps``."""
    taken, calls = VarProM.__call__, iter(range(steps - 1))

    def last(self, images, targets):
        loss = taken(self, images, targets)
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VarProM, "__call__", last)
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
    assert stopped.value.code == 130


@pytest.mark.usefixtures("tiny_data")
def test_an_interrupted_command_goes_on(tmp_path, capsys):
    arguments = [*TINY, "--optimizer", "varprom", "--output"]
    main([*arguments, str(tmp_path / "whole")])
    interrupted(3, [*arguments, str(tmp_path / "parts")])
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".checkpoint"]
    capsys.readouterr()
    main([*arguments, str(tmp_path / "parts")])
    assert "varprom seed 0: goes on after step 3 of 4" in capsys.readouterr().out
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".pt"]
    whole, parts = only_result(tmp_path / "whole"), only_result(tmp_path / "parts")
    assert torch.equal(whole["loss"], parts["loss"])
    assert all(torch.equal(value, parts["network"][name]) for name, value in whole["network"].items())


LENGTHS = [  # passes at the full rate and at half of it, of two runs; steps that they share
    ((2, 0), (3, 1), 4),
    ((2, 1), (3, 0), 4),
    ((2, 1), (2, 2), 4),
    ((2, 0), (2, 1), 4),
]


@pytest.mark.usefixtures("tiny_data")
@pytest.mark.parametrize(
    ("optimizer", "begun", "length", "step"),
    [("varprom", *each) for each in LENGTHS] + [(name, *LENGTHS[0]) for name in OPTIMIZERS if name != "varprom"],
)
def test_a_longer_run_goes_on_from_a_shorter_one(optimizer, begun, length, step, tmp_path, capsys):
    def command(epochs: int, final: int, folder: Path, *more: str) -> list[str]:
        lengths = ["--epochs", str(epochs), "--final_epochs", str(final)]
        return ["--batch_size", "16", *lengths, "--optimizer", optimizer, "--output", str(folder), *more]

    main(command(*length, tmp_path / "whole"))
    main(command(*begun, tmp_path))
    (shorter,) = tmp_path.glob("*.pt")
    capsys.readouterr()
    main(command(*length, tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"{optimizer} seed 0: begins like {shorter}",
        f"{optimizer} seed 0: goes on after step {step} of {2 * sum(length)}",
    ]
    (longer,) = set(tmp_path.glob("*.pt")) - {shorter}
    whole, found = only_result(tmp_path / "whole"), results.load(longer)
    assert equal(found, whole)
    assert found["full_rate"]["state"]["step"] == 2 * length[0]  # the next longer one goes on from there


@pytest.mark.usefixtures("tiny_data")
def test_a_longer_run_goes_on_from_one_that_was_stopped_at_half_the_rate(tmp_path, capsys):
    arguments = ["--batch_size", "16", "--optimizer", "varprom", "--threads", "1", "--output", str(tmp_path)]
    interrupted(5, [*arguments, "--epochs", "1", "--final_epochs", "3"])
    capsys.readouterr()
    main([*arguments, "--epochs", "2", "--final_epochs", "0"])
    begins, goes_on, *_ = capsys.readouterr().out.splitlines()
    assert begins.endswith(".checkpoint")
    assert goes_on == "varprom seed 0: goes on after step 2 of 4"


@pytest.mark.usefixtures("tiny_data")
def test_a_run_goes_on_from_what_has_come_further_than_its_own_checkpoint(tmp_path, capsys):
    arguments = ["--batch_size", "16", "--optimizer", "varprom", "--threads", "1", "--output", str(tmp_path)]
    interrupted(1, [*arguments, "--epochs", "3", "--final_epochs", "0"])
    main([*arguments, "--epochs", "2", "--final_epochs", "0"])
    interrupted(1, [*arguments, "--epochs", "3", "--final_epochs", "0"])
    assert "varprom seed 0: goes on after step 4 of 6" in capsys.readouterr().out
    main([*arguments, "--epochs", "3", "--final_epochs", "0"])
    out = capsys.readouterr().out
    assert "begins like" not in out  # its own has come further now
    assert "varprom seed 0: goes on after step 5 of 6" in out


def equal(found, expected) -> bool:
    """To the last bit, but for what is another in every process."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(equal, found, expected))
    if isinstance(expected, dict):
        others = {"elapsed_time", "images_per_second", "elapsed", "testing"}
        same = found.keys() == expected.keys()
        return same and all(equal(found[name], expected[name]) for name in found.keys() - others)
    return found == expected


@pytest.mark.usefixtures("tiny_data")
def test_what_a_longer_run_does_not_go_on_from(tmp_path, capsys):
    """One that has come too far, one at another rate, one with other options, and a file that is none."""
    arguments = ["--batch_size", "16", "--device", "cpu", "--optimizer", "sgdm", "--output", str(tmp_path)]
    main([*arguments, "--epochs", "3", "--final_epochs", "0"])
    main([*arguments, "--epochs", "1", "--final_epochs", "0", "--seed", "1"])
    main([*arguments, "--epochs", "1", "--final_epochs", "0", "--momentum", "0.5"])
    (three,) = tmp_path.glob("*_epochs=3_*.pt")
    Path(str(three).replace("epochs=3", "epochs=1")).write_bytes(b"not a result")
    kept = results.load(three)
    kept["full_rate"]["version"] = 0
    results.save(Path(str(three).replace("epochs=3", "epochs=2").replace("_final_epochs=0", "")), kept)
    capsys.readouterr()
    main([*arguments, "--epochs", "2", "--final_epochs", "2"])
    out = capsys.readouterr().out
    assert "begins like" not in out
    assert "goes on" not in out
    main([*arguments, "--epochs", "4", "--final_epochs", "0"])
    assert f"begins like {three}" in capsys.readouterr().out
    for more in ("--no-resume", "--force"):
        main([*arguments, "--epochs", "5", "--final_epochs", "0", more])
        assert "begins like" not in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_data")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--optimizer", "adam"], 2, "invalid choice: 'adam'"),
        (["--momentum", "1"], 2, "--momentum: '1' is not allowed: a number from 0 to below 1"),
        (["--lmbda", "0"], 2, "'0' is not allowed: a finite number above 0"),
        (["--epochs", "0"], 2, "--epochs: '0' is not allowed"),
        (["--width", "3"], 2, "unrecognized arguments: --width 3"),
        (["--optimizer", "sgdm", "--update_every", "2"], 2, "--update_every: has no effect here; it goes with"),
        (
            ["--optimizer", "varprom", "--memory", "0.5"],
            2,
            "--memory: has no effect here; it goes with --optimizer var",
        ),
        (["--mixed_precision", "--dtype", "float64"], 2, "--mixed_precision: has no effect here; it goes with"),
        (["--tf32"], 2, "--tf32: has no effect here; it goes with --device cuda --dtype float32"),
        (["--data-dir", "x"], 2, "--data-dir: has no effect here; it goes with --dataset cifar10 or images"),
        (["--dataset", "images"], 2, "--dataset images: name their folder with --data-dir DIR"),
        (["--threads", "0"], 2, "--threads: '0' is not allowed: a whole number from 1 to 1024"),
        (["--average", "-1"], 2, "argument --average: '-1' is not allowed: a number from 0 to 1e6"),
        (["--no-flips"], 2, "--flips: has no effect here; it goes with --dataset images"),
        (["--batch_size", "21"], 2, "--batch_size 21: digits has 20 images"),
        (["--seed", "1", "1"], 2, "names a seed twice"),
        (["--optimizer", "sgdm", "--time_scale", "1e6"], 1, ": the loss is not finite; try a smaller --time_scale"),
        (["--optimizer", "sgdm", "--lmbda", "1e-45"], 1, "step 1: the loss is not finite; try a larger --lambda"),
        (["--dataset", "images", "--data-dir", "/dev/null"], 2, "--data-dir /dev/null: is no folder"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, code, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*TINY, *arguments, "--output", str(tmp_path)])
    assert stopped.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize(
    ("script", "optimizer", "time_scale"),
    [("VarProM", "varprom", "1e-3"), ("SGDM", "sgdm", "1e-3"), ("Shampoo", "shampoo", "1e-2")],
)
def test_the_commands_of_the_readme(script, optimizer, time_scale, monkeypatch):
    """They choose the optimizer and CIFAR-10 and take the options as written; the rest has the published numbers."""
    seen = []
    monkeypatch.setattr(runs, "runs", lambda options: seen.append(options) or [])
    command = f"--lmbda 1e-3 --batch_size 64 --time_scale {time_scale} --momentum 0.9 --epochs 100"
    module = load_script(f"VarPro_resnet/CIFAR10_{script}.py")
    module.main(command.split(), **module.CHOICES)
    module.main([], **module.CHOICES)
    for options, momentum in zip(seen, (0.9, OPTIMIZERS[optimizer].momentum), strict=True):
        assert (options.optimizer, options.dataset) == (optimizer, "cifar10")
        assert (options.lmbda, options.batch_size, options.time_scale) == (1e-3, 64, float(time_scale))
        assert (options.momentum, options.epochs, options.final_epochs) == (momentum, 100, 10)
    with pytest.raises(SystemExit):
        module.main(["--optimizer", "sgdm"], **module.CHOICES)


def test_a_script_runs_from_its_own_folder():
    """There its neighbours come first among the modules that can be imported."""
    folder = ROOT / "VarPro_resnet"
    command = [sys.executable, "CIFAR10_VarProM.py", "--epochs", "none"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    expected = (
        "CIFAR10_VarProM.py: error: argument --epochs: 'none' is not allowed: a whole number from 1 to 1000000000\n"
    )
    assert ended.stderr == expected
