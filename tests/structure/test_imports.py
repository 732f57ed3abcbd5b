"""No module imports itself through others."""

from pathlib import Path

from .imports import PACKAGE, cycles, import_graph


def test_no_modules_import_each_other():
    assert cycles(import_graph(PACKAGE)) == []


def test_local_imports_and_imports_for_types_count(tmp_path: Path):
    package = tmp_path / "made"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("import made.b\n")
    (package / "b.py").write_text("def late():\n    from made import c\n")
    (package / "c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.a import A\n")
    (package / "d.py").write_text("from made.a import A\n")
    assert cycles(import_graph(package)) == [["made.a", "made.b", "made.c"]]
