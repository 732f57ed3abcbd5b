"""The small files beside weights: licence, chat template and encoding go along; links out and large files do not."""

import json
import os
from pathlib import Path

import pytest

from seektune.checkpoint import companions
from seektune.checkpoint.companions import carry_companions, copy_companions

FILES = {
    "LICENSE": "MIT",
    "NOTICE.md": "notice",
    "generation_config.json": '{"temperature": 1.0}',
    "chat_template.jinja": "{{ a }}",
    "encoding/encoding_dsv4.py": "print()",
    "encoding/README.md": "how",
    "encoding/tests/case.json": "{}",
}
"""What is as true of weights trained from a base as of the base."""
OWN = {"tokenizer.json": "{}", "README.md": "card", "modeling.py": "print()", "notes.txt": "notes"}


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def read(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return written(tmp_path / "base", FILES | OWN | {"config.json": "{}"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return written(tmp_path / "out", {"chat_template.jinja": "ours", "tokenizer.json": "ours"})


def test_trained_weights_get_what_is_true_of_them_too(base: Path, out: Path):
    carry_companions(base, out)
    assert read(out) == FILES | {"tokenizer.json": "ours"}


def test_a_base_that_is_gone_carries_nothing(tmp_path: Path, out: Path):
    before = read(out)
    carry_companions(tmp_path / "gone", out)
    assert read(out) == before


def test_a_copy_has_the_other_small_files_too_but_no_python_that_transformers_could_run(base: Path, tmp_path: Path):
    (tmp_path / "new").mkdir()
    copy_companions(base, tmp_path / "new")
    assert read(tmp_path / "new") == FILES | {name: text for name, text in OWN.items() if name != "modeling.py"}


def test_what_a_source_lacks_comes_from_the_original_but_for_its_card(base: Path, tmp_path: Path):
    source = written(tmp_path / "source", {"chat_template.jinja": "its own", "tokenizer.json": "its own"})
    (tmp_path / "new").mkdir()
    copy_companions(source, tmp_path / "new", base)
    assert read(tmp_path / "new") == FILES | {"chat_template.jinja": "its own", "tokenizer.json": "its own"}


def test_settings_lose_foreign_code(base: Path, out: Path):
    nested = '"text_config": {"a": 1, "auto_map": {"a": "b.c"}, "b": [{"trust_remote_code": true}]}'
    (base / "generation_config.json").write_text(f'{{"auto_map": {{"a": "b.c"}}, "top_p": 1.0, {nested}}}')
    carry_companions(base, out)
    assert json.loads((out / "generation_config.json").read_text()) == {
        "top_p": 1.0,
        "text_config": {"a": 1, "b": [{}]},
    }


def test_only_small_regular_files_are_copied(base: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(companions, "LARGEST_FILE", 100)
    monkeypatch.setattr(companions, "MOST_FILES", 4)
    secret = written(tmp_path / "home", {"secret.txt": "secret"})
    (base / "encoding" / "linked").symlink_to(secret)
    os.mkfifo(base / "COPYING")
    (base / "LICENSE").write_text("x" * 101)
    written(base / "encoding", {f"a{number}.json": "{}" for number in range(9)})
    carry_companions(base, out)
    found = read(out)
    assert "LICENSE" not in found
    assert "COPYING" not in found
    assert not any("secret" in text for text in found.values())
    assert len([name for name in found if name.startswith("encoding/")]) == 4


def test_links_to_files_are_read_as_in_the_cache_of_the_hub(base: Path, out: Path, tmp_path: Path):
    (tmp_path / "blob").write_text("MIT, linked")
    (base / "LICENSE").unlink()
    (base / "LICENSE").symlink_to(tmp_path / "blob")
    carry_companions(base, out)
    assert (out / "LICENSE").read_text() == "MIT, linked"
    assert not (out / "LICENSE").is_symlink()
