"""A section of the paper as a graph of files: results of its runs in varpro/paper.py, notebooks, figures, table.

    snakemake                                   Section 6.1, seed 0, all cores
    snakemake --config seeds=0-5                the six seeds of the paper
    snakemake --config section=appendix-b       another section
    snakemake --workflow-profile profiles/slurm the same on a Slurm cluster

One job is one configuration with all its seeds, since importing torch takes longer than most runs. Scripts write
whole files or none and keep what exists, so no job ever has to clean up after another.
"""

import math
import os
import sys
from pathlib import Path

if "epochs" in config:
    os.environ.setdefault("VARPRO_EPOCHS", str(config["epochs"]))

try:
    from varpro import paper  # reads VARPRO_EPOCHS
except ValueError as error:
    raise WorkflowError(str(error)) from None

# A shell directive is evaluated when the job runs, params when the rule is defined: what a loop sets goes into params.
NAME = str(config.get("section", "6.1"))
if NAME not in paper.SECTIONS:
    raise WorkflowError(f"section {NAME!r} is not allowed: {', '.join(paper.SECTIONS)}")
SECTION = paper.SECTIONS[NAME]
try:
    SEEDS = paper.parse_seeds(str(config.get("seeds", SECTION.seeds)))
except ValueError as error:
    raise WorkflowError(str(error)) from None


def here(path):
    return os.path.relpath(path)


def with_python(command):
    return command.replace("python", sys.executable, 1)


RESULTS = [here(run.path(seed)) for run in SECTION.runs for seed in SEEDS]
DIFFUSIONS = [here(diffusion.path) for diffusion in SECTION.diffusions]


rule all:
    input:
        f"figures/comparison_{NAME}.md",
        [f"figures/{name}" for names in SECTION.files.values() for name in names],


for diffusion in SECTION.diffusions:

    rule:
        name: f"diffusion_gamma={diffusion.gamma:g}"
        output: here(diffusion.path)
        log: f"logs/diffusion_gamma={diffusion.gamma:g}.log"
        message: f"diffusion, gamma {diffusion.gamma:g}"
        params: command=with_python(diffusion.command())
        shell: "{params.command} > {log} 2>&1"


if any(paper.CIFAR_FILE in run.inputs for run in SECTION.runs):

    rule cifar10:
        output: update(here(paper.CIFAR_FILE))
        log: "logs/cifar10.log"
        message: "CIFAR-10"
        params: python=sys.executable
        shell: "{params.python} -m VarPro_resnet.cifar > {log} 2>&1"


for run in SECTION.runs:

    rule:
        name: run.label
        input: [here(path) for path in run.inputs]
        output: [update(here(run.path(seed))) for seed in SEEDS]
        resources: mem_mb=run.memory, runtime=10 + math.ceil(2 * run.seconds * len(SEEDS) / 60)  # minutes
        log: f"logs/{run.label}.log"
        message: f"{run.experiment}, {run.parameters}, seeds {SEEDS}"
        params: command=with_python(run.command(SEEDS))
        shell: "NUMBA_NUM_THREADS={threads} {params.command} > {log} 2>&1"


for notebook, figures in SECTION.files.items():

    rule:
        name: f"notebook_{notebook}"
        input: f"{notebook}.ipynb", RESULTS, DIFFUSIONS
        output: [f"figures/{name}" for name in figures], f"figures/{notebook}.ipynb"
        log: f"logs/notebook_{notebook}.log"
        message: f"{notebook}.ipynb"
        params: seeds=",".join(map(str, SEEDS)), python=sys.executable, notebook=notebook
        shell:
            "VARPRO_SEEDS={params.seeds} {params.python} -m nbconvert --to notebook --execute"
            " --ExecutePreprocessor.timeout=-1 --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.record_timing=False"
            " --output-dir figures {params.notebook}.ipynb > {log} 2>&1"


rule comparison:
    input: RESULTS, "varpro/paper.py"
    output: f"figures/comparison_{NAME}.md"
    log: "logs/comparison.log"
    message: "our numbers beside the published ones"
    params: seeds=",".join(map(str, SEEDS)), python=sys.executable, section=NAME
    shell:
        "{params.python} -m varpro.paper --section {params.section} --seeds {params.seeds} --output {output}"
        " > {log} 2>&1"
