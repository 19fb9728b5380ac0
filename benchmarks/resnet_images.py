"""Images per second in the training of ResNet-20, against the plain loop of ``benchmarks/resnet_plain.py``.

Random images of the shape of CIFAR-10. Each loop has a process of its own, as in use, and they take turns:
a few steps that are not timed, in which the loading workers of the plain loop come to their usual pace, and then the
timed ones; the workers' work is part of its time. A few minutes on two calm cores; on busy ones the threads of a loop
wait for each other, and the table is of little use without OMP_NUM_THREADS=1.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from PIL import Image

from benchmarks import measure
from benchmarks.resnet_plain import PlainLoop
from varpro.paper import grid
from varpro.paper.tables import markdown
from varpro.threads import keep_freed_memory
from VarPro_resnet.cifar import Images, load, synthetic
from VarPro_resnet.Experiment import OPTIMIZERS, parser, step
from VarPro_resnet.resnet import ResNet20
from VarPro_resnet.runs import memory_format, parse
from VarPro_resnet.training import Plan, train

BATCH, LMBDA = 128, 1e-3
WARM_UP = 5  # steps
CIFAR = 60_000  # images
RUN = 110 * 50_000  # images that a run of the paper is trained on

Steps = Callable[[int], None]


def _ours(optimizer: str, *arguments: str) -> Steps:
    """The package's loop: a pass over as many images as there are to be steps."""
    options = parse(parser(optimizer), ["--batch_size", str(BATCH), *arguments], OPTIMIZERS, optimizer)
    network = ResNet20().to(options.device)
    take = step(network, options)
    sets: dict[int, Images] = {}
    keep_freed_memory()

    def steps(count: int) -> None:
        if count not in sets:
            sets[count] = synthetic(count * BATCH, 1).to(options.device)
        layout = memory_format(options.device, options.mixed_precision)
        plan, threads = Plan(count * BATCH, BATCH, 1, 0), torch.get_num_threads()
        train(take, sets[count], plan, seed=0, memory_format=layout, threads=threads, replay=False)

    return steps


def _plain(optimizer: str) -> Steps:
    numbers = OPTIMIZERS[optimizer]
    images = synthetic(50_000, 1)
    return PlainLoop(optimizer, images, BATCH, LMBDA, numbers.time_scale, numbers.momentum).steps


def _serve(orders: Connection, make: Callable[..., Steps], arguments: tuple[str, ...]) -> None:
    """Answer every number of steps with the seconds per image that they took, until told to do none."""
    steps = make(*arguments)
    while count := orders.recv():
        orders.send(_seconds(steps, count))


@contextmanager
def _process(make: Callable[..., Steps], *arguments: str) -> Iterator[Callable[[int], float]]:
    """A loop in a process of its own, as a function from a number of steps to seconds per image."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, arguments))
    process.start()

    def run(count: int) -> float:
        here.send(count)
        return here.recv()

    yield run
    here.send(0)
    process.join()


def _seconds(steps: Steps, count: int) -> float:
    """Seconds per image over ``count`` steps, after some that are not timed."""
    steps(WARM_UP)
    _wait()
    begin = time.perf_counter()
    steps(count)
    _wait()
    return (time.perf_counter() - begin) / (count * BATCH)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _turns(optimizer: str, variants: dict[str, list[str]], rounds: int, count: int) -> list[dict[str, float]]:
    """Seconds per image of the plain loop and of every variant of ours, ``rounds`` times."""
    with ExitStack() as processes:
        loops = {"plain": processes.enter_context(_process(_plain, optimizer))}
        for name, arguments in variants.items():
            loops[name] = processes.enter_context(_process(_ours, optimizer, *arguments))
        return [{name: loop(count) for name, loop in loops.items()} for _ in range(rounds)]


def table(rounds: int = 5, count: int = 20) -> str:
    """Images per second of the two loops, the median of their ratio over the turns, and the time of a paper's run."""
    variants = {"": [], "mixed precision": ["--mixed_precision"]}
    rows = []
    for optimizer in grid.OPTIMIZERS:
        seconds = _turns(optimizer, variants, rounds, count)
        median = {name: statistics.median(turn[name] for turn in seconds) for name in seconds[0]}
        for name in variants:
            ratio = statistics.median(turn["plain"] / turn[name] for turn in seconds)
            rows.append(
                [
                    " ".join([optimizer, name]).strip(),
                    f"{1 / median['plain']:.0f}",
                    f"{1 / median[name]:.0f}",
                    f"{ratio:.2f}",
                    f"{median['plain'] * RUN / 3600:.2f} h",
                    f"{median[name] * RUN / 3600:.2f} h",
                ]
            )
            print(" ".join(rows[-1]), flush=True)
    header = [f"batch {BATCH}", "plain, images/s", "ours, images/s", "ratio", "plain, 110 passes", "ours, 110 passes"]
    return markdown(header, rows)


def first_load(count: int = 6000) -> str:
    """What the first load of class folders takes, and later ones: a sentence, from ``count`` images of noise."""
    images = synthetic(count, 10)
    with tempfile.TemporaryDirectory() as place:
        for part, pixels, labels in (("train", images.train, range(count)), ("test", images.test, range(10))):
            for number, pixel in zip(labels, pixels.permute(0, 2, 3, 1).numpy(), strict=True):
                path = Path(place, "images", part, str(number % 10), f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixel).save(path)
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            load("images", Path(place, "images"), cache=Path(place, "cache"), report=lambda _: None)
            seconds.append((time.perf_counter() - begin) / count)
    first, later = (each * CIFAR for each in seconds)
    return (
        f"Images in class folders train at the same rate. The first load of {CIFAR} PNG files takes {first:.1f} s, a "
        f"later one {later:.1f} s (from {count} files)."
    )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5, help="turns of each loop")
    options.add_argument("--steps", type=int, default=20, help="timed steps in a turn")
    print(measure.machine())
    print(table(*vars(options.parse_args()).values()))
    print(first_load())
