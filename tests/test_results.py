"""Result files: whole or absent, safe to open, told apart by their parameters."""

import errno
import os
import pickle
import signal

import pytest
import torch
from matplotlib.figure import Figure

from varpro import names, results
from varpro.cli import UsageError
from varpro.figures import publish
from varpro.runs import bookkeeping
from varpro.runs.bookkeeping import Checkpoint, StopSignals, already_there, once


def test_round_trip_keeps_types_and_values(tmp_path):
    contents = {"config": {"lambda": 1e-3, "name": "x", "list": [1, 2]}, "loss": torch.arange(3.0), "time": 1.5}
    path = tmp_path / "deep" / "run.pt"
    results.save(path, contents)
    found = results.load(path)
    assert found["config"] == contents["config"]
    assert torch.equal(found["loss"], contents["loss"])
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]


def test_a_view_is_saved_without_what_it_is_a_view_of(tmp_path):
    results.save(tmp_path / "run.pt", {"row": torch.zeros(1000, 1000)[3]})
    assert (tmp_path / "run.pt").stat().st_size < 10_000


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"deep": bad}, lambda bad: [1, {"deep": [bad]}]])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_result_holds_what_is_not_finite(wrap, value, tmp_path):
    with pytest.raises(FloatingPointError, match=r"is not finite, .*run\.pt is not written"):
        results.save_result(tmp_path / "run.pt", {"loss": torch.ones(2), "state": wrap(torch.tensor([1.0, value]))})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "run.pt"
    results.save(path, {"value": 1})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        results.save(path, {"value": lambda: None})
    assert results.load(path) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_figure_that_fails_half_way_leaves_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_FIGURES", str(tmp_path))
    figure = Figure()
    publish.save(figure, "one.pdf")
    before = (tmp_path / "one.pdf").read_bytes()

    def fail(stream, **options):
        stream.write(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(KeyboardInterrupt):
        publish.save(figure, "one.pdf")
    assert (tmp_path / "one.pdf").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "one.pdf"]


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"config": Attack()}, tmp_path / "run.pt")
    with pytest.raises(results.ResultError, match=r"run\.pt: not a file of tensors"):
        results.load(tmp_path / "run.pt")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "list"])
def test_unreadable_files_give_one_line(tmp_path, damage):
    path = tmp_path / "run.pt"
    results.save(path, {"value": torch.zeros(100)})
    whole = path.read_bytes()
    if damage == "list":
        torch.save([1], path)
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"loss,1\n"}[damage])
    with pytest.raises(results.ResultError) as caught:
        results.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(results.ResultError, match="no such file"):
        results.load(tmp_path / "none.pt")


def test_complete_compares_the_configuration(tmp_path):
    path = tmp_path / "run.pt"
    assert not results.complete(path, {"seed": 1})
    results.save(path, {"config": {"seed": 1, "device": "cpu"}})
    assert results.complete(path, {"seed": 1})
    with pytest.raises(results.ResultError, match=r"was made with seed = 1, not 2; use --name or --output, or --force"):
        results.complete(path, {"seed": 2})


def test_file_names_state_the_parameters():
    parameters = {"lambda": 1e-3, "width": 32, "gamma": 100.0, "time_scale": 2**-10}
    assert names.file_name(parameters) == "lambda=0.001_width=32_gamma=100_time_scale=0.0009765625.pt"
    assert names.file_name({"seed": 0}, "trial") == "trial_seed=0.pt"


def test_provenance_names_versions_and_revision():
    found = results.provenance("cpu")
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert set(found) >= {"numpy", "numba", "python", "git_revision", "device", "platform"}
    assert all(isinstance(value, str) and value for value in found.values())


def test_results_root_can_be_moved(monkeypatch, tmp_path):
    assert names.directory("VarPro_ReLU_1d") == names.ROOT / "VarPro_ReLU_1d" / "results"
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))
    assert names.directory("VarPro_ReLU_1d") == tmp_path / "VarPro_ReLU_1d" / "results"


@pytest.mark.parametrize("config", [None, [1], torch.ones(2), {}, {"seed": torch.arange(3)}, {"seed": None}])
def test_a_file_with_another_config_of_any_kind_is_refused(tmp_path, config):
    path = tmp_path / "run.pt"
    results.save(path, {"config": config})
    with pytest.raises(
        results.ResultError, match=r"was made with seed = [^\n]*, not 1; use --name or --output, or --force"
    ):
        results.complete(path, {"seed": 1})


def test_a_checkpoint_of_another_device_is_not_overwritten(tmp_path):
    """Hours may be in it; one of other options is none of this run."""
    path, said = tmp_path / "run.checkpoint", []
    results.save(path, {"version": 2, "config": {"seed": 1, "device": "cuda"}, "state": {"step": 3}})
    with pytest.raises(UsageError, match=r"has device = cuda, not cpu; it is not overwritten; remove it to start .*$"):
        Checkpoint(path, {"seed": 1, "device": "cpu"}, 2, report=said.append).restore()
    assert said == []
    assert Checkpoint(path, {"seed": 2, "device": "cpu"}, 2, report=said.append).restore() is None
    assert said[0].startswith("starts anew: ")
    assert Checkpoint(path, {"seed": 1, "device": "cuda"}, 2).restore() == {"step": 3}


@pytest.mark.parametrize("age", [-60, 60])
def test_a_checkpoint_beside_a_result_goes_unless_it_is_the_later_one(age, tmp_path):
    """A later one is that of a run that was to replace the result, and was stopped."""
    path, kept, said = tmp_path / "run.pt", tmp_path / "run.checkpoint", []
    results.save(kept, {"state": {}})
    results.save(path, {"config": {"seed": 1}})
    os.utime(kept, (path.stat().st_mtime + age,) * 2)
    assert already_there(path, {"seed": 1}, said.append)
    assert said == [f"kept {path}"]
    assert kept.exists() == (age > 0)
    assert {left.suffix for left in tmp_path.iterdir()} <= {".pt", ".checkpoint"}


def test_without_locks_nobody_removes_what_another_process_writes(tmp_path, monkeypatch):
    """And no lock's file stays that nobody could hold."""

    def without_locks(*_):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(bookkeeping.fcntl, "flock", without_locks)
    path, said = tmp_path / "run.pt", []
    theirs = tmp_path / f".{path.name}.0{results._UNFINISHED}"
    theirs.touch()
    assert results.unfinished(path) == [theirs]
    config = {"seed": 1}
    once(path, config, lambda: results.save(path, {"config": config}), said.append, force=False)
    assert already_there(path, config, said.append)
    assert sorted(tmp_path.iterdir()) == [theirs, path]


def test_checkpoints_are_written_now_and_then(tmp_path, monkeypatch):
    """Every 30 s, and seldom enough that the four seconds of each are a twentieth of the time."""
    now, written = [0.0], []
    monkeypatch.setattr(bookkeeping.time, "perf_counter", lambda: now[0])
    kept = Checkpoint(tmp_path / "run.checkpoint", {}, 1, seconds=30, share=0.05)

    def write(_):
        written.append(now[0])
        now[0] += 4

    monkeypatch.setattr(kept, "write", write)
    for second in range(0, 300, 10):
        now[0] = max(now[0], second)
        kept.offer(dict)
    assert written == [30, 110, 190, 270]


def test_what_a_process_was_started_to_ignore_stays_ignored_and_a_second_signal_acts():
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.number == 0
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.number == signal.SIGINT
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, usual)


@pytest.mark.parametrize("contents", [{}, {"state": 1}, {"config": [1]}, {"config": {"seed": torch.arange(2)}}])
def test_a_checkpoint_of_any_other_kind_is_not_gone_on_from(tmp_path, contents):
    said = []
    kept = Checkpoint(tmp_path / "run.checkpoint", {"seed": 1}, 2, report=said.append)
    results.save(kept.path, {"version": 2, "config": {"seed": 1}} | contents)
    assert kept.restore() is None
    assert len(said) == 1
    assert said[0].startswith("starts anew: ")
