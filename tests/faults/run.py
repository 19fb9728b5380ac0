"""The long run of the tests of faults; writes what it did into docs/reliability.md.

python tests/faults/run.py            all of them
python tests/faults/run.py FILE ...   some, and nothing is written
"""

import os
import sys
import time
from pathlib import Path

os.environ["VARPRO_FAULTS"] = "long"  # before the ledger is imported
HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))

import ledger  # noqa: E402
import page  # noqa: E402
import pytest  # noqa: E402


class Outcome:
    """Counts what passed, failed and was left out."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            ledger.count(page.FAILED)
        elif report.skipped:
            ledger.count("tests left out")
        elif report.when == "call":
            ledger.count("tests passed")


def main() -> int:
    """Run them and write the table."""
    chosen, begin = sys.argv[1:], time.monotonic()
    the_page_itself = f"--ignore={HERE / 'test_fault_page.py'}"
    code = pytest.main(["-v", "--durations=15", the_page_itself, *(chosen or [str(HERE)])], plugins=[Outcome()])
    table = page.table(time.monotonic() - begin)
    print(table)
    if not chosen:
        page.write(table)
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
