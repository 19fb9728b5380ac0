"""What the tests of faults have done so far, and how much of it they are to do.

:mod:`run` sets the size to long and writes the counts to docs/reliability.md afterwards.
"""

import os
from collections import Counter

COUNTS: Counter[str] = Counter()
SLOWEST: dict[str, float] = {}
LONG = os.environ.get("VARPRO_FAULTS") == "long"


def size(short: int, long: int) -> int:
    """How many cases a test takes: ``short`` in the usual test suite, ``long`` in ``make test-faults``."""
    return long if LONG else short


def count(what: str, number: int = 1) -> None:
    """Note that ``number`` times ``what`` was done."""
    COUNTS[what] += number


def slowest(what: str, seconds: float) -> None:
    """Note how long ``what`` took, where that is the longest so far."""
    SLOWEST[what] = max(seconds, SLOWEST.get(what, 0.0))
