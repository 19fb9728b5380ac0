"""docs/reliability.md in three parts: what people wrote, the table of the last long run, the rest."""

import datetime
import os
import platform
import statistics
from pathlib import Path

import ledger
from processes import ROOT

DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by make test-faults -->", "<!-- end -->"
FAILED = "tests failed: losses, damaged files, other bits, more than one line, code executed"
NUMBER = r"\d+(\.\d\d, \d+\.\d\d)?"  # a count, or two times in seconds


def parts() -> tuple[str, str, str]:
    """The text before the markers, between them, and after them."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    return before, table, after


def write(table: str) -> None:
    """Put ``table`` between the markers."""
    before, _, after = parts()
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def table(seconds: float) -> str:
    """The counts as Markdown, after a run of ``seconds``."""
    today, minutes = datetime.date.today().isoformat(), round(seconds / 60)
    load = os.getloadavg()[2]  # of the last quarter of an hour
    kills = sum(number for name, number in ledger.COUNTS.items() if name.startswith("kills by"))
    lines = [
        f"{today}, Python {platform.python_version()}, {processor()}, {os.cpu_count()} cores, load {load:.1f};"
        f" {minutes} min.",
        "",
        "| what | number |",
        "|---|---|",
        f"| kills and signals in all | {kills} |",
        *(f"| {name} | {number} |" for name, number in ledger.COUNTS.items() if name != FAILED),
    ]
    lines += [
        f"| {name}: median, largest | {statistics.median(times):.2f}, {max(times):.2f} |"
        for name, times in ledger.SECONDS.items()
    ]
    return "\n".join([*lines, f"| {FAILED} | {ledger.COUNTS[FAILED]} |"])


def processor() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
