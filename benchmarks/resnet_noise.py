"""Where the noise of stochastic VarPro comes from: test accuracy after every pass, read in six ways.

The same network is tested as it is, with outer weights that are solved for anew from features of training images in
evaluation mode, with batch-norm statistics taken anew, and with both; then its average over the last passes, as it is
and with outer weights anew. The training does not notice. What is shown for
each variant is the mean over the last passes and, as the noise, the largest reading less the smallest
(docs/stochastic_varpro.md).

    python -m benchmarks.resnet_noise                                              digits, minutes
    python -m benchmarks.resnet_noise --data-dir DIR --images 5000 --passes 20     a part of CIFAR-10
    python -m benchmarks.resnet_noise --data-dir DIR --images 6250 --passes 110 --final 10 --last 10 --seed 0 \\
        --variants "VarPro running" SGDM                                           the paper's passes, an eighth of it
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD

from benchmarks import measure
from varpro import cli, image_files, ridge
from varpro.loss import VarProLoss
from varpro.paper.tables import markdown
from varpro.threads import keep_freed_memory
from VarPro_resnet import cifar
from VarPro_resnet.cifar import Images
from VarPro_resnet.polyak import PolyakAverage
from VarPro_resnet.resnet import WIDTH, ResNet20
from VarPro_resnet.training import Batch, Descent, Plan, VarPro, accuracy, train

LMBDA, TIME_SCALE = 1e-3, 1e-3
READINGS = ("as it is", "u anew", "statistics anew", "both anew", "average", "average, u anew")


class ProximalVarPro(Descent):
    """Stochastic VarPro with its penalty's centre at the last u: u <- argmin_v L(v) + (weight / 2) mean (v - u)^2.

    That is a ridge problem of the mini-batch again: lam (1 + weight) for lam, the centre weight / (1 + weight) u. For a
    weight of 0 it is VarProM without averaging. The gradient is that of L at this u, held fixed.
    """

    solves = True

    def __init__(self, network: ResNet20, optimizer: torch.optim.Optimizer, lmbda: float, weight: float, **options):
        super().__init__(network, optimizer, lmbda, **options)
        network.readout.requires_grad_(False)
        self.weight = weight

    def solve(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """u (M, k) for ``features (B, M)`` and ``targets (B, k)``, which the network keeps."""
        outer = self.network.outer
        centre = self.weight / (1 + self.weight) * outer.double()
        rest = targets - ridge.predict(features.double(), centre)
        change = ridge.solve(features.double(), rest, (1 + self.weight) * self.lmbda, 0.0)
        return outer.copy_(centre + change)


def _proximal(network: ResNet20, weight: float, **options) -> Descent:
    descent = SGD(network.features.parameters(), WIDTH * TIME_SCALE, 0.9)
    return ProximalVarPro(network, descent, LMBDA, weight, **options)


def _varpro(network: ResNet20, momentum: float = 0.0, **options) -> Descent:
    return VarPro(network, SGD(network.features.parameters(), WIDTH * TIME_SCALE, momentum), LMBDA, **options)


def _sgdm(network: ResNet20, **options) -> Descent:
    return Descent(network, SGD(network.parameters(), WIDTH * TIME_SCALE, 0.9), LMBDA, **options)


VARIANTS: dict[str, Callable[..., Descent]] = {
    "VarProM": partial(_varpro, averaging=0.5),  # as published
    "VarProM, momentum 0.9": partial(_varpro, momentum=0.9, averaging=0.5),
    "memory 0.9": partial(_varpro, memory=0.9),
    "VarPro running": partial(_varpro, momentum=0.9, memory=0.9),  # --optimizer varpro-running
    "SGDM": _sgdm,
}
COMPARED = list(VARIANTS)  # without --variants
VARIANTS["VarProM, m = 0"] = _varpro
VARIANTS |= {f"VarPro running, m = {m}": partial(_varpro, momentum=0.9, memory=m) for m in (0.5, 0.8, 0.95, 0.99)}
VARIANTS |= {f"proximal, weight {weight}": partial(_proximal, weight=weight) for weight in (0, 1, 10, 100)}


@dataclass
class Watch:
    """Reads the accuracy of a network in all ways, and leaves it as it was; stands for ``before_test``.

    The first ``skipped`` tests are not looked at: a look costs as much as half a pass.
    """

    network: ResNet20
    images: Images
    average: PolyakAverage
    skipped: int = 0
    memory_format: torch.memory_format = torch.channels_last
    readings: list[list[float]] = field(default_factory=list)  # in the order of READINGS, of every test

    def __call__(self, batches: Iterable[Batch]) -> None:
        """Read, with ``batches`` of training images."""
        if self.skipped > 0:
            self.skipped -= 1
            return
        batches = list(batches)
        state = copy.deepcopy(self.network.state_dict())
        before = self._accuracy()
        fitted = self._fitted(batches)
        self.network.load_state_dict(state)
        self._take_statistics(batches)
        statistics = self._accuracy()
        both = self._fitted(batches)
        averages = copy.deepcopy(self.average.state_dict())
        with self.average.in_place():
            averaged = self._accuracy()
            self.readings.append([before, fitted, statistics, both, averaged, self._fitted(batches)])
        self.average.load_state_dict(averages)
        self.network.load_state_dict(state)
        self.network.train()

    def _accuracy(self) -> float:
        images = cifar.normalise(self.images.test, self.images.mean, self.images.std, memory_format=self.memory_format)
        return accuracy(self.network, images, self.images.test_labels)

    def _fitted(self, batches: list[Batch]) -> float:
        self.network.eval()
        with torch.no_grad():
            criterion = VarProLoss(LMBDA, outer=self.network.outer)
            criterion.fit((self.network.features(images), targets) for images, targets in batches)
        return self._accuracy()

    def _take_statistics(self, batches: list[Batch]) -> None:
        """Running statistics as plain means over ``batches``."""
        norms = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        usual = norms[0].momentum
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.network.train()
        with torch.no_grad():
            for images, _ in batches:
                self.network.features(images)
        for norm in norms:
            norm.momentum = usual


def readings(
    images: Images, variant: str, plan: Plan, last: int, seed: int, *, average: float, mixed_precision: bool
) -> torch.Tensor:
    """Accuracies (last, 6) after each of the ``last`` passes of one run; ``average`` is in passes."""
    torch.manual_seed(seed)
    network = ResNet20(images.classes).to(memory_format=torch.channels_last)
    step = VARIANTS[variant](network, mixed_precision=mixed_precision)
    mean = PolyakAverage(network, plan.memory(average))
    step.descend = partial(_averaging, step.descend, mean)
    step.before_test = Watch(network, images, mean, skipped=1 + plan.passes - last)
    threads = torch.get_num_threads()
    label = f"{variant}, seed {seed}"
    record = train(step, images, plan, seed=seed, threads=threads, label=label, progress=sys.stderr.isatty())
    on_the_way = ", ".join(f"{number}: {value:.3f}" for number, value in enumerate(record.accuracy) if number % 10 == 0)
    print(f"{label}: loss of the last pass {record.loss[-plan.steps_per_pass :].mean():.2g}; accuracy {on_the_way}")
    return torch.tensor(step.before_test.readings, dtype=torch.float64)


def _averaging(descend: Callable[..., torch.Tensor], average: PolyakAverage, *arguments: torch.Tensor) -> torch.Tensor:
    """A step that ``average`` takes in."""
    loss = descend(*arguments)
    average.update()
    return loss


def _evenly(size: int, count: int) -> torch.Tensor:
    """The places of ``count`` of ``size`` things, of one at least."""
    count = min(max(1, count), size)
    return torch.arange(count) * size // count


def part(images: Images, count: int) -> Images:
    """``count`` training images and two fifths as many for tests, or as many as there are, evenly from all."""
    train_, test = _evenly(len(images.train), count), _evenly(len(images.test), 2 * count // 5)
    return replace(
        images,
        train=images.train[train_],
        train_labels=images.train_labels[train_],
        test=images.test[test],
        test_labels=images.test_labels[test],
    )


def row(variant: str, runs: list[torch.Tensor]) -> list[str]:
    """Means over the passes of all runs, with the mean of largest less smallest."""
    found = torch.stack(runs)
    means, spreads = found.mean(dim=(0, 1)), (found.amax(dim=1) - found.amin(dim=1)).mean(dim=0)
    return [variant, *(f"{mean:.3f} ({spread:.3f})" for mean, spread in zip(means, spreads, strict=True))]


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data-dir", type=Path, help="CIFAR-10 (see VarPro_resnet/cifar.py); digits without it")
    options.add_argument("--images", type=int, help="how many of the training images (default: all)")
    options.add_argument("--passes", type=cli.integer(1), default=12)
    options.add_argument("--final", type=int, help="how many of them at half the rate, at the end (default: a fifth)")
    options.add_argument("--batch_size", type=int, default=128)
    options.add_argument("--last", type=int, default=5, help="passes over which means and spreads are taken")
    options.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    options.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=COMPARED)
    options.add_argument("--average", type=cli.passes, default=3.0, help="passes that the averaged network holds about")
    options.add_argument("--mixed_precision", action="store_true")
    chosen = options.parse_args(argv)
    final = chosen.passes // 5 if chosen.final is None else chosen.final
    for name, value, least, most in (("last", chosen.last, 1, chosen.passes), ("final", final, 0, chosen.passes - 1)):
        if not least <= value <= most:
            raise cli.UsageError(f"--{name} {value} is not allowed: from {least} to {most} of --passes {chosen.passes}")
    images = cifar.load("cifar10", chosen.data_dir) if chosen.data_dir else cifar.load("digits", image_files.folder())
    if chosen.images:
        images = part(images, chosen.images)
    keep_freed_memory()
    plan = Plan(len(images.train), chosen.batch_size, chosen.passes - final, final)
    print(measure.machine())
    rows = []
    for variant in chosen.variants:
        rest = {"average": chosen.average, "mixed_precision": chosen.mixed_precision}
        rows.append(row(variant, [readings(images, variant, plan, chosen.last, seed, **rest) for seed in chosen.seed]))
        print(" | ".join(rows[-1]), flush=True)
    print(markdown(["variant", *READINGS], rows))


if __name__ == "__main__":
    main()
