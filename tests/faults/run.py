"""The long run of the tests of faults; writes what it did into docs/reliability.md.

python tests/faults/run.py            all of them: the random kills, and meanwhile the others
python tests/faults/run.py FILE ...   some, and nothing is written
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

os.environ["VARPRO_FAULTS"] = "long"  # before the ledger is imported
HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))

import ledger  # noqa: E402
import page  # noqa: E402
import pytest  # noqa: E402

KILLS = str(HERE / "test_fault_kills.py")
_COUNTS = "VARPRO_FAULTS_COUNTS"  # environment: the file for the counts of one half


class Outcome:
    """Counts what passed, failed and was left out."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            ledger.count(page.FAILED)
        elif report.skipped:
            ledger.count("tests left out")
        elif report.when == "call":
            ledger.count("tests passed")


def run(arguments: list[str]) -> int:
    """These tests, in this process."""
    the_page_itself = f"--ignore={HERE / 'test_fault_page.py'}"
    return int(pytest.main(["-v", "--durations=15", the_page_itself, *arguments], plugins=[Outcome()]))


def everything() -> int:
    """Both halves at once, since each leaves a core idle for much of the time. The kills are shown as they go, what the
    others have said at the end."""
    with tempfile.TemporaryDirectory() as folder:
        counts, said = [Path(folder) / name for name in ("kills.json", "others.json")], Path(folder) / "said"
        with said.open("w") as out:
            kills = _half(counts[0], [KILLS], None)
            others = _half(counts[1], [f"--ignore={KILLS}", str(HERE)], out)
            codes = [kills.wait(), others.wait()]
        print(said.read_text(encoding="utf-8"))
        for path in counts:
            ledger.add(path)
    return max(codes)


def _half(counts: Path, arguments: list[str], out: IO[str] | None) -> subprocess.Popen:
    environment = os.environ | {_COUNTS: str(counts)}
    return subprocess.Popen([sys.executable, __file__, *arguments], stdout=out, stderr=out, env=environment)


def main() -> int:
    """Run them and write the table."""
    chosen, begin = sys.argv[1:], time.monotonic()
    code = run(chosen) if chosen else everything()
    if _COUNTS in os.environ:
        ledger.dump(Path(os.environ[_COUNTS]))
        return code
    table = page.table(time.monotonic() - begin)
    print(table)
    if not chosen:
        page.write(table)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
