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
    """Both halves at once: the processes that are killed leave a core idle for much of the time."""
    halves = [[KILLS], [f"--ignore={KILLS}", str(HERE)]]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / f"{number}.log" for number in range(len(halves))]
        processes = []
        for log, half in zip(said, halves, strict=True):
            environment = os.environ | {_COUNTS: str(log.with_suffix(".json"))}
            command = [sys.executable, __file__, *half]
            with log.open("w") as out:
                processes.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment))
        codes = [process.wait() for process in processes]
        for log in said:
            print(log.read_text())
            ledger.add(log.with_suffix(".json"))
    return max(codes)


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
