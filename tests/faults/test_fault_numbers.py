"""Problems at the edge of what numbers can hold: a run stays finite, or it stops with the epoch and a hint."""

import itertools
import re
from pathlib import Path

import ledger
import numpy as np
import pytest
import torch
from conftest import load_script
from processes import SCRIPTS

from varpro import results

EPOCHS = 12


def awkward() -> dict[str, dict[str, torch.Tensor]]:
    """Data files, by what is awkward about them."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 2))
    targets = np.maximum(inputs @ np.array([0.6, 0.8]), 0) + 0.1 * rng.normal(size=40)
    angles = rng.uniform(-np.pi, np.pi, 12)
    weights = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cases = {
        "plain": (inputs, targets, weights),
        "inputs of 1e6": (1e6 * inputs, targets, weights),
        "inputs of 1e-6": (1e-6 * inputs, targets, weights),
        "coincident neurons": (inputs, targets, np.repeat(weights[:1], 12, axis=0)),
        "coincident inputs": (np.repeat(inputs[:1], 40, axis=0), targets, weights),
        "constant targets": (inputs, np.ones(40), weights),
        "targets of zero": (inputs, np.zeros(40), weights),
        "targets of 1e100": (inputs, 1e100 * targets, weights),
        "one neuron": (inputs, targets, weights[:1]),
        "one sample": (inputs[:1], targets[:1], weights),
        "one of each": (inputs[:1], targets[:1], weights[:1]),
    }
    names = ("inputs", "targets", "student_weights")
    return {name: dict(zip(names, map(torch.from_numpy, arrays), strict=True)) for name, arrays in cases.items()}


DATA = awkward()
NUMBERS = [
    [],
    ["--lambda", "1e-12"],
    ["--lambda", "1e12"],
    ["--time_scale", "1e3"],
    ["--time_scale", "1e6"],
    ["--lambda", "1e-12", "--time_scale", "1e6"],
]
ROUTES = {
    "linear": ("circle", ["--solver", "linear"]),
    "biased": ("biased", ["--solver", "linear"]),
    "dense float32": ("circle", ["--solver", "dense", "--dtype", "float32"]),
    "dense float64": ("circle", ["--solver", "dense", "--dtype", "float64"]),
    "two-timescale": ("two-timescale", ["--solver", "linear"]),
    "two-timescale dense": ("two-timescale", ["--solver", "dense", "--dtype", "float32"]),
    "momentum": ("circle", ["--optimizer", "momentum"]),
    "lbfgs": ("circle", ["--optimizer", "lbfgs"]),
    "lm": ("circle", ["--optimizer", "lm"]),
    "lm dense": ("circle", ["--optimizer", "lm", "--solver", "dense", "--dtype", "float64"]),
    "torus cg": ("torus", ["--solver", "cg"]),
    "torus dense": ("torus", ["--solver", "dense"]),
    "torus lbfgs": ("torus", ["--optimizer", "lbfgs"]),
    "torus lm": ("torus", ["--optimizer", "lm"]),
}
CASES = list(itertools.product(ROUTES, DATA, range(len(NUMBERS))))
TIME_SCALES, OPTIMIZERS = ("1e3", "1e6"), ("varprom", "sgdm", "shampoo", "varpro-running")  # of ResNets
PROMISED = {"runs at the edge of numbers": len(CASES) + len(TIME_SCALES) * len(OPTIMIZERS)}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    found = {name: folder / f"{number}.pt" for number, name in enumerate(DATA)}
    for name, path in found.items():
        torch.save(DATA[name], path)
    return found


def finite(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    return all(map(finite, value.values())) if isinstance(value, dict) else True


@pytest.mark.parametrize("route", ROUTES)
def test_a_run_stays_finite_or_stops_with_the_epoch_and_a_hint(route, files, tmp_path, capsys):
    cases = [case for case in CASES if case[0] == route]
    script, options = ROUTES[route]
    main = load_script(SCRIPTS[script]).main
    for _, data, number in cases if ledger.LONG else cases[hash_of(route) % 11 :: 11]:
        folder = tmp_path / f"{data} {number}"
        arguments = ["--data", str(files[data]), "--epochs", str(EPOCHS), *options, *NUMBERS[number]]
        stopped = _run(main, [*arguments, "--output", str(folder)])
        said = capsys.readouterr()
        where = (route, data, NUMBERS[number], said.err)
        found = list(folder.glob("*.pt")) if folder.exists() else []
        assert "Traceback" not in said.err, where
        if stopped == 0:
            assert finite(results.load(found[0])), where
        elif stopped == 1:
            assert not found, where
            last = said.err.splitlines()[-1]
            assert re.search(r"epoch \d+", last), where
            assert re.search(r"; try |use ", last), where
            ledger.count("of these stopped with the epoch and a hint")
        else:  # refused before it began
            assert (stopped, len(said.err.splitlines())) == (2, 1), where
            ledger.count("of these refused with a line")
        ledger.count("runs at the edge of numbers")


def hash_of(text: str) -> int:
    """The same in every process."""
    return sum(map(ord, text))


def _run(main, arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as stop:
        return stop.code
    return 0


def test_a_result_that_is_not_finite_is_not_written(tmp_path):
    path = tmp_path / "run.pt"
    for bad in (torch.tensor([1.0, float("nan")]), torch.tensor(float("inf"))):
        with pytest.raises(FloatingPointError, match=r"'loss' is not finite, .*run\.pt is not written; try a smaller"):
            results.save_result(path, {"config": {"samples": float("inf")}, "network": {"loss": bad}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("time_scale", TIME_SCALES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS if ledger.LONG else ["sgdm"])
def test_a_resnet_stays_finite_or_stops_with_pass_and_step(optimizer, time_scale, tmp_path, capsys):
    main = load_script(SCRIPTS["resnet"]).main
    length = ["--epochs", "1", "--final_epochs", "0", "--batch_size", "750", "--threads", "1"]
    options = ["--optimizer", optimizer, "--time_scale", time_scale, *length]
    stopped = _run(main, [*options, "--output", str(tmp_path)])
    said = capsys.readouterr().err
    found = [path for path in tmp_path.iterdir() if path.suffix == ".pt"]
    if stopped:
        assert stopped == 1, said
        assert re.search(r"(pass \d+, step \d+|not written).*try a smaller --time_scale", said.splitlines()[-1]), said
        assert not found
        ledger.count("of these stopped with the epoch and a hint")
    else:
        assert finite(results.load(found[0]))
    ledger.count("runs at the edge of numbers")
