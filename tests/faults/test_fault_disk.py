"""Two processes on one run, stale locks, full disks and folders that cannot be written."""

import errno
import os
import platform
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import ledger
import pytest
import torch
from processes import CIRCLE, SCRIPTS, Running, difference, finish

from varpro import results
from varpro.runs.bookkeeping import locked

OPTIONS = [*CIRCLE, "--distances", "--epochs", "3000"]  # without a limit: one file, of 400 kB
QUICK = {"VARPRO_CHECKPOINT_SECONDS": "0.02"}


def start(folder: Path, log: Path, *more: str) -> Running:
    return Running(SCRIPTS["circle"], [*OPTIONS, "--output", str(folder), *more], log)


# --- two at once -------------------------------------------------------------------------------------------------


def test_a_second_process_waits_and_keeps_the_result(tmp_path):
    """This process holds the lock as a run does, and puts the result there before it lets go."""
    folder = tmp_path / "results"
    assert start(tmp_path / "made", tmp_path / "log").wait() == 0
    (made,) = (tmp_path / "made").iterdir()
    folder.mkdir()
    path = folder / made.name
    with locked(path, print):
        second = start(folder, tmp_path / "second.log")
        second.wait_for(f"waits for process {os.getpid()} on {platform.node()}, which works on {path}")
        path.write_bytes(made.read_bytes())
    assert second.wait() == 0
    assert second.output().endswith(f"kept {path}\n")
    assert "wrote" not in second.output()
    assert list(folder.iterdir()) == [path]
    ledger.count("processes that met another on the same run")


def test_many_at_once_compute_a_run_once(tmp_path):
    folder, number = tmp_path / "results", ledger.size(3, 8)
    processes = [start(folder, tmp_path / f"{each}.log") for each in range(number)]
    assert [process.wait() for process in processes] == [0] * number
    outputs = [process.output() for process in processes]
    assert sum("wrote" in output for output in outputs) == 1, outputs
    assert sum("kept" in output for output in outputs) == number - 1, outputs
    assert [path.suffix for path in folder.iterdir()] == [".pt"]
    ledger.count("processes that met another on the same run", number - 1)


def test_the_lock_of_a_killed_process_is_no_obstacle(tmp_path):
    folder = tmp_path / "results"
    first = start(folder, tmp_path / "first.log", "--epochs", "10000000")
    first.wait_for("to go;")
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert list(folder.glob("*.lock"))
    (unfinished,) = folder.glob("*.lock")
    other = folder / unfinished.name.replace("10000000", "3000")
    unfinished.rename(other)
    code, output = finish(SCRIPTS["circle"], [*OPTIONS, "--output", str(folder)], tmp_path / "second.log")
    assert code == 0, output
    assert "waits" not in output
    assert [path.suffix for path in folder.iterdir()] == [".pt"]


@pytest.mark.parametrize("left", [".{}.abc.tmp", "{stem}.lock", "{stem}.checkpoint", ".{stem}.checkpoint.x.tmp"])
def test_what_a_kill_left_beside_a_finished_result_goes_at_the_next_start(left, tmp_path):
    folder = tmp_path / "results"
    arguments = [*OPTIONS, "--epochs", "20", "--output", str(folder)]
    assert finish(SCRIPTS["circle"], arguments, tmp_path / "log")[0] == 0
    (path,) = folder.iterdir()
    before = path.read_bytes()
    (folder / left.format(path.name, stem=path.stem)).write_bytes(b"left over")
    code, output = finish(SCRIPTS["circle"], arguments, tmp_path / "log")
    assert code == 0, output
    assert "kept" in output
    assert list(folder.iterdir()) == [path]
    assert path.read_bytes() == before


# --- full disks --------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 250 kB: less than two checkpoints of the end of the run."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def one_line(output: str, *named: str) -> None:
    """The last line of ``output`` is an error that names all of ``named``; nothing looks like a traceback."""
    last = output.splitlines()[-1]
    assert "error: " in last, output
    assert all(text in last for text in named), output
    assert "Traceback" not in output


@pytest.mark.parametrize("seconds", ["0.02", "1000"])
def test_a_disk_that_fills_up(seconds, disk, tmp_path):
    """In the midst of a checkpoint, and at the result."""
    environment = {"VARPRO_CHECKPOINT_SECONDS": seconds}
    arguments = [*OPTIONS, "--epochs", "30000", "--output", str(disk)]
    code, output = finish(SCRIPTS["circle"], arguments, tmp_path / "log", environment=environment)
    assert code == 2, output
    one_line(output, str(disk), "No space left on device", "what was there is kept")
    kept = list(disk.iterdir())
    assert [path.suffix for path in kept] == ([".checkpoint"] if seconds == "0.02" else [])
    for path in kept:
        assert results.load(path)["state"]["epoch"] > 0
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    code, output = finish(SCRIPTS["circle"], arguments, tmp_path / "log")
    assert code == 0, output
    whole = [*arguments[:-1], str(tmp_path / "whole")]
    assert finish(SCRIPTS["circle"], whole, tmp_path / "log")[0] == 0
    (found,), (expected,) = disk.iterdir(), (tmp_path / "whole").iterdir()
    assert difference(results.load(found), results.load(expected)) == (0.0, "")
    ledger.count("full disks")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("good", [0, 1, 5])
def test_any_error_below_torch_is_one_line_and_what_was_there_stays(number, good, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    results.save(path, {"value": 1})
    written = []

    def write(self, data):
        written.append(data)
        if len(written) > good:
            self.error = OSError(number, os.strerror(number))
            raise self.error
        return self._file.write(data)

    monkeypatch.setattr(results._Stream, "write", write)
    with pytest.raises(results.ResultError) as caught:
        results.save(path, {"value": 2, "more": torch.zeros(10000)})
    assert str(caught.value) == f"{path}: cannot be written: {os.strerror(number)}; what was there is kept"
    assert results.load(path) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]
    ledger.count("full disks")


# --- folders -----------------------------------------------------------------------------------------------------


def test_folders_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    places = [file, file / "below", Path("/proc/none"), tmp_path / ("x" * 300)]
    for place in places:
        arguments = [*OPTIONS, "--output", str(place)]
        code, output = finish(SCRIPTS["circle"], arguments, tmp_path / "log")
        assert code == 2, output
        one_line(output, str(place))
        assert "\n" not in output.strip()
        ledger.count("folders that cannot be written")
    assert file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "log"]


def test_a_result_in_a_folder_that_cannot_be_written_is_kept(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    mount = ["mount", "--bind", str(folder), str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a folder that cannot be written")
    try:
        arguments = [*OPTIONS, "--epochs", "20", "--output", str(folder)]
        assert finish(SCRIPTS["circle"], arguments, tmp_path / "log")[0] == 0
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        code, output = finish(SCRIPTS["circle"], arguments, tmp_path / "log")
        assert (code, "kept" in output) == (0, True), output
        code, output = finish(SCRIPTS["circle"], [*arguments, "--seed", "1"], tmp_path / "log")
        assert code == 2, output
        one_line(output, str(folder), "Read-only file system")
        ledger.count("folders that cannot be written")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
