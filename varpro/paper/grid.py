"""The paper's grid as data: its runs, the figures drawn from them, and the sections that these belong to.

The workflow, the plan, the tables and the notebooks all read it. To add a figure, name it here, with its runs and its
layout, and in a notebook; a layout is a function of :mod:`varpro.figures`. ``$VARPRO_EPOCHS`` shortens every run, for a
quick look or a test; published numbers are for 32000 epochs, those of the ResNets for 100 passes over the data and 10
more. Nothing here needs PyTorch.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from varpro import image_files, names
from varpro.runs.schedule import TIME_SCALE

EPOCHS_VARIABLE = "VARPRO_EPOCHS"


def _length(usual: int) -> int:
    """``$VARPRO_EPOCHS``, or ``usual`` where it is not set or more."""
    text = os.environ.get(EPOCHS_VARIABLE, str(usual))
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"${EPOCHS_VARIABLE} (make: EPOCHS) is {text!r}: allowed are whole numbers from 1 up")
    return min(int(text), usual)


FULL_EPOCHS, FULL_PASSES, START_PASSES, DIGITS_PASSES = 32000, 100, 30, 10
EPOCHS = _length(FULL_EPOCHS)
_LAST_SEED = np.iinfo(np.uint32).max  # of numpy's generator
_MOST_SEEDS = 1000  # in a range
SEEDS = tuple(range(6))  # the published curves are means over these; the two-timescale comparison has seed 0 alone
WIDTHS = (32, 128, 512, 1024)
WIDEST = WIDTHS[-1]
GAMMAS = (10.0, 100.0, 1000.0)

BIASED = "VarPro_ReLU_1d"
UNBIASED = "VarPro_ReLU_1d_unbiased"
TWO_TIMESCALE = "2TS_ReLU_1d_unbiased"
TORUS_BIASED = "VarPro_convolution_2d"
TORUS_UNBIASED = "VarPro_convolution_2d_unbiased"
MEAN_FIELD = "Mean_field_limit"
BOTH_LIMITS = ("diffusion", "projected")
_MOST_GAMMA = {("circle", "diffusion"): 1e8, ("circle", "projected"): 1e4, ("torus", "diffusion"): 1e4}  # of limits


@dataclass(frozen=True)
class Experiment:
    """What the grid has to know of a script: the choices that its results state, and what its runs cost.

    ``limits`` are those that its states are compared with where ``--distances`` says nothing: none on a domain of one's
    own. ``solver`` is ``dense`` where nothing faster computes its features. The ``features`` named ``torus`` are those
    of a kernel, whose name follows.
    """

    domain: str = "circle"
    features: str = "relu_circle"
    centre: float = 1.0
    outer_update: str = "ridge"
    limits: tuple[str, ...] = BOTH_LIMITS[:1]
    solver: str = ""


_ON_TORUS = {"domain": "torus", "features": "torus"}
EXPERIMENTS = {  # by their folders; one of your own is a line here
    BIASED: Experiment(centre=0.0),
    UNBIASED: Experiment(),
    TWO_TIMESCALE: Experiment(outer_update="gradient"),
    TORUS_BIASED: Experiment(**_ON_TORUS, centre=0.0),
    TORUS_UNBIASED: Experiment(**_ON_TORUS),
    MEAN_FIELD: Experiment(limits=BOTH_LIMITS),
}
_LAPLACE = "laplace"  # the usual kernel on the torus


@dataclass(frozen=True, order=True)
class Diffusion:
    """One solution of a limit of the dynamics on ``domain``: the ultra-fast diffusion, or the projected one."""

    gamma: float = 100.0
    epochs: int = EPOCHS
    _: KW_ONLY
    domain: str = "circle"
    limit: str = "diffusion"
    time_scale: float = TIME_SCALE

    @property
    def path(self) -> Path:
        """The file of this solution, whether it exists or not."""
        changed = {"time_scale": self.time_scale} if self.time_scale != TIME_SCALE else {}
        prefix = names.limit_prefix(self.domain, self.limit)
        return names.directory() / names.limit(prefix, {"gamma": self.gamma, "epochs": self.epochs}, changed)

    @property
    def label(self) -> str:
        """A name for jobs and log files."""
        return self.path.stem

    script = "make_diffusion.py"

    def arguments(self) -> list[str]:
        """The options that make this solution, for ``make_diffusion.py``."""
        arguments = ["--epochs", str(self.epochs), "--gamma", f"{self.gamma:g}"]
        arguments += ["--domain", self.domain] if self.domain != "circle" else []
        arguments += ["--limit", self.limit] if self.limit != "diffusion" else []
        return arguments + (["--time_scale", names.short(self.time_scale)] if self.time_scale != TIME_SCALE else [])

    def command(self) -> str:
        """The command line that makes this solution, from the top of the repository."""
        return " ".join(["python", self.script, *self.arguments()])


@dataclass(frozen=True)
class Method:
    """A way of training: its name as shown, its iterations at most, the look of its lines and markers, and the options
    that choose it."""

    label: str
    iterations: int
    colour: str
    marker: str
    options: tuple[tuple[str, float | str], ...] = ()


GRADIENT_DESCENT = ""  # the paper's own method
_CONTINUED = (("optimizer", "lm"), ("continuation", 0.1))
METHODS = {  # colours of Okabe and Ito, told apart without colour vision
    GRADIENT_DESCENT: Method("gradient descent", FULL_EPOCHS, "0.25", "o"),
    "momentum": Method("momentum", 3000, "#E69F00", "s", (("optimizer", "momentum"),)),
    "lbfgs": Method("L-BFGS", 500, "#009E73", "D", (("optimizer", "lbfgs"),)),
    "lm": Method("Levenberg-Marquardt", 100, "#0072B2", "^", (("optimizer", "lm"),)),
    "continuation": Method("Levenberg-Marquardt from lambda 0.1", 100, "#CC79A7", "v", _CONTINUED),
}


Option = float | str | tuple[str, ...]  # of a run


@dataclass(frozen=True, order=True)
class Run:
    """One configuration of one shallow experiment; with a seed it is one result file.

    ``options`` are pairs of the name and the value of an option of the script that is not at its default; the value of
    ``distances`` is a tuple of names, which may be empty. ``snapshots`` is about how many states the file keeps, where
    they are fewer than the script's default.
    """

    experiment: str
    lmbda: float = 1e-3
    width: int = WIDEST
    gamma: float = 100.0
    epochs: int = EPOCHS
    activation: str = ""  # of the torus, where it is not the script's default
    options: tuple[tuple[str, Option], ...] = ()
    snapshots: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError where the grid knows nothing of the script."""
        if self.experiment not in EXPERIMENTS:
            raise ValueError(
                f"experiment {self.experiment!r} is not allowed: {', '.join(EXPERIMENTS)}; "
                "one of your own is a line of EXPERIMENTS in varpro/paper/grid.py"
            )

    @property
    def kind(self) -> Experiment:
        """What the grid knows of the script."""
        return EXPERIMENTS[self.experiment]

    def option(self, name: str, usual: Option) -> Option:
        """The value of one of the ``options``, ``usual`` where it is at its default."""
        return dict(self.options).get(name, usual)

    @property
    def time_scale(self) -> float:
        """The time of one epoch."""
        return self.option("time_scale", TIME_SCALE)

    @property
    def training(self) -> "Run":
        """The same training, of which only what is usual is measured and kept."""
        return replace(self, options=tuple(pair for pair in self.options if pair[0] != "distances"), snapshots=0)

    @property
    def saving_step(self) -> int | None:
        """Epochs from one kept state to the next; None where it is the script's default."""
        few = self.snapshots and self.epochs >= 2 * self.snapshots
        return self.epochs // self.snapshots if few else None

    @property
    def samples(self) -> float:
        """N."""
        return self._law("samples", math.inf, 4096)

    @property
    def method(self) -> str:
        """The way of training, a name of :data:`METHODS`."""
        return "continuation" if self.option("continuation", 0.0) else self.option("optimizer", GRADIENT_DESCENT)

    @property
    def deterministic(self) -> bool:
        """Whether every seed gives the same result: nothing is drawn."""
        drawn = (self.samples, self._law("teacher_width", math.inf, 4096), self._law("init", "quantile", "random"))
        return drawn == (math.inf, math.inf, "quantile")

    def _law(self, name: str, limit: Option, paper: Option) -> Option:
        """An option that says what is drawn, whose default is ``limit`` near the limit, elsewhere the paper's."""
        return self.option(name, limit if self.experiment == MEAN_FIELD else paper)

    def path(self, seed: int) -> Path:
        """The result file of this run with ``seed``, whether it exists or not."""
        config = {"lambda": self.lmbda, "student_width": self.width, "gamma": self.gamma, "epochs": self.epochs}
        changed = {"activation": self.activation} if self.activation else {}
        changed |= {"saving_step": self.saving_step} if self.saving_step else {}
        for name, value in self.options:
            changed[name] = ("+".join(value) or "none") if isinstance(value, tuple) else value
        return names.directory(self.experiment) / names.shallow(config | {"seed": seed}, changed)

    @property
    def parameters(self) -> str:
        """The configuration, as shown."""
        more = f", saving_step {self.saving_step}" if self.saving_step else ""
        more += "".join(f", {name} {' '.join(self._words(value)) or 'none'}" for name, value in self.options)
        activation = f", {self.activation}" if self.activation else ""
        return f"lambda {self.lmbda:g}, width {self.width}, gamma {self.gamma:g}{activation}{more}"

    @property
    def label(self) -> str:
        """A name for jobs and log files."""
        activation = f"_{self.activation}" if self.activation else ""
        more = f"_saving_step={self.saving_step}" if self.saving_step else ""
        more += "".join(f"_{name}={'+'.join(self._words(value))}" for name, value in self.options)
        return f"{self.experiment}_lambda={self.lmbda:g}_width={self.width}_gamma={self.gamma:g}{activation}{more}"

    @staticmethod
    def _words(value: Option) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else (names.short(value),)

    @property
    def script(self) -> str:
        """The script that makes this run, from the top of the repository."""
        return f"{self.experiment}/Experiment.py"

    @property
    def on_torus(self) -> bool:
        """Whether this is a run of Appendix B."""
        return self.kind.domain == "torus"

    @property
    def biased(self) -> bool:
        """Whether the penalty is u^2 / 2."""
        return self.kind.centre == 0

    @property
    def solver(self) -> str:
        """The solver that is asked for or the only one there is; "" for the usual one."""
        return str(self.option("solver", self.kind.solver))

    @property
    def choices(self) -> dict[str, Option]:
        """What the results state of the choices of their script."""
        kernel = f"_{self.activation or _LAPLACE}" if self.kind.features == "torus" else ""
        return {
            "features": self.option("features", self.kind.features + kernel),
            "centre": self.kind.centre,
            "outer_update": self.kind.outer_update,
        }

    @property
    def diffusions(self) -> tuple[Diffusion, ...]:
        """The limits that this run is compared with: at the time of gradient descent, where they can be had."""
        if self.method != GRADIENT_DESCENT:
            return ()
        limits = self.option("distances", self.kind.limits)
        return tuple(self.limit(name) for name in limits if self.gamma <= _MOST_GAMMA.get((self.kind.domain, name), -1))

    def limit(self, name: str) -> Diffusion:
        """The limit of that name towards this teacher, over the time of this run."""
        return Diffusion(self.gamma, self.epochs, domain=self.kind.domain, limit=name, time_scale=self.time_scale)

    @property
    def inputs(self) -> list[Path]:
        """The files that this run reads and another job makes."""
        return [diffusion.path for diffusion in self.diffusions]

    def arguments(self, seeds: Sequence[int]) -> list[str]:
        """The options that make this run, for the experiment's ``Experiment.py``."""
        return [
            *("--seed", *map(str, seeds)),
            *("--epochs", str(self.epochs)),
            *("--lambda", f"{self.lmbda:g}"),
            *("--student_width", str(self.width)),
            *("--gamma", f"{self.gamma:g}"),
            *(("--activation", self.activation) if self.activation else ()),
            *(("--saving_step", str(self.saving_step)) if self.saving_step else ()),
            *(("--solver", self.kind.solver) if self.kind.solver and not self.option("solver", "") else ()),
            *(word for name, value in self.options for word in (f"--{name}", *self._words(value))),
        ]

    def command(self, seeds: Sequence[int]) -> str:
        """The command line that makes this run, from the top of the repository."""
        return " ".join(["python", self.script, *self.arguments(seeds)])


def cifar_files() -> list[Path]:
    """What one job makes for all runs on CIFAR-10: its unpacked archive, or nothing where class folders are there."""
    folder = image_files.folder()
    return [] if image_files.in_folders(folder) else [image_files.unpacked(folder)]


OPTIMIZERS = {"varprom": "VarPro", "sgdm": "SGD", "shampoo": "Shampoo"}  # and their panels in the published figure
_FINAL_DEFAULT = 10  # passes at half the rate; in file names and commands where it is another


@dataclass(frozen=True, order=True)
class ResNetRun:
    """One configuration of the ResNet experiment; with a seed it is one result file."""

    optimizer: str
    batch_size: int
    dataset: str = "cifar10"
    variant: str = ""  # of Shampoo, where it is not the published one
    epochs: int = _length(FULL_PASSES)  # passes over the data ...
    final_epochs: int = _FINAL_DEFAULT  # ... and those after them at half the rate

    experiment = names.RESNET
    script = f"{names.RESNET}/Experiment.py"
    diffusions, deterministic = (), False

    def path(self, seed: int) -> Path:
        """The result file of this run with ``seed``, whether it exists or not."""
        config = {"dataset": self.dataset, "optimizer": self.optimizer, "batch_size": self.batch_size}
        config |= {"lambda": 1e-3, "epochs": self.epochs, "seed": seed}
        changed = {"final_epochs": self.final_epochs} if self.final_epochs != _FINAL_DEFAULT else {}
        changed |= {"shampoo_variant": self.variant} if self.variant else {}
        return names.directory(names.RESNET) / names.resnet(config, changed)

    @property
    def parameters(self) -> str:
        """The configuration, as shown."""
        variant = f" ({self.variant})" if self.variant else ""
        part = "" if self.final_epochs else f", the first {self.epochs} passes"
        return f"{self.optimizer}{variant}, batch size {self.batch_size}, {self.dataset}{part}"

    @property
    def label(self) -> str:
        """A name for jobs and log files."""
        variant = f"_{self.variant}" if self.variant else ""
        part = "" if self.final_epochs else f"_start={self.epochs}"
        return f"{self.experiment}_{self.dataset}_{self.optimizer}{variant}_batch_size={self.batch_size}{part}"

    @property
    def inputs(self) -> list[Path]:
        """The files that this run reads and another job makes: CIFAR-10, where it is to be unpacked or downloaded."""
        return cifar_files() if self.dataset == "cifar10" else []

    @property
    def passes(self) -> int:
        """Passes over the data in all."""
        return self.epochs + self.final_epochs

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
        return " ".join(["python", self.script, *self.arguments(seeds)])


AnyRun = Run | ResNetRun


@dataclass(frozen=True)
class Figure:
    """A figure that a notebook shows: what it is drawn from, and how.

    ``layout`` is the function of the section's module of :mod:`varpro.figures` that draws it. Without any of its
    results it is left out, unless it ``needs`` ``"nothing"``; if it needs ``"all"``, one that is missing is enough.
    """

    name: str
    layout: str
    runs: Sequence[AnyRun] = ()
    diffusions: Sequence[Diffusion] = ()
    by: str = ""  # the parameter that tells its lines apart, a field or a property of its runs
    seeds: Sequence[int] = SEEDS  # those of the published figure
    needs: str = "some"
    suffix: str = ".pdf"

    @property
    def file(self) -> str:
        """The name of its file in ``figures/``."""
        return self.name + self.suffix

    def chosen(self, seeds: Sequence[int] | None) -> Sequence[int]:
        """``seeds``, or those of the published figure where none are asked for."""
        return self.seeds if seeds is None else seeds


def _drawn(run: AnyRun, seeds: Sequence[int]) -> list[int]:
    """Those of ``seeds`` that give results of their own."""
    return list(seeds[:1] if run.deterministic else seeds)


@dataclass(frozen=True)
class Section:
    """A part of the paper: the figures that each of its notebooks shows."""

    title: str
    notebooks: Mapping[str, Sequence[Figure]]
    more: Sequence[AnyRun] = ()  # runs that no figure shows, made with seed 0
    seeds: str = ""  # where none are asked for; "" for those of each figure
    full_epochs: int = FULL_EPOCHS
    table: str = "published"  # its numbers: "published" beside ours, "accuracies", "passes", "arrivals", "limits"

    @property
    def compares(self) -> bool:
        """Whether published curves stand beside its runs, to be met."""
        return self.table == "published"

    @property
    def figures(self) -> list[Figure]:
        """All figures."""
        return [figure for figures in self.notebooks.values() for figure in figures]

    @property
    def runs(self) -> list[AnyRun]:
        """All runs, each once."""
        return sorted({run for figure in self.figures for run in figure.runs} | set(self.more))

    @property
    def diffusions(self) -> list[Diffusion]:
        """The diffusions that runs and figures read, each once."""
        return sorted({diffusion for reader in (*self.figures, *self.runs) for diffusion in reader.diffusions})

    @property
    def epochs(self) -> int:
        """The epochs, or passes, of the first run that it shows."""
        return next(run for figure in self.figures for run in figure.runs).epochs

    def wanted(self, seeds: Iterable[int] | None = None) -> dict[AnyRun, list[int]]:
        """The seeds of every run: ``seeds`` where some are asked for, else the section's or its figures' own.

        Where nothing is drawn, the first of them.
        """
        if seeds is None and self.seeds:
            seeds = parse_seeds(self.seeds)
        if seeds is not None:
            return {run: _drawn(run, sorted(seeds)) for run in self.runs}
        own = {run: {0} if run in self.more else set() for run in self.runs}
        for figure in self.figures:
            for run in figure.runs:
                own[run] |= set(_drawn(run, figure.seeds))
        return {run: sorted(of_run) for run, of_run in own.items()}


# --- Section 6.1 -------------------------------------------------------------------------------------------------

_LAMBDAS = (1e-1, 1e-2, 1e-3, 1e-4)
_SNAPSHOTS = 64  # of runs of which the distances are drawn; at the same times for every time step


def with_both_limits(lmbda: float = 1e-3, width: int = WIDEST, epochs: int = EPOCHS) -> Run:
    """The paper's unbiased run, compared with the projected diffusion too."""
    return Run(UNBIASED, lmbda, width, epochs=epochs, options=(("distances", BOTH_LIMITS),), snapshots=_SNAPSHOTS)


# four widths, and four lambda at the largest
_BOTH_LIMITS = [with_both_limits(width=width) for width in WIDTHS[:-1]] + [with_both_limits(x) for x in _LAMBDAS]
_DENSITY = {"runs": [Run(UNBIASED, lmbda=1e-4)], "diffusions": [Diffusion()]}
_CIRCLE_WIDTHS = [Run(experiment, width=width) for experiment in (BIASED, UNBIASED) for width in WIDTHS]
_CIRCLE = Section(
    "Section 6.1, ReLU networks on the circle",
    {
        "Results_SHL": [
            Figure("gamma_densities", "teacher_densities"),
            Figure("density_evolution", "density_evolution", **_DENSITY),
            Figure("risk_width", "risks", _CIRCLE_WIDTHS, by="width"),
            Figure("distance_width", "distances", _CIRCLE_WIDTHS, by="width"),
            Figure(
                "distance_lambda",
                "distances",
                [Run(experiment, lmbda) for experiment, lmbda in product((BIASED, UNBIASED), _LAMBDAS)],
                by="lmbda",
            ),
            Figure("distance_projected", "distances_to_limits", _BOTH_LIMITS),
            Figure("distance_gamma", "risk_and_distances", [Run(UNBIASED, 1e-4, gamma=g) for g in GAMMAS], by="gamma"),
            Figure(
                "two_timescale",
                "two_timescale",
                [Run(*choice) for choice in product((UNBIASED, TWO_TIMESCALE), (1e-1, 1e-2, 1e-3), WIDTHS)],
                by="width",
                seeds=SEEDS[:1],
            ),
        ],
        "1d_animations": [Figure("diffusion_animation", "animation", **_DENSITY, needs="all", suffix=".gif")],
    },
    # the pairs that the README lists; no published figure shows them
    more=[Run(UNBIASED, lmbda, gamma=gamma) for lmbda, gamma in zip((1e-1, 1e-2, 1e-3), GAMMAS, strict=True)],
)

# --- Appendix B --------------------------------------------------------------------------------------------------


def _unbiased(runs: Iterable[Run]) -> list[Run]:
    """Those whose limit the diffusion is."""
    return [run for run in runs if not run.biased]


_BOTH = (TORUS_BIASED, TORUS_UNBIASED)
_TORUS_WIDTHS = [Run(experiment, width=width) for experiment, width in product(_BOTH, WIDTHS)]
_TORUS_LAMBDAS = [Run(experiment, lmbda) for experiment, lmbda in product(_BOTH, (1e-1, 1e-2, 1e-3))]
_TORUS_DENSITY = {"runs": [Run(TORUS_UNBIASED)], "diffusions": [Diffusion(domain="torus")]}
_APPENDIX_B = Section(
    "Appendix B, RBF networks on the torus",
    {
        "Results_convolution": [
            Figure("convolution_teacher", "teacher"),
            Figure("convolution_risk_width", "risks", _TORUS_WIDTHS, by="width"),
            Figure("convolution_distance_width", "distance", _TORUS_WIDTHS, by="width"),
            Figure("convolution_distance_lambda", "distance_and_risk", _TORUS_LAMBDAS, by="lmbda"),
            Figure(
                "convolution_distance_gamma",
                "distance_and_risk",
                [Run(TORUS_UNBIASED, 1e-2, gamma=gamma) for gamma in (100.0, math.inf)],
                by="gamma",
            ),
            Figure(
                "convolution_activation",
                "distance_and_risk",
                [Run(experiment, activation=kernel) for experiment, kernel in product(_BOTH, ("", "cos"))],
                by="activation",
            ),
            Figure("convolution_harmonics", "seen_harmonics"),
            Figure("convolution_density", "density_evolution", **_TORUS_DENSITY),
            Figure("convolution_diffusion_width", "diffusion_distance", _unbiased(_TORUS_WIDTHS), by="width"),
            Figure("convolution_diffusion_lambda", "diffusion_distance", _unbiased(_TORUS_LAMBDAS), by="lmbda"),
            Figure("convolution_animation", "animation", **_TORUS_DENSITY, needs="all", suffix=".gif"),
        ],
    },
    seeds="0",  # all six take an hour
)

# --- Section 6.2 -------------------------------------------------------------------------------------------------


def _resnet_figures(dataset: str, runs: Sequence[ResNetRun], *, seeds: Sequence[int], needs: str) -> list[Figure]:
    """Both figures of a data set; ``needs`` is that of the one that has published curves."""
    loss = Figure(f"resnet_loss_{dataset}", "losses", runs, seeds=seeds)
    return [loss, Figure(f"resnet_accuracy_{dataset}", "accuracies", runs, seeds=seeds, needs=needs)]


CIFAR_RUNS = [ResNetRun(*choice) for choice in product(OPTIMIZERS, (64, 128, 256, 512, 1024))]
DIGITS_RUNS = [
    ResNetRun(optimizer, batch, "digits", variant, epochs=_length(DIGITS_PASSES), final_epochs=2)
    for optimizer, variant in (*((name, "") for name in OPTIMIZERS), ("shampoo", "gupta"))
    for batch in (64, 128)
]
_DIGITS = Section(
    "Section 6.2 on scikit-learn's digits",
    {"Results_resnets": _resnet_figures("digits", DIGITS_RUNS, seeds=SEEDS[:3], needs="some")},
    full_epochs=DIGITS_PASSES,
    table="accuracies",
)
_CIFAR = Section(
    "Section 6.2, ResNet-20 on CIFAR-10",
    {"Results_resnets": _resnet_figures("cifar10", CIFAR_RUNS, seeds=SEEDS[:1], needs="nothing")},
    full_epochs=FULL_PASSES,
    table="accuracies",
)
START_RUNS = [
    ResNetRun(optimizer, 128, epochs=_length(START_PASSES), final_epochs=0)
    for optimizer in (*OPTIMIZERS, "varpro-running")
]
_CIFAR_START = Section(
    "Section 6.2, the first 30 passes over CIFAR-10",
    {"Results_resnets": [Figure("resnet_start", "start", START_RUNS, seeds=SEEDS[:1], needs="nothing")]},
    full_epochs=START_PASSES,
    table="passes",
)

# --- beyond the paper: what Section 6.1 converges to --------------------------------------------------------------

_STUDY_EPOCHS = 4096  # of the usual length: until t = 4, well after the shock of the projected diffusion
DENSE = {"features": "squared_relu_circle", "samples": 2048, "solver": "dense", "dtype": "float64"}
_DENSE_EPOCHS, _DENSE_LMBDA = 1024, 1e-5
RATE_LMBDA, RATE_WIDTH = 1e-3, 256  # of the runs of two-timescale descent
# Outer rates R and their epochs: where u diverges, few enough to end before it overflows.
_OUTER_RATES = {1: 512, 4: 512, 8: 512, 9: 512, 9.5: 512, 9.75: 512, 10: 512, 10.25: 192, 10.5: 128, 11: 96, 12: 56}


def _study_run(
    lmbda: float, width: int, epochs: int, *, experiment: str = MEAN_FIELD, step: float = TIME_SCALE, **options: Option
) -> Run:
    """A run of the study; ``epochs`` count the usual ``TIME_SCALE``, and ``step`` is the run's own."""
    own = max(1, round(epochs * TIME_SCALE / step))
    more: dict[str, Option] = {"time_scale": step} if step != TIME_SCALE else {}
    if experiment == TWO_TIMESCALE:
        more |= {"samples": math.inf, "teacher_width": math.inf, "init": "quantile"}
    return Run(experiment, lmbda, width, epochs=own, options=tuple((more | options).items()), snapshots=_SNAPSHOTS)


def mean_field(epochs: int) -> Section:
    """The study of the limit, whose longest runs, those of the paper's configuration, have ``epochs``."""

    def run(lmbda: float = 1e-6, width: int = WIDEST, *, epochs: int = min(epochs, _STUDY_EPOCHS), **more) -> Run:
        return _study_run(lmbda, width, epochs, **more)

    # from the paper's configuration to the limit, one choice after the other
    ladder = []
    for lmbda in (1e-3, 1e-4):
        finite = run(lmbda, epochs=epochs, samples=4096, teacher_width=4096)
        ladder += [with_both_limits(lmbda, epochs=epochs), finite, run(lmbda, epochs=epochs)]
    ladder.append(run(epochs=epochs))
    dense = {"epochs": min(epochs, _DENSE_EPOCHS), **DENSE}
    relu = {name: dense[name] for name in ("epochs", "samples")}  # the same data, step and width, other features
    injective = [run(10.0**-k, 128, **features) for features in (dense, relu) for k in range(2, 7)] + [
        run(_DENSE_LMBDA, width, **dense) for width in (32, 64)
    ]
    rates = [
        run(RATE_LMBDA, RATE_WIDTH, experiment=experiment, step=2.0**-k, distances=())
        for experiment in (TWO_TIMESCALE, MEAN_FIELD)
        for k in (10, 7, 8, 9, 11, 12, 13, 14, 15)
    ]
    still = {"time_scale": 2.0**-20, "samples": math.inf, "teacher_width": math.inf, "init": "quantile"}
    stability = []  # features that hardly move
    for rate, own in _OUTER_RATES.items():
        options = still | ({"outer_rate": float(rate)} if rate != 1 else {}) | {"distances": ()}
        stability.append(
            Run(TWO_TIMESCALE, RATE_LMBDA, RATE_WIDTH, epochs=min(epochs, own), options=tuple(options.items()))
        )
    one, series = SEEDS[:1], {}
    series["width"] = [run(width=2**k, step=2**-11) for k in range(5, 15)]
    series["random"] = [run(width=2**k, step=2**-11, init="random") for k in (5, 7, 9, 11)]
    series["lambda"] = [run(10.0**-k, 2048, step=2**-13) for k in range(1, 8)]
    series["samples"] = [*(run(samples=2**k) for k in (10, 12, 14, 16, 18)), run()]
    series["step"] = [run(1e-5, step=2.0**-k) for k in (8, 9, 10, 11, 12, 13)]
    figures = [
        Figure("mean_field_ladder", "ladder", ladder),
        Figure("mean_field_width", "series", series["width"], by="width", seeds=one),
        Figure("mean_field_random", "series", series["random"], by="width"),
        Figure("mean_field_lambda", "series", series["lambda"], by="lmbda", seeds=one),
        Figure("mean_field_samples", "series", series["samples"], by="samples", seeds=SEEDS[:4]),
        Figure("mean_field_step", "series", series["step"], by="time_scale", seeds=one),
        Figure("mean_field_harmonics", "harmonics", [run()], seeds=one),
        Figure("mean_field_injective", "injective", injective, by="lmbda", seeds=one),
        Figure("mean_field_rates", "rates", rates, by="time_scale", seeds=one),
        Figure("mean_field_stability", "stability", stability, seeds=one),
    ]
    return Section("What Section 6.1 converges to", {"Results_mean_field": figures}, table="limits")


# --- beyond the paper: optimizers on the reduced risk -------------------------------------------------------------


def _by(method: str, problem: Run) -> Run:
    """``problem`` trained by a method."""
    how = METHODS[method]
    return replace(problem, epochs=min(EPOCHS, how.iterations), options=problem.options + how.options)


def _methods(problem: Run, methods: Iterable[str] = METHODS) -> list[Run]:
    return [_by(method, problem) for method in methods]


def _all_methods(problems: Iterable[Run]) -> list[Run]:
    return [_by(method, problem) for problem in problems for method in METHODS]


RACES = {gamma: Run(UNBIASED, lmbda, gamma=gamma) for gamma, lmbda in zip(GAMMAS, (1e-3, 1e-3, 1e-4), strict=True)}
_INFINITE = Run(UNBIASED, options=(("teacher_width", math.inf), ("samples", math.inf)))
_OPTIMIZERS = Section(
    "Optimizers on the reduced risk",
    {
        "Results_optimizers": [
            *(Figure(f"optimizers_gamma_{g:g}", "race", _methods(run), by="method") for g, run in RACES.items()),
            Figure(
                "optimizers_width",
                "arrivals_by",
                _all_methods(Run(UNBIASED, width=width, gamma=gamma) for gamma, width in product(GAMMAS, WIDTHS)),
                by="width",
                seeds=SEEDS[:3],
            ),
            Figure(
                "optimizers_lambda",
                "arrivals_by",
                _all_methods(Run(UNBIASED, lmbda, gamma=g) for g, lmbda in product(GAMMAS, (1e-2, 1e-3, 1e-4))),
                by="lmbda",
                seeds=SEEDS[:3],
            ),
            Figure("optimizers_features", "features", _all_methods(RACES.values()), by="method"),
            Figure("optimizers_infinite_data", "race", _methods(_INFINITE), by="method", seeds=SEEDS[:3]),
            Figure(
                "optimizers_torus",
                "race",
                _methods(Run(TORUS_UNBIASED, width=128), (GRADIENT_DESCENT, "momentum", "lbfgs")),
                by="method",
                seeds=SEEDS[:1],
            ),
        ],
    },
    more=_methods(Run(UNBIASED, width=8192)),  # in the table
    table="arrivals",
)

_ON_CIFAR = {"resnets-start": _CIFAR_START, "resnets-cifar10": _CIFAR}
SECTIONS = {
    "6.1": _CIRCLE,
    "appendix-b": _APPENDIX_B,
    "mean-field": mean_field(EPOCHS),
    "optimizers": _OPTIMIZERS,
    "resnets": _DIGITS,
    **_ON_CIFAR,
}
ALL = "all"  # every section, in one


def parse_sections(text: str) -> list[str]:
    """The names of sections from ``"6.1"``, ``"6.1,mean-field"`` or ``"all"``, each once and in the order of the grid.

    ``all`` has none on CIFAR-10 where :func:`left_out` says so. Raises ValueError on anything else.
    """
    if text == ALL:
        return [name for name in SECTIONS if name not in _ON_CIFAR or image_files.at_hand(image_files.folder())]
    named = text.split(",")
    if ALL in named:
        raise ValueError(f"section {text!r} is not allowed: {ALL} stands alone")
    for name in named:
        if name not in SECTIONS:
            raise ValueError(f"section {name!r} is not allowed: {ALL}, {', '.join(SECTIONS)}, or several with commas")
    return [name for name in SECTIONS if name in named]


def left_out(text: str) -> str:
    """Which sections are not in ``all`` since their data are not at hand, and how to get these; "" if all are."""
    if text != ALL or not _ON_CIFAR.keys().isdisjoint(parse_sections(text)):
        return ""
    return (
        f"Without {' and '.join(_ON_CIFAR)}: CIFAR-10 is not in {image_files.folder()}. "
        f"Put {image_files.ARCHIVE} there, or class folders train/<class>/*.png and test/<class>/*.png, or name "
        "where they are: make reproduce SECTION=all DATA_DIR=DIR; "
        f"make reproduce SECTION={next(iter(_ON_CIFAR))} downloads it."
    )


def runs_of(sections: Iterable[str], seeds: Iterable[int] | None = None) -> dict[AnyRun, list[int]]:
    """:meth:`Section.wanted` of several sections: each run once, with all of its seeds."""
    every: dict[AnyRun, set[int]] = {}
    for name in sections:
        for run, own in SECTIONS[name].wanted(seeds).items():
            every.setdefault(run, set()).update(own)
    return {run: sorted(own) for run, own in every.items()}


def diffusions_of(sections: Iterable[str]) -> list[Diffusion]:
    """The diffusions of several sections, each once."""
    return sorted({diffusion for name in sections for diffusion in SECTIONS[name].diffusions})


def notebooks_of(sections: Iterable[str]) -> dict[str, list[Figure]]:
    """The notebooks of several sections, and the figures of these that each shows."""
    found: dict[str, list[Figure]] = {}
    for name in sections:
        for notebook, figures in SECTIONS[name].notebooks.items():
            found.setdefault(notebook, []).extend(figures)
    return found


def find(name: str) -> tuple[str, Figure]:
    """(section, figure) of a figure's name. Raises ValueError where there is no such figure."""
    found = {figure.name: (key, figure) for key, section in SECTIONS.items() for figure in section.figures}
    if name not in found:
        raise ValueError(f"figure {name!r}: there are {', '.join(found)}")
    return found[name]


def parse_seeds(text: str) -> list[int]:
    """Seeds from ``"0"``, ``"0-5"`` or ``"0,2,7-9"``, increasing. Raises ValueError on anything else.

    A seed that is named twice is refused, as the scripts do.
    """
    seeds: set[int] = set()
    for part in text.replace(" ", ",").split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (text.isascii() and first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise ValueError(f"seeds {text!r}: allowed are numbers and ranges like 0-5, separated by commas")
        if int(last) > _LAST_SEED or int(last) - int(first) >= _MOST_SEEDS:
            raise ValueError(f"seeds {text!r}: allowed are seeds up to {_LAST_SEED}, {_MOST_SEEDS} in a range")
        more = range(int(first), int(last) + 1)
        if not seeds.isdisjoint(more):
            raise ValueError(f"seeds {text!r}: a seed is named twice; allowed are different ones")
        seeds.update(more)
    return sorted(seeds)


def ranges(seeds: Sequence[int]) -> str:
    """``0-5`` or ``0,2,7-9``, which :func:`parse_seeds` reads."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def make_command(name: str, seeds: Sequence[int] | None = None) -> str:
    """The command that makes a whole section."""
    parts = ["make reproduce"]
    parts += [f"SECTION={name}"] if name != "6.1" else []
    parts += [f"SEEDS={ranges(seeds)}"] if seeds else []
    section = SECTIONS[name]
    parts += [f"EPOCHS={section.epochs}"] if section.epochs != section.full_epochs else []
    return " ".join(parts)
