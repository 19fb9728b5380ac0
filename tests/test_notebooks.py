"""The notebooks: as committed, on small results, and on none."""

import json
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT, TINY_EPOCHS
from PIL import Image

from varpro.paper import grid

FIGURES: dict[str, list[str]] = {}  # the files that each notebook writes
for section in grid.SECTIONS.values():
    for notebook, specs in section.notebooks.items():
        FIGURES[notebook] = [*FIGURES.get(notebook, []), *(spec.file for spec in specs)]
WITHOUT_RESULTS = ("gamma_densities", "convolution_teacher", "convolution_harmonics")
NOT_AT_HAND = {"Results_resnets": [f"resnet_{name}_cifar10.pdf" for name in ("loss", "accuracy")]}  # take days
WITHOUT_IMAGES = {"Results_resnets": ["resnet_start.pdf", *NOT_AT_HAND["Results_resnets"]]}  # where CIFAR-10 is not
MACHINE_PATH = re.compile(r"(?<![\w.])/(home|root|tmp|usr|Users|mnt|opt)/")
PICTURE = re.compile(r"base64,[A-Za-z0-9+/=]+")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(notebook: nbformat.NotebookNode) -> str:
    """Everything a reader sees as text: sources, printed lines, and outputs without the pictures."""
    parts = [cell.source for cell in notebook.cells]
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
            parts += [output.get("text", ""), PICTURE.sub("", json.dumps(data))]
    return "\n".join(parts)


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """The lines of all cells; a slow kernel may send a line in pieces, each of them an output."""
    texts = (
        "".join(output.text for output in cell.outputs if output.output_type == "stream")
        for cell in code_cells(notebook)
    )
    return [line for text in texts for line in text.splitlines()]


def check_outputs(notebook: nbformat.NotebookNode) -> None:
    """Ran once from top to bottom, without an error or a warning."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def check_missing(notebook: nbformat.NotebookNode, figures: list[str]) -> None:
    """Printed one line for each of ``figures``, with the command that makes what it lacks, and nothing else."""
    lines = printed(notebook)
    assert len(lines) == len(figures)
    for figure in figures:
        (line,) = (line for line in lines if line.startswith(f"Missing for the figure '{figure}': "))
        assert re.search(r"with: python \S+\.py .*--epochs \d+ ", line)


def execute(name: str, folder: Path, results: Path, patch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    """The notebook, executed in a new kernel as nbconvert does, with figures below ``folder``."""
    patch.setenv("VARPRO_RESULTS", str(results))
    patch.setenv("VARPRO_FIGURES", str(folder / "figures"))
    patch.setenv("VARPRO_EPOCHS", str(TINY_EPOCHS))
    patch.delenv("VARPRO_SEEDS", raising=False)
    notebook = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return notebook


@pytest.mark.parametrize("name", FIGURES)
def test_committed_notebook(name):
    path = ROOT / f"{name}.ipynb"
    assert path.stat().st_size < 2e6
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_outputs(notebook)
    text = words(notebook)
    assert not MACHINE_PATH.search(text)
    assert str(ROOT) not in text
    check_missing(notebook, [Path(file).stem for file in NOT_AT_HAND.get(name, [])])
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(set(pictures)) == len(pictures), "no cell shows another cell's picture"


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_draws_small_results(name, tiny_results, tmp_path, monkeypatch):
    notebook = execute(name, tmp_path, tiny_results, monkeypatch)
    check_outputs(notebook)
    check_missing(notebook, [Path(file).stem for file in WITHOUT_IMAGES.get(name, [])])
    drawn = [file for file in FIGURES[name] if file != "resnet_loss_cifar10.pdf"]  # has no published curves
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(drawn)
    kinds = [kind for cell in code_cells(notebook) for output in cell.outputs for kind in output.get("data", {})]
    assert sum(kind in ("image/png", "text/html") for kind in kinds) == len(drawn)
    for gif in (tmp_path / "figures").glob("*.gif"):
        with Image.open(gif) as animation:
            assert animation.n_frames > 10
            assert animation.info["loop"] == 0  # for ever


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_without_results_names_what_is_missing(name, tmp_path, monkeypatch):
    notebook = execute(name, tmp_path, tmp_path / "nothing", monkeypatch)
    check_outputs(notebook)
    check_missing(notebook, [Path(file).stem for file in FIGURES[name] if Path(file).stem not in WITHOUT_RESULTS])
    own = {spec.name: spec.runs[0].epochs for spec in grid.mean_field(TINY_EPOCHS).figures}  # some have finer steps
    own |= {spec.name: min(spec.runs[0].epochs, TINY_EPOCHS) for spec in grid.SECTIONS["resnets"].figures}
    own |= {spec.name: min(spec.runs[0].epochs, TINY_EPOCHS) for spec in grid.SECTIONS["resnets-start"].figures}
    for line in printed(notebook):
        figure = line.split("'")[1]
        assert f"--epochs {own.get(figure, TINY_EPOCHS)} " in line
