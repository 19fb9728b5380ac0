"""What runs cost, in seconds and megabytes, and the plan of a section on this machine.

A reference table holds the seconds of every kind of run on one core of one machine. What this machine does is measured
anew each time, in about a second, by small fixed computations, one for each kind: they spend their time on the same
operations as the runs do, so both grow by much the same factor from one processor to the next. (With AVX2 in place of
AVX-512 the probe of the torus takes 1.7 times as long and its epochs 1.6 to 1.8 times, that of the ResNets 1.7 and
their steps 1.8, that of the circle 1.0 and its epochs 1.0 to 1.3.) No kernel is compiled for that.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from varpro.paper import grid

_CORES = 2  # that the plan counts on
START_SECONDS = 2.0  # of a process: importing torch
BATCH_SECONDS = 20.0  # of work for one process, ten times what it needs to start; a longer run has one for each seed
_IMAGES = {"cifar10": (50000, 10000), "digits": (1500, 297)}
_TEST_COST = 0.3  # of a training image, for a test image

# Milliseconds an epoch by width on one core of the reference machine, distances and snapshots included.
_CIRCLE_MS = {32: 0.0092, 128: 0.0125, 512: 0.026, 1024: 0.043, 8192: 0.36}
_TWO_TIMESCALE_MS = {32: 0.0075, 128: 0.0090, 512: 0.0155, 1024: 0.024}
_TORUS_MS = {32: 0.14, 128: 0.39, 512: 1.5, 1024: 3.3}
# Of an iteration of an optimizer: what it takes anyway, and what is added per neuron, on the torus more. One that is
# not in a table here is taken for the slowest.
_ITERATION_MS = {"momentum": (0.1, 1.5e-4), "lbfgs": (0.3, 3e-4), "lm": (0.2, 3e-4), "continuation": (0.25, 4e-4)}
_TORUS_ITERATION_MS = 0.02
# Of one solution of a limit, whatever its length, and of its file.
_LIMIT_SECONDS = {("circle", "diffusion"): 0.4, ("circle", "projected"): 10.0, ("torus", "diffusion"): 5.0}
_LIMIT_MB = {("circle", "diffusion"): 16.4, ("circle", "projected"): 32.9, ("torus", "diffusion"): 36.7}
_INFINITE_DATA = 1.5  # times as much
_MEASUREMENT_MS = 1.0  # of the distance to one limit, where epochs are few
_DENSE_NS, _DENSE_NS_A_NEURON = 30.0, 0.1  # of a sample, a neuron and an epoch
_IMAGE_MS = {"varprom": 2.0, "sgdm": 2.0, "shampoo": 2.3, "varpro-running": 2.0}  # a training image
_SLOW_TEACHER = 2.0  # of gamma = infinity: neurons that come together need more steps of the inner solve
_STATES_MB = {"varprom": 2.3, "sgdm": 3.4, "shampoo": 4.7, "varpro-running": 3.4}  # of a ResNet's result
_MEMORY_MB = {"circle": 1500, "torus": 1500, "resnet": 5000}  # of a process, at most


def kind(run: grid.AnyRun) -> str:
    """``circle``, ``torus`` or ``resnet``: what a run spends its time on."""
    if isinstance(run, grid.ResNetRun):
        return "resnet"
    return "torus" if run.on_torus else "circle"


def seconds(run: grid.AnyRun) -> float:
    """How long one seed takes on one core of the reference machine."""
    if isinstance(run, grid.ResNetRun):
        train, test = _IMAGES[run.dataset]
        return run.passes * (train + _TEST_COST * test) * _IMAGE_MS.get(run.optimizer, max(_IMAGE_MS.values())) / 1e3
    if run.solver == "dense":
        return run.epochs * run.samples * run.width * (_DENSE_NS + _DENSE_NS_A_NEURON * run.width) / 1e9
    table = _TWO_TIMESCALE_MS if run.kind.outer_update == "gradient" else _CIRCLE_MS
    slow = _SLOW_TEACHER if math.isinf(run.gamma) else 1.0
    slow *= _INFINITE_DATA if math.isinf(run.samples) else 1.0
    if run.method != grid.GRADIENT_DESCENT:
        fixed, per_neuron = _ITERATION_MS.get(run.method, max(_ITERATION_MS.values()))
        per_neuron += _TORUS_ITERATION_MS if run.on_torus else 0.0
        return run.epochs * slow * (fixed + per_neuron * run.width) / 1e3
    # the reference table has the distance to one limit, for the paper's many epochs
    more = len(run.diffusions) - (not run.options and len(run.kind.limits) == 1)
    measured = _MEASUREMENT_MS * max(more, 0) * min(run.epochs, 1000)
    return (run.epochs * slow * _milliseconds(_TORUS_MS if run.on_torus else table, run.width) + measured) / 1e3


def _milliseconds(table: Mapping[int, float], width: int) -> float:
    """Of an epoch: by powers of the width between the entries of ``table``, proportional to it beyond them."""
    widths = np.log(list(table))
    within = np.exp(np.interp(math.log(width), widths, np.log(list(table.values()))))
    return float(within) * max(1.0, width / max(table))


def memory(run: grid.AnyRun) -> int:
    """MB that a process needs for this run, at most."""
    return _MEMORY_MB[kind(run)]


def megabytes(run: grid.AnyRun) -> float:
    """About how large one result file is: float32 states and float64 losses.

    A shallow run keeps about 1000 snapshots of (w, u) unless it says otherwise, a ResNet its last parameters and the
    state of its training at the end of the full rate.
    """
    if isinstance(run, grid.ResNetRun):
        states = _STATES_MB.get(run.optimizer, max(_STATES_MB.values()))
        losses = (run.passes + run.epochs) * _IMAGES[run.dataset][0] / run.batch_size
        return states + losses * 8 / 1e6
    snapshots = run.epochs // (run.saving_step or math.ceil(run.epochs / 1000)) + 1
    return (snapshots * run.width * 3 * 4 + run.epochs * 8) / 1e6


# --- this machine -------------------------------------------------------------------------------------------------

_REPEATS = 8  # of a probe; the fastest counts, so that a busy machine is not taken for a slow one


def speed(kinds: Iterable[str]) -> dict[str, float]:
    """How many times as long as on the reference machine each kind of run takes here, from its probe."""
    return {kind: _fastest(_PROBES[kind]()) / _REFERENCE[kind] for kind in kinds}


def _fastest(probe: Callable[[], object]) -> float:
    """Seconds of processor time of ``probe``, the least of several."""
    times = []
    for _ in range(_REPEATS):
        begin = time.process_time()
        probe()
        times.append(time.process_time() - begin)
    return min(times)


def _chain() -> Callable[[], object]:
    """Additions in float64 that wait for each other: the sweeps over sorted neurons on the circle are such chains."""
    values = np.linspace(0, 1, 1 << 18)
    sums = np.empty_like(values)
    return lambda: [np.cumsum(values, out=sums) for _ in range(16)]


def _exponentials() -> Callable[[], object]:
    """Exponentials in float32, vectorised, in the second-level cache: the features of the torus are made of them."""
    exponents = np.linspace(-5, 0, 1 << 16, dtype=np.float32)
    values = np.empty_like(exponents)
    return lambda: [np.exp(exponents, out=values) for _ in range(400)]


def _convolutions() -> Callable[[], object]:
    """Convolutions of the three stages of a ResNet-20, forward and backward, in one thread."""
    import torch  # for this probe alone

    from varpro.threads import one_torch_thread

    stages = []
    for channels, size in ((16, 32), (32, 16), (64, 8)):
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        images = torch.ones(32, channels, size, size).to(memory_format=torch.channels_last).requires_grad_()
        stages.append((layer, images))

    def probe() -> None:
        with one_torch_thread():
            for layer, images in stages:
                layer(images).sum().backward()

    return probe


_PROBES = {"circle": _chain, "torus": _exponentials, "resnet": _convolutions}
_REFERENCE = {"circle": 0.0114, "torus": 0.0080, "resnet": 0.0099}  # seconds on the reference machine


# --- the plan -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What is left to do of a section: runs (a seed each) and diffusions, seconds on two cores, megabytes."""

    runs: int
    lacking: int
    diffusions: int
    seconds: float
    megabytes: float


def estimate(wanted: Mapping[grid.AnyRun, Sequence[int]], factors: Mapping[str, float]) -> Estimate:
    """What ``wanted`` costs from where the results are now; ``factors`` are those of :func:`speed`."""
    lacking = {run: [seed for seed in seeds if not run.path(seed).exists()] for run, seeds in wanted.items()}
    count = {run: len(seeds) for run, seeds in lacking.items() if seeds}
    before = {diffusion for run in wanted for diffusion in run.diffusions if not diffusion.path.exists()}
    first = [_LIMIT_SECONDS[each.domain, each.limit] * factors[each.domain] for each in before]
    busy = sum(first) + sum(seconds(run) * factors[kind(run)] * seeds for run, seeds in count.items())
    together = {run: 1 if seconds(run) >= BATCH_SECONDS else seeds for run, seeds in count.items()}
    longest = max((seconds(run) * factors[kind(run)] * seeds for run, seeds in together.items()), default=0.0)
    return Estimate(
        runs=sum(map(len, wanted.values())),
        lacking=sum(count.values()),
        diffusions=len(before),
        seconds=max(busy / _CORES, longest + max(first, default=0.0)) + START_SECONDS * bool(count),
        megabytes=sum(_LIMIT_MB[each.domain, each.limit] for each in before)
        + sum(megabytes(run) * seeds for run, seeds in count.items()),
    )


def plan(
    sections: Sequence[str], seeds: Sequence[int] | None = None, factors: Mapping[str, float] | None = None
) -> str:
    """What sections will cost on two cores of this machine, from where the results are now: a line.

    Of several, a line for each and one for all together, where a run that several want counts once. ``factors`` stand
    for those that :func:`speed` would measure.
    """
    factors = factors or speed({kind(run) for run in grid.runs_of(sections, seeds)})
    lines = []
    for name in sections:
        section = grid.SECTIONS[name]
        listed = f"seed{'s' * (len(seeds) > 1)} {grid.ranges(seeds)}" if seeds else "seeds of the published figures"
        if seeds is None and section.seeds:
            listed = f"seed {section.seeds}"
        lines.append(_line(f"{section.title}, {listed}", estimate(section.wanted(seeds), factors)))
    if len(sections) > 1:
        lines.append(_line("In all", estimate(grid.runs_of(sections, seeds), factors)))
    notebooks = len(grid.notebooks_of(sections))
    lines[-1] += f" Then the notebooks, about {'a minute' if notebooks < 3 else f'{notebooks} minutes'}."
    return "\n".join(lines)


def _line(head: str, left: Estimate) -> str:
    from varpro.cli import duration  # which needs PyTorch, that the workflow does without

    count = left.diffusions
    if not left.lacking and not count:
        return f"{head}: {left.runs} runs, all at hand."
    first = f" after {count} diffusion{'s' * (count > 1)}" if count else ""
    return (
        f"{head}: {left.runs} runs, {left.lacking} of them to be computed{first}: about {duration(left.seconds)} on "
        f"two cores of this machine (not measured on a GPU), {left.megabytes / 1e3:.2g} GB of results."
    )
