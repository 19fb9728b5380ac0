"""The workflow on a Slurm of one node that this script starts and stops: ``make test-cluster``.

It makes Section 6.1 with seed 0, shortened, from a copy of the repository, by the command of docs/clusters.md, and once
more, when nothing is left to do. It needs root, since munge and Slurm have users and folders of their own, and Debian's
packages: ``apt-get install slurmctld slurmd slurm-client munge``. It runs only where no Slurm is set up.

python tests/cluster/run.py [--epochs E]
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Path("/etc/slurm/slurm.conf")  # the system's own: Snakemake's plugin forgets $SLURM_CONF
PATIENCE = 120  # seconds, for a daemon to start
# Without control groups, which containers may not use; every address is this machine's own.
CONFIGURATION = """\
# written by tests/cluster/run.py, which also removes it
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={megabytes} State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def refuse(message: str) -> None:
    """End with one line where this machine is not one for this test."""
    print(f"test-cluster: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def daemon(command: list[str], log: Path) -> Iterator[None]:
    """A program in the background until the block ends."""
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A Slurm of one node: munge, controller, node; its settings are gone afterwards."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    keys = Path("/run/munge")
    keys.mkdir(mode=0o755, exist_ok=True)
    shutil.chown(keys, "munge", "munge")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    text = CONFIGURATION.format(
        host=socket.gethostname(), folder=folder, cores=os.cpu_count(), megabytes=int(0.8 * memory)
    )
    try:
        SETTINGS.write_text(text)
        with ExitStack() as daemons:
            for command in (
                ["runuser", "-u", "munge", "--", "munged", "--foreground"],
                ["slurmctld", "-D"],
                ["slurmd", "-D"],
            ):
                name = next(word for word in command if word in ("munged", "slurmctld", "slurmd"))
                daemons.enter_context(daemon(command, folder / f"{name}.log"))
            wait_for_node(folder)
            yield
    finally:
        SETTINGS.unlink()


def wait_for_node(folder: Path) -> None:
    """Return when the node takes jobs."""
    deadline = time.monotonic() + PATIENCE
    while subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout.strip() != "idle":
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
            raise SystemExit(f"test-cluster: no idle node in {PATIENCE} s\n{logs}")
        time.sleep(1)


def copy(folder: Path) -> None:
    """The files of the repository as they are now, without what runs have made."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)


def snakemake(folder: Path, epochs: int) -> str:
    """The command of docs/clusters.md in ``folder``, shortened; what it says, which is also printed."""
    command = ["-m", "snakemake", "--workflow-profile", "profiles/slurm"]
    command += ["--config", "section=6.1", "seeds=0", f"epochs={epochs}"]
    print("$", " ".join(["snakemake", *command[2:]]), flush=True)
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait() != 0:
        raise SystemExit(f"test-cluster: snakemake ended with {process.returncode}")
    return "".join(lines)


def main() -> None:
    """Start Slurm, run the workflow twice, look at what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200, help="of every run (default: 200)")
    epochs = parser.parse_args().epochs
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "runuser") if not shutil.which(name)]
    if missing:
        refuse(f"{', '.join(missing)} missing; on Debian: apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        refuse("it starts munge and Slurm, which takes root")
    if SETTINGS.exists():
        refuse(f"{SETTINGS} exists: a Slurm is set up here, and docs/clusters.md says how to use it")
    with tempfile.TemporaryDirectory(prefix="varpro-slurm-") as name:
        folder = Path(name)
        copy(folder / "repository")
        with slurm(folder):
            first = snakemake(folder / "repository", epochs)
            jobs = first.count("has been submitted with SLURM jobid")
            if not jobs or "(100%) done" not in first:
                raise SystemExit("test-cluster: nothing was submitted, or not all steps were done")
            if "Nothing to be done" not in snakemake(folder / "repository", epochs):
                raise SystemExit("test-cluster: the second start had something left to do")
        figures = sorted(path.name for path in (folder / "repository" / "figures").iterdir())
    print(f"test-cluster: {jobs} Slurm jobs made {len(figures)} files in figures/, the second start none: passed")


if __name__ == "__main__":
    main()
