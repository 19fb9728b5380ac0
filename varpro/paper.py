"""The paper's grid as data: which run belongs to which figure, what it costs, and the published numbers beside it.

``python -m varpro.paper`` prints our numbers beside the published ones, with ``--plan`` what is still to be computed.
``$VARPRO_EPOCHS`` shortens every run, for a quick look or a test; published numbers are for 32000 epochs, those of the
ResNets for 100 passes over the data and 10 more.
"""

import csv
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from varpro import cli, results


def _length(usual: int) -> int:
    """``$VARPRO_EPOCHS``, or ``usual`` where it is not set."""
    text = os.environ.get("VARPRO_EPOCHS", str(usual))
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"$VARPRO_EPOCHS (make: EPOCHS) is {text!r}: allowed are whole numbers from 1 up")
    return int(text)


try:
    EPOCHS = _length(32000)
except ValueError as problem:
    if __name__ == "__main__":
        print(f"paper.py: error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    raise
_MOST_SEEDS = 1000  # in a range
SEEDS = range(6)  # the published curves are means over these; the two-timescale comparison has seed 0 alone
WIDTHS = (32, 128, 512, 1024)
WIDEST = WIDTHS[-1]
GAMMAS = (10.0, 100.0, 1000.0)

BIASED = "VarPro_ReLU_1d"
UNBIASED = "VarPro_ReLU_1d_unbiased"
TWO_TIMESCALE = "2TS_ReLU_1d_unbiased"
TORUS_BIASED = "VarPro_convolution_2d"
TORUS_UNBIASED = "VarPro_convolution_2d_unbiased"
# Milliseconds an epoch by width, measurements included, one run on each of two cores (benchmarks/RESULTS.md).
_CIRCLE_COST = {32: 0.01, 128: 0.02, 512: 0.06, 1024: 0.11}
_TORUS_COST = {32: 0.1, 128: 0.4, 512: 1.6, 1024: 4.0}
_START_SECONDS = 3.0  # of a job: importing torch


@dataclass(frozen=True, order=True)
class Run:
    """One configuration of one shallow experiment; with a seed it is one result file."""

    experiment: str
    lmbda: float = 1e-3
    width: int = WIDEST
    gamma: float = 100.0
    epochs: int = EPOCHS
    activation: str = ""  # of the torus, where it is not the script's default

    def path(self, seed: int) -> Path:
        """The result file of this run with ``seed``, whether it exists or not."""
        stated = {"lambda": self.lmbda, "width": self.width, "gamma": self.gamma, "epochs": self.epochs}
        stated |= {"activation": self.activation} if self.activation else {}
        return results.directory(self.experiment) / results.file_name(stated | {"seed": seed})

    @property
    def parameters(self) -> str:
        """The configuration for people."""
        activation = f", {self.activation}" if self.activation else ""
        return f"lambda {self.lmbda:g}, width {self.width}, gamma {self.gamma:g}{activation}"

    @property
    def label(self) -> str:
        """A name for jobs and log files."""
        activation = f"_{self.activation}" if self.activation else ""
        return f"{self.experiment}_lambda={self.lmbda:g}_width={self.width}_gamma={self.gamma:g}{activation}"

    @property
    def on_torus(self) -> bool:
        """Whether this is a run of Appendix B."""
        return self.experiment in (TORUS_BIASED, TORUS_UNBIASED)

    @property
    def biased(self) -> bool:
        """Whether the penalty is u^2 / 2."""
        return self.experiment in (BIASED, TORUS_BIASED)

    @property
    def inputs(self) -> list[Path]:
        """The files that this run reads: the diffusion that it is compared with."""
        return [] if self.on_torus else [Diffusion(self.gamma, self.epochs).path]

    @property
    def seconds(self) -> float:
        """About how long one seed takes on one of two cores."""
        slow = 2 if self.on_torus and math.isinf(self.gamma) else 1  # neurons that come together need more steps
        return self.epochs * slow * (_TORUS_COST if self.on_torus else _CIRCLE_COST)[self.width] / 1e3

    memory = 1500  # MB of a job, at most

    @property
    def megabytes(self) -> float:
        """About how large one result file is: about 1000 snapshots of (w, u) in float32, losses in float64."""
        return ((min(self.epochs, 1000) + 1) * self.width * 3 * 4 + self.epochs * 8) / 1e6

    def arguments(self, seeds: Sequence[int]) -> list[str]:
        """The options that make this run, for the experiment's ``Experiment.py``."""
        return [
            *("--seed", *map(str, seeds)),
            *("--epochs", str(self.epochs)),
            *("--lambda", f"{self.lmbda:g}"),
            *("--student_width", str(self.width)),
            *("--gamma", f"{self.gamma:g}"),
            *(("--activation", self.activation) if self.activation else ()),
        ]

    def command(self, seeds: Sequence[int]) -> str:
        """The command line that makes this run, from the top of the repository."""
        return " ".join(["python", f"{self.experiment}/Experiment.py", *self.arguments(seeds)])


RESNET = "VarPro_resnet"
CIFAR_FILE = results.ROOT / "data" / "cifar-10-batches-py" / "batches.meta"  # stands for all of its files
OPTIMIZERS = {"varprom": "VarPro", "sgdm": "SGD", "shampoo": "Shampoo"}  # and their panels in the published figure
# Images a second on one of two cores that are both at work (benchmarks/RESULTS.md).
_RESNET_COST = {"varprom": 280.0, "sgdm": 300.0, "shampoo": 270.0}
_TEST_COST = 0.3  # of a training image, for a test image
_IMAGES = {"cifar10": (50000, 10000), "digits": (1500, 297)}
_FINAL_DEFAULT = 10  # passes at half the rate; in file names and commands where it is another


@dataclass(frozen=True, order=True)
class ResNetRun:
    """One configuration of the ResNet experiment; with a seed it is one result file."""

    optimizer: str
    batch_size: int
    dataset: str = "cifar10"
    variant: str = ""  # of Shampoo, where it is not the published one
    epochs: int = _length(100)  # passes over the data ...
    final_epochs: int = _FINAL_DEFAULT  # ... and those after them at half the rate

    experiment = RESNET
    memory = 5000  # MB of a job, at most: an epoch of CIFAR-10, augmented, and the activations of a large mini-batch

    def path(self, seed: int) -> Path:
        """The result file of this run with ``seed``, whether it exists or not."""
        stated = {"dataset": self.dataset, "optimizer": self.optimizer, "batch_size": self.batch_size}
        stated |= {"lambda": 1e-3, "epochs": self.epochs}
        stated |= {"final_epochs": self.final_epochs} if self.final_epochs != _FINAL_DEFAULT else {}
        stated |= {"shampoo_variant": self.variant} if self.variant else {}
        return results.directory(RESNET) / results.file_name(stated | {"seed": seed})

    @property
    def parameters(self) -> str:
        """The configuration for people."""
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.optimizer}{variant}, batch size {self.batch_size}, {self.dataset}"

    @property
    def label(self) -> str:
        """A name for jobs and log files."""
        variant = f"_{self.variant}" if self.variant else ""
        return f"{RESNET}_{self.dataset}_{self.optimizer}{variant}_batch_size={self.batch_size}"

    @property
    def inputs(self) -> list[Path]:
        """The files that this run reads and another job makes: CIFAR-10, which is to be downloaded once."""
        return [CIFAR_FILE] if self.dataset == "cifar10" else []

    @property
    def passes(self) -> int:
        """Passes over the data in all."""
        return self.epochs + self.final_epochs

    @property
    def seconds(self) -> float:
        """About how long one seed takes on one of two cores."""
        train, test = _IMAGES[self.dataset]
        return self.passes * (train + _TEST_COST * test) / _RESNET_COST[self.optimizer]

    @property
    def megabytes(self) -> float:
        """About how large one result file is: the network in float32, losses in float64."""
        return 1.2 + self.passes * _IMAGES[self.dataset][0] / self.batch_size * 8 / 1e6

    def arguments(self, seeds: Sequence[int]) -> list[str]:
        """The options that make this run, for ``VarPro_resnet/Experiment.py``."""
        return [
            *("--dataset", self.dataset),
            *("--optimizer", self.optimizer),
            *(("--shampoo_variant", self.variant) if self.variant else ()),
            *("--batch_size", str(self.batch_size)),
            *("--epochs", str(self.epochs)),
            *(("--final_epochs", str(self.final_epochs)) if self.final_epochs != _FINAL_DEFAULT else ()),
            *("--seed", *map(str, seeds)),
        ]

    def command(self, seeds: Sequence[int]) -> str:
        """The command line that makes this run, from the top of the repository."""
        return " ".join(["python", f"{RESNET}/Experiment.py", *self.arguments(seeds)])


@dataclass(frozen=True, order=True)
class Diffusion:
    """One solution of the ultra-fast diffusion."""

    gamma: float = 100.0
    epochs: int = EPOCHS

    @property
    def path(self) -> Path:
        """The file of this solution, whether it exists or not."""
        return results.directory() / results.file_name({"diffusion_gamma": self.gamma, "epochs": self.epochs})

    def command(self) -> str:
        """The command line that makes this solution, from the top of the repository."""
        return f"python make_diffusion.py --epochs {self.epochs} --gamma {self.gamma:g}"


DIFFUSIONS = [Diffusion(gamma) for gamma in GAMMAS]

# One entry a figure; the same run may serve several.
FIGURES: dict[str, list[Run]] = {
    "width": [Run(experiment, width=width) for experiment in (BIASED, UNBIASED) for width in WIDTHS],
    "lambda": [
        *(Run(experiment, lmbda=lmbda) for experiment in (BIASED, UNBIASED) for lmbda in (1e-1, 1e-2, 1e-3, 1e-4)),
    ],
    "two_timescale": [
        Run(experiment, lmbda=lmbda, width=width)
        for experiment in (UNBIASED, TWO_TIMESCALE)
        for lmbda in (1e-1, 1e-2, 1e-3)
        for width in WIDTHS
    ],
    "gamma": [Run(UNBIASED, lmbda=1e-4, gamma=gamma) for gamma in GAMMAS],
    # the pairs that the user's own list of commands names; no published figure shows them
    "gamma_as_listed": [
        Run(UNBIASED, lmbda=lmbda, gamma=gamma) for lmbda, gamma in zip((1e-1, 1e-2, 1e-3), GAMMAS, strict=True)
    ],
}
DENSITY_RUN = Run(UNBIASED, lmbda=1e-4)  # the learned features of the density figure and of the animation

_TORUS = (TORUS_BIASED, TORUS_UNBIASED)
TORUS_FIGURES: dict[str, list[Run]] = {
    "width": [Run(experiment, width=width) for experiment in _TORUS for width in WIDTHS],
    "lambda": [Run(experiment, lmbda=lmbda) for experiment in _TORUS for lmbda in (1e-1, 1e-2, 1e-3)],
    "gamma": [Run(TORUS_UNBIASED, lmbda=1e-2, gamma=gamma) for gamma in (100.0, math.inf)],
    "activation": [Run(experiment, activation=kernel) for experiment in _TORUS for kernel in ("", "cos")],
}
TORUS_DENSITY_RUN = Run(TORUS_UNBIASED)  # the learned features of the animation

CIFAR_BATCHES = (64, 128, 256, 512, 1024)
CIFAR_RUNS = [ResNetRun(optimizer, batch) for optimizer in OPTIMIZERS for batch in CIFAR_BATCHES]
DIGITS_BATCHES = (64, 128)
_DIGITS_LENGTH = {"epochs": _length(10), "final_epochs": 2}
DIGITS_RUNS = [
    ResNetRun(optimizer, batch, "digits", variant, **_DIGITS_LENGTH)
    for optimizer, variant in (*((name, "") for name in OPTIMIZERS), ("shampoo", "gupta"))
    for batch in DIGITS_BATCHES
]


@dataclass(frozen=True)
class Section:
    """A part of the paper: its runs, and the files that each of its notebooks writes to ``figures/``."""

    title: str
    figures: Mapping[str, Sequence[Run | ResNetRun]]
    files: Mapping[str, Sequence[str]]
    diffusions: Sequence[Diffusion] = ()
    seeds: str = "0"  # where none are asked for
    epochs: int = EPOCHS
    full_epochs: int = 32000
    runs: list[Run | ResNetRun] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", sorted({run for runs in self.figures.values() for run in runs}))


SECTIONS = {
    "6.1": Section(
        "Section 6.1, ReLU networks on the circle",
        FIGURES,
        {
            "Results_SHL": [
                "density_evolution.pdf",
                "gamma_densities.pdf",
                "risk_width.pdf",
                "distance_width.pdf",
                "distance_lambda.pdf",
                "two_timescale.pdf",
                "distance_gamma.pdf",
            ],
            "1d_animations": ["diffusion_animation.gif"],
        },
        DIFFUSIONS,
    ),
    "appendix-b": Section(
        "Appendix B, RBF networks on the torus",
        TORUS_FIGURES,
        {
            "Results_convolution": [
                "convolution_teacher.pdf",
                "convolution_risk_width.pdf",
                "convolution_distance_width.pdf",
                "convolution_distance_lambda.pdf",
                "convolution_distance_gamma.pdf",
                "convolution_activation.pdf",
                "convolution_animation.gif",
            ],
        },
    ),
    "resnets": Section(
        "Section 6.2 on scikit-learn's digits",
        {"digits": DIGITS_RUNS},
        {"Results_resnets": ["resnet_loss_digits.pdf", "resnet_accuracy_digits.pdf"]},
        seeds="0-2",
        epochs=DIGITS_RUNS[0].epochs,
        full_epochs=10,
    ),
    "resnets-cifar10": Section(
        "Section 6.2, ResNet-20 on CIFAR-10",
        {"cifar10": CIFAR_RUNS},
        {"Results_resnets": ["resnet_loss_cifar10.pdf", "resnet_accuracy_cifar10.pdf"]},
        epochs=CIFAR_RUNS[0].epochs,
        full_epochs=100,
    ),
}


def parse_seeds(text: str) -> list[int]:
    """Seeds from ``"0"``, ``"0-5"`` or ``"0,2,7-9"``, increasing. Raises ValueError on anything else."""
    seeds: set[int] = set()
    for part in text.replace(" ", ",").split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (text.isascii() and first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise ValueError(f"seeds {text!r}: allowed are numbers and ranges like 0-5, separated by commas")
        if int(last) > cli.LAST_SEED or int(last) - int(first) >= _MOST_SEEDS:
            raise ValueError(f"seeds {text!r}: allowed are seeds up to {cli.LAST_SEED}, {_MOST_SEEDS} in a range")
        seeds.update(range(int(first), int(last) + 1))
    return sorted(seeds)


# --- published numbers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A published curve at its vertices: ``x (V,)`` iterations (or angles), ``y (V,)`` values."""

    x: np.ndarray
    y: np.ndarray


@cache
def published(table: str) -> dict[tuple[str, str, str, str], Curve]:
    """The curves of ``published/<table>.csv`` by (panel, quantity, series, linestyle); {} where there is no file."""
    path = results.ROOT / "published" / f"{table}.csv"
    if not path.exists():
        return {}
    points: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8") as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            key = (row["panel"], row["quantity"], row["series"], row["linestyle"])
            points.setdefault(key, []).append((float(row["iteration"]), float(row["value"])))
    return {key: Curve(*np.array(values).T) for key, values in points.items()}


def published_curve(run: Run, quantity: str) -> Curve | None:
    """The published ``loss``, ``distance_teacher`` or ``distance_diffusion`` of ``run``; None where there is none.

    Risks of the two penalties stand in two panels; distances stand together, unbiased solid and biased dashed.
    """
    if run.experiment == TWO_TIMESCALE or run != Run(run.experiment, width=run.width):
        return None
    series, style = f"M={run.width}", "dashed" if run.biased else "solid"
    if run.on_torus:
        return published("convolution_width_distance").get(("single", quantity, series, style))
    if quantity == "loss":
        panel, name = ("left", "risk_biased") if run.biased else ("right", "risk_unbiased")
        return published("relu1d_width_risk_evolution").get((panel, name, series, "solid"))
    panel = "left" if quantity == "distance_teacher" else "right"
    return published("relu1d_width_distance_evolution").get((panel, quantity, series, style))


def published_accuracy(run: ResNetRun) -> Curve | None:
    """The published test accuracy of ``run`` after 0, 1, ..., 110 passes; None where there is none."""
    if run != ResNetRun(run.optimizer, run.batch_size, epochs=run.epochs):
        return None
    key = (OPTIMIZERS[run.optimizer], "accuracy", f"bs={run.batch_size}", "solid")
    return published("resnet_accuracy").get(key)


def mean_curve(run: Run, seeds: Iterable[int], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, mean over the seeds) of ``loss``, ``distance_teacher`` or ``distance_diffusion`` of a run.

    Raises ResultError where a seed is not at hand.
    """
    missing = [seed for seed in seeds if not run.path(seed).exists()]
    if missing:
        raise results.ResultError(f"{run.path(missing[0])}: no such file; make it with: {run.command(missing)}")
    contents = [results.load(run.path(seed)) for seed in seeds]
    values = np.mean([content[quantity].numpy() for content in contents], axis=0)
    epochs = np.arange(len(values)) if quantity == "loss" else contents[0]["distance_epochs"].numpy()
    return epochs, values


@dataclass(frozen=True)
class Comparison:
    """One published curve beside ours: final values, and the deviations |ours / published - 1| at its vertices."""

    title: str
    ours: float
    theirs: float
    median: float
    worst: float


def comparisons(section: Section, seeds: Sequence[int]) -> list[Comparison]:
    """Every published curve of a section for which all these seeds are at hand."""
    rows = []
    for run, quantity, curve in _published_of(section):
        if not all(run.path(seed).exists() for seed in seeds):
            continue
        epochs, values = mean_curve(run, seeds, quantity)
        reached = curve.x <= epochs[-1]
        ours, theirs = np.interp(curve.x[reached], epochs, values), curve.y[reached]
        deviation = np.abs(ours / theirs - 1)
        penalty = "biased" if run.biased else "unbiased"
        title = f"{quantity.replace('_', ' to ')}, {penalty}, M = {run.width}"
        rows.append(Comparison(title, ours[-1], theirs[-1], float(np.median(deviation)), deviation.max()))
    return rows


def _published_of(section: Section) -> list[tuple[Run, str, Curve]]:
    quantities = ("distance_teacher", "distance_diffusion", "loss")
    runs = [run for run in section.runs if isinstance(run, Run)]
    curves = [(run, quantity, published_curve(run, quantity)) for run in runs for quantity in quantities]
    return [(run, quantity, curve) for run, quantity, curve in curves if curve is not None]


def comparison_table(name: str, seeds: Sequence[int]) -> str:
    """Our numbers of a section beside the published ones, as a Markdown table with a sentence on how to read it."""
    section = SECTIONS[name]
    if all(isinstance(run, ResNetRun) for run in section.runs):
        return accuracy_table([run for runs in section.figures.values() for run in runs], seeds)
    listed = ", ".join(map(str, seeds))
    same = list(seeds) == list(SEEDS)
    note = "" if same else " The published curves are means over seeds 0 to 5: expect seed noise."
    short = "" if EPOCHS == 32000 else f" These runs have {EPOCHS} epochs: compared up to there."
    lines = [
        f"Our numbers (seeds {listed}) beside the published ones: last value, and |ours / published - 1| over the "
        f"vertices of each published curve.{note}{short}",
        "",
        "| curve | ours | published | median | worst |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    rows = comparisons(section, seeds)
    if len(rows) < len(_published_of(section)):
        lines.insert(1, f"\nSome runs are missing; {make_command(name, seeds)} makes them.")
    for row in rows:
        lines.append(f"| {row.title} | {row.ours:.5g} | {row.theirs:.5g} | {row.median:.2%} | {row.worst:.2%} |")
    return "\n".join(lines)


def accuracy_table(runs: Sequence[ResNetRun], seeds: Sequence[int]) -> str:
    """Final and best test accuracy of the runs at hand, mean and spread over seeds, as a Markdown table."""
    curves = {run: published_accuracy(run) for run in runs}
    columns = ["run", "seeds", "final", "best"]
    note = "Test accuracy, mean over seeds and the largest deviation from it."
    if any(curves.values()):
        columns += ["published final", "published best"]
        note += " Published are single runs without a seed."
    lines = [note, "", f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for run, curve in curves.items():
        ours = [results.load(run.path(seed))["accuracy"].numpy() for seed in seeds if run.path(seed).exists()]
        cells = [run.parameters, str(len(ours)), _spread([x[-1] for x in ours]), _spread([x.max() for x in ours])]
        if len(columns) > len(cells):
            cells += ["", ""] if curve is None else [f"{curve.y[-1]:.3f}", f"{curve.y.max():.3f}"]
        if ours or curve is not None:
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = float(np.mean(values))
    return f"{mean:.3f} ± {max(abs(value - mean) for value in values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def make_command(name: str, seeds: Sequence[int] = ()) -> str:
    """The command that makes a whole section."""
    parts = ["make reproduce"]
    parts += [f"SECTION={name}"] if name != "6.1" else []
    parts += [f"SEEDS={','.join(map(str, seeds))}"] if seeds else []
    section = SECTIONS[name]
    parts += [f"EPOCHS={section.epochs}"] if section.epochs != section.full_epochs else []
    return " ".join(parts)


def plan(name: str, seeds: Sequence[int]) -> str:
    """What a section will cost on two cores from where the results are now: one or two sentences."""
    section = SECTIONS[name]
    wanted = [(run, seed) for run in section.runs for seed in seeds]
    lacking = [(run, seed) for run, seed in wanted if not run.path(seed).exists()]
    jobs = len({run for run, _ in lacking})
    seconds = sum(run.seconds for run, _ in lacking) / 2 + jobs * _START_SECONDS / 2
    size = sum(run.megabytes for run, _ in lacking)
    head = f"{section.title}, seeds {','.join(map(str, seeds))}: {len(wanted)} runs"
    if not lacking:
        return f"{head}, all at hand; notebooks take a minute."
    return (
        f"{head}, {len(lacking)} of them to be computed: about {cli.duration(seconds)} on two cores "
        f"(not measured on a GPU), {size / 1e3:.2g} GB of results; then about a minute for notebooks."
    )


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the comparison table or the plan, and keep the table in a file where one is named."""
    parser = cli.parser("Our numbers beside the published ones, or what is still to be computed.")
    parser.add_argument("--section", choices=SECTIONS, default="6.1", help="part of the paper")
    parser.add_argument(
        "--seeds", metavar="LIST", help="seeds to average over, like 0 or 0-5 (default: 0; for resnets 0-2)"
    )
    parser.add_argument("--plan", action="store_true", help="print what making the section will cost, and nothing else")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table here")
    options = parser.parse_args(argv)
    try:
        seeds = parse_seeds(options.seeds or SECTIONS[options.section].seeds)
    except ValueError as error:
        parser.error(str(error))
    if options.plan:
        print(plan(options.section, seeds))
        return
    table = comparison_table(options.section, seeds)
    print(table)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
