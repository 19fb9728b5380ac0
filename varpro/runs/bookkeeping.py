"""What every long run needs beside its training: checkpoints, a lock, stop signals, an estimate of its cost."""

import fcntl
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from varpro import results
from varpro.cli import Stopped, UsageError
from varpro.signals import STOPPING

Report = Callable[[str], None]
_POLL_SECONDS = 0.2  # between two tries to take a lock
_TIMED_SECONDS = 1.0  # of training, before its cost is estimated; what is shorter needs no estimate
_SECONDS_VARIABLE = "VARPRO_CHECKPOINT_SECONDS"  # environment: between two checkpoints, for any run


class Checkpoint:
    """The file from which a stopped run goes on. It is written now and then, and goes when the result is there.

    A file of another ``config`` or another ``version`` of what is in it is not gone on from. One that differs in
    nothing but the options ``held`` is work on this very run that was done elsewhere, and is not overwritten.
    ``seconds`` pass between two writings (``$VARPRO_CHECKPOINT_SECONDS`` where that is set), and more where writing
    would take more than ``share`` of the time. ``report`` receives lines for the user. Raises UsageError where the
    variable is no number.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        version: int,
        *,
        held: Collection[str] = ("device",),
        seconds: float = 30.0,
        share: float = 0.05,
        report: Report | None = None,
    ) -> None:
        self.path, self.config, self.version, self._held = path, dict(config), version, held
        self._seconds, self._share, self._report = _seconds(seconds), share, report
        self._due = time.perf_counter() + self._seconds

    def restore(self) -> dict[str, Any] | None:
        """The state that was kept for this run, or None. Raises UsageError where it is one of another device."""
        if not self.path.exists():
            return None
        try:
            saved = results.load(self.path)
        except results.ResultError as error:
            reason = str(error)
        else:
            obstacle = self.obstacle(saved)
            if not obstacle:
                return saved["state"]
            if not self.obstacle(saved, free=self._held):
                raise UsageError(f"{self.path} {obstacle}; it is not overwritten; remove it to start anew")
            reason = f"{self.path} {obstacle}"
        if self._report is not None:
            self._report(f"starts anew: {reason}")
        return None

    def usable(self) -> bool:
        """Whether :meth:`restore` would return a state; says nothing."""
        try:
            return self.path.exists() and not self.obstacle(results.load(self.path))
        except results.ResultError:
            return False

    def obstacle(self, saved: Mapping[str, Any], free: Collection[str] = ()) -> str:
        """Why ``saved``, what a checkpoint holds, is not gone on from; "" where it is. It may differ in the options
        ``free``."""
        config = {key: value for key, value in self.config.items() if key not in free}
        difference = results.differing(saved.get("config"), config)
        if saved.get("version") != self.version:
            return "is of another version"
        if difference:
            return f"has {difference}"
        return "" if isinstance(saved.get("state"), dict) else "holds no state"

    def offer(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write what ``state`` returns, if it is time."""
        begin = time.perf_counter()
        if begin >= self._due:
            self.write(state())
            cost = time.perf_counter() - begin
            self._due = begin + max(self._seconds, cost / self._share)

    def write(self, state: Mapping[str, Any]) -> None:
        """Write ``state`` now. Raises ResultError where it cannot be written; what was there is still there then."""
        results.save(self.path, self.contents(state))

    def contents(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Of the file, with ``state``."""
        return {"version": self.version, "config": self.config, "state": state}

    def remove(self) -> None:
        """To be called once the result is on disk."""
        self.path.unlink(missing_ok=True)


def _seconds(usual: float) -> float:
    text = os.environ.get(_SECONDS_VARIABLE, "")
    try:
        seconds = float(text) if text else usual
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(f"${_SECONDS_VARIABLE} is {text!r}: allowed is a finite number from 0 up")
    return seconds


class StopSignals:
    """Within this context SIGTERM, SIGINT and SIGHUP only set ``number``; a second one acts as usual.

    A loop asks between two steps whether it should stop, so that it never stops in the midst of one. A signal that the
    process was started to ignore (``nohup``) is ignored.
    """

    def __init__(self) -> None:
        self.number = 0
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def check(self, keep: Callable[[], None] | None = None) -> None:
        """Where a signal has come, call ``keep`` and raise Stopped."""
        if self.number:
            if keep is not None:
                keep()
            raise Stopped(self.number)

    def _note(self, number: int, frame: object) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        usual, self._usual = self._usual, {}  # a signal may come in between, and call this
        for number, action in usual.items():
            signal.signal(number, action)


@contextmanager
def locked(path: Path, report: Report) -> Iterator[bool]:
    """Hold the lock of the file ``path`` meanwhile; where another process has it, say so and wait.

    The lock is the system's (flock on ``path`` with the suffix ``.lock``): it ends with the process that holds it,
    however that ends. On a network file system it holds between machines if the system supports flock there, as NFS of
    Linux does; a file system without it is used without a lock, and False is what the context gives: others may work
    on the file too.
    """
    handle = _take(path, report)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            _release(handle, _lock(path))


def _lock(path: Path) -> Path:
    """The file that stands for the lock of ``path``."""
    return path.with_suffix(".lock")


def already_there(path: Path, config: Mapping[str, Any], report: Report) -> bool:
    """Whether ``path`` holds the result of ``config``; if so that is reported, and its surroundings are tidied.

    Raises ResultError where it holds another run's.
    """
    if not results.complete(path, config):
        return False
    report(f"kept {path}")
    tidy(path)
    return True


def once(path: Path, config: Mapping[str, Any], make: Callable[[], None], report: Report, *, force: bool) -> None:
    """Let ``make`` write the result ``path`` while no other process does.

    Another one that is at it is waited for, and its result of ``config`` is kept, unless ``force``.
    """
    with locked(path, report) as alone:
        if alone:
            results.sweep(path)
        if not force and results.complete(path, config):
            report(f"kept {path}")
        else:
            make()


def tidy(path: Path) -> None:
    """Remove what processes that were killed left beside the finished result ``path``, unless one works on it.

    A later checkpoint stays: it is that of a run that was to replace the result, and was stopped.
    """
    kept, lock = results.checkpoint(path), _lock(path)
    if not (kept.exists() or lock.exists() or results.unfinished(path)):
        return
    with suppress(OSError):  # of others, or on a disk that cannot be written: it does no harm
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if not isinstance(error, BlockingIOError):  # no locks on this file system
                lock.unlink(missing_ok=True)
            return
        try:
            if _is(handle, lock):
                results.sweep(path)
                if kept.exists() and kept.stat().st_mtime <= path.stat().st_mtime:
                    kept.unlink(missing_ok=True)
        finally:
            _release(handle, lock)


def _release(handle: int, name: Path) -> None:
    if _is(handle, name):
        name.unlink(missing_ok=True)  # first, so that who waits for this file sees that it is gone
    os.close(handle)


def _take(path: Path, report: Report) -> int | None:
    name, told = _lock(path), False
    while True:
        handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            if not told:
                report(f"waits for {holder or 'another process'}, which works on {path}")
                told = True
            time.sleep(_POLL_SECONDS)
            continue
        except OSError:  # no locks on this file system
            os.close(handle)
            name.unlink(missing_ok=True)
            return None
        if _is(handle, name):
            with suppress(OSError):  # a full disk; the lock is held all the same
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
            return handle
        os.close(handle)  # its last holder has removed it


def _is(handle: int, name: Path) -> bool:
    """Whether the open file ``handle`` is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), name.stat())
    except FileNotFoundError:
        return False


class Watch:
    """Says once, after the first steps, what the run will cost.

    ``estimate`` makes the line from the seconds that a step takes.
    """

    def __init__(self, report: Report | None, estimate: Callable[[float], str]) -> None:
        self._report, self._estimate = report, estimate
        self._first: tuple[int, float] | None = None

    def look(self, step: int, seconds: float) -> None:
        """To be called with the steps done and the seconds of training so far. The first ones may compile."""
        if self._report is None:
            return
        if self._first is None:
            self._first = step, seconds
            return
        steps, spent = step - self._first[0], seconds - self._first[1]
        if steps > 0 and spent >= _TIMED_SECONDS:
            self._report(self._estimate(spent / steps))
            self._report = None
