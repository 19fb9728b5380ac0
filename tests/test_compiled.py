"""The cache of compiled functions: which sources its key is made of, and which signatures it is asked for."""

import os
import subprocess
import sys
from pathlib import Path

from varpro import compiled
from varpro.solvers import torus

PACKAGE = Path(compiled.__file__).parent


def names(sources) -> set[str]:
    return {str(path.relative_to(PACKAGE)) for path in sources}


def test_constants_of_other_files_belong_to_the_key():
    """`E32` stands as a number in the machine code of the diffusion."""
    found = names(compiled._sources(PACKAGE / "diffusion" / "circle.py", set()))
    assert {"diffusion/circle.py", "diffusion/stepping.py"} <= found


def test_only_what_machine_code_is_made_of_belongs_to_the_key():
    """A change of the options of scripts compiles nothing anew."""
    found = names(compiled._sources(PACKAGE / "solvers" / "circle.py", set()))
    assert {"solvers/circle.py", "relu.py", "simd.py"} <= found
    assert not found & {"cli.py", "problem.py", "results.py", "names.py"}


def test_imports_of_all_shapes():
    text = """
from varpro import relu, simd
from varpro.diffusion.stepping import (
    DIAGONAL,
    Step,
)
from varpro.ridge import loss  # LOUD
from varpro.problem import Problem
import varpro.names
"""
    found = [(str(path.relative_to(PACKAGE)), constants) for path, constants in compiled._imported(text)]
    expected = [("relu.py", False), ("simd.py", False), ("diffusion/stepping.py", True), ("ridge.py", False)]
    assert found == [*expected, ("problem.py", False)]


def test_each_precision_of_the_torus_is_looked_for_by_itself(monkeypatch):
    here = torus._epochs.targetctx.codegen().magic_tuple()
    keys = [("(Samples(array(float32, 3d, C), ...), Workspace(array(float64, 3d, C)))", here, "")]
    keys += [(keys[0][0].replace("float32", "float64"), ("another", "processor", ""), "")]
    monkeypatch.setattr(torus._epochs, "_cache", type("Cache", (), {"_cache_file": Index(keys)}))
    assert torus.TorusSolver.compilation(None, None, "float32") == 0
    assert torus.TorusSolver.compilation(None, None, "float64") > 0


def test_loading_compiled_code_leaves_the_threads_of_torch_alone():
    """numba's runtime would set those of OpenMP, which are torch's too, to all cores."""
    code = """
import numpy, torch
from varpro.distances import CircleMeasure
torch.set_num_threads(3)
one, other = (CircleMeasure(numpy.array([[1.0, x]]) / (1 + x * x) ** 0.5) for x in (0.0, 1.0))
assert one.energy_distance(other) > 0
assert torch.get_num_threads() == 3, torch.get_num_threads()
"""
    environment = os.environ | {"NUMBA_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


class Index:
    """What numba keeps beside its machine code."""

    def __init__(self, keys) -> None:
        self.keys = keys

    def _load_index(self) -> list:
        return self.keys
