"""How much room the tolerances leave: what each was compared with during a run, and the table of the worst.

A tolerance that is only just met on this machine fails on another one, whose sums come in another order. So the entries
of ``tolerances.py`` are no plain numbers. They remember every error that they are compared with, and the ratio observed
/ allowed: in ``error < EXACT``, and in ``pytest.approx``, numpy's ``assert_allclose`` and torch's
``assert_close``, which are wrapped for the time of the run.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

LEAST = 10  # factor that a tolerance must leave over what is seen
_SHOWN = 12  # rows of the table by default
_UNNAMED = "(unnamed)"  # entry of a comparison whose tolerance stands in no table


class Seen(NamedTuple):
    """The comparison that left least room, of those of one tolerance in one test."""

    ratio: float
    observed: float
    allowed: float


_seen: dict[tuple[str, str], Seen] = {}  # by entry and test
_exempt: set[str] = set()  # entries whose error is not round-off


def record(entry: str, observed: float, allowed: float) -> None:
    """Keep this comparison if none so far, under the same entry and in the same test, left less room."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    ratio = observed / allowed if observed and allowed else 0.0
    if np.isfinite(ratio) and ratio >= _seen.get((entry, test), Seen(-1.0, 0.0, 0.0)).ratio:
        _seen[entry, test] = Seen(ratio, observed, allowed)


class Tolerance:
    """A positive number with a name: multiples and sums keep the name, and ``error < tolerance`` is recorded.

    Not a ``float``: numpy and torch would compare with that on their own.
    """

    __array_ufunc__ = None  # numpy leaves its operators to this class

    def __init__(self, name: str, value: float) -> None:
        self.name, self.value = name, float(value)

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"{self.value:g} ({self.name})"

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    def __mul__(self, factor: Any) -> "Tolerance":
        return Tolerance(self.name, self.value * float(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "Tolerance":
        return Tolerance(self.name, self.value / float(divisor))

    def __add__(self, bound: Any) -> "Tolerance":
        return Tolerance(self.name, self.value + float(bound))

    __radd__ = __add__

    def __gt__(self, error: Any) -> bool:
        """``error < self``, or ``self > error``."""
        return self._compared(error) < self.value

    def __ge__(self, error: Any) -> bool:
        """``error <= self``, or ``self >= error``."""
        return self._compared(error) <= self.value

    def __lt__(self, error: Any) -> bool:
        """``error > self``: nothing is claimed about such an error, so nothing is recorded."""
        return self.value < float(error)

    def _compared(self, error: Any) -> float:
        record(self.name, float(error), self.value)
        return float(error)


def watched(table: dict[str, Any], exempt: Iterable[str] = ()) -> None:
    """Put a :class:`Tolerance` in the place of every number in ``table``, also in the dictionaries that it holds.

    ``exempt`` names entries whose error is not round-off: they are listed, but need no factor 10.
    """
    for name, value in list(table.items()):
        if isinstance(value, float):
            table[name] = Tolerance(name, value)
        elif isinstance(value, dict) and name.isupper():
            table[name] = {key: Tolerance(f"{name} {key}", part) for key, part in value.items()}
    names = {one.name for value in table.values() for one in (value.values() if isinstance(value, dict) else [value])
             if isinstance(one, Tolerance)}  # fmt: skip
    if unknown := set(exempt) - names:
        raise ValueError(f"no tolerance has the name {', '.join(sorted(unknown))}")
    _exempt.update(exempt)


def _entries(*tolerances: Any) -> list[str]:
    return list(dict.fromkeys(one.name for one in tolerances if isinstance(one, Tolerance))) or [_UNNAMED]


def _record_arrays(found: Any, expected: Any, rtol: Any, atol: Any) -> None:
    """The element of two arrays that leaves least room under ``atol + rtol |expected|``."""
    try:
        found, expected = np.broadcast_arrays(np.asarray(found, np.float64), np.asarray(expected, np.float64))
    except (TypeError, ValueError):  # not numbers, or of different shapes: the assertion will say so
        return
    observed = np.abs(found - expected).ravel()
    allowed = (float(atol) + float(rtol) * np.abs(expected)).ravel()
    if observed.size == 0:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = np.nanargmax(np.where(observed == 0, 0.0, observed / allowed))
    for entry in _entries(rtol, atol):
        record(entry, float(observed[worst]), float(allowed[worst]))


def _numpy_assertion(plain: Callable) -> Callable:
    def assert_allclose(actual, desired, rtol=1e-7, atol=0, **options):
        __tracebackhide__ = True
        _record_arrays(actual, desired, rtol, atol)
        plain(actual, desired, rtol=float(rtol), atol=float(atol), **options)

    return assert_allclose


def _torch_assertion(plain: Callable) -> Callable:
    def assert_close(actual, expected, *, rtol=None, atol=None, **options):
        __tracebackhide__ = True
        if rtol is None:  # torch takes those of the precision
            plain(actual, expected, **options)
            return
        if torch.is_tensor(actual):
            _record_arrays(actual.detach().cpu().double(), expected.detach().cpu().double(), rtol, atol)
        else:
            _record_arrays(actual, expected, rtol, atol)
        plain(actual, expected, rtol=float(rtol), atol=float(atol), **options)

    return assert_close


class _Approximation:
    """What ``pytest.approx`` returns for a number, with a record of what it is compared with."""

    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, plain: Any, expected: Any, rel: Any, abs: Any) -> None:
        self.plain = plain
        self.bounds = expected, 0.0 if rel is None else rel, (0.0 if rel is None else 1e-12) if abs is None else abs

    def __eq__(self, actual: Any) -> bool:
        expected, rel, abs = self.bounds
        allowed = max(float(rel) * math.fabs(expected), float(abs))
        for entry in _entries(rel, abs):
            record(entry, math.fabs(float(actual) - float(expected)), allowed)
        return self.plain == actual

    def __repr__(self) -> str:
        return repr(self.plain)


def _approximation(plain: Callable) -> Callable:
    def approx(expected, rel=None, abs=None, nan_ok=False):
        bounds = [None if bound is None else float(bound) for bound in (rel, abs)]
        usual = plain(expected, *bounds, nan_ok)
        return usual if bounds == [None, None] else _Approximation(usual, expected, rel, abs)

    return approx


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The worst of one entry on one machine or several; ``tests`` counts the tests that compared with it."""

    entry: str
    tests: int
    test: str
    seen: Seen
    machine: str = ""

    @property
    def short(self) -> bool:
        """Whether round-off comes within the factor 10."""
        return self.seen.ratio * LEAST > 1 and self.entry not in _exempt


def rows(seen: dict[tuple[str, str], Seen], machine: str = "") -> list[Row]:
    """One row per entry, the worst first."""
    found = []
    for entry in {entry for entry, _ in seen}:
        tests = {test: one for (name, test), one in seen.items() if name == entry}
        worst = max(tests, key=lambda test: tests[test].ratio)
        found.append(Row(entry, len(tests), worst, tests[worst], machine))
    return sorted(found, key=lambda row: row.seen.ratio, reverse=True)


def lines(table: list[Row]) -> list[str]:
    """The table as text. ``!`` marks round-off with less than the factor 10."""
    width = max((len(row.entry) for row in table), default=0)
    place = max((len(row.machine) for row in table), default=0)
    text = [f"  {'tolerance':{width}}  room      allowed   observed  tests  {'':{place}}  worst in"]
    for row in table:
        room = f"{1 / row.seen.ratio:<8.3g}" if row.seen.ratio else f"{'exact':<8}"
        mark = "!" if row.short else ("~" if row.entry in _exempt else " ")
        numbers = f"{row.seen.allowed:<8.1e}  {row.seen.observed:<8.1e}  {row.tests:<5}"
        text.append(f"{mark} {row.entry:{width}}  {room}  {numbers}  {row.machine:{place}}  {row.test}".rstrip())
    return text


class Headroom:
    """The pytest plugin: wraps the assertions, prints the table, writes the file."""

    def __init__(self, config: pytest.Config) -> None:
        self.everything, self.file = config.getoption("headroom"), config.getoption("headroom_file")
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(np.testing, "assert_allclose", _numpy_assertion(np.testing.assert_allclose))
        self.patch.setattr(torch.testing, "assert_close", _torch_assertion(torch.testing.assert_close))
        self.patch.setattr(pytest, "approx", _approximation(pytest.approx))

    def pytest_unconfigure(self) -> None:
        self.patch.undo()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):  # one of several processes of pytest-xdist
            session.config.workeroutput["headroom"] = dump(), sorted(_exempt)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # every test runs in one process, so no key comes twice; a process that crashed has sent nothing
        seen, exempt = getattr(node, "workeroutput", {}).get("headroom", ("[]", []))
        _seen.update(restore(seen))
        _exempt.update(exempt)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.file:
            save(Path(self.file))
        table = rows(_seen)
        if not table:
            return
        short = [row for row in table if row.short]
        terminalreporter.section("headroom of the tolerances")
        for line in lines(table if self.everything else table[:_SHOWN]):
            terminalreporter.write_line(line)
        terminalreporter.write_line(
            f"{len(table)} tolerances, {len(short)} with less than a factor {LEAST} over round-off (!); "
            "~: an error of the method, alike on every machine" + ("" if self.everything else "; all: --headroom")
        )
        if self.everything:
            for (entry, test), one in sorted(_seen.items(), key=lambda item: -item[1].ratio):
                if one.ratio * LEAST > 1:
                    terminalreporter.write_line(f"  {one.ratio:.2f} of {entry} in {test}")


def add_options(parser: pytest.Parser) -> None:
    """``--headroom`` and ``--headroom-file``."""
    group = parser.getgroup("headroom")
    group.addoption("--headroom", action="store_true", help="show the headroom of every tolerance, not of the worst")
    group.addoption("--headroom-file", metavar="FILE", help="write observed / allowed of every comparison to FILE")


def dump() -> str:
    """All that was seen, as JSON."""
    return json.dumps([[*key, *one] for key, one in _seen.items()])


def restore(text: str) -> dict[tuple[str, str], Seen]:
    """What :func:`dump` returned."""
    return {(entry, test): Seen(*numbers) for entry, test, *numbers in json.loads(text)}


def save(path: Path) -> None:
    """All that was seen, as a file."""
    path.write_text(dump())


def load(path: Path) -> dict[tuple[str, str], Seen]:
    """What :func:`save` wrote."""
    return restore(path.read_text())
