"""docs/architecture.md, README and walk.svg name the files that a token, a weight or a request really passes."""

import ast
import re
from itertools import pairwise

from tests.run_cli import ROOT
from tests.structure.imports import PACKAGE, Graph, import_graph

from .guides import text_of

PAGE = "docs/architecture.md"
WALKS = {"A token, from the recipe to the loss": 11, "An expert's weight": 10, "A checkpoint": 10, "A chat request": 23}
"""Headings of the page's walks, and the files of each."""


def section(heading: str) -> str:
    """A section of the page."""
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text_of(PAGE), re.MULTILINE | re.DOTALL)
    return str(found)


def walk(heading: str) -> list[str]:
    """The files of a walk, in order, below the package's folder."""
    return re.findall(r"^\| `seektune/([\w/]+\.py)` \|", section(heading), re.MULTILINE)


def module(file: str) -> str:
    """The dotted name of a file of the package."""
    return "seektune." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def importers_of(name: str, graph: Graph) -> set[str]:
    """Modules that import a module, or a package whose `__init__` passes its names on."""
    direct = {each for each, imported in graph.items() if name in imported}
    package = name.rpartition(".")[0]
    return direct | {each for each, imported in graph.items() if package in direct and package in imported}


def test_each_file_of_the_tokens_walk_imports_the_next() -> None:
    graph = import_graph(PACKAGE)
    files = walk("A token, from the recipe to the loss")
    for file, following in pairwise(files):
        assert module(following) in graph[module(file)], f"{file} does not import {following}"


def test_each_file_of_a_walk_is_imported_by_one_before_it() -> None:
    graph = import_graph(PACKAGE)
    for heading, count in WALKS.items():
        files = walk(heading)
        assert len(files) == count, heading
        for n, file in enumerate(files[1:], start=1):
            before = {module(each) for each in files[:n]}
            assert before & importers_of(module(file), graph), f"{heading}: none of the files before imports {file}"


def test_readme_and_picture_show_the_same_walk() -> None:
    files = walk("A token, from the recipe to the loss")
    readme = text_of("README.md").partition("## Reading the code")[2].partition("[Architecture]")[0]
    assert re.findall(r"`([\w/]+\.py)`", readme) == files
    assert re.findall(r">([\w/]+\.py)<", text_of("docs/images/walk.svg")) == files


def test_the_names_of_the_page_are_defined_in_its_files() -> None:
    page = text_of(PAGE)
    rows = re.findall(r"^\| `(seektune/[\w/]+\.py)` \| `(\w+)`: ", page, re.MULTILINE)
    ideas = re.findall(r"`(\w+)`[^|\n]*\| `(seektune/[\w/]+\.py)` \|$", page, re.MULTILINE)
    with_names = re.findall(r"`(seektune/[\w/]+\.py)` with\s+`(\w+)`", page)
    assert len(rows) == sum(WALKS.values()) - 1, "all but kernels/__init__.py, which only assigns"
    assert len(ideas) == 7
    assert len(with_names) == 9
    for file, name in [*rows, *((file, name) for name, file in ideas), *with_names]:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        defined = {each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, (file, name)


def test_layers_match_the_import_contract() -> None:
    table = dict(re.findall(r"^\| (\d) \| (`seektune/.*?) \|", section("Packages and layers"), re.MULTILINE))
    documented = {name: int(layer) for layer, cells in table.items() for name in re.findall(r"seektune/(\w+)", cells)}
    (layers,) = re.findall(r"layers = \[(.*?)\]", text_of("pyproject.toml"), re.DOTALL)
    order = [re.findall(r"seektune\.(\w+)", line) for line in reversed(layers.splitlines()) if "seektune." in line]
    enforced = {name: height for height, names in enumerate(order) for name in names if name != "__main__"}
    assert documented.keys() == enforced.keys()
    for above, below in ((a, b) for a in documented for b in documented if documented[a] > documented[b]):
        assert enforced[above] > enforced[below], (above, below)
