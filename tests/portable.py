"""The numerical tests as other processors would run them: ``make test-portable``.

Every library that computes for us picks its instructions when it starts, and can be told to pick older ones. Each
machine below is one consistent set of such orders. Sums then come in another order, and a fused multiply-add is one
rounding or two. The newest that this processor can be is left to ``make test``, unless it is named. The machines run
side by side, in one thread a process, and share the cores: where there are fewer machines than cores, each has several
processes. Each has a cache of numba's of its own. At the end stands the headroom of every tolerance over the worst that
any machine has seen.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import headroom
import numpy as np
import tolerances
from llvmlite import binding
from tqdm import tqdm

TESTS = Path(__file__).parent
NUMERICAL = [  # the files of tests whose outcome depends on the last digits
    "test_cifar.py",
    "test_circle.py",
    "test_circle_newton.py",
    "test_diffusion.py",
    "test_distances.py",
    "test_extension.py",
    "test_graphs.py",
    "test_loss.py",
    "test_optimizers.py",
    "test_resnet.py",
    "test_resnet_network.py",
    "test_ridge.py",
    "test_shampoo.py",
    "test_solvers.py",
    "test_teachers.py",
    "test_torus.py",
    "test_torus_problem.py",
    "test_training.py",
]
LEFT_OUT = [  # these compare with the table, too, but what the others compute, or on a device, or for minutes
    "test_architecture.py",
    "test_cuda.py",
    "test_figures.py",
    "test_fused.py",
    "test_headroom.py",
    "test_library.py",
    "test_paper.py",
    "test_playground.py",
    "test_resnet_folders.py",
    "test_scripts.py",
]
UNTRIED = [  # numerical, and not yet run on other machines
    "test_features.py",
    "test_population.py",
    "test_projected.py",
    "test_study.py",
    "test_torus_diffusion.py",
]


@dataclass(frozen=True)
class Machine:
    """A processor to stand in for: one value for each library. ``needs`` is the feature that this one must have.

    ``numba`` is LLVM's name of it, ``openblas`` that of the core (of numpy and of scipy), ``mkl`` and ``onednn`` those
    of torch's products and convolutions, ``torch`` the capability of its own loops; ``without`` are the features that
    the C library, and ``numpy_without`` the groups of them that numpy's loops, must not use.
    """

    name: str
    needs: str
    numba: str
    torch: str
    openblas: str
    mkl: str = ""
    onednn: str = ""
    without: tuple[str, ...] = ()
    numpy_without: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The orders, as environment variables."""
        orders = {
            "NUMBA_CPU_NAME": self.numba,
            "ATEN_CPU_CAPABILITY": self.torch,
            "OPENBLAS_CORETYPE": self.openblas,
            "MKL_CBWR": self.mkl,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "NPY_DISABLE_CPU_FEATURES": " ".join(name for name in self.numpy_without if name in _numpy_features()),
            "GLIBC_TUNABLES": f"glibc.cpu.hwcaps=-{',-'.join(self.without)}" if self.without else "",
        }
        return {name: value for name, value in orders.items() if value}


_AVX512 = ("AVX512F", "AVX512VL")
MACHINES = {
    "x86_64": [
        Machine(
            "oldest", "sse2", "generic", "default", "NEHALEM", "COMPATIBLE", "SSE41",
            ("AVX", "AVX2", "FMA", "FMA4", *_AVX512), ("X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR"),
        ),
        Machine(
            "avx", "avx", "sandybridge", "default", "SANDYBRIDGE", "AVX", "AVX",
            ("AVX2", "FMA", "FMA4", *_AVX512), ("X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR"),
        ),
        Machine(
            "avx2", "avx2", "haswell", "avx2", "HASWELL", "AVX2", "AVX2",
            _AVX512, ("X86_V4", "AVX512_ICL", "AVX512_SPR"),
        ),
        Machine("avx512", "avx512vl", "skylake-avx512", "avx512", "SKYLAKEX", "AVX512", "AVX512_CORE"),
    ],
    "aarch64": [
        Machine("oldest", "neon", "generic", "default", "ARMV8"),
        Machine("cortex", "neon", "cortex-a57", "default", "CORTEXA57"),
        Machine("neoverse", "neon", "neoverse-n1", "default", "NEOVERSEN1"),
    ],
}  # fmt: skip


def _numpy_features() -> list[str]:
    """The groups of instructions that numpy would use here beyond what it needs."""
    return np.show_config("dicts")["SIMD Extensions"].get("found", [])


def _machines() -> Iterator[Machine]:
    """Those that this processor can stand in for."""
    features, kind = binding.get_host_cpu_features(), platform.machine()
    for machine in MACHINES.get({"arm64": "aarch64", "AMD64": "x86_64"}.get(kind, kind), []):
        if features.get(machine.needs):
            yield machine
        else:
            print(f"{machine.name}: left out, this processor has no {machine.needs}")


def chosen(possible: list[Machine], named: list[str] | None) -> list[Machine]:
    """Those to run of the ``possible`` ones, oldest first: the ``named`` ones, or all but the newest.

    ``make test`` computes with the instructions of the newest, and with what its own processor has beyond them.
    """
    if named is None:
        return possible[:-1] or possible
    return [machine for machine in possible if machine.name in named]


@dataclass(frozen=True)
class Outcome:
    """What the tests said on one machine; ``seen`` is empty where they did not come to an end."""

    machine: Machine
    code: int
    text: str
    seconds: float
    seen: dict[tuple[str, str], headroom.Seen]


def _run(machine: Machine, folder: Path, workers: int, arguments: list[str]) -> Outcome:
    file, begin = folder / f"{machine.name}.json", time.perf_counter()
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    one_thread = {f"{library}_NUM_THREADS": "1" for library in libraries}
    cache = {"NUMBA_CACHE_DIR": str(folder / machine.name)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--headroom-file={file}"]
    command += [f"--numprocesses={workers}", "--dist=loadfile"] * (workers > 1)
    files = [str(TESTS / name) for name in NUMERICAL]
    ended = subprocess.run(
        [*command, *files, *arguments],
        cwd=TESTS.parent,
        env=os.environ | one_thread | cache | machine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = headroom.load(file) if file.exists() else {}
    return Outcome(machine, ended.returncode, ended.stdout, time.perf_counter() - begin, seen)


def main() -> int:
    """Run all machines; 1 where a test failed on one of them, 2 where there is none to run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = list(dict.fromkeys(one.name for machines in MACHINES.values() for one in machines))
    parser.add_argument("--machine", nargs="+", choices=names, help="default: all but the newest")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time; default %(default)s"
    )
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, behind --")
    options = parser.parse_args()
    possible = list(_machines())
    machines = chosen(possible, options.machine)
    for machine in possible if options.machine is None else []:
        if machine not in machines:
            print(f"{machine.name}: left to make test")
    if not machines:
        print(f"{' '.join(options.machine or ['none'])}: this {platform.machine()} processor cannot stand in for them")
        return 2
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        workers = max(1, options.jobs // len(machines))  # where there are fewer machines than cores
        ends = pool.map(lambda machine: _run(machine, Path(folder), workers, options.pytest), machines)
        outcomes = list(tqdm(ends, total=len(machines), unit="machine", disable=None))
    for end in outcomes:
        orders = " ".join(f"{name}={value!r}" for name, value in end.machine.environment.items())
        result = end.text.strip().splitlines()[-1] if end.text.strip() else "no output"
        verdict = "passed" if end.code == 0 else "FAILED"
        print(f"\n{end.machine.name}: {verdict} in {end.seconds:.0f} s: {result}\n  {orders}")
        if end.code:
            print(end.text)
    table = _worst(outcomes)
    short = sum(row.short for row in table)
    print("\nheadroom of the tolerances, worst of these machines")
    print("\n".join(headroom.lines(table)))
    print(f"{len(table)} tolerances, {short} with less than a factor {headroom.LEAST} over round-off (!)")
    print(f"~: an error of the method, alike on every machine ({len(tolerances.METHOD)} in all)")
    return int(any(end.code for end in outcomes))


def _worst(outcomes: list[Outcome]) -> list[headroom.Row]:
    """One row per entry, of the machine that left least room."""
    best: dict[str, headroom.Row] = {}
    for end in outcomes:
        for row in headroom.rows(end.seen, end.machine.name):
            if row.entry not in best or row.seen.ratio > best[row.entry].seen.ratio:
                best[row.entry] = row
    return sorted(best.values(), key=lambda row: row.seen.ratio, reverse=True)


if __name__ == "__main__":
    sys.exit(main())
