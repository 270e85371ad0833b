"""Imports of `ml/`, including imports in functions and for type checkers: no cycles, one direction."""

import ast
import functools
from collections import defaultdict
from pathlib import Path

import pytest

import ml

PACKAGE = Path(ml.__file__).parent
# Each package may import those before it.
ORDER = (
    "errors", "files", "run_files", "launcher", "machine", "metric_names", "optional", "targets", "terminal", "version",
    "config", "data", "layers", "blocks", "models", "distributed", "training", "interop",
    "building", "runs", "api", "plots", "sweeps", "cli", "__main__",
)  # fmt: skip
MODEL = {"layers", "blocks", "models"}  # separate from data; the trainer combines both


def module_name(file: Path) -> str:
    parts = ["ml", *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imported_by(tree: ast.AST, modules: set[str]) -> set[str]:
    """Returns those of `modules` that code imports; `from package import name` is the submodule if it exists."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}": node.module for alias in node.names}
            found |= {name if name in modules else package for name, package in names.items()}
    return found & modules


@functools.cache
def imports() -> dict[str, set[str]]:
    graph = {}
    for name, file in MODULES.items():
        graph[name] = imported_by(ast.parse(file.read_text(encoding="utf-8")), set(MODULES)) - {name}
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """Returns one cycle with its first name repeated at the end, or None."""
    finished: set[str] = set()

    def search(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return None
        for target in sorted(graph.get(name, ())):
            if cycle := search(target, [*path, name]):
                return cycle
        finished.add(name)
        return None

    return next((cycle for name in sorted(graph) if (cycle := search(name, []))), None)


def room_of(name: str) -> str:
    """Returns the package of a module at depth three or more, else the module: "ml.data.corpora"."""
    return ".".join(name.split(".")[:3])


def test_modules_have_no_import_cycles():
    assert cycle_in(imports()) is None


def test_packages_have_no_import_cycles():
    rooms = defaultdict(set)
    for name, targets in imports().items():
        rooms[room_of(name)] |= {room_of(target) for target in targets} - {room_of(name)}
    assert cycle_in(rooms) is None


def test_packages_import_in_one_direction():
    wrong = []
    for name, targets in imports().items():
        for target in targets - {"ml"}:
            source, drain = (one.split(".")[1] if "." in one else "" for one in (name, target))
            backward = source != "" and ORDER.index(drain) > ORDER.index(source)
            if backward or (source in MODEL and drain == "data") or (source == "data" and drain in MODEL):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_only_the_outermost_packages_import_ml_itself():
    importers = {name.split(".")[1] for name, targets in imports().items() if "ml" in targets and name != "ml"}
    assert importers <= {"cli", "sweeps"}


@pytest.mark.parametrize("place", ["top", "function", "type checker"])
def test_the_search_finds_every_import(place):
    code = {
        "top": "import ml.a",
        "function": "def f():\n    from ml import a",
        "type checker": "if TYPE_CHECKING:\n    from ml.a import X",
    }[place]
    assert imported_by(ast.parse(code), {"ml", "ml.a"}) == {"ml.a"}
    graph = {"ml.a": {"ml.b"}, "ml.b": {"ml.c"}, "ml.c": {"ml.a"}, "ml.d": {"ml.a"}}
    assert cycle_in(graph) == ["ml.a", "ml.b", "ml.c", "ml.a"]
    assert cycle_in({"ml.a": {"ml.b", "ml.c"}, "ml.b": {"ml.c"}}) is None
