"""Stochastic training of a ResNet: steps on mini-batches, passes over the data, tests, checkpoint and resume.

The loss of a mini-batch of B images with one-hot targets y (B, k), for features phi (B, M), M = 64, and outer weights u
(M, k), is that of the paper's Section 6.2:

    L = (1 / (2 lam)) mean_{i,k} (phi u / M - y)^2 + (1/2) mean_{j,k} u^2

A pass shows every image once, in a new order and newly augmented; its last mini-batch may be smaller.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from varpro import ridge
from varpro.cli import Stopped, UsageError, duration
from varpro.loss import VarProLoss
from varpro.runs.bookkeeping import Checkpoint, Report, StopSignals
from varpro.threads import ThreadChoice, torch_threads
from VarPro_resnet import cifar
from VarPro_resnet.polyak import PolyakAverage
from VarPro_resnet.replay import Replay, replayable
from VarPro_resnet.resnet import ResNet20

_CENTRE = 0.0  # c of the penalty (u - c)^2 / 2
_TEST_BATCH = 500  # images
_SAMPLES = 5000  # training images at most that u is solved with before a test: a 30th of the cost of a pass
_TRIAL_STEPS = 2  # with each number of threads
_TIMED_STEPS, _TIMED_SECONDS = 2, 1.0  # at least, before the cost of a run is estimated
STATE_VERSION = 2  # of what a checkpoint holds: to be counted up where that changes

Batch = tuple[torch.Tensor, torch.Tensor]  # images (B, 3, 32, 32), targets (B, k)


class Descent:
    """A step of ``optimizer`` along the gradient of L, in whichever parameters of ``network`` it was given.

    With ``mixed_precision`` the features are computed in bfloat16 where that is safe, and everything after them in the
    precision of the parameters.
    """

    def __init__(
        self,
        network: ResNet20,
        optimizer: torch.optim.Optimizer,
        lmbda: float,
        *,
        mixed_precision: bool = False,
    ) -> None:
        self.network, self.optimizer, self.lmbda = network, optimizer, lmbda
        self.mixed_precision = mixed_precision
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One step on ``images (B, 3, 32, 32)`` and ``targets (B, k)``; returns their loss before it, a scalar.

        The features are computed once, and nothing here but Shampoo's decompositions waits for the device.
        """
        features = self.forward(images)
        return self.descend(features, targets, self.solve(features.detach(), targets))

    solves = False  # whether :meth:`solve` computes anything

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The first part of a step: the features (B, M) of ``images (B, 3, 32, 32)``, with gradients."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed_precision):
            features = self.network.features(images)
        return features.to(images.dtype)

    def solve(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The second part: the outer weights (M, k) that the gradient is taken at."""
        return self.network.outer

    def descend(self, features: torch.Tensor, targets: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        """The last part: a step along the gradient at ``outer (M, k)``; returns the loss before it, a scalar."""
        loss = self._loss(features, targets, outer)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the next step."""
        return tuple(group["lr"] for group in self.optimizer.param_groups)

    def slow_down(self, factor: float) -> float:
        """Take steps of ``factor`` times the first rate from now on; returns the rate."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate
        return factor * self._rates[0]

    def check(self) -> None:
        """Raise FloatingPointError where a step since the beginning has failed in a way that its loss may not show."""

    def before_test(self, batches: Iterable[Batch]) -> None:
        """Make the network ready for a test, perhaps by a look at ``batches`` of training images as they are."""

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs beside the network."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():  # in the file they have lost the parameter's layout
                if torch.is_tensor(value) and (value.shape, value.dtype) == (parameter.shape, parameter.dtype):
                    kept[name] = torch.empty_like(parameter).copy_(value)

    def _loss(self, features: torch.Tensor, targets: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        """L of ``features (B, M)``, with gradients."""
        return ridge.loss(features, targets, outer, self.lmbda, _CENTRE)


class VarPro(Descent):
    """Descent in the features only, at outer weights that ``criterion`` solves for and keeps in the network.

    ``rule`` is what the criterion does with older mini-batches: its ``averaging`` or its ``memory``.
    The step is along dL/dtheta of the mini-batch with u held fixed (:class:`varpro.loss.VarProLoss`).
    """

    solves = True

    def __init__(
        self,
        network: ResNet20,
        optimizer: torch.optim.Optimizer,
        lmbda: float,
        *,
        mixed_precision: bool = False,
        **rule: float,
    ) -> None:
        super().__init__(network, optimizer, lmbda, mixed_precision=mixed_precision)
        network.readout.requires_grad_(False)
        self.criterion = VarProLoss(lmbda, _CENTRE, outer=network.outer, **rule)  # updates the network's own u

    def check(self) -> None:
        """Raise FloatingPointError where a ridge system was not positive definite."""
        self.criterion.check()

    def state_dict(self) -> dict[str, Any]:
        """As in the base class, with what the criterion remembers."""
        return super().state_dict() | {"criterion": self.criterion.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in the base class."""
        super().load_state_dict(state)
        self.criterion.load_state_dict(state["criterion"])

    def solve(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.criterion.solve(features, targets)

    def _loss(self, features: torch.Tensor, targets: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        return self.criterion.at(features, targets, outer)


class VarProM(VarPro):
    """The published stochastic VarPro: u is a running average of the optimal outer weights of the mini-batches.

    Every step does u <- m u + (1 - m) argmin_u L with m = ``averaging``. For m = 0 its gradient is that of the reduced
    loss min_u L, for m > 0 it is not. The test is taken with the u of the last mini-batches.
    """

    def __init__(
        self,
        network: ResNet20,
        optimizer: torch.optim.Optimizer,
        lmbda: float,
        averaging: float,
        *,
        mixed_precision: bool = False,
    ) -> None:
        super().__init__(network, optimizer, lmbda, mixed_precision=mixed_precision, averaging=averaging)


class RunningVarPro(VarPro):
    """Stochastic VarPro without the noise of VarProM, which is that of outer weights fitted to few images.

    The ridge solution of B = 128 images with M = 64 features fits their noise: averages of two or three such solutions
    are off by more than what the features have learned. Here the second moments of the features are averaged instead,
    with weights m^age, m = ``memory``, and u solved from them: it is optimal for the last B / (1 - m) images or so, and
    the gradient is that of their reduced risk in the features of this mini-batch (VarProLoss says how exactly).

    For a test u is solved for anew, with the features of training images as they are in a test: batch-norm takes its
    running statistics there, and the u that fits the features of training is none that fits these.
    """

    def __init__(
        self,
        network: ResNet20,
        optimizer: torch.optim.Optimizer,
        lmbda: float,
        memory: float,
        *,
        mixed_precision: bool = False,
    ) -> None:
        super().__init__(network, optimizer, lmbda, mixed_precision=mixed_precision, memory=memory)

    def before_test(self, batches: Iterable[Batch]) -> None:
        """Solve for u on ``batches`` in evaluation mode; the next step does not depend on it."""
        self.network.eval()
        with torch.no_grad():
            self.criterion.fit((self.network.features(images), targets) for images, targets in batches)
        self.network.train()


@dataclass(frozen=True)
class Plan:
    """How long a run is: ``epochs`` passes over the data and ``final_epochs`` more at half the rate."""

    images: int
    batch_size: int
    epochs: int
    final_epochs: int

    @property
    def passes(self) -> int:
        """In all."""
        return self.epochs + self.final_epochs

    @property
    def steps_per_pass(self) -> int:
        """Mini-batches of a pass, a smaller last one included."""
        return math.ceil(self.images / self.batch_size)

    @property
    def steps(self) -> int:
        """In all."""
        return self.passes * self.steps_per_pass

    @property
    def full_rate_steps(self) -> int:
        """Those before the rate is halved."""
        return self.epochs * self.steps_per_pass

    def memory(self, passes: float) -> float:
        """The m of a mean with weights m^age over steps that holds about the last ``passes``: 1 / (1 - m) steps."""
        return 1 - 1 / max(1.0, passes * self.steps_per_pass)

    def factor(self, number: int) -> float:
        """On the learning rate in pass ``number``, counted from 0."""
        return 1.0 if number < self.epochs else 0.5

    def begins_like(self, other: "Plan", steps: int) -> bool:
        """Whether the first ``steps`` of it are those of ``other``, which differs in its passes at most."""
        begun = range(math.ceil(steps / self.steps_per_pass))
        return steps <= self.steps and all(self.factor(number) == other.factor(number) for number in begun)


@dataclass
class Record:
    """What is kept of a run beside the final network, on the CPU."""

    loss: torch.Tensor  # (steps,) float64, of every mini-batch before its step, at the u used
    accuracy: torch.Tensor  # (passes + 1,) float64, share of the test images, before training and after every pass
    learning_rate: torch.Tensor  # (passes,) float64
    threads: list[int]  # of the CPU, one number unless a later process was told another
    full_rate: dict[str, Any] | None  # the state after the last pass at the full rate: longer runs may go on from it
    elapsed: float = 0.0  # seconds of training and tests, over all processes


@contextmanager
def arithmetic(*, tf32: bool) -> Iterator[None]:
    """Whether float32 products and convolutions on CUDA may round their factors to TF32 (10 bits) meanwhile.

    PyTorch's default lets convolutions do so. Their algorithms are chosen by trial: all batches but a few have one
    shape.
    """
    cudnn = torch.backends.cudnn
    usual, cudnn.conv.fp32_precision = cudnn.conv.fp32_precision, "tf32" if tf32 else "ieee"
    tried, cudnn.benchmark = cudnn.benchmark, True
    try:
        with ridge.matrix_products(tf32=tf32):
            yield
    finally:
        cudnn.conv.fp32_precision, cudnn.benchmark = usual, tried


def accuracy(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, pause: Callable[[], None] = lambda: None
) -> float:
    """Share of ``images (N, 3, 32, 32)`` that the network in evaluation mode gives the right of the ``labels (N,)``.

    ``pause`` is called before every batch.
    """
    training = network.training
    network.eval()
    right: torch.Tensor | int = 0
    with torch.no_grad():
        for batch, answers in zip(images.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True):
            pause()
            right = right + (network(batch).argmax(dim=1) == answers).sum()
    network.train(training)
    return right.item() / len(labels)


def train(
    step: Descent,
    images: cifar.Images,
    plan: Plan,
    *,
    seed: int,
    memory_format: torch.memory_format = torch.channels_last,
    tf32: bool = False,
    threads: int | None = None,
    checkpoint: Checkpoint | None = None,
    signals: StopSignals | None = None,
    resume: bool = True,
    progress: bool = False,
    label: str = "training",
    report: Report | None = None,
    replay: bool | None = None,
    average: float = 0.0,
    earlier: Callable[[int], Mapping[str, Any] | None] = lambda step: None,
) -> Record:
    """Train ``step.network`` through ``plan`` on ``images``, which are where the network is.

    Order and augmentation of the images come from a generator on the CPU with ``seed``, the same on every device. With
    ``checkpoint`` the state is kept there now and then, and a later call goes on from it if ``resume``, to the same
    last bit on the CPU; the caller removes it. ``earlier`` is asked for the state of a run that began like this one
    (:meth:`Plan.begins_like`) and has done more than so many steps. ``signals`` are those of a caller who takes care of
    them already.

    The last bits depend on the number of ``threads`` of the CPU, since convolutions and means are summed in parts. None
    is as many as the process has, or one where a trial shows that to be faster, which beside other work it is by far;
    that choice is made once, and a run that is gone on with keeps it.

    ``replay`` is whether steps go through buffers that stay where they are, as captured graphs on CUDA
    (:mod:`VarPro_resnet.replay`); None is on CUDA where :func:`VarPro_resnet.replay.replayable` allows it.

    With ``average``, in passes, what is tested, and what ``step.network`` is in the end, is its average over about the
    last so many (:mod:`VarPro_resnet.polyak`); the steps are those without it.

    ``report`` receives lines for the user, with the cost of the run unless ``progress`` shows it. Raises
    FloatingPointError with the pass and the step where the loss stops being finite, at the end of that pass; Stopped
    after a signal, with the state in the checkpoint; UsageError where a state is none of this network.
    """
    run = _Run(step, images, plan, seed, memory_format, label, replay, average)
    state = checkpoint.restore() if checkpoint is not None and resume else None
    if resume:
        state = earlier(0 if state is None else state["step"]) or state
    if state is not None:
        run.restore(state)
        if report is not None:
            report(f"goes on after step {run.step} of {plan.steps}")

    watch = _Watch(run, None if progress else report)
    stopping = StopSignals() if signals is None else nullcontext(signals)
    bar = tqdm(total=plan.steps, initial=run.step, desc=label, unit="step", disable=not progress)
    with bar, arithmetic(tf32=tf32), torch_threads(run.share(threads, report)), stopping as signals:
        try:
            run.test(signals.check)
            while run.step < plan.steps:
                for _ in run.steps_of_pass():
                    bar.update()
                    watch.look()
                    if checkpoint is not None:
                        checkpoint.offer(run.state)
                    signals.check()
                run.test(signals.check)
                if progress:
                    bar.set_postfix(loss=f"{run.last_loss:.4g}", accuracy=f"{run.last_accuracy:.3f}")
        except Stopped:
            if checkpoint is not None:
                checkpoint.write(run.state())
            raise
    return run.record()


class _Run:
    """The state of a training and its record so far."""

    def __init__(
        self,
        step: Descent,
        images: cifar.Images,
        plan: Plan,
        seed: int,
        memory_format: torch.memory_format,
        label: str,
        replay: bool | None,
        average: float = 0.0,
    ) -> None:
        self.take_step, self.images, self.plan, self.label = step, images, plan, label
        self.network = step.network.train().to(memory_format=memory_format)
        weights = self.network.outer
        self.dtype, self.memory_format = weights.dtype, memory_format
        self.test_images = cifar.normalise(images.test, images.mean, images.std, self.dtype, memory_format)
        self.targets = nn.functional.one_hot(images.train_labels, images.classes).to(self.dtype)
        self.generator = torch.Generator().manual_seed(seed)
        self.pass_start = self.generator.get_state()
        self.step, self.tests = 0, 0
        self.threads: list[int] = []
        self.losses = torch.full((plan.steps,), math.nan, dtype=torch.float64, device=weights.device)
        if replay is None:
            replay = weights.device.type == "cuda" and replayable(step)
        self.replay = Replay(step, self.losses, plan.batch_size) if replay else None
        self.average = PolyakAverage(self.network, plan.memory(average)) if average else None
        self.accuracies = torch.full((plan.passes + 1,), math.nan, dtype=torch.float64)
        self.rates = torch.full((plan.passes,), math.nan, dtype=torch.float64)
        self.full_rate: dict[str, Any] | None = None
        self.testing = 0.0  # seconds in the tests, over all processes
        self.elapsed = 0.0  # seconds before this process
        self.began = time.perf_counter()

    @property
    def last_loss(self) -> float:
        """Mean over the last pass."""
        return self.losses[self.step - self.plan.steps_per_pass : self.step].mean().item()

    @property
    def last_accuracy(self) -> float:
        return self.accuracies[self.tests - 1].item()

    def share(self, threads: int | None, report: Report | None) -> int:
        """How many threads to take: ``threads`` if that says so, or as before, or what a trial shows."""
        if threads is None:
            threads = self.threads[-1] if self.threads else self._faster(torch.get_num_threads())
        if self.threads[-1:] != [threads]:
            if self.threads and report is not None:
                report(f"goes on with {threads} threads, not {self.threads[-1]}: the last bits are those of neither")
            self.threads.append(threads)
        return threads

    def _faster(self, available: int) -> int:
        """One thread or all that are ``available``, by steps of a copy that nothing remains of."""
        if available == 1 or self.losses.device.type != "cpu":
            return available
        images, targets = (tensor[: self.plan.batch_size] for tensor in (self.images.train, self.targets))
        images = cifar.normalise(images, self.images.mean, self.images.std, self.dtype, self.memory_format)
        trial, choice = copy.deepcopy(self.take_step), ThreadChoice()
        for _ in range(3):  # one to warm up, one trial each
            threads, steps = choice.plan(available, _TRIAL_STEPS)
            try:
                with torch_threads(threads):
                    trial(images, targets)  # what these threads do once
                    begin = time.perf_counter()
                    for _ in range(steps):
                        trial(images, targets)
            except FloatingPointError:
                return available  # the run itself will say where
            choice.note(threads, steps, time.perf_counter() - begin)
        return choice.plan(available, 1)[0]

    def steps_of_pass(self) -> Iterator[None]:
        """The steps that are left of the pass at hand."""
        self._keep_full_rate()
        number, done = divmod(self.step, self.plan.steps_per_pass)
        self.rates[number] = self.take_step.slow_down(self.plan.factor(number))
        self.generator.set_state(self.pass_start)
        draws = cifar.draw(len(self.images.train), self.generator, self.images.flips)
        images = cifar.augment(
            self.images.train,
            draws,
            self.images.mean,
            self.images.std,
            dtype=self.dtype,
            memory_format=self.memory_format,
        )
        targets = self.targets[draws.order.to(self.targets.device)]
        batches = list(zip(images.split(self.plan.batch_size), targets.split(self.plan.batch_size), strict=True))
        for place in range(done, len(batches)):
            self._step(*batches[place])
            if place == len(batches) - 1:
                self._end_pass()
            yield

    def _step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        try:
            if self.replay is not None and self.replay.takes(images):
                self.replay(self.step, images, targets)
            else:
                self.losses[self.step] = self.take_step(images, targets)
        except FloatingPointError as error:
            self._check_losses()
            raise FloatingPointError(f"{self._place(self.step)}: {_with_remedy(error)}") from None
        if self.average is not None:
            self.average.update()
        self.step += 1

    def _end_pass(self) -> None:
        self._check()
        self.pass_start = self.generator.get_state()

    def _check(self) -> None:
        """Raise FloatingPointError where a step so far has failed."""
        self._check_losses()
        self.take_step.check()

    def _check_losses(self) -> None:
        bad = torch.nonzero(~torch.isfinite(self.losses[: self.step]))
        if len(bad):
            remedy = "smaller --time_scale" + " or a larger --lambda" * self.take_step.solves
            remedy = remedy if bad[0] else "larger --lambda"  # no step has been made before the first
            raise FloatingPointError(f"{self._place(int(bad[0]))}: the loss is not finite; try a {remedy}")

    def _place(self, step: int) -> str:
        number, within = divmod(step, self.plan.steps_per_pass)
        return f"{self.label}: pass {number + 1}, step {within + 1}"

    def test(self, pause: Callable[[], None]) -> None:
        """Test the network before its first step and after every pass, where that is still to be done.

        ``pause`` is called between batches; where it raises, the state is that of before the test.
        """
        if self.tests > self.step // self.plan.steps_per_pass:
            return
        _wait(self.losses.device)
        begin = time.perf_counter()
        with nullcontext() if self.average is None else self.average.in_place():
            tested = self._accuracy(pause)
        self.accuracies[self.tests] = tested
        self.tests += 1
        self.testing += time.perf_counter() - begin

    def _accuracy(self, pause: Callable[[], None]) -> float:
        try:
            self.take_step.before_test(self._samples(pause))
        except FloatingPointError as error:
            where = f"{self.label}: test after {self.tests} passes"
            raise FloatingPointError(f"{where}: {_with_remedy(error)}") from None
        return accuracy(self.network, self.test_images, self.images.test_labels, pause)

    def _samples(self, pause: Callable[[], None]) -> Iterator[Batch]:
        """Some thousand training images as they are, the same ones every time, with targets; evenly from all classes,
        in whatever order they come, and mixed."""
        by_class = self.images.train_labels.argsort(stable=True)
        spread = by_class[:: math.ceil(self.plan.images / _SAMPLES)]
        spread = spread[torch.randperm(len(spread), generator=torch.Generator().manual_seed(0)).to(spread.device)]
        images, targets = self.images.train[spread], self.targets[spread]
        for part, answers in zip(images.split(_TEST_BATCH), targets.split(_TEST_BATCH), strict=True):
            pause()
            yield cifar.normalise(part, self.images.mean, self.images.std, self.dtype, self.memory_format), answers

    def seconds(self) -> float:
        return self.elapsed + time.perf_counter() - self.began

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on to the last bit. What has failed is not to be gone on from: raises
        FloatingPointError then."""
        return self._state() | {"full_rate": self.full_rate}

    def _state(self) -> dict[str, Any]:
        self._check()
        begun = math.ceil(self.step / self.plan.steps_per_pass)
        state = {
            "network": self.network.state_dict(),
            "training": self.take_step.state_dict(),
            "pass_start": self.pass_start,  # state of the generator when the pass at hand began
            "step": self.step,
            "loss": self.losses[: self.step],
            "accuracy": self.accuracies[: self.tests],
            "learning_rate": self.rates[:begun],
            "testing": self.testing,
            "elapsed": self.seconds(),
            "threads": self.threads,
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def _keep_full_rate(self) -> None:
        if self.step == self.plan.full_rate_steps:
            self.full_rate = copy.deepcopy(self._state())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned, here or in a run that began like this one.

        Raises UsageError where that was a network or an optimizer of another form.
        """
        try:
            self.network.load_state_dict(state["network"])
            self.take_step.load_state_dict(state["training"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0].rstrip(": ")
            raise UsageError(
                f"{self.label}: the state on disk does not fit this network ({reason}); --no-resume starts anew"
            ) from None
        self.pass_start, self.step, self.elapsed = state["pass_start"], state["step"], state["elapsed"]
        self.losses[: self.step] = state["loss"]
        self.threads = list(state["threads"])
        self.tests, self.testing = len(state["accuracy"]), state["testing"]
        self.accuracies[: self.tests] = state["accuracy"]
        self.rates[: len(state["learning_rate"])] = state["learning_rate"]
        self.full_rate = state.get("full_rate")

    def record(self) -> Record:
        self._keep_full_rate()
        if self.average is not None:
            self.average.swap()
        return Record(self.losses.cpu(), self.accuracies, self.rates, self.threads, self.full_rate, self.seconds())


class _Watch:
    """Says once, after the first steps, what the run will cost."""

    def __init__(self, run: _Run, report: Report | None) -> None:
        self.run, self.report = run, report
        self.first: _Mark | None = None  # when the clock started
        self.last: _Mark | None = None

    def look(self) -> None:
        """To be called after every step. Nothing waits. Steps that choose algorithms, or capture, are not timed."""
        if self.report is None or (self.run.replay is not None and not self.run.replay.replays):
            return
        if self.first is None:
            self.first = _Mark(self.run)
        elif self.last is None:
            host = time.perf_counter() - self.first.host
            if self.run.step >= self.first.step + _TIMED_STEPS and host >= _TIMED_SECONDS:
                self.last = _Mark(self.run)
        if self.last is not None and self.last.reached():
            self.report(self._estimate(self.first.seconds_per_step(self.last)))
            self.report = None

    def _estimate(self, seconds_per_step: float) -> str:
        run, plan = self.run, self.run.plan
        tests = run.testing / run.tests * (plan.passes + 1 - run.tests)
        left = seconds_per_step * (plan.steps - run.step) + tests
        states = [2 * [run.network.state_dict()], run.take_step.state_dict()]  # at the end, and after the full rate
        states += [] if run.average is None else [run.average.state_dict()]
        size = _bytes(states) + 8 * (plan.steps + plan.full_rate_steps)
        rate = plan.images / (plan.steps_per_pass * seconds_per_step)
        return f"{rate:.0f} images/s, about {duration(left)} to go; the result will take {size / 1e6:.2g} MB"


class _Mark:
    """A moment of ``run``: of the device, which on CUDA comes later than that of the host, and nobody waits for it."""

    def __init__(self, run: _Run) -> None:
        self.step, self.testing, self.host = run.step, run.testing, time.perf_counter()
        self.event: torch.cuda.Event | None = None
        if run.losses.device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def reached(self) -> bool:
        """Whether the device has come this far."""
        return self.event is None or self.event.query()

    def seconds_per_step(self, later: "_Mark") -> float:
        """Of training, from this mark to a ``later`` one that is reached."""
        spent = later.host - self.host if self.event is None else self.event.elapsed_time(later.event) / 1e3
        return (spent - (later.testing - self.testing)) / (later.step - self.step)


def _bytes(value: Any) -> int:
    """Of all tensors in it."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        value = value.values()
    return sum(map(_bytes, value)) if isinstance(value, Iterable) and not isinstance(value, str) else 0


def _with_remedy(error: FloatingPointError) -> str:
    """What the error says, with what may be tried where it does not say that itself."""
    return str(error) if "; use " in str(error) else f"{error}; try a smaller --time_scale"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
