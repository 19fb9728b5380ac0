"""What runs are called: the folder and the name of every result file (docs/definitions.md, 7).

The scripts that write results and the grid that looks for them both ask here. A name states the parameters of its kind
of run always, other options where they are not the default, and the seed. Nothing here needs PyTorch.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # the repository: the package is installed in editable mode
RESNET = "VarPro_resnet"  # folder of the ResNet experiment
_RESULTS_ROOT = "VARPRO_RESULTS"  # environment variable: another place for every experiment's results
_ORDER = (  # of what is stated where it is not the default; anything else comes after these
    "teacher_width",
    "samples",
    "grid_size",
    "time_scale",
    "saving_step",
    "activation",
    "momentum",
    "final_epochs",
    "shampoo_variant",
    "update_every",
    "mixed_precision",
    "tf32",
    "solver",
    "dtype",
    "optimizer",
    "tolerance",
    "features",
    "outer_rate",
    "init",
    "distances",
    "continuation",
    "flips",
    "memory",
    "average",
)


def directory(experiment: str | Path = "") -> Path:
    """``results/`` in an experiment folder, a name in the repository or a whole path; in the repository for ``""``.

    Below ``$VARPRO_RESULTS`` where that is set, which tests and other sweeps use.
    """
    root = os.environ.get(_RESULTS_ROOT)
    return (ROOT / experiment if root is None else Path(root, Path(experiment).name)) / "results"


def file_name(parameters: Mapping[str, Any], name: str = "") -> str:
    """``[name_]key=value_..._key=value.pt`` in the order of ``parameters``; numbers in their shortest form."""
    parts = [f"{key}={short(value)}" for key, value in parameters.items()]
    return "_".join([name, *parts] if name else parts) + ".pt"


def shallow(config: Mapping[str, Any], changed: Mapping[str, Any] | None = None, name: str = "") -> str:
    """The file name of a shallow run (Section 6.1, Appendix B).

    ``config`` has ``lambda``, ``student_width``, ``gamma`` (or the label of the user's ``data``), ``epochs`` and
    ``seed``; ``changed`` are the options that differ from their defaults; ``name`` is a prefix.
    """
    law = "gamma" if config.get("data") is None else "data"
    stated = {"lambda": config["lambda"], "width": config["student_width"], law: config[law]}
    return file_name(stated | {"epochs": config["epochs"]} | _ordered(changed) | {"seed": config["seed"]}, name)


def resnet(config: Mapping[str, Any], changed: Mapping[str, Any] | None = None, name: str = "") -> str:
    """The file name of a ResNet run (Section 6.2).

    ``config`` has ``dataset`` (and the label of the user's own images, ``data``), ``optimizer``, ``batch_size``,
    ``lambda``, ``epochs`` and ``seed``; the rest is as in :func:`shallow`.
    """
    stated = {key: config[key] for key in ("dataset", "data") if key in config}
    stated |= {key: config[key] for key in ("optimizer", "batch_size", "lambda", "epochs")}
    return file_name(stated | _ordered(changed) | {"seed": config["seed"]}, name)


def without_length(name: str) -> str:
    """A file ``name`` without what it says about the number of epochs."""
    return re.sub(r"_(final_)?epochs=\d+", "", name)


def limit_prefix(domain: str, name: str) -> str:
    """What the file names of the limit ``name`` on ``domain`` begin with."""
    return name if domain == "circle" else f"{domain}_{name}"


def limit(prefix: str, config: Mapping[str, Any], changed: Mapping[str, Any] | None = None, name: str = "") -> str:
    """The file name of a limit of the dynamics, ``prefix`` says of which; ``config`` has ``gamma`` and ``epochs``, all
    else is as in :func:`shallow`."""
    return file_name({f"{prefix}_gamma": config["gamma"], "epochs": config["epochs"]} | _ordered(changed), name)


def _ordered(changed: Mapping[str, Any] | None) -> dict[str, Any]:
    changed = changed or {}
    return {key: changed[key] for key in (*_ORDER, *changed) if key in changed}


def short(value: Any) -> str:
    """``value`` as it stands in file names and on command lines."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)
