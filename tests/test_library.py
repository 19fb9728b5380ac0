"""The library's face: lazy names, and every block of docs/library.md at work."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import numpy as np
import pytest
import torch
from conftest import ROOT
from tolerances import EXACT, GRADIENT

import varpro

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_documented_blocks_run_in_order():
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 5
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), scope)
    for name in varpro.__all__:  # each is shown at work
        assert f"varpro.{name}" in text


def test_importing_is_light():
    code = "import sys, varpro; assert 'torch' not in sys.modules and 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def stated_version() -> str:
    """The one in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_the_version_is_that_of_the_package(monkeypatch):
    stated = stated_version()
    assert re.fullmatch(r"\d+\.\d+\.\d+", stated)
    assert varpro.__version__ == metadata.version("varpro")
    assert f"## {stated}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert varpro.__version__ == "unknown"


def test_the_stub_names_the_same_homes():
    stub = ast.parse((ROOT / "varpro" / "__init__.pyi").read_text(encoding="utf-8"))
    homes = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert homes == varpro._HOMES


def test_the_wheel_imports_without_anything_else(tmp_path):
    for name in ("varpro", "VarPro_resnet"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"varpro-{stated_version()}-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = [path.relative_to(ROOT) for path in (ROOT / "varpro").rglob("*.py*") if "__pycache__" not in path.parts]
    assert {path.as_posix() for path in sources} | {"varpro/py.typed"} <= packed
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import varpro; print(varpro.__version__, varpro.__file__)"
    alone = [sys.executable, "-I", "-S", "-c", code]  # no site-packages: neither numpy nor torch
    told = subprocess.run(alone, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert told.startswith(f"{stated_version()} {wheel}")


def test_unknown_names_are_refused():
    assert set(varpro.__all__) <= set(dir(varpro))
    with pytest.raises(AttributeError, match="no attribute 'Varpro'"):
        _ = varpro.Varpro


@pytest.mark.parametrize("centre", [0.0, 1.0])
@pytest.mark.parametrize("width", [5, 40])
def test_reduced_risk_has_the_gradient_of_the_minimum(width, centre):
    stream = torch.Generator().manual_seed(0)
    weights = torch.randn(width, 3, dtype=torch.float64, generator=stream)
    inputs = torch.randn(20, 3, dtype=torch.float64, generator=stream)
    targets = torch.randn(20, 2, dtype=torch.float64, generator=stream)

    def risk_of(w):
        return varpro.reduced_risk(torch.tanh(inputs @ w.T), targets, 1e-2, centre)

    leaf = weights.clone().requires_grad_()
    risk, outer = risk_of(leaf)
    (gradient,) = torch.autograd.grad(risk, leaf)
    direction, step = torch.randn(width, 3, dtype=torch.float64, generator=stream), 1e-5
    ahead, behind = (risk_of(weights + sign * step * direction)[0].item() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / (2 * step), abs=10 * GRADIENT)
    perfect = torch.tanh(inputs @ weights.T).mean(dim=1, keepdim=True)
    risk, outer = varpro.reduced_risk(torch.tanh(inputs @ weights.T), perfect, 1e-2, 1.0)
    assert risk.item() == pytest.approx(0, abs=EXACT)
    np.testing.assert_allclose(outer, 1.0, rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("features", "targets", "lmbda", "said"),
    [
        ((20, 5), (20,), 1e-2, r"targets \(20,\) are not allowed: \(N, M\) with \(N, k\)"),
        ((20, 5), (19, 1), 1e-2, r"targets \(19, 1\) are not allowed"),
        ((20,), (20, 1), 1e-2, r"features \(20,\)"),
        ((0, 5), (0, 1), 1e-2, r"features \(0, 5\)"),
        ((20, 5), (20, 1), 0.0, "lmbda: 0.0 is not allowed: a finite number above 0"),
        ((20, 5), (20, 1), float("nan"), "lmbda: nan is not allowed"),
    ],
)
def test_reduced_risk_refuses_what_would_be_another_number(features, targets, lmbda, said):
    with pytest.raises(ValueError, match=said):
        varpro.reduced_risk(torch.ones(features), torch.ones(targets), lmbda)


@pytest.mark.parametrize("centre", [torch.ones(5), torch.ones(5, 1), float("nan")])
def test_reduced_risk_has_one_centre(centre):
    """One of every neuron would be broadcast somewhere, and give another number."""
    with pytest.raises(ValueError, match=r"^centre: .* is not allowed: a finite number$"):
        varpro.reduced_risk(torch.randn(20, 5), torch.randn(20, 1), 1e-2, centre)


def test_reduced_risk_is_of_one_dtype():
    with pytest.raises(ValueError, match=r"features of torch\.float32 with targets of torch\.float64 are not allowed"):
        varpro.reduced_risk(torch.randn(20, 5), torch.randn(20, 1).double(), 1e-2)


@pytest.mark.parametrize("broken", ["features", "targets"])
def test_reduced_risk_of_numbers_that_are_not_finite(broken):
    tensors = {"features": torch.randn(20, 5), "targets": torch.randn(20, 1)}
    tensors[broken][3] = torch.nan
    with pytest.raises(FloatingPointError, match=f"the {broken} are not finite"):
        varpro.reduced_risk(**tensors, lmbda=1e-2)


@pytest.mark.parametrize(
    ("inputs", "targets", "more", "said"),
    [
        ((20, 3), (20,), {}, r"inputs \(20, 3\) with targets \(20,\) are not allowed: \(N, 2\) with \(N,\)"),
        ((20, 2), (20, 1), {}, r"targets \(20, 1\)"),
        ((20, 2), (21,), {}, r"targets \(21,\)"),
        ((0, 2), (0,), {}, "N >= 1"),
        ((20, 2), (20,), {"lmbda": -1e-3}, "lmbda: -0.001 is not allowed: a finite number above 0"),
        ((20, 2), (20,), {"lmbda": float("inf")}, "lmbda: inf is not allowed"),
        ((20, 2), (20,), {"outer_update": "rigde"}, "outer_update: 'rigde' is not allowed: ridge or gradient"),
    ],
)
def test_the_circle_solver_refuses_what_it_would_misread(inputs, targets, more, said):
    with pytest.raises(ValueError, match=said):
        varpro.CircleSolver(np.ones(inputs), np.ones(targets), **{"lmbda": 1e-3, "centre": 1.0} | more)


def test_the_circle_solver_refuses_weights_of_another_shape():
    solver = varpro.CircleSolver(np.ones((20, 2)), np.ones(20), 1e-3, 1.0)
    for use in (solver.solve, solver.reduced):
        with pytest.raises(ValueError, match=r"weights \(5, 4\) of float64 are not allowed: an array \(M, 2\)"):
            use(np.ones((5, 4)))
        with pytest.raises(ValueError, match=r"weights torch.Size\(\[5, 2\]\) of torch.float64 are not allowed"):
            use(torch.ones(5, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"weights \(5,\) of float64 are not allowed"):
        solver.advance(np.ones(5), np.ones(5), 1)
    with pytest.raises(ValueError, match=r"outer \(3,\) of float64 is not allowed: an array \(5,\) of float64"):
        solver.advance(np.ones((5, 2)), np.ones(3), 1)
