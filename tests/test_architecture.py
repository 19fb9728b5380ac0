"""The rooms of the house: imports go downwards only, never in a circle, and every public name says what it is."""

import ast
import importlib
import inspect
import pkgutil
import re
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import import_graph
import pytest
from conftest import ROOT
from import_graph import LEVEL, PACKAGES, ROOMS, SOURCES, imports_of, name_of, room_of

import varpro

NEEDS = {"varpro.solvers.fused": "triton"}  # modules for what is not on every machine


def upward(graph: dict[str, set[str]]) -> list[str]:
    """The imports that go up, one line each."""
    return [
        f"{module} imports {other}"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if LEVEL[room_of(other)] > LEVEL[room_of(module)]
    ]


def test_every_module_has_a_room():
    rooms = {room_of(name_of(path)) for path in SOURCES}
    assert rooms == set(LEVEL), "a new module gets its place in ROOMS, and a line in docs/architecture.md"


def test_the_page_names_the_same_rooms():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (`.*?) \|", text, flags=re.MULTILINE)
    assert {room: re.findall(r"`(\w+)`", names) for room, names in rows} == ROOMS
    assert [room for room, _ in rows] == list(ROOMS)


def test_the_drawing_is_that_of_the_sources():
    text = import_graph.PAGE.read_text(encoding="utf-8")
    assert import_graph.page(text) == text, "python tests/import_graph.py draws it anew"
    assert import_graph.drawing().count("-->") >= len(ROOMS) - 1  # every room but the ground rests on one


PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "README.md", "published/README.md"]
PAGES += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_what_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_imports_go_downwards():
    graph = import_graph.import_graph()
    assert sum(map(len, graph.values())) > 200  # it does see the imports
    assert upward(graph) == []


def test_imports_make_no_circle():
    order = list(TopologicalSorter(import_graph.import_graph()).static_order())  # raises CycleError with the circle
    assert len(order) == len(SOURCES)


@pytest.mark.parametrize(
    "text",
    [
        "import varpro.paper.grid",
        "from varpro.paper import grid",
        "from varpro.paper.grid import RUNS",
        "from ..paper import grid",
        "def late():\n    from varpro.paper import grid\n    return grid",
    ],
)
def test_an_upward_import_is_seen(text):
    known = {"varpro", "varpro.paper", "varpro.paper.grid", "varpro.solvers.dense"}
    graph = {"varpro.solvers.dense": imports_of(text, "varpro.solvers.dense", False, known)}
    assert upward(graph) == ["varpro.solvers.dense imports varpro.paper.grid"]


def test_every_program_answers_signals_before_its_other_imports():
    programs = [path for path in SOURCES if path.parent.name != "benchmarks" and ends_as_program(path)]
    assert len(programs) >= 14  # it does see them
    for path in programs:
        docstring, first, guard, *_ = ast.parse(path.read_text(encoding="utf-8")).body
        assert ast.unparse(docstring.value)
        assert ast.unparse(first) == "from varpro.signals import end_on_signals", path
        assert ast.unparse(guard) == "if __name__ == '__main__':\n    end_on_signals()", path


def ends_as_program(path: Path) -> bool:
    """Whether the file ends with what it does when it is run."""
    return ast.unparse(ast.parse(path.read_text(encoding="utf-8")).body[-1]).startswith("if __name__ == '__main__'")


def modules() -> list[ModuleType]:
    """All modules of the packages: importing them does nothing else."""
    places = [str(ROOT / package) for package in PACKAGES]
    return [
        importlib.import_module(found.name)
        for place, package in zip(places, PACKAGES, strict=True)
        for found in pkgutil.walk_packages([place], f"{package}.")
        if find_spec(NEEDS.get(found.name, "varpro"))
    ]


def public_members(module: ModuleType) -> list[tuple[str, object]]:
    """Names and objects that ``module`` defines for others: functions, classes, and their methods and properties."""
    found = []
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            found += [
                (f"{name}.{method}", getattr(value, method))
                for method, member in vars(value).items()
                if not method.startswith("_")
                and (isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member))
            ]
        if inspect.isclass(value) or inspect.isroutine(value):
            found.append((name, value))
    return found


def test_every_public_name_says_what_it_is():
    silent = [
        f"{module.__name__}.{name}"
        for module in modules()
        if not module.__name__.startswith("benchmarks.")  # scripts
        for name, value in public_members(module)
        if not (inspect.getdoc(value) or "").strip()  # a method that replaces another may keep its words
    ]
    assert silent == []
    assert all(module.__doc__ for module in modules())


def test_the_face_states_shapes():
    for name in varpro.__all__:
        assert re.search(r"\([A-Za-z](, ?[\w ]+|,)\)", inspect.getdoc(getattr(varpro, name))), name
