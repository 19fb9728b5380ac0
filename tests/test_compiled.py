"""The cache of compiled functions: which sources its key is made of, and which signatures it is asked for."""

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
    keys = [("(Samples(array(float32, 3d, C), ...), Workspace(array(float64, 3d, C)))", "", "")]
    monkeypatch.setattr(torus._epochs, "_cache", type("Cache", (), {"_cache_file": Index(keys)}))
    assert torus.TorusSolver.compilation(None, None, "float32") == 0
    assert torus.TorusSolver.compilation(None, None, "float64") > 0


class Index:
    """What numba keeps beside its machine code."""

    def __init__(self, keys) -> None:
        self.keys = keys

    def _load_index(self) -> list:
        return self.keys
