"""What the ResNet scripts share around the training itself: options, which file a run belongs to, what is written."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from varpro import cli, image_files, installed_version, names, results
from varpro.runs.bookkeeping import Checkpoint, StopSignals, already_there, once
from varpro.threads import keep_freed_memory
from VarPro_resnet import cifar
from VarPro_resnet.resnet import ResNet20
from VarPro_resnet.shampoo import VARIANTS
from VarPro_resnet.training import STATE_VERSION, Descent, Plan, Record, train

_OWN = {"shampoo": ("shampoo_variant", "update_every"), "varpro-running": ("memory",)}  # options of one optimizer
_MOMENTUM = {  # what it weighs, from 0 to below 1
    "varprom": "weight m of the old outer weights in the new: u <- m u + (1 - m) argmin",
    "sgdm": "momentum of the steps",
    "shampoo": "weight m of the last preconditioned gradient b in what is preconditioned: (1 - m) g + m b",
    "varpro-running": "momentum of the steps",
}
_NAMED = (  # in the file name where they are not the default
    "flips",
    "time_scale",
    "momentum",
    "final_epochs",
    *chain(*_OWN.values()),
    "average",
    "mixed_precision",
    "tf32",
    "dtype",
)
_LENGTH = ("epochs", "final_epochs")  # runs that differ in these alone begin alike
_OF_A_PROCESS = ("device", "images")  # a checkpoint of others is not gone on from; a result of others is kept
_CHECKPOINT_SECONDS = 60.0
_DIGITS = 12  # of the digest of a set of images, in file names


@dataclass(frozen=True)
class Numbers:
    """The defaults of an optimizer, those of the published curves."""

    time_scale: float
    momentum: float


@dataclass(frozen=True)
class ReadyRun:
    """One seed of one optimizer, ready to train."""

    config: dict
    path: Path
    images: cifar.Images  # on the device of the network
    plan: Plan
    network: ResNet20


# --- options -----------------------------------------------------------------------------------------------------


def add_problem(to: argparse.ArgumentParser, *, dataset: str, lmbda: float) -> None:
    """The learning problem; the keywords are the script's defaults."""
    group = to.add_argument_group("problem")
    group.add_argument(
        "--dataset",
        choices=cifar.DATASETS,
        default=dataset,
        help="cifar10 is downloaded once, or read from --data-dir; images are any ones in class folders or parquet "
        "tables; digits comes with scikit-learn, 1500 + 297 images; synthetic is noise of the size of cifar10, to "
        "measure speed",
    )
    group.add_argument(
        "--data-dir",
        "--data_dir",
        type=Path,
        metavar="DIR",
        help="folder with train/<class>/*.png and test/<class>/*.png (or JPEG, or WebP), or with train*.parquet and "
        "test*.parquet; for cifar10 also with the official archive, or where it is downloaded to (default there: "
        "$VARPRO_DATA, or data/ in the repository)",
    )
    group.add_argument(
        "--flips",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mirror half of the training images of --dataset images (default: yes)",
    )
    cli.add_seeds(group)
    cli.add_lambda(group, lmbda)


def add_optimizer(to: argparse.ArgumentParser, optimizers: Mapping[str, Numbers], optimizer: str | None) -> None:
    """The optimizer and its numbers. Where ``optimizer`` names one of ``optimizers``, the user has no choice of it."""
    group = to.add_argument_group("optimizer")
    if optimizer is None:
        group.add_argument("--optimizer", choices=list(optimizers), default=next(iter(optimizers)), help="what trains")
    _add_number(
        group,
        "time_scale",
        optimizers,
        optimizer,
        type=cli.time_scale,
        metavar="H",
        help="learning rate of the features, per neuron: eta = 64 * time_scale",
    )
    _add_number(
        group,
        "momentum",
        optimizers,
        optimizer,
        type=cli.momentum,
        metavar="M",
        help=_MOMENTUM.get(optimizer, "; ".join(f"{name}: {text}" for name, text in _MOMENTUM.items())),
    )
    if optimizer in (None, "varpro-running"):
        group.add_argument(
            "--memory",
            type=cli.momentum,
            default=0.9,
            metavar="M",
            help="of varpro-running: its outer weights are optimal for about the last batch_size / (1 - M) images",
        )
    if optimizer in (None, "shampoo"):
        group.add_argument(
            "--shampoo_variant",
            choices=VARIANTS,
            default=VARIANTS[0],
            help="Shampoo of the published curves, or of Gupta, Koren, Singer 2018",
        )
        group.add_argument(
            "--update_every",
            type=cli.integer(1),
            default=1,
            metavar="K",
            help="new roots of the preconditioners of Shampoo in every K-th step",
        )


def _add_number(group, name: str, optimizers: Mapping[str, Numbers], optimizer: str | None, **keywords) -> None:
    """A number with a default per optimizer, which :func:`parse` fills in where none is fixed."""
    defaults = {key: getattr(numbers, name) for key, numbers in optimizers.items()}
    if optimizer is None:
        each = ", ".join(f"{value:g} for {key}" for key, value in defaults.items())
        keywords["help"] += f" (default: {each})"
    group.add_argument(f"--{name}", default=defaults.get(optimizer), **keywords)


def add_training(to: argparse.ArgumentParser, *, batch_size: int, epochs: int, final_epochs: int) -> None:
    """Length of the training; the keywords are the script's defaults."""
    group = to.add_argument_group("training")
    group.add_argument(
        "--batch_size", type=cli.integer(1), default=batch_size, metavar="B", help="number of images in a step"
    )
    group.add_argument("--epochs", type=cli.integer(1), default=epochs, metavar="E", help="passes over the data")
    group.add_argument(
        "--final_epochs",
        type=cli.integer(0),
        default=final_epochs,
        metavar="F",
        help="passes after these, at half the rate",
    )
    group.add_argument(
        "--average",
        type=cli.passes,
        default=0.0,
        metavar="P",
        help="test, and keep in the end, the mean of the network over about the last P passes, with weights that "
        "decay; the steps are those without it (default: 0, the network as it is)",
    )


def add_run(to: argparse.ArgumentParser) -> None:
    """How and where to run, and where the file goes."""
    group = to.add_argument_group("run")
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the checkpoint of a run that was interrupted, or from a shorter run (default: yes)",
    )
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where to compute; auto is CUDA where there is a device",
    )
    group.add_argument(
        "--threads",
        type=cli.integer(1, 1024),
        metavar="K",
        help="of the CPU; the last bits depend on it (default: all, or one where a trial at the start shows that it is "
        "faster; a run that goes on keeps its number)",
    )
    group.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="precision")
    group.add_argument(
        "--mixed_precision",
        action="store_true",
        help="compute the features in bfloat16; loss and ridge solve stay in full precision",
    )
    group.add_argument(
        "--tf32", action="store_true", help="let float32 products on CUDA use TF32, which keeps 10 bits of every factor"
    )
    cli.add_output(to)


def parse(
    of: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    optimizers: Mapping[str, Numbers],
    optimizer: str | None,
) -> argparse.Namespace:
    """Parsed options with the numbers of the chosen optimizer filled in.

    Raises UsageError on options that do not go together.
    """
    options = cli.parse(of, argv)
    if optimizer is not None:
        options.optimizer = optimizer
    for name, value in vars(optimizers[options.optimizer]).items():
        options.defaults[name] = value
        if name not in options.given:
            setattr(options, name, value)
    for owner, own in _OWN.items():
        for name in own:
            if name in options.given and options.optimizer != owner:
                raise cli.UsageError(f"--{name}: has no effect here; it goes with --optimizer {owner}")
    if options.dataset not in ("cifar10", "images") and "data_dir" in options.given:
        raise cli.UsageError("--data-dir: has no effect here; it goes with --dataset cifar10 or images")
    if options.dataset == "images" and options.data_dir is None:
        raise cli.UsageError("--dataset images: name their folder with --data-dir DIR")
    if options.data_dir is not None and options.data_dir.exists() and not options.data_dir.is_dir():
        raise cli.UsageError(f"--data-dir {options.data_dir}: is no folder")
    if options.dataset != "images" and "flips" in options.given:
        raise cli.UsageError("--flips: has no effect here; it goes with --dataset images")
    options.device = cli.resolve_device(options)
    if options.threads is not None and options.device != "cpu":
        raise cli.UsageError("--threads: has no effect here; it goes with --device cpu")
    if options.mixed_precision and options.dtype != "float32":
        raise cli.UsageError("--mixed_precision: has no effect here; it goes with --dtype float32")
    if options.tf32 and (options.device, options.dtype) != ("cuda", "float32"):
        raise cli.UsageError("--tf32: has no effect here; it goes with --device cuda --dtype float32")
    return options


# --- runs --------------------------------------------------------------------------------------------------------


def runs(options: argparse.Namespace) -> Iterator[ReadyRun]:
    """The runs that ``options`` ask for and that do not exist yet; the others are reported and skipped.

    Raises UsageError or ResultError, each a line for the user, before the first run starts.
    """
    # of any images the result states which; otherwise one that has its results needs no data
    images = _images(options) if options.dataset == "images" else None
    wanted = []
    for seed in options.seed:
        config = _config(options, seed, images)
        path = _directory(options) / _file_name(options, config)
        if not options.force and already_there(path, _identity(config), partial(_say, config)):
            continue
        wanted.append((seed, config, path))
    images = images or (_images(options) if wanted else None)
    for _, _, path in wanted:
        results.prepare(path)
    for seed, config, path in wanted:
        plan = Plan(len(images.train), options.batch_size, options.epochs, options.final_epochs)
        here = dict(zip(_OF_A_PROCESS, (options.device, images.digest), strict=True))
        yield ReadyRun(config | here, path, images.to(options.device), plan, _network(options, seed, images.classes))


def perform(run: ReadyRun, step: Descent, options: argparse.Namespace) -> None:
    """Train and save one run; an interrupted one goes on from its checkpoint.

    Where another process works on it, wait for that one. A result that exists then is kept, unless ``--force``.
    """
    make, say = partial(_perform, run, step, options), partial(_say, run.config)
    once(run.path, _identity(run.config), make, say, force=options.force)


def _perform(run: ReadyRun, step: Descent, options: argparse.Namespace) -> None:
    config, label = run.config, _label(run.config)
    checkpoint = Checkpoint(
        results.checkpoint(run.path),
        config,
        STATE_VERSION,
        held=_OF_A_PROCESS,
        seconds=_CHECKPOINT_SECONDS,
        report=partial(_say, config),
    )
    keep_freed_memory()
    with StopSignals() as signals:  # one that comes when the training is over waits for the result
        record = train(
            step,
            run.images,
            run.plan,
            seed=config["seed"],
            memory_format=memory_format(config["device"], config["mixed_precision"] or config["tf32"]),
            tf32=config["tf32"],
            threads=options.threads,
            checkpoint=checkpoint,
            signals=signals,
            resume=options.resume,
            average=options.average,
            progress=options.progress,
            label=label,
            report=partial(_say, config),
            earlier=partial(_earlier, run, checkpoint) if not options.force else lambda step: None,
        )
        results.save_result(run.path, _contents(run, record, checkpoint))
        checkpoint.remove()
    _say(
        config,
        f"{run.plan.passes} passes in {cli.duration(record.elapsed)}, loss "
        f"{record.loss[-run.plan.steps_per_pass :].mean():.5g}, test accuracy {record.accuracy[-1]:.4f}",
    )
    _say(config, f"wrote {run.path}")
    signals.check()


def _earlier(run: ReadyRun, checkpoint: Checkpoint, step: int) -> dict | None:
    """The state of the run of another length beside ``run`` that has come furthest in the steps they share, or None
    where none has done more than ``step``.

    That is what its checkpoint holds, or its checkpoint or result of the end of its passes at the full rate.
    """
    folder, own = run.path.parent, run.path.stem
    files = sorted(chain(*(folder.glob(f"*{path.suffix}") for path in (run.path, checkpoint.path))))
    best, place = None, None
    for path in files:
        alike = path.stem != own and names.without_length(path.stem) == names.without_length(own)
        state = _shared(path, run, checkpoint) if alike else None
        if state is not None and state["step"] > step:
            best, place, step = state, path, state["step"]
    if best is not None:
        _say(run.config, f"begins like {place}")
    return best


def _shared(path: Path, run: ReadyRun, checkpoint: Checkpoint) -> dict | None:
    """The state in a result or a checkpoint at ``path``, if ``run`` comes through it too."""
    try:
        found = results.load(path)
    except results.ResultError:
        return None
    kept = found.get("full_rate") if path.suffix == run.path.suffix else found
    if not isinstance(kept, dict) or checkpoint.obstacle(kept, free=_LENGTH):
        return None
    plan = replace(run.plan, **{key: kept["config"][key] for key in _LENGTH})
    states = (kept["state"], kept["state"].get("full_rate"))  # the later one first
    return next((state for state in states if state and run.plan.begins_like(plan, state["step"])), None)


def _identity(config: dict) -> dict:
    """The options that decide the numbers of a result."""
    return {key: value for key, value in config.items() if key not in _OF_A_PROCESS}


def _say(config: dict, line: str) -> None:
    cli.say(f"{_label(config)}: {line}")


def memory_format(device: str, reduced: bool) -> torch.memory_format:
    """The layout of images that is fast: the one that the convolutions of CPUs and, at ``reduced`` precision, of tensor
    cores compute in; those of CUDA in float32 are made for the usual one."""
    return torch.channels_last if device == "cpu" or reduced else torch.contiguous_format


def _contents(run: ReadyRun, record: Record, checkpoint: Checkpoint) -> dict:
    return {
        "config": run.config,
        "loss": record.loss,
        "accuracy": record.accuracy,
        "learning_rate": record.learning_rate,
        "network": run.network.state_dict(),
        "mean": list(run.images.mean),
        "std": list(run.images.std),
        "class_names": list(run.images.class_names),
        "full_rate": {} if record.full_rate is None else checkpoint.contents(record.full_rate),
        "elapsed_time": record.elapsed,
        "images_per_second": run.plan.passes * run.plan.images / record.elapsed,  # tests included in the time
        "provenance": results.provenance(run.config["device"])
        | {"torchvision": installed_version("torchvision"), "threads": " ".join(map(str, record.threads))},
    }


def _config(options: argparse.Namespace, seed: int, images: cifar.Images | None) -> dict:
    config = {
        "experiment": names.RESNET,
        "dataset": options.dataset,
        "optimizer": options.optimizer,
        "batch_size": options.batch_size,
        "lambda": options.lmbda,
        "time_scale": options.time_scale,
        "momentum": options.momentum,
        "epochs": options.epochs,
        "final_epochs": options.final_epochs,
        "dtype": options.dtype,
        "mixed_precision": options.mixed_precision,
        "tf32": options.tf32,
        "seed": seed,
        "name": options.name,
    }
    if options.dataset == "images":
        config |= {"data": images.digest[:_DIGITS], "flips": options.flips}
    config |= {name: getattr(options, name) for name in _OWN.get(options.optimizer, ())}
    if options.average:
        config["average"] = options.average
    return config


def _file_name(options: argparse.Namespace, config: dict) -> str:
    """States the paper's parameters always, the others where they are not the default."""
    changed = {key: config[key] for key in _NAMED if key in config and config[key] != options.defaults[key]}
    return names.resnet(config, changed, options.name)


def _label(config: dict) -> str:
    return f"{config['optimizer']} seed {config['seed']}"


def _images(options: argparse.Namespace) -> cifar.Images:
    folder = options.data_dir or image_files.folder()
    cache = _directory(options) / "images"
    images = cifar.load(options.dataset, folder, flips=options.flips, cache=cache, report=cli.say)
    if options.batch_size > len(images.train):
        raise cli.UsageError(f"--batch_size {options.batch_size}: {options.dataset} has {len(images.train)} images")
    return images


def _directory(options: argparse.Namespace) -> Path:
    """Of the result files."""
    return options.output or names.directory(names.RESNET)


def _network(options: argparse.Namespace, seed: int, classes: int) -> ResNet20:
    """Initialised on the CPU from ``seed``, the same on every device."""
    torch.manual_seed(seed)
    return ResNet20(classes).to(options.device, getattr(torch, options.dtype))
