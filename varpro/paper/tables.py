"""The Markdown of every table that is printed, here and in the benchmarks."""

from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first ``left`` columns to the left, the others to the right."""
    sides = " --- |" * left + " ---: |" * (len(header) - left)
    return "\n".join([_row(header), f"|{sides}", *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
