"""The fused epoch on the torus, without a GPU: its kernels interpreted on the CPU, and compiled for one that is not here.

The kernels are interpreted where TRITON_INTERPRET is set before triton is imported: the tests below the line run in a
process of their own, which the one above it starts.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_torus import drawn, wrap
from tolerances import FEATURE, FUSED, GROWN, RESIDUAL

from varpro.features import RADIAL_KERNELS, RadialTorus, ReLUCircle
from varpro.solvers.dense import DenseSolver
from varpro.solvers.epochs import AFTER, EpochProblem, TensorEpoch
from varpro.solvers.graphs import GraphSolver, epoch_of

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
    launched = {}

    def note(self, launched_kernel, programs, *arguments, **constants):
        launched.setdefault((launched_kernel, constants.get("PREDICT")), (arguments, constants))

    epoch = fused.FusedEpoch(problem_of(kernel, 300, 600, dtype)[0], 600)
    with patch.object(fused.FusedEpoch, "_launch", note):
        epoch.fill()
        epoch.run(1)
        epoch.pull_back()
    assert {key[0].fn.__name__ for key in launched} == {
        name for name, value in vars(fused).items() if hasattr(value, "fn") and value.__doc__ and "tl.store" in value.src
    }
    for (one, _), (arguments, constants) in launched.items():
        options = {"num_warps": constants.pop("num_warps", 4)}
        named = dict(zip(one.arg_names, arguments, strict=False))
        signature = {name: "i32" if isinstance(value, int) else types[value.dtype] for name, value in named.items()}
        source = ASTSource(one, signature | dict.fromkeys(constants, "constexpr"), constants)
        code = compile_(source, target=GPUTarget("cuda", 90, 32), options=options | fused._OPTIONS).asm
        assert ".target sm_90" in code["ptx"]
        assert code["cubin"]
