"""docs/reliability.md: it promises as many cases as the tests have, and its table is that of a whole long run."""

import importlib
import re
from pathlib import Path

from page import BEGIN, DOCUMENT, END, FAILED, NUMBER, parts

HERE = Path(__file__)
MODULES = sorted(path.stem for path in HERE.parent.glob("test_fault_*.py") if path != HERE)


def rows(text: str) -> dict[str, str]:
    """The rows of the tables in ``text``, without their heads."""
    found = re.findall(r"^\| (.+?) \| (.+?) \|$", text, flags=re.MULTILINE)
    assert len(dict(found)) == len(found)
    return dict(found)


def test_the_page_promises_the_cases_that_the_tests_have():
    promised = {}
    for name in MODULES:
        promised |= getattr(importlib.import_module(name), "PROMISED", {})
    assert promised["kills of runs at random moments"] >= 200
    before, _, _ = parts()
    assert rows(before) == {"in the long run": "at least", **{name: f"{number}" for name, number in promised.items()}}


def test_the_last_long_run_was_whole_and_lost_nothing():
    before, table, _ = parts()
    last = rows(table)
    assert last.pop("what") == "number"
    assert all(re.fullmatch(NUMBER, value) for value in last.values()), last
    assert last[FAILED] == "0"
    for name, number in rows(before).items():
        assert name == "in the long run" or int(last[name]) >= int(number), name


def test_the_markers_are_there_once():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
