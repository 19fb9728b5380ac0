"""The options that the experiment scripts share, in groups; each script gives the defaults."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from varpro import cli
from varpro.domains.base import Domain
from varpro.features import FeatureMap, RadialKernel
from varpro.optimizers.base import Optimizer
from varpro.optimizers.lbfgs import LBFGS
from varpro.optimizers.levenberg_marquardt import LevenbergMarquardt
from varpro.optimizers.momentum import Momentum
from varpro.runs.limits import Limit
from varpro.runs.schedule import Schedule, schedule
from varpro.solvers import choose

INITS = ("random", "quantile")  # of the student
GRADIENT_DESCENT = "gd"
OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in (Momentum, LBFGS, LevenbergMarquardt)}


def add_gamma(group: argparse._ActionsContainer, default: float, domain: Domain) -> None:
    """The shape parameter of the teacher law on ``domain``."""
    group.add_argument(
        "--gamma", type=_parser_of(domain.gamma), default=default, metavar="G", help=domain.shape_parameter
    )


def _parser_of(parse: Callable[[str], float]) -> Callable[[str], float]:
    """``parse``, whose ValueError says what is allowed, as argparse wants it."""

    def parsed(text: str) -> float:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed: {error}") from None

    return parsed


def add_problem(
    to: argparse.ArgumentParser,
    domain: Domain,
    *,
    lmbda: float,
    student_width: int,
    gamma: float,
    samples: float,
    teacher_width: float,
    init: str = INITS[0],
) -> None:
    """The learning problem on ``domain``, that of the features; the keywords are the experiment's defaults."""
    to.set_defaults(domain_of_problem=domain)
    group = to.add_argument_group("problem")
    cli.add_seeds(group)
    cli.add_lambda(group, lmbda)
    group.add_argument(
        "--student_width",
        type=cli.integer(1),
        default=student_width,
        metavar="M",
        help="number of student neurons",
    )
    add_gamma(group, gamma, domain)
    group.add_argument(
        "--samples",
        type=cli.integer_or_infinity(1),
        default=samples,
        metavar="N",
        help="number of training samples; inf is all Gaussian inputs at once, in closed form (ReLU on the circle)",
    )
    group.add_argument(
        "--teacher_width",
        type=cli.integer_or_infinity(1),
        default=teacher_width,
        metavar="T",
        help="number of teacher neurons; inf is their law itself (circle)",
    )
    group.add_argument(
        "--init",
        choices=INITS,
        default=init,
        help="student at the start: random, as in the paper, or quantile, evenly spread",
    )
    d = domain.dimension
    group.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help=f"train on the tensors of FILE (torch.save of a dict: inputs (N, {d}), targets (N,) or (N, k), and if you "
        f"like teacher_weights (T, {d}) and student_weights (M, {d})) instead of drawn ones",
    )


def add_distances(to: argparse.ArgumentParser, limits: Sequence[Limit], *, usual: int = 1) -> None:
    """Which of ``limits`` the features are compared with; the first ``usual`` are the default."""
    to.add_argument_group("distances").add_argument(
        "--distances",
        nargs="*",
        choices=[limit.name for limit in limits],
        default=[limit.name for limit in limits[:usual]],
        metavar="LIMIT",
        help=f"limits of the dynamics that the features are compared with: {', '.join(limit.name for limit in limits)}",
    )


def add_features(to: argparse.ArgumentParser, maps: Mapping[str, FeatureMap], *, what: str) -> None:
    """The feature map, by its name; the first one is the default. ``what`` says, for the user, what they are."""
    to.add_argument(
        "--features",
        choices=list(maps),
        default=next(iter(maps)),
        help=f"feature map: {what}",
    )


def add_outer_rate(to: argparse.ArgumentParser) -> None:
    """The learning rate of the outer weights of two-timescale descent."""
    to.add_argument(
        "--outer_rate",
        type=cli.positive,
        default=1.0,
        metavar="R",
        help="learning rate of the outer weights over lambda M: eta_u = R lambda M; unstable where R exceeds 2 over "
        "the largest eigenvalue of phi^T phi / (N M) + lambda",
    )


def add_activation(to: argparse.ArgumentParser, kernels: Mapping[str, RadialKernel]) -> None:
    """The radial kernel, by its name; the first one is the default."""
    to.add_argument(
        "--activation",
        choices=list(kernels),
        default=next(iter(kernels)),
        help="radial kernel: " + ", ".join(kernel.label for kernel in kernels.values()),
    )


def add_training(to: argparse.ArgumentParser, *, epochs: int, time_scale: float) -> None:
    """Length and learning rate of the training; the keywords are the experiment's defaults."""
    group = to.add_argument_group("training")
    group.add_argument(
        "--optimizer",
        choices=[GRADIENT_DESCENT, *OPTIMIZERS],
        default=GRADIENT_DESCENT,
        help="outer step: gd is gradient descent, the paper's; the others work on the reduced risk: "
        + ", ".join(kind.label for kind in OPTIMIZERS.values()),
    )
    group.add_argument(
        "--tolerance",
        type=cli.positive,
        default=0.0,
        metavar="R",
        help="end before the last epoch where the risk changes by less than this share of itself (not with gd)",
    )
    group.add_argument(
        "--continuation",
        type=cli.positive,
        metavar="L",
        help="begin with lambda L, as 0.1, and divide by 10 down to --lambda, each from where the last one left off "
        "(not with gd)",
    )
    fewer = ", ".join(f"{kind.usual_iterations} with {name}" for name, kind in OPTIMIZERS.items())
    group.add_argument(
        "--epochs",
        type=cli.integer(1),
        default=epochs,
        metavar="E",
        help=f"number of epochs, or of iterations at most, of which an optimizer has fewer: {fewer}",
    )
    group.add_argument(
        "--time_scale",
        type=cli.time_scale,
        default=time_scale,
        metavar="H",
        help="learning rate of the weights, per neuron: eta = M * time_scale; also the time of one epoch",
    )
    group.add_argument(
        "--saving_step",
        type=cli.integer(1),
        metavar="K",
        help="keep every K-th state (default: about 1000 states in all)",
    )


def add_diffusion(
    to: argparse.ArgumentParser, limits: Sequence[Limit], *, gamma: float, epochs: int, time_scale: float
) -> None:
    """Which of ``limits``, the equation and its discretisation; the keywords are the defaults."""
    group = to.add_argument_group("diffusion")
    first = limits[0]
    group.add_argument(
        "--domain",
        choices=list(dict.fromkeys(limit.domain.name for limit in limits)),
        default=first.domain.name,
        help="where the neurons live",
    )
    group.add_argument(
        "--limit",
        choices=list(dict.fromkeys(limit.name for limit in limits)),
        default=first.name,
        help="diffusion is the paper's; projected, on the circle, is what ReLU features without bias follow",
    )
    group.add_argument("--gamma", default=gamma, metavar="G", help=Domain.shape_parameter)  # allowed: by the domain
    group.add_argument("--epochs", type=cli.integer(1), default=epochs, metavar="E", help="last epoch")
    group.add_argument("--time_scale", type=cli.time_scale, default=time_scale, metavar="H", help="time of one epoch")
    sizes = dict.fromkeys(f"{limit.grid_size} on the {limit.domain.name}" for limit in limits)
    group.add_argument(
        "--grid_size",
        type=cli.integer(16),
        metavar="G",
        help=f"number of cells of the density grid, per axis (default: {', '.join(sizes)})",
    )
    group.add_argument(
        "--saving_step",
        type=cli.integer(1),
        metavar="K",
        help="keep every K-th epoch (default: about 1000 in all); of more than 140 on the torus those that the others "
        "follow from",
    )


def chosen_limit(options: argparse.Namespace, limits: Sequence[Limit]) -> tuple[Limit, float]:
    """The one of ``limits`` that ``--domain`` and ``--limit`` name, and gamma.

    Raises UsageError where there is none, or where the domain does not allow ``--gamma``.
    """
    for limit in limits:
        if (limit.domain.name, limit.name) == (options.domain, options.limit):
            try:
                return limit, limit.domain.gamma(str(options.gamma))
            except ValueError as error:
                raise cli.UsageError(f"argument --gamma: {options.gamma!r} is not allowed: {error}") from None
    allowed = ", ".join(limit.name for limit in limits if limit.domain.name == options.domain)
    raise cli.UsageError(f"--limit {options.limit}: not on the {options.domain}; allowed there: {allowed}")


def chosen_schedule(options: argparse.Namespace) -> Schedule:
    """What ``--epochs`` and ``--saving_step`` ask for. Raises UsageError where nothing would be kept on the way."""
    if options.saving_step is not None and options.saving_step > options.epochs:
        raise cli.UsageError(f"--saving_step {options.saving_step}: allowed here: at most --epochs {options.epochs}")
    return schedule(options.epochs, options.saving_step)


def add_run(to: argparse.ArgumentParser) -> None:
    """How and where to run."""
    group = to.add_argument_group("run")
    group.add_argument(
        "--solver",
        choices=["auto", *choose.NAMES],
        default="auto",
        help="how the inner problem is solved: linear is linear-time, for ReLU on the circle; cg is warm conjugate "
        "gradients; dense is Cholesky, for everything; auto is the fastest that computes the problem",
    )
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where to compute; auto is the CPU for linear and for the built-in kernels on the torus, else CUDA where "
        "there is a device",
    )
    group.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        help="precision (default: float64 for linear, float32 for cg and dense)",
    )
    group.add_argument(
        "--tf32",
        action="store_true",
        help="let float32 matrix products of dense on CUDA use TF32, which keeps 10 bits of every factor",
    )
    cli.add_output(to)
