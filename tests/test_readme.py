"""The front page: short, with a row and a picture for every figure, and with costs that the plan agrees with."""

import re

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from varpro.figures import thumbnails
from varpro.paper import cost, grid

README = (ROOT / "README.md").read_text(encoding="utf-8")
FIGURES = {figure.name: (key, figure) for key, section in grid.SECTIONS.items() for figure in section.figures}
NOT_AT_HAND = {"resnet_loss_cifar10"}  # takes days, and has no published curves
_ROW = re.compile(r"^\| \[(?:!\[)?(\w+)\].*", flags=re.MULTILINE)
ROWS = {found[1]: [cell.strip() for cell in found[0].strip("|").split("|")] for found in _ROW.finditer(README)}
_SECONDS = {"s": 1, "min": 60, "h": 3600}


def test_the_front_page_is_short():
    lines = README.splitlines()
    assert len(lines) <= 250
    assert max(map(len, (line for line in lines if not line.startswith(("|", "["))))) <= 160


def test_every_figure_has_a_row():
    assert ROWS.keys() >= FIGURES.keys()
    assert all(len(row) == 5 for row in ROWS.values())
    for name, row in ROWS.items():
        notebook = re.search(r"\((\w+)\.ipynb\)", row[0])[1]
        if name in FIGURES:
            assert FIGURES[name][1] in grid.SECTIONS[FIGURES[name][0]].notebooks[notebook]
            assert name in NOT_AT_HAND or f"](docs/thumbnails/{name}.png)" in row[0]


def test_every_section_that_is_named_exists():
    named = set(re.findall(r"SECTION=([\w.-]+\w)", README))
    assert named - {"all"} == grid.SECTIONS.keys() - {"6.1"}  # 6.1 is what make takes by itself


@pytest.mark.parametrize("name", FIGURES)
def test_the_stated_cost_is_that_of_the_plan(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VARPRO_RESULTS", str(tmp_path))  # nothing is at hand
    key, figure = FIGURES[name]
    seeds = grid.parse_seeds(grid.SECTIONS[key].seeds) if grid.SECTIONS[key].seeds else figure.seeds
    wanted = {run: [0] if run.deterministic else seeds for run in figure.runs}
    stated = ROWS[name][2]
    if not wanted:
        assert stated == "none"
        return
    runs, number, unit = re.fullmatch(r"(\d+): ([\d.]+) (s|min|h)", stated).groups()
    assert int(runs) == sum(map(len, wanted.values()))
    planned = cost.estimate(wanted, dict.fromkeys(("circle", "torus", "resnet"), 1.0)).seconds
    assert 1 / 2 < float(number) * _SECONDS[unit] / planned < 2


def test_thumbnails_are_those_of_the_notebooks():
    """`python -m varpro.figures.thumbnails` makes them anew, and the animation at the head of the page."""
    assert dict(thumbnails.pictures())["diffusion_animation"] == thumbnails.ANIMATION.read_bytes()
    fresh = dict(thumbnails.thumbnails())
    assert fresh.keys() == FIGURES.keys() - NOT_AT_HAND
    assert fresh.keys() <= {path.stem for path in thumbnails.FOLDER.iterdir()} <= ROWS.keys()
    for name, picture in fresh.items():
        path = thumbnails.FOLDER / f"{name}.png"
        assert path.stat().st_size <= 30e3
        with Image.open(path) as kept:
            assert kept.size == picture.size, f"{name}: python -m varpro.figures.thumbnails"
            both = (np.asarray(each.convert("RGB"), dtype=float) for each in (kept, picture))
            away = np.abs(np.subtract(*both)).mean()
        assert away < 0.1, f"{name}: python -m varpro.figures.thumbnails"  # in grey levels
