"""The long run of the tests of faults; writes what it did into docs/reliability.md.

python tests/faults/run.py            all of them
python tests/faults/run.py FILE ...   some, and nothing is written
"""

import datetime
import os
import platform
import statistics
import sys
from pathlib import Path

os.environ["VARPRO_FAULTS"] = "long"  # before the ledger is imported
HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))

import ledger  # noqa: E402
import pytest  # noqa: E402

DOCUMENT = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- written by make test-faults -->", "<!-- end -->"


class Outcome:
    """Counts what passed, failed and was left out."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            ledger.count(FAILED)
        elif report.skipped:
            ledger.count("tests left out")
        elif report.when == "call":
            ledger.count("tests passed")


FAILED = "tests failed: losses, damaged files, other bits, more than one line, code executed"


def table() -> str:
    """The counts as Markdown."""
    ledger.count(FAILED, 0)
    today = datetime.date.today().isoformat()
    lines = [
        f"{today}, Python {platform.python_version()}, {platform.machine()}.",
        "",
        "| what | number |",
        "|---|---|",
    ]
    kills = sum(number for name, number in ledger.COUNTS.items() if name.startswith("kills by"))
    lines += [f"| kills in all | {kills} |"]
    lines += [f"| {name} | {number} |" for name, number in ledger.COUNTS.items()]
    lines += [
        f"| {name}: median, largest | {statistics.median(seconds):.2f}, {max(seconds):.2f} |"
        for name, seconds in ledger.SECONDS.items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Run them and write the table."""
    chosen = sys.argv[1:]
    code = pytest.main(["--durations=5", *(chosen or [str(HERE)])], plugins=[Outcome()])
    print(table())
    if not chosen:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
