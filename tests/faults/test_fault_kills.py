"""Processes that are killed at random moments: nothing damaged, nothing left over, and the next start finishes."""

import random
import signal
import time
from pathlib import Path

import ledger
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image
from processes import CIRCLE, KILLS, SCRIPTS, Experiment, Running, difference, farewell, finish
from tolerances import CARRIED_ON_TORUS

from varpro import results

ANSWER = "seconds from SIGTERM, SIGINT or SIGHUP to the end"
_QUICK = {"VARPRO_CHECKPOINT_SECONDS": "0.05"}

EXPERIMENTS = {
    "circle": Experiment("circle", (*CIRCLE, "--distances", "--epochs", "3000")),
    "circle and its limit": Experiment("circle", (*CIRCLE, "--epochs", "600")),
    "two-timescale": Experiment("two-timescale", (*CIRCLE, "--distances", "--epochs", "2000")),
    "momentum": Experiment("circle", (*CIRCLE, "--optimizer", "momentum", "--epochs", "600")),
    "lbfgs": Experiment("circle", (*CIRCLE, "--optimizer", "lbfgs", "--epochs", "100")),
    "lm": Experiment("circle", (*CIRCLE, "--optimizer", "lm", "--epochs", "60")),
    "dense": Experiment(
        "biased", (*CIRCLE, "--distances", "--solver", "dense", "--dtype", "float64", "--epochs", "300")
    ),
    "torus": Experiment("torus", (*CIRCLE, "--distances", "--epochs", "150", "--dtype", "float64"), CARRIED_ON_TORUS),
    "resnet": Experiment("resnet", ("--threads", "1", "--epochs", "1", "--final_epochs", "0", "--batch_size", "500")),
    "resnet on images": Experiment(
        "resnet",
        (
            *("--dataset", "images", "--data-dir", "IMAGES", "--no-flips", "--threads", "1", "--batch_size", "10"),
            *("--final_epochs", "0", "--epochs", "3"),
        ),
    ),
    "circle limit": Experiment("diffusion", ("--epochs", "2000", "--grid_size", "512")),
    "projected limit": Experiment("diffusion", ("--epochs", "300", "--limit", "projected", "--grid_size", "128")),
    "torus limit": Experiment("diffusion", ("--epochs", "300", "--domain", "torus", "--grid_size", "32")),
}
SHORT = {"circle": 4, "circle limit": 2}  # kills in the usual suite
LONG = {  # and in the long run
    "circle": 40,
    "two-timescale": 40,
    "circle limit": 24,
    "circle and its limit": 20,
    "momentum": 18,
    "dense": 18,
    "lbfgs": 12,
    "torus": 12,
    "resnet on images": 12,
    "resnet": 2,
    "torus limit": 8,
    "projected limit": 8,
    "lm": 6,
}


RANDOM, KEPT = "kills of runs at random moments", "signals to a training that has no checkpoint yet"
TRAININGS = ("circle", "resnet on images")
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PROMISED = {RANDOM: sum(LONG.values()), KEPT: len(TRAININGS) * len(STOPPING)}


class Attempts:
    """One command line that is started again and again in one folder."""

    def __init__(self, experiment: Experiment, folder: Path, environment: dict[str, str]) -> None:
        self.script = SCRIPTS[experiment.script]
        self.folder, self.environment = folder, environment
        self.arguments = [*experiment.options, "--output", str(folder)]
        if "IMAGES" in self.arguments:
            self.arguments[self.arguments.index("IMAGES")] = str(_images(folder.parent / "images"))
        self.log = folder.with_suffix(".log")
        folder.mkdir(exist_ok=True)

    def start(self) -> Running:
        return Running(self.script, self.arguments, self.log, self.environment)

    def finish(self) -> str:
        code, output = finish(self.script, self.arguments, self.log, environment=self.environment)
        assert code == 0, output
        return output

    def sound(self) -> dict[Path, bytes]:
        """The result files, each of which can be read whole."""
        found = sorted(self.folder.glob("*.pt"))
        for path in found:
            results.load(path)
        return {path: path.read_bytes() for path in found}


def _images(folder: Path) -> Path:
    """Fifty digits as pictures in class folders, since all of them take a ResNet a while."""
    if not folder.exists():
        digits = sklearn.datasets.load_digits()
        for number, (pixels, label) in enumerate(zip(digits.images[:50], digits.target[:50], strict=True)):
            place = folder / ("train" if number < 40 else "test") / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.kron(15 * pixels, np.ones((4, 4))).astype(np.uint8)).save(place / f"{number}.png")
    return folder


def _kills(name: str) -> int:
    return ledger.size(SHORT.get(name, 0), LONG[name])


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if _kills(name)])
def test_kills_at_random_moments(name, tmp_path):
    experiment, draw = EXPERIMENTS[name], random.Random(name)
    undisturbed = Attempts(experiment, tmp_path / "undisturbed", {})
    undisturbed.finish()  # compiles, perhaps
    for path in undisturbed.sound():
        path.unlink()
    begin = time.monotonic()
    undisturbed.finish()
    length = time.monotonic() - begin
    expected = {path.name: results.load(path) for path in undisturbed.sound()}
    left = sorted(path.name for path in undisturbed.folder.iterdir())
    done = number = 0
    while done < _kills(name):
        number += 1
        assert number <= 20 * _kills(name), "the process always ends before its kill"
        run = Attempts(experiment, tmp_path / f"killed {number}", _QUICK)
        before: dict[Path, bytes] = {}
        for _ in range(draw.randint(1, 3)):
            process, how = run.start(), draw.choice(KILLS)
            time.sleep(draw.uniform(0.0, length))
            sent = time.monotonic()
            process.send(how)
            code = process.wait()
            # 0: it was faster; minus the number: in the first moment, before the script has had its say
            assert code in (0, -how, 128 + how), process.output()
            if code == 128 + how:
                ledger.took(ANSWER, time.monotonic() - sent)
                assert process.output().splitlines()[-1] == farewell(SCRIPTS[experiment.script], how)
            done += code != 0
            ledger.count(f"kills by {how.name}", code != 0)
            ledger.count(RANDOM, code != 0)
            now = run.sound()
            assert all(now[path] == content for path, content in before.items())
            before = now
        run.finish()
        ledger.count("starts after kills, each of which finished")
        after = run.sound()
        assert all(after[path] == content for path, content in before.items())
        assert sorted(path.name for path in run.folder.iterdir()) == left
        for path in after:
            periodic = ("weights",) if name == "torus" else ()
            apart, where = difference(results.load(path), expected[path.name], periodic=periodic)
            assert apart <= experiment.tolerance, f"{where}: {apart}"


@pytest.mark.parametrize("how", STOPPING)
@pytest.mark.parametrize("name", TRAININGS if ledger.LONG else ["circle"])
def test_a_signal_keeps_what_was_done(name, how, tmp_path):
    """Without any checkpoint before: what is there afterwards, the signal has made."""
    longer = ("--epochs", "10000000" if name == "circle" else "5000")
    experiment = EXPERIMENTS[name]
    run = Attempts(Experiment(experiment.script, (*experiment.options, *longer)), tmp_path / "run", {})
    process = run.start()
    process.wait_for("to go;")
    sent = time.monotonic()
    process.send(how)
    assert process.wait() == 128 + how
    ledger.took(ANSWER, time.monotonic() - sent)
    ledger.count(f"kills by {how.name}")
    ledger.count(KEPT)
    assert process.output().splitlines()[-1] == farewell(SCRIPTS[experiment.script], how)
    (kept,) = run.folder.glob("*.checkpoint")
    state = results.load(kept)["state"]
    assert state["epoch" if name == "circle" else "step"] > 0
    assert not [path for path in run.folder.iterdir() if path.suffix in (".tmp", ".lock")]
