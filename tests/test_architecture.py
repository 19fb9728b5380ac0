"""The rooms of the house: imports go downwards only, never in a circle, and every public name says what it is.

Tests have two rules of their own: tolerances stand in the table, and what several tests need stands in no test.
"""

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


# --- tests --------------------------------------------------------------------------------------------------------

TESTS = sorted((ROOT / "tests").rglob("*.py"))
OPERANDS = {"assert_allclose": 2, "assert_close": 2, "allclose": 2, "isclose": 2, "approx": 1}  # what comes before them
BOUNDS = {  # a call needs one of these sets: what is left out is a number of the library, or nothing
    "assert_allclose": [{"rtol"}],  # 1e-7 by default, also where atol is given
    "assert_close": [{"rtol", "atol"}],
    "allclose": [{"rtol", "atol"}],
    "isclose": [{"rtol", "atol"}, {"rel_tol"}],
    "approx": [{"rel"}, {"abs"}],
}
KEYWORDS = {"rtol", "atol", "rel", "abs", "rel_tol", "abs_tol"}
SMALL = 1e-3  # an error is never asserted to be below such a number, but below an entry


def own_tolerances(text: str) -> list[str]:
    """Every comparison in the source ``text`` whose tolerance is no entry of tolerances.py, with its line."""
    tree = ast.parse(text)
    table = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "tolerances"
        for alias in node.names
    }

    def own(value: ast.expr) -> bool:
        """Whether it has numbers, none of them from the table; 0 is exact."""
        parts = list(ast.walk(value))
        numbers = [part.value for part in parts if isinstance(part, ast.Constant)]
        named = any(isinstance(part, ast.Name) and part.id in table for part in parts)
        return any(type(number) in (int, float) and number != 0 for number in numbers) and not named

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function not in OPERANDS:
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            wrong = not any(bounds <= set(given) for bounds in BOUNDS[function])
            wrong |= len(node.args) > OPERANDS[function]
            wrong |= any(own(given[name]) for name in KEYWORDS & set(given))
        elif isinstance(node, ast.Assert):
            compares = [part for part in ast.walk(node.test) if isinstance(part, ast.Compare)]
            wrong = any(small_bound(compare) for compare in compares)
        else:
            continue
        if wrong:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def small_bound(compare: ast.Compare) -> bool:
    """Whether something is to be less than a small number."""
    return any(
        isinstance(operator, ast.Lt | ast.LtE)
        and isinstance(bound, ast.Constant)
        and type(bound.value) is float
        and 0 < bound.value <= SMALL
        for operator, bound in zip(compare.ops, compare.comparators, strict=True)
    )


def imports_of_tests(text: str) -> list[str]:
    """Modules of tests that the source ``text`` imports."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module or ""] + [alias.name for alias in node.names if node.module in (None, "tests")]
    return [name for name in names if name.rpartition(".")[2].startswith("test_")]


@pytest.mark.parametrize(
    "path",
    # test_headroom.py is about tolerances of its own
    [path for path in TESTS if path.name != "test_headroom.py"],
    ids=lambda path: str(path.relative_to(ROOT / "tests")),
)
def test_tolerances_stand_in_the_table(path):
    assert own_tolerances(path.read_text(encoding="utf-8")) == []


def test_no_test_imports_from_another():
    """A file that two of them need is no test: problems.py, networks.py, conftest.py."""
    assert len([path for path in TESTS if path.name.startswith("test_")]) > 40  # it does see them
    found = {path.name: imports_of_tests(path.read_text(encoding="utf-8")) for path in TESTS}
    assert {name: others for name, others in found.items() if others} == {}


@pytest.mark.parametrize(
    "text",
    [
        "np.testing.assert_allclose(a, b)",
        "np.testing.assert_allclose(a, b, 1e-5)",
        "np.testing.assert_allclose(a, b, atol=EXACT)",
        "np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)",
        "torch.testing.assert_close(a, b)",
        "torch.testing.assert_close(a, b, rtol=EXACT, atol=1e-5 * scale)",
        "assert a == pytest.approx(b)",
        "assert a == approx(b, 1e-6)",
        "assert a == pytest.approx(b, abs=-1e-6)",
        "assert not torch.allclose(a, b, atol=1e-6)",
        "assert math.isclose(a, b)",
        "assert abs(a - b) < 1e-12",
        "assert a < b <= 1e-6",
    ],
)
def test_a_tolerance_that_stands_elsewhere_is_seen(text):
    (found,) = own_tolerances(f"from tolerances import EXACT\n{text}")
    assert found.startswith("2: ")


@pytest.mark.parametrize(
    "text",
    [
        "np.testing.assert_allclose(a, b, rtol=EXACT)",
        "np.testing.assert_allclose(a, b, rtol=0, atol=10 * BOUNDS['a'] * scale)",
        "torch.testing.assert_close(a, b, rtol=0, atol=0)",
        "torch.testing.assert_close(a, b, rtol=within, atol=within)",
        "assert a == pytest.approx(b, rel=EXACT / 2)",
        "assert abs(a - b) < EXACT",
        "assert abs(a - b) > 1e-3",
        "assert 0 < a < 0.05",
        "solve(a, rtol=1e-5)",
    ],
)
def test_a_tolerance_of_the_table_is_let_pass(text):
    assert own_tolerances(f"from tolerances import EXACT\nfrom tolerances import TABLE as BOUNDS\n{text}") == []


@pytest.mark.parametrize("text", ["import test_torus", "from test_torus import drawn", "from tests import test_torus"])
def test_an_import_from_a_test_is_seen(text):
    assert imports_of_tests(text) == ["test_torus"]
