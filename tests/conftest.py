"""Fixtures and helpers shared by the tests."""

import importlib.util
import math
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import headroom
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from varpro import results
from varpro.paper import grid
from varpro.runs.schedule import schedule
from varpro.threads import one_torch_thread

ROOT = Path(__file__).resolve().parents[1]

# No deadlines, since machines are shared; the same examples every time, unless asked otherwise.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    headroom.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    # what runs in the background of a shell ignores these, and so would every process that a test starts
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.pluginmanager.register(headroom.Headroom(config))


def load_script(path: str) -> ModuleType:
    """A script of the repository as a module, by its path from the top; nothing of it runs but its definitions."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Little tensors in one thread: beside other work on the machine, several would wait for each other."""
    with one_torch_thread():
        yield


TINY_EPOCHS = 64


@pytest.fixture(scope="session")
def tiny_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every shallow run of the paper at 64 epochs, seed 0, made by the scripts; a folder to name in $VARPRO_RESULTS.

    The results of the other sections have made-up numbers.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # of all processes: the first one to come makes them
    folder = place / "tiny_results"
    with FileLock(place / "tiny_results.lock"):
        if not (folder / "made").exists():
            _make_tiny_results(folder)
            (folder / "made").touch()
    return folder


def _make_tiny_results(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VARPRO_RESULTS", str(folder))
        diffusion = load_script("make_diffusion.py")
        for each in (*grid.SECTIONS["6.1"].diffusions, *grid.SECTIONS["appendix-b"].diffusions):
            diffusion.main(replace(each, epochs=TINY_EPOCHS).arguments())
        runs = {run for name in ("6.1", "appendix-b", "optimizers") for run in grid.SECTIONS[name].runs}
        experiments = {run.experiment for run in runs}
        scripts = {experiment: load_script(f"{experiment}/Experiment.py") for experiment in sorted(experiments)}
        for run in sorted(runs):
            scripts[run.experiment].main(replace(run, epochs=TINY_EPOCHS).arguments([0]))
        pretend_mean_field()
        for run in grid.DIGITS_RUNS:
            pretend_resnet(run, range(3))


def pretend_mean_field() -> None:
    """Results of the study of the limit at 64 epochs, seeds 0 to 5, with made-up numbers and eight neurons."""
    section = grid.mean_field(TINY_EPOCHS)
    for limit in ("diffusion", "projected"):
        load_script("make_diffusion.py").main(grid.Diffusion(epochs=TINY_EPOCHS, limit=limit).arguments())
    for run, seeds in section.wanted().items():
        plan = schedule(run.epochs, run.saving_step)
        snapshots, times = len(plan.snapshot_epochs), torch.from_numpy(plan.distance_epochs) * run.time_scale
        angles = torch.linspace(0, 6, 8)[None] + torch.linspace(0, 1, snapshots)[:, None] * (1 + run.time_scale)
        angles = angles + 0.5 * (run.experiment == grid.TWO_TIMESCALE)
        for seed in seeds:
            weights = torch.stack([torch.cos(angles + 0.1 * seed), torch.sin(angles + 0.1 * seed)], dim=-1)
            contents = {"snapshot_epochs": torch.from_numpy(plan.snapshot_epochs), "weights": weights}
            contents |= {"outer": torch.ones(snapshots, 8), "loss": 1 + torch.arange(run.epochs).double() / 8}
            contents |= {"distance_epochs": torch.from_numpy(plan.distance_epochs)}
            for name, least in (("teacher", 0.3), ("diffusion", 0.02), ("projected", 1 / run.width)):
                contents[f"distance_{name}"] = least + run.lmbda**0.5 * (1 + times) + 0.01 * seed
            results.save(run.path(seed), contents)


def pretend_resnet(run: grid.ResNetRun, seeds: Iterable[int]) -> None:
    """Results of ``run`` with made-up numbers: training a ResNet takes longer than a test may."""
    steps = math.ceil(1500 / run.batch_size) * run.passes
    for seed in seeds:
        loss = 50 / (1 + torch.arange(steps, dtype=torch.float64)) + seed
        accuracy = 1 - 0.9 / (1 + torch.arange(run.passes + 1, dtype=torch.float64)) - 0.01 * seed
        results.save(run.path(seed), {"loss": loss, "accuracy": accuracy})
