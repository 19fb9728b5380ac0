"""Our numbers beside the published ones, whether these are met, or what is still to be computed.

python -m varpro.paper                      the table of Section 6.1
python -m varpro.paper --check              every published curve at hand: exit code 0 if all are met, else 1
python -m varpro.paper --plan --section all
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take seconds

import sys
from collections.abc import Sequence
from pathlib import Path

from varpro import cli, results

_PROGRAM = "varpro.paper"

try:
    from varpro.paper import cost, fidelity, grid, published
except ValueError as problem:  # $VARPRO_EPOCHS, which the grid reads
    print(f"{_PROGRAM}: error: {problem}", file=sys.stderr)
    raise SystemExit(2) from None


def parser():
    """The options of this command."""
    options = cli.parser(__doc__)
    options.prog = _PROGRAM
    options.add_argument(
        "--section",
        metavar="LIST",
        help=f"parts of the paper, with commas: {', '.join(grid.SECTIONS)}, or all (default: 6.1; for --check: all)",
    )
    options.add_argument(
        "--seeds",
        metavar="LIST",
        help="seeds to average over, like 0 or 0-5 (default: those of the published curves; for appendix-b 0)",
    )
    options.add_argument("--plan", action="store_true", help="print what making that will cost, nothing else")
    options.add_argument(
        "--check", action="store_true", help="say of every published curve at hand, with its seeds, whether it is met"
    )
    options.add_argument("--output", type=Path, metavar="FILE", help="also write the table here")
    return options


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, the plan or the check, and keep it in a file where one is named."""
    of = parser()
    options = of.parse_args(argv)
    if options.plan and options.check:
        of.error("--plan: has no effect here; it goes without --check")
    if options.seeds and options.check:
        of.error("--seeds: has no effect here; --check takes the seeds of the published curves")
    usual = ",".join(grid.SECTIONS) if options.check else "6.1"
    asked = usual if options.section is None else options.section
    try:
        sections = grid.parse_sections(asked)
        seeds = grid.parse_seeds(options.seeds) if options.seeds else None
    except ValueError as error:
        of.error(str(error))
    if options.check and not any(grid.SECTIONS[name].compares for name in sections):
        of.error(f"--check: section {','.join(sections)} has no published curves to be checked")
    verdict = True
    try:
        if options.plan:
            text = cost.plan(sections, seeds)
        elif options.check:
            text, verdict = fidelity.check(sections)
        else:
            text = fidelity.report(sections, seeds)
    except published.TableError as error:
        of.error(str(error))
    absent = grid.left_out(asked)
    text += f"\n\n{absent}" if absent else ""
    print(text)
    if options.output:
        with results.replacing(options.output) as file:
            file.write(f"{text}\n".encode())
    if not verdict:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
