from datetime import datetime
from pathlib import Path

import pytest

from seektune.recipe.load import dump_recipe, load_recipe
from seektune.run.resume import RunStart, find_start
from seektune.run.run_dir import TAKEN, choose_folder, held, refuse_taken

NOON = datetime(2026, 3, 4, 12, 0, 5)


def test_a_run_without_folder_gets_one_by_name_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = choose_folder(None, "flash", NOON)
    assert first == Path("runs/flash-20260304-120005")
    assert not first.exists()
    first.mkdir(parents=True)
    assert choose_folder(None, "flash", NOON) == Path("runs/flash-20260304-120005-2")


@pytest.mark.parametrize("name", TAKEN)
def test_the_folder_of_another_run_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"already holds a run \({name}\); name another folder") as caught:
        refuse_taken(choose_folder(str(tmp_path), "x", NOON))
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_things_is_taken(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert choose_folder(str(tmp_path), "x", NOON) == tmp_path
    refuse_taken(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="file is a file; name a folder"):
            choose_folder(str(path), "x", NOON)


def fail_in(folder: Path, error: type[BaseException]) -> None:
    with held(folder):
        assert folder.is_dir()
        raise error


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failed_preparation_takes_back_what_it_made(tmp_path, error):
    with pytest.raises(error):
        fail_in(tmp_path / "runs" / "one", error)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_preparation_takes_back_nothing_else(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError):  # noqa: PT011
        fail_in(tmp_path / "runs" / "one", ValueError)
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    with pytest.raises(ValueError):  # noqa: PT011
        fail_in(tmp_path / "runs", ValueError)
    assert (tmp_path / "runs").is_dir()


def test_a_good_preparation_leaves_the_folder(tmp_path):
    with held(tmp_path / "runs" / "one"):
        pass
    assert (tmp_path / "runs" / "one").is_dir()


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    for path in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(ValueError, match=r"run_dir .*link is a link to .*unmounted, which does not exist"):
            choose_folder(str(path), "x", NOON)


OWN = "# mine\nmodel: {preset: tiny}\nbatch: {global_size: 8, length: 64}\nsteps: 4\n"


@pytest.mark.parametrize("text", [OWN, "eggs: 3\n", "\xff"])
def test_a_recipe_of_the_users_own_is_not_replaced(tmp_path, text):
    (tmp_path / "own.yaml").write_text(OWN)
    recipe = load_recipe(tmp_path / "own.yaml")
    (tmp_path / "recipe.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"holds a recipe\.yaml that no run has written"):
        find_start(recipe, tmp_path, print)


def test_a_run_that_was_killed_as_it_began_is_begun_again(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    recipe = load_recipe(tmp_path / "own.yaml")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    told: list[str] = []
    assert find_start(recipe, tmp_path, told.append) == RunStart()
    assert len(told) == 1
