"""Runs of sections in batches: one process does many short runs, since importing torch takes longer than most of them.

    python -m varpro.paper.work --section 6.1 --batch 1 --seeds 0-5

Every run is made by its own script, as from the command line: what exists is kept, files are written whole or not at
all, an interrupted run goes on from its checkpoint. A run that fails does not stop the others; the exit code is then 1.
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take seconds

import importlib.util
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType

from varpro import names

_PROGRAM = "varpro.paper.work"

try:
    from varpro.paper import cost, grid
except ValueError as problem:  # $VARPRO_EPOCHS, which the grid reads
    if __name__ != "__main__":
        raise
    print(f"{_PROGRAM}: error: {problem}", file=sys.stderr)
    raise SystemExit(2) from None

Batch = dict[grid.AnyRun, list[int]]  # the seeds of each run


def batches(wanted: Mapping[grid.AnyRun, Sequence[int]]) -> list[Batch]:
    """``wanted`` (seeds of every run) in batches of about :data:`varpro.paper.cost.BATCH_SECONDS`, the longest first.

    Where one seed takes longer it has a batch of its own; where all seeds of a run do together, they have one. The
    others are spread evenly over an even number of batches, so that two cores end together. The same ``wanted`` gives
    the same batches on every machine, whatever is at hand.
    """
    work = {run: cost.seconds(run) * len(seeds) for run, seeds in wanted.items() if seeds}
    ordered = sorted(work, key=lambda run: (-work[run], run))
    long: list[Batch] = []
    for run in ordered:
        if cost.seconds(run) >= cost.BATCH_SECONDS:
            long += [{run: [seed]} for seed in wanted[run]]
        elif work[run] >= cost.BATCH_SECONDS:
            long.append({run: list(wanted[run])})
    short = [run for run in ordered if work[run] < cost.BATCH_SECONDS]
    count = 2 * -(-sum(work[run] for run in short) // (2 * cost.BATCH_SECONDS))
    bins: list[list[grid.AnyRun]] = [[] for _ in range(min(int(count), len(short)))]
    for run in short:
        min(bins, key=lambda of: sum(work[each] for each in of)).append(run)
    return [*long, *({run: list(wanted[run]) for run in runs} for runs in bins)]


def perform(batch: Batch) -> int:
    """Make what ``batch`` lacks, run by run; returns how many runs failed."""
    lacking = {run: [seed for seed in seeds if not run.path(seed).exists()] for run, seeds in batch.items()}
    arguments = {run: run.arguments(seeds) for run, seeds in lacking.items() if seeds}
    failed = []
    for run, given in arguments.items():
        label = f"{run.experiment}, {run.parameters}"
        print(f"--- {label}", flush=True)
        try:
            _script(run.script).main(given)
        except SystemExit as stop:  # the script has said why
            if isinstance(stop.code, int) and stop.code > _SIGNALS:
                raise
            failed += [label] if stop.code else []
        except Exception:
            traceback.print_exc()
            failed.append(label)
    for label in failed:
        print(f"failed: {label}", file=sys.stderr, flush=True)
    return len(failed)


_SIGNALS = 128  # exit codes above say that a signal stopped the script
_scripts: dict[str, ModuleType] = {}


def _script(path: str) -> ModuleType:
    """A script of the repository as a module, by its path from the top."""
    if path not in _scripts:
        spec = importlib.util.spec_from_file_location(f"script_{len(_scripts)}", names.ROOT / path)
        _scripts[path] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_scripts[path])
    return _scripts[path]


def main(argv: Sequence[str] | None = None) -> None:
    """Make one batch of some sections."""
    from varpro import cli  # not for those who only ask for the batches

    of = cli.parser(__doc__)
    of.prog = _PROGRAM
    of.add_argument("--section", metavar="LIST", default="6.1", help="parts of the paper, with commas, or all")
    of.add_argument("--seeds", metavar="LIST", help="like 0 or 0-5 (default: those of the published curves)")
    of.add_argument("--batch", type=cli.integer(1), required=True, metavar="K", help="the K-th batch of runs, from 1")
    options = of.parse_args(argv)
    try:
        sections = grid.parse_sections(options.section)
        seeds = grid.parse_seeds(options.seeds) if options.seeds else None
    except ValueError as error:
        of.error(str(error))
    there = batches(grid.runs_of(sections, seeds))
    if options.batch > len(there):
        of.error(f"argument --batch: {options.batch} is not allowed: there are {len(there)}")
    if perform(there[options.batch - 1]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
