"""Section 6.1 as a graph of files: results of every run in varpro/paper.py, notebooks, figures, comparison table.

    snakemake                                   everything, seed 0, all cores
    snakemake --config seeds=0-5                the six seeds of the paper
    snakemake --workflow-profile profiles/slurm the same on a Slurm cluster

One job is one configuration with all its seeds, since importing torch takes longer than most runs. Scripts write
whole files or none and keep what exists, so no job ever has to clean up after another.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("VARPRO_EPOCHS", str(config.get("epochs", 32000)))

try:
    from varpro import paper  # reads VARPRO_EPOCHS
except ValueError as error:
    raise WorkflowError(str(error)) from None

# A shell directive is evaluated when the job runs, params when the rule is defined: what a loop sets goes into params.
try:
    SEEDS = paper.parse_seeds(str(config.get("seeds", "0")))
except ValueError as error:
    raise WorkflowError(str(error)) from None
NOTEBOOKS = {"Results_SHL": paper.FIGURE_FILES, "1d_animations": ["diffusion_animation.gif"]}


def here(path):
    return os.path.relpath(path)


def with_python(command):
    return command.replace("python", sys.executable, 1)


RESULTS = [here(run.path(seed)) for run in paper.RUNS for seed in SEEDS]
DIFFUSIONS = [here(diffusion.path) for diffusion in paper.DIFFUSIONS]


rule all:
    input:
        "figures/comparison.md",
        [f"figures/{name}" for names in NOTEBOOKS.values() for name in names],


for diffusion in paper.DIFFUSIONS:

    rule:
        name: f"diffusion_gamma={diffusion.gamma:g}"
        output: here(diffusion.path)
        log: f"logs/diffusion_gamma={diffusion.gamma:g}.log"
        message: f"diffusion, gamma {diffusion.gamma:g}"
        params: command=with_python(diffusion.command())
        shell: "{params.command} > {log} 2>&1"


for run in paper.RUNS:

    rule:
        name: run.label
        input: here(paper.Diffusion(run.gamma).path)
        output: [update(here(run.path(seed))) for seed in SEEDS]
        log: f"logs/{run.label}.log"
        message: f"{run.experiment}, lambda {run.lmbda:g}, width {run.width}, gamma {run.gamma:g}, seeds {SEEDS}"
        params: command=with_python(run.command(SEEDS))
        shell: "{params.command} > {log} 2>&1"


for notebook, figures in NOTEBOOKS.items():

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
    output: "figures/comparison.md"
    log: "logs/comparison.log"
    message: "our numbers beside the published ones"
    params: seeds=",".join(map(str, SEEDS)), python=sys.executable
    shell: "{params.python} -m varpro.paper --seeds {params.seeds} --output {output} > {log} 2>&1"
