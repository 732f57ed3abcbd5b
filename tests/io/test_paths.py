"""Paths as users write them: one reading for every key and flag."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from seektune.io.atomic_dir import complete_folder
from seektune.io.cache_dir import cache_dir
from seektune.paths import expand_path, refuse_dangling, refuse_no_folder, user_path
from seektune.recipe.shipped import copy_recipe, default_recipe


def test_a_home_folder_is_expanded_and_a_hub_id_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert [expand_path(text) for text in ("~", "~/x y", "a/~", "./a/", "deepseek-ai/DeepSeek-V4")] == [
        "/home/me",
        "/home/me/x y",
        "a/~",
        "./a/",
        "deepseek-ai/DeepSeek-V4",
    ]
    assert user_path("~root/x").is_absolute()


@pytest.mark.parametrize("text", ["$HOME/x", "a/${oc.env:HOME}/x", "${HOME}", "$(pwd)/x", "runs/$SLURM_JOB_ID"])
def test_a_variable_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\$ is not expanded here; write the path out, or use ~"):
        expand_path(text)


@pytest.mark.parametrize("text", ["a$", "cost$5", "a$$", "$1"])
def test_a_lone_dollar_is_a_letter(text: str) -> None:
    assert expand_path(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "~nobody0/x",
            "the user nobody0 does not exist; write the path out, or ./~nobody0/x for a folder of that name",
        ),
        ("a\0b", r"the path 'a\\x00b' holds a control character"),
        ("a\x1b[31mb", "holds a control character"),
        ("a\nb", "holds a control character"),
        ("", "a path must not be empty"),
        (" ", "a path must not be empty"),
    ],
)
def test_what_is_no_path_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        expand_path(text)
    assert "\n" not in str(caught.value)


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(OSError, match="no home folder for the cache; set XDG_CACHE_HOME"):
        cache_dir({})
    assert cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/seektune")


def test_a_place_behind_a_dangling_link_is_refused(tmp_path: Path) -> None:
    """A link to a new folder of one that exists is followed: `tests/checkpoint` writes through such a link."""
    (tmp_path / "disk").symlink_to(tmp_path / "unmounted")
    for place in (tmp_path / "disk", tmp_path / "disk" / "run"):
        with pytest.raises(ValueError, match=r"disk is a link to .*unmounted, which does not exist; make it first"):
            refuse_dangling(place)
    with pytest.raises(ValueError, match="which does not exist"), complete_folder(tmp_path / "disk" / "run"):
        pass
    os.mkdir(tmp_path / "unmounted")
    refuse_dangling(tmp_path / "disk" / "run")
    with complete_folder(tmp_path / "disk" / "run") as scratch:
        (scratch / "a").touch()
    assert (tmp_path / "unmounted" / "run" / "a").exists()


def test_a_file_in_the_place_of_a_folder_is_named_by_all_that_write_folders(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "disk").symlink_to(tmp_path / "unmounted")
    writers: list[Callable[[Path], object]] = [
        refuse_no_folder,
        lambda path: copy_recipe(default_recipe(), path),
        lambda path: complete_folder(path).__enter__(),
    ]
    for write in writers:
        for path in (file, file / "run"):
            with pytest.raises(ValueError, match="file is a file; name a folder"):
                write(path)
        with pytest.raises(ValueError, match=r"disk is a link to .*unmounted, which does not exist"):
            write(tmp_path / "disk" / "run")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "file"]
