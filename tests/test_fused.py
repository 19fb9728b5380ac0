"""The fused epoch on the torus without a GPU: its kernels interpreted on the CPU, and compiled for one elsewhere.

The kernels are interpreted where TRITON_INTERPRET is set before triton is imported: the tests below the line run in a
process of their own, which the one above it starts.
"""

import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from conftest import ROOT
from problems import drawn
from tolerances import FEATURE, FOLLOWS, FUSED, RESIDUAL

from varpro.features import RADIAL_KERNELS, RadialTorus, ReLUCircle
from varpro.solvers import graphs
from varpro.solvers.dense import DenseSolver
from varpro.solvers.epochs import AFTER, Epoch, EpochProblem, TensorEpoch
from varpro.solvers.graphs import GraphSolver

if find_spec("triton") is None:
    pytest.skip("no triton", allow_module_level=True)

from varpro.solvers import fused

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own, where triton interprets")
pytestmark = pytest.mark.usefixtures("one_thread")

LMBDA, TIME_SCALE = 1e-2, 2**-8
kernels = pytest.mark.parametrize("kernel", list(RADIAL_KERNELS))
precisions = pytest.mark.parametrize("dtype", ["float32", "float64"])
SMALL = fused.Blocks(neurons=2, along=8, samples=8, across=2)  # so that little problems have several tiles


def problem_of(kernel: str, samples: int, width: int, dtype: str) -> tuple[EpochProblem, torch.Tensor]:
    """A problem of Appendix B and the weights (M, 2) of a student."""
    inputs, targets, weights = drawn(kernel, samples, width)
    inputs, targets = torch.from_numpy(inputs).to(getattr(torch, dtype)), torch.from_numpy(targets)[:, None]
    feature_map = RadialTorus(RADIAL_KERNELS[kernel])
    return EpochProblem(feature_map, inputs, targets, LMBDA, 1.0, TIME_SCALE), torch.from_numpy(weights)


# --- without a device --------------------------------------------------------------------------------------------


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(("kernel", "dtype"), [("laplace", "float32"), ("cos", "float64")])
def test_all_that_is_launched_compiles_for_an_h100(kernel, dtype):
    """As launched by an epoch, a gradient and a solve of that problem, down to machine code for sm_90."""
    from triton import compile as compile_
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
    launched, count = {}, []

    def note(self, launched_kernel, programs, *arguments, **constants):
        count.append(programs)
        launched.setdefault((launched_kernel, constants.get("PREDICT")), (arguments, constants))

    epoch = fused.FusedEpoch(problem_of(kernel, 300, 600, dtype)[0], 600)
    with patch.object(fused.FusedEpoch, "_launch", note):
        for steps in (1, 2):
            count.clear()
            epoch.run(steps)
            assert len(count) == 4 + 4 * steps
        epoch.fill()
        epoch.pull_back()
    storing = {name for name, value in vars(fused).items() if "tl.store" in getattr(value, "src", "")}
    assert {one.fn.__name__ for one, _ in launched} == storing  # no kernel is forgotten
    for (one, _), (arguments, constants) in launched.items():
        options = {"num_warps": constants.pop("num_warps", 4)}
        named = dict(zip(one.arg_names, arguments, strict=False))
        signature = {name: "i32" if isinstance(value, int) else types[value.dtype] for name, value in named.items()}
        source = ASTSource(one, signature | dict.fromkeys(constants, "constexpr"), constants)
        code = compile_(source, target=GPUTarget("cuda", 90, 32), options=options | fused._OPTIONS).asm
        assert ".target sm_90" in code["ptx"]
        assert code["cubin"]


def version(package: str) -> tuple[int, int]:
    major, minor = metadata.version(package).split(".")[:2]
    return int(major), int(minor)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(
    version("triton") < (3, 9) and version("numpy") >= (2, 4),
    reason="older interpreters of triton (tried: 3.6) work with numpy up to 2.3",
)
def test_the_interpreted_kernels():
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "tests/test_fused.py"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 3 skipped" in done.stdout  # this one and two that compile


def test_which_epoch_runs(monkeypatch):
    """Fused kernels on CUDA for one output of the paper's maps; tensors for all else, and where triton is no use."""
    problem, _ = problem_of("laplace", 20, 4, "float32")
    monkeypatch.setattr(graphs, "triton_works", lambda: True)
    assert graphs.epoch_of(problem) is TensorEpoch
    assert fused.FusedEpoch.computes(problem)
    many = problem.targets.expand(-1, 2)
    assert not fused.FusedEpoch.computes(replace(problem, targets=many))
    assert not fused.FusedEpoch.computes(replace(problem, feature_map=ReLUCircle()))
    there = replace(problem, targets=SimpleNamespace(device=torch.device("cuda"), shape=problem.targets.shape))
    assert graphs.epoch_of(there) is fused.FusedEpoch
    assert graphs.epoch_of(replace(there, feature_map=ReLUCircle())) is TensorEpoch
    monkeypatch.setattr(graphs, "triton_works", lambda: False)
    assert graphs.epoch_of(there) is TensorEpoch


def test_where_triton_works(monkeypatch, tmp_path):
    """It compiles a launcher in C against Python's headers before its first kernel runs."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(graphs.sysconfig, "get_path", lambda name: tmp_path)
    monkeypatch.setenv("CC", "cc")
    assert graphs.triton_works()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not graphs.triton_works()
    (tmp_path / "clang").touch(mode=0o755)
    assert graphs.triton_works()
    (tmp_path / "Python.h").unlink()
    assert not graphs.triton_works()
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    assert not graphs.triton_works()


@pytest.mark.parametrize(("width", "samples"), [(1, 1), (32, 4096), (1024, 4096), (20000, 4096), (5, 10**6)])
def test_tiles(width, samples):
    """Powers of two that a program can hold, and few enough parts for a next kernel to add up."""
    tiles = fused.blocks(width, samples, 4)
    assert all(size & (size - 1) == 0 for size in tiles)
    assert tiles.neurons * tiles.along <= 2048
    assert tiles.samples * tiles.across <= 8192
    assert -(-width // tiles.neurons) <= 512


# --- interpreted -------------------------------------------------------------------------------------------------


def entered(kind: type, problem: EpochProblem, weights: torch.Tensor) -> Epoch:
    """An epoch in a state that has a past."""
    epoch = kind(problem, len(weights))
    epoch.weights.copy_(weights)
    generator = torch.Generator().manual_seed(0)
    for outer in (epoch.outer, epoch.earlier, epoch.earliest):
        outer.copy_(1 + 0.1 * torch.randn(outer.shape, generator=generator, dtype=torch.float64))
    epoch.inverse.copy_(torch.eye(len(weights)) / LMBDA)
    epoch.fill()
    epoch.evaluate()
    return epoch


def close(found: torch.Tensor, expected: torch.Tensor, within: float) -> None:
    """In the scale of the largest, or of 1."""
    assert (found - expected).abs().max() <= within * expected.abs().max().clamp_min(1.0)


@interpreted
@precisions
@kernels
def test_features_and_gradient(kernel, dtype, monkeypatch):
    """Against the feature map in float64, with neurons at samples, on the seam, outside the square, and the last one so
    close to a sample that the square of the distance is none in float32."""
    monkeypatch.setattr(fused, "blocks", lambda *_: SMALL)
    problem, weights = problem_of(kernel, 13, 7, dtype)
    problem.inputs.copy_(problem.inputs.float())  # so that a sample is where its neuron is
    problem.inputs[12] = 0
    inputs = problem.inputs.double()
    weights[:5] = torch.tensor([[-2, -2], [2, 1.5], [1.999, -1.999], [0, 0], [0, 4]])
    weights[3:5] += inputs[[10, 11]]
    weights[6] = torch.tensor([1e-30, 1e-25])
    weights = weights.float().double()
    epoch, feature_map = entered(fused.FusedEpoch, problem, weights), problem.feature_map
    expected = feature_map(weights, inputs)
    close(epoch.features.double(), expected, FEATURE[dtype])
    residual = epoch.residual.to(problem.inputs).double()
    cotangent = residual @ epoch.outer.T
    expected, found = feature_map.pull_back(weights, inputs, expected, cotangent), epoch.pull_back()
    close(found[:6], expected[:6], 10 * FEATURE[dtype])
    assert found[6].abs().max() < 16 * cotangent[:, 6].abs().sum()  # no slope is steeper than that of exp at 0


@interpreted
@pytest.mark.parametrize(
    ("kernel", "dtype", "samples", "width", "small"),
    [
        ("laplace", "float32", 11, 3, True),
        ("cos", "float64", 11, 3, True),
        ("laplace", "float64", 19, 1, False),
        ("cos", "float32", 19, 1, False),
    ],
)
def test_an_epoch_is_that_of_tensors(kernel, dtype, samples, width, small, monkeypatch):
    """State, kept start and record, after two steps; the second epoch goes to the second row."""
    if small:
        monkeypatch.setattr(fused, "blocks", lambda *_: SMALL)
    problem, weights = problem_of(kernel, samples, width, dtype)
    one, other = (entered(kind, problem, weights) for kind in (fused.FusedEpoch, TensorEpoch))
    for epoch in (one, other):
        epoch.run(2)
        epoch.run(1)
        epoch.fill()
    for name in ("features", "state", "starts", "records"):
        close(getattr(one, name).double(), getattr(other, name).double(), FUSED[dtype])
    assert one.place.item() == 2
    assert (one.starts[1] - one.starts[0]).abs().max() > 1e-3  # something happened
    close(one.gradient(), other.gradient(), FUSED[dtype])
    close(one.relative_residual(), other.relative_residual(), FUSED[dtype])


@interpreted
@pytest.mark.parametrize("width", [1, 3])
def test_one_sample(width):
    problem, weights = problem_of("laplace", 1, width, "float64")
    one, other = (entered(kind, problem, weights) for kind in (fused.FusedEpoch, TensorEpoch))
    for epoch in (one, other):
        epoch.run(1)
    close(one.state, other.state, FUSED["float64"])
    close(one.records, other.records, FUSED["float64"])


@interpreted
def test_training_follows_the_dense_solver(monkeypatch):
    """To the residual that is promised, with epochs that are taken back on the way; and the reduced risk at the end."""
    monkeypatch.setattr(fused, "blocks", lambda *_: fused.Blocks(4, 16, 16, 4))
    problem, start = problem_of("laplace", 12, 3, "float64")
    constants = LMBDA, 1.0, TIME_SCALE
    dense = DenseSolver(problem.feature_map, problem.inputs, problem.targets, *constants, "ridge")
    solver = GraphSolver(problem.feature_map, problem.inputs, problem.targets, *constants, kind=fused.FusedEpoch)
    ends = []
    for one in (solver, dense):
        weights = start.clone()
        outer = one.solve(weights)
        losses = one.advance(weights, outer, 1)
        solver._steps = 1  # too few
        losses = torch.cat([losses, one.advance(weights, outer, 2)])
        reduced = one.reduced(weights)
        ends.append((losses, weights, outer, torch.tensor(reduced.risk), reduced.gradient))
    for found, expected in zip(*ends, strict=True):
        close(found, expected, FOLLOWS)
    assert (ends[0][1] - start).abs().max() > 1e-3  # something happened
    report = solver.report()
    assert report["fused"] == report["epochs"] == 3
    assert report["repeated"] > 0
    assert report["worst_residual"] < RESIDUAL["float64"]


@interpreted
def test_an_epoch_that_is_taken_back_is_made_again_to_the_same_bits():
    problem, weights = problem_of("laplace", 11, 3, "float32")
    epoch = entered(fused.FusedEpoch, problem, weights)
    ends = []
    for _ in range(2):
        epoch.run(1)
        ends.append((epoch.state.clone(), epoch.records[0].clone()))
        epoch.state.copy_(epoch.starts[0])
        epoch.fill()
        epoch.rewind()
    assert all(map(torch.equal, *ends))


@interpreted
@pytest.mark.parametrize(("place", "kernel"), [("weights", "cos"), ("outer", "laplace"), ("residual", "cos")])
def test_what_is_not_finite_is_seen(place, kernel):
    """The maximum of a GPU takes the number where the other one is none."""
    problem, weights = problem_of(kernel, 5, 2, "float32")
    epoch = entered(fused.FusedEpoch, problem, weights)
    getattr(epoch, place)[1] = torch.nan
    epoch.run(1)
    assert epoch.records[0, AFTER].isnan()
