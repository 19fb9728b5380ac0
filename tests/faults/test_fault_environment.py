"""Machines that lack what others have: a home, a locale, a terminal, a folder that can be written, a reader."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ledger
import pytest
from processes import CIRCLE, ROOT, SCRIPTS, finish

from varpro import results

OPTIONS = [*CIRCLE, "--distances", "--epochs", "30"]
ENVIRONMENTS = {
    "C locale": {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "unknown locale": {"LC_ALL": "tr_TR.ISO-8859-9", "LANG": "xx_XX"},
    "ASCII output": {"PYTHONIOENCODING": "ascii:strict"},
    "no home": {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"},
    "hash seed": {"PYTHONHASHSEED": "4711"},
    "dumb terminal": {"TERM": "dumb", "COLUMNS": "0"},
    "one core": {},
}
PROMISED = {"environments": len(ENVIRONMENTS) + 2}  # and without any, and where the reader has gone


def command(*options: str, at: Path = ROOT) -> list[str]:
    return [sys.executable, str(at / SCRIPTS["circle"]), *options]


@pytest.mark.parametrize("name", ENVIRONMENTS if ledger.LONG else ["C locale"])
def test_a_run_in_another_environment_and_in_any_folder(name, tmp_path):
    """A fresh interpreter, in a folder and for an output with blanks, quotes and letters of other alphabets."""
    folder = tmp_path / "Übung 'eins' \"zwei\" $(x) λ"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENTS[name]}
    alone = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))] if name == "one core" else []
    done = subprocess.run(
        [*alone, *command(*OPTIONS, "--output", "hier 'λ'")],
        cwd=folder,
        env=environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    (path,) = (folder / "hier 'λ'").iterdir()
    assert results.load(path)["config"]["epochs"] == 30
    ledger.count("environments")


def test_a_run_without_any_environment_but_its_path(tmp_path):
    if not ledger.LONG:
        pytest.skip("in the long run")
    kept = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command(*OPTIONS, "--output", str(tmp_path)), env=kept, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    ledger.count("environments")


def test_a_reader_that_goes_away_does_not_end_a_run(tmp_path):
    read, write = os.pipe()
    os.close(read)
    script = subprocess.Popen(
        command(*OPTIONS, "--output", str(tmp_path / "results")),
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(write)
    assert script.stderr.read() == b""
    assert script.wait() == 0
    (path,) = (tmp_path / "results").iterdir()
    assert results.load(path)["config"]["epochs"] == 30
    ledger.count("environments")


@pytest.mark.parametrize("seconds", ["x", "-1", "nan", "inf"] if ledger.LONG else ["nan"])
def test_a_wrong_interval_of_checkpoints_is_refused(seconds, tmp_path):
    environment = {"VARPRO_CHECKPOINT_SECONDS": seconds}
    arguments = [*OPTIONS, "--output", str(tmp_path / "results")]
    code, output = finish(SCRIPTS["circle"], arguments, tmp_path / "log", environment=environment)
    assert code == 2, output
    assert f"$VARPRO_CHECKPOINT_SECONDS is {seconds!r}: allowed is a finite number from 0 up" in output
    assert len(output.splitlines()) == 1
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.skipif(not ledger.LONG, reason="compiles anew: in the long run")
def test_a_clone_that_cannot_be_written_and_no_home(tmp_path):
    """Everything is compiled in the process, since no place for machine code is found."""
    clone = tmp_path / 'Übung\'s "two" words'
    for name in ("varpro", "VarPro_ReLU_1d_unbiased"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    mount = ["mount", "--bind", str(clone), str(clone)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a folder that cannot be written")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(clone)], check=True)
        environment = {**os.environ, "PYTHONPATH": str(clone), "HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
        output = tmp_path / "results"
        done = subprocess.run(
            command(*OPTIONS, "--output", str(output), at=clone),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert len(list(output.iterdir())) == 1
        refused = subprocess.run(command(*OPTIONS, at=clone), env=environment, capture_output=True, check=False)
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
        assert b"Read-only file system" in refused.stderr
        ledger.count("environments")
    finally:
        subprocess.run(["umount", str(clone)], check=True)
