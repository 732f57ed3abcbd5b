"""Which modules import which, read from the sources: at the top of a file, within functions and for types alone."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import seektune

PACKAGE = Path(seektune.__file__).parent

Graph = dict[str, set[str]]


@cache
def import_graph(package: Path) -> Graph:
    """For each module of a package those of its modules that it imports, by dotted name."""
    files = {_module(file, package): file for file in package.rglob("*.py")}
    return {name: set(_imported(file, set(files))) for name, file in files.items()}


def cycles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (strongly connected components)."""
    reachable = {name: _reachable(name, graph) for name in graph}
    found = {tuple(sorted(other for other in reachable[name] if name in reachable[other])) for name in graph}
    return sorted(list(group) for group in found if group)


def _module(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(file: Path, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{file} imports relatively, which this does not follow"
            assert node.level == 0, f"{file} imports relatively, which this does not follow"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules or node.module in modules:
                    yield inner if inner in modules else node.module


def _reachable(start: str, graph: Graph) -> set[str]:
    """What a module imports, and what that imports, and so on; itself only where it is in a cycle."""
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found
