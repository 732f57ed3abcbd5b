"""`seektune init`: the list of shipped recipes, and copies of them that say and do the same."""

import json
from pathlib import Path

import pytest

from seektune.recipe.load import read_recipe, schema
from seektune.recipe.shipped import default_recipe, find_recipe, shipped_recipes
from tests.places import ROOT
from tests.run_cli import seektune

NAMES = sorted(path.stem for path in (ROOT / "examples").rglob("*.yaml"))


def test_alone_it_lists_every_recipe_of_the_repository(tmp_path: Path) -> None:
    alone = seektune("init", cwd=tmp_path)
    assert (alone.returncode, alone.stderr) == (0, "")
    recipes, _, hint = alone.stdout.partition("\n\n")
    assert [line.split()[0] for line in recipes.splitlines()] == NAMES
    assert seektune("init", "--list", cwd=tmp_path).stdout == alone.stdout
    assert seektune(*hint.split()[2:], cwd=tmp_path).returncode == 0
    assert list((tmp_path / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_summary_of_one_line(name: str) -> None:
    summary = find_recipe(name).summary
    assert summary.endswith(".")
    assert 40 < len(summary) < 120


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_recipe_with_its_own_paths(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = seektune("init", name, "my recipes", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    copy = Path("my recipes") / f"{name}.yaml"
    assert f"seektune train '{copy}'" in answer.stdout
    original = find_recipe(name).path
    assert read_recipe(copy).recipe == read_recipe(original).recipe
    text = copy.read_text(encoding="utf-8")
    assert "examples/" not in text
    assert f"'{copy}'" in text
    assert text.count("#") == original.read_text(encoding="utf-8").count("#")
    said = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert json.loads((copy.parent / said).read_text(encoding="utf-8")) == schema()


def test_a_folder_alone_gets_the_recipe_for_a_first_try(tmp_path: Path) -> None:
    assert seektune("init", "here", cwd=tmp_path).returncode == 0
    recipe = read_recipe(tmp_path / "here" / default_recipe().path.name).recipe
    assert (recipe.model.preset, recipe.parallel.least_world()) == ("tiny", 1)


@pytest.mark.parametrize("name", [NAMES[0], f"{NAMES[0]}.yaml"])
def test_a_recipe_alone_is_copied_here(name: str, tmp_path: Path) -> None:
    assert f"seektune train {NAMES[0]}.yaml\n" in seektune("init", name, cwd=tmp_path).stdout
    assert (tmp_path / f"{NAMES[0]}.yaml").exists()


@pytest.mark.parametrize("words", [("deepseek_v4_tiny_loro",), ("tiny_lora", "here")])
def test_an_unknown_name_is_answered_with_the_nearest(words: tuple[str, ...], tmp_path: Path) -> None:
    answer = seektune("init", *words, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert f"no shipped recipe is called {words[0]}; did you mean deepseek_v4_tiny_lora?" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    recipe = default_recipe().path.name
    (tmp_path / recipe).write_text("mine")
    answer = seektune("init", ".", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr == f"seektune: {recipe} already exists; name another folder\n"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(recipe, "mine")]


def test_a_schema_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.schema.json").write_text("mine")
    assert seektune("init", ".", cwd=tmp_path).returncode == 0
    assert (tmp_path / "recipe.schema.json").read_text() == "mine"


def test_a_folder_name_cannot_end_a_comment(tmp_path: Path) -> None:
    answer = seektune("init", "a\nmodel: b", cwd=tmp_path)
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_found_without_torch() -> None:
    assert [recipe.name for recipe in shipped_recipes()] == NAMES
    answer = seektune("init", "--help")
    assert "\n    seektune init RECIPE DIR\n" in answer.stdout
