"""Sections of the paper as a graph of files: results of its runs (varpro/paper/grid.py), notebooks, figures, table.

    snakemake                                   Section 6.1, the seeds of the published curves, all cores
    snakemake --config seeds=0                  another choice of seeds, for every run
    snakemake --config section=appendix-b       another section, or several with commas, or all
    snakemake --workflow-profile profiles/slurm the same on a Slurm cluster

One job is a batch of runs in one process, since importing torch takes longer than most of them. Scripts write whole
files or none and keep what exists, so no job ever has to clean up after another.
"""

import math
import os
import shutil
import sys
from glob import glob
from pathlib import Path

CONFIG = {"section": None, "seeds": None, "epochs": "VARPRO_EPOCHS", "data_dir": "VARPRO_DATA"}  # variables of the jobs


def refuse(reason):
    """One line and exit code 2; a WorkflowError would be three lines and exit code 1."""
    print(f"Snakefile: error: {reason}", file=sys.stderr)
    raise SystemExit(2)


for key, value in config.items():
    if key not in CONFIG:
        refuse(f"--config {key!r} is not allowed: {', '.join(CONFIG)}")
    if CONFIG[key]:
        os.environ[CONFIG[key]] = str(value)

try:
    from varpro.paper import cost, grid, work  # reads VARPRO_EPOCHS
except ValueError as error:
    refuse(error)

# A shell directive is evaluated when the job runs, params when the rule is defined: what a loop sets goes into params.
# Params say how something is made, and what was made in another way is kept: nothing is repeated for their sake.
NAME = str(config.get("section", "6.1"))
try:
    SECTIONS = grid.parse_sections(NAME)
    SEEDS = grid.parse_seeds(str(config["seeds"])) if "seeds" in config else None
except ValueError as error:
    refuse(error)
WANTED = grid.runs_of(SECTIONS, SEEDS)
NOTEBOOKS = grid.notebooks_of(SECTIONS)
# by their names: what "all" is may change while a job waits
CHOICE = ["--section", ",".join(SECTIONS), *(["--seeds", ",".join(map(str, SEEDS))] if SEEDS else [])]
HAS_DEVICE = shutil.which("nvidia-smi") is not None
PYTHON = sys.executable  # may hold spaces: ":q" below quotes


def here(path):
    return os.path.relpath(path)


def results_of(sections):
    """The files of runs and limits that some sections are shown from."""
    runs = [run.path(seed) for run, seeds in grid.runs_of(sections, SEEDS).items() for seed in seeds]
    return [here(path) for path in [*runs, *(each.path for each in grid.diffusions_of(sections))]]


def choice(name, *parts):
    """A file that is newer than what was made for another choice: it states ``parts``, and is written where they
    change, by a dry run too."""
    path, text = Path("logs", f"choice_{name}.txt"), "\n".join(map(str, parts)) + "\n"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    return str(path)


CIFAR = [here(path) for path in grid.cifar_files()]
# what turns results into numbers, and these and laws into pictures
NUMBERS = sorted(glob("varpro/paper/*.py") + glob("published/*.csv"))
NUMBERS.remove("varpro/paper/work.py")
DRAWING = [*NUMBERS, "varpro/features.py", "varpro/problem.py", "varpro/distances.py"]
for pattern in ("varpro/figures/*.py", "varpro/domains/*.py", "varpro/diffusion/*.py"):
    DRAWING += sorted(set(glob(pattern)) - {"varpro/figures/thumbnails.py", "varpro/figures/playground.py"})


rule all:
    input:
        f"figures/comparison_{NAME}.md",
        [f"figures/{figure.file}" for figures in NOTEBOOKS.values() for figure in figures],


for diffusion in grid.diffusions_of(SECTIONS):

    rule:
        name: f"limit_{diffusion.label}"
        output: update(here(diffusion.path))
        log: f"logs/{diffusion.label}.log"
        message: diffusion.label
        params: python=PYTHON, script=diffusion.script, arguments=diffusion.arguments()
        shell: "{params.python:q} {params.script} {params.arguments:q} > {log:q} 2>&1"


if any(here(path) in CIFAR for run in WANTED for path in run.inputs):

    rule cifar10:
        output: update(CIFAR)
        log: "logs/cifar10.log"
        message: "CIFAR-10"
        params: python=PYTHON
        shell: "{params.python:q} -m VarPro_resnet.cifar > {log:q} 2>&1"


for number, batch in enumerate(work.batches(WANTED), 1):
    spent = sum(cost.seconds(run) * len(seeds) for run, seeds in batch.items())

    rule:
        name: f"runs_{NAME}_{number}"
        input: sorted({here(path) for run in batch for path in run.inputs})
        output: [update(here(run.path(seed))) for run, seeds in batch.items() for seed in seeds]
        # minutes: for a processor that is five times as slow as the reference
        # ResNets take a GPU where there is one: profiles/default lets one at a time have it
        resources:
            mem_mb=max(map(cost.memory, batch)),
            runtime=10 + math.ceil(5 * spent / 60),
            device=int(HAS_DEVICE and any(cost.kind(run) == "resnet" for run in batch)),
        priority: math.ceil(spent)  # the longest first
        log: f"logs/runs_{NAME}_{number}.log"
        message: "\n".join(f"{run.experiment}, {run.parameters}, seeds {seeds}" for run, seeds in batch.items())
        params: python=PYTHON, choice=CHOICE, number=number
        shell:
            "OMP_NUM_THREADS={threads} NUMBA_NUM_THREADS={threads}"
            " {params.python:q} -m varpro.paper.work --batch {params.number} {params.choice:q} > {log:q} 2>&1"


for notebook, figures in NOTEBOOKS.items():
    shown = results_of([name for name in SECTIONS if notebook in grid.SECTIONS[name].notebooks])

    rule:
        name: f"notebook_{notebook}"
        input:
            f"{notebook}.ipynb",
            shown,
            DRAWING,
            choice(notebook, SEEDS, *(figure.name for figure in figures), *shown),
        output: [f"figures/{figure.file}" for figure in figures], f"figures/{notebook}.ipynb"
        log: f"logs/notebook_{notebook}.log"
        message: f"{notebook}.ipynb"
        params: seeds=",".join(map(str, SEEDS or [])), python=PYTHON, notebook=notebook
        shell:
            "VARPRO_FIGURES=figures VARPRO_SEEDS={params.seeds} {params.python:q} -m nbconvert --to notebook --execute"
            " --ExecutePreprocessor.timeout=-1 --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.record_timing=False"
            " --output-dir figures {params.notebook}.ipynb > {log:q} 2>&1"


rule comparison:
    input: results_of(SECTIONS), NUMBERS, choice(NAME, SEEDS, *SECTIONS, *results_of(SECTIONS))
    output: f"figures/comparison_{NAME}.md"
    log: "logs/comparison.log"
    message: "our numbers beside the published ones"
    params: python=PYTHON, choice=CHOICE
    shell: "{params.python:q} -m varpro.paper {params.choice:q} --output {output:q} > {log:q} 2>&1"
