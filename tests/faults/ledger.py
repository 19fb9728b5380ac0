"""What the tests of faults have done so far, and how much of it they are to do.

:mod:`run` sets the size to long and writes the counts to docs/reliability.md afterwards.
"""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

COUNTS: Counter[str] = Counter()
SECONDS: defaultdict[str, list[float]] = defaultdict(list)
LONG = os.environ.get("VARPRO_FAULTS") == "long"


def size(short: int, long: int) -> int:
    """How many cases a test takes: ``short`` in the usual test suite, ``long`` in ``make test-faults``."""
    return long if LONG else short


def count(what: str, number: int = 1) -> None:
    """Note that ``number`` times ``what`` was done."""
    COUNTS[what] += number


def took(what: str, seconds: float) -> None:
    """Note how long ``what`` took, for the median and the largest."""
    SECONDS[what].append(seconds)


def dump(path: Path) -> None:
    """Keep the counts of this process."""
    path.write_text(json.dumps([COUNTS, SECONDS]), encoding="utf-8")


def add(path: Path) -> None:
    """Add the counts of another process."""
    counts, seconds = json.loads(path.read_text(encoding="utf-8"))
    COUNTS.update(counts)
    for what, times in seconds.items():
        SECONDS[what] += times
