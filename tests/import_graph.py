"""Which module imports which, read from the sources, and its drawing in docs/architecture.md.

python tests/import_graph.py         draws it anew
"""

import ast
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by tests/import_graph.py -->", "<!-- end -->"

# From the ground up: a module may import from its own room and from those that come before it here, at any place in its
# text. A new module gets a place here and in docs/architecture.md first.
ROOMS = {
    "ground": ["varpro", "names", "image_files", "compiled", "simd", "threads", "signals"],
    "tools": ["relu", "ridge", "distances", "results", "capture", "cli"],
    "domains": ["domains"],
    "features": ["features"],
    "problem": ["problem"],
    "loss": ["loss"],
    "solvers": ["solvers"],
    "optimizers": ["optimizers"],
    "diffusion": ["diffusion"],
    "runs": ["runs"],
    "paper": ["paper"],
    "figures": ["figures"],
    "scripts": ["VarPro_resnet", "make_diffusion", "benchmarks", "Experiment"],
}
LEVEL = {name: level for level, names in enumerate(ROOMS.values()) for name in names}

PACKAGES = ("varpro", "VarPro_resnet", "benchmarks")
SCRIPTS = ("make_diffusion.py", "*/Experiment.py")
SOURCES = sorted({path for top in PACKAGES for path in (ROOT / top).rglob("*.py")}.union(*map(ROOT.glob, SCRIPTS)))


def name_of(path: Path) -> str:
    """The dotted name of a source."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The key of ``LEVEL`` for a dotted name."""
    parts = module.split(".")
    if parts[0] == "varpro":
        return parts[1] if len(parts) > 1 else parts[0]
    return "Experiment" if parts[-1] == "Experiment" else parts[0]


def imports_of(text: str, module: str, package: bool, known: set[str]) -> set[str]:
    """The modules among ``known`` that ``text``, the source of ``module``, names in an import anywhere."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = module.split(".")
            above = home[: len(home) - node.level + package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            named = [name if name in known else base for name in inside]
        else:
            continue
        found.update(name for name in named if name in known)
    return found - {module}


def import_graph() -> dict[str, set[str]]:
    """Every module of the repository, and those that it imports."""
    known = {name_of(path) for path in SOURCES}
    return {
        name_of(path): imports_of(path.read_text(encoding="utf-8"), name_of(path), path.name == "__init__.py", known)
        for path in SOURCES
    }


def room_graph() -> dict[str, set[str]]:
    """Every room, and those below it that a module of it imports from."""
    rooms = {name: room for room, names in ROOMS.items() for name in names}
    graph: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, others in import_graph().items():
        room = rooms[room_of(module)]
        graph[room] |= {rooms[room_of(other)] for other in others} - {room}
    return graph


def drawing() -> str:
    """The rooms as a Mermaid diagram; an arrow that a way of others stands for is left out."""
    graph = room_graph()
    below: dict[str, set[str]] = {}  # all that a room rests on
    for room in ROOMS:  # from the ground up: what a room imports is known
        below[room] = graph[room].union(*(below[other] for other in graph[room]))
    lines = ["```mermaid", "flowchart TD"]
    for room, names in reversed(ROOMS.items()):
        if names != [room]:
            lines.append(f'    {room}["{room}<br>{", ".join(names)}"]')
    for room in reversed(ROOMS):
        direct = [other for other in graph[room] if not any(other in below[way] for way in graph[room])]
        lines += [f"    {room} --> {other}" for other in sorted(direct, key=list(ROOMS).index, reverse=True)]
    return "\n".join([*lines, "```"])


def page(text: str) -> str:
    """``text``, that of docs/architecture.md, with the drawing as it is now."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{drawing()}\n\n{END}{after}"


def main() -> None:
    """Write the drawing into the page, whole or not at all."""
    temporary = PAGE.with_suffix(".tmp")
    temporary.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    os.replace(temporary, PAGE)


if __name__ == "__main__":
    main()
