"""Datasets of files: splits, held-out shares, limits, bad rows and labels, shown with HellaSwag's kind."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from seektune.data.datasets.dataset import DataCache
from seektune.data.datasets.hellaswag import HellaswagConfig
from seektune.data.datasets.synthetic import made_hellaswag, write_hellaswag, write_rows
from tests.data.in_memory import encoded


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, notes: list[str]) -> DataCache:
    return DataCache(tmp_path / "cache", notes.append)


def section(path: Path, **keys: object) -> HellaswagConfig:
    return HellaswagConfig.model_validate_json(json.dumps({"path": str(path), **keys}), strict=True)


def numbers(config: HellaswagConfig, split: str, cache: DataCache) -> list[int]:
    return [row.values["ind"] for row in config.rows(split, cache)[0]]


def test_a_share_is_held_out_of_one_file_and_stays_when_rows_are_added(tmp_path: Path, cache: DataCache) -> None:
    file = tmp_path / "rows.jsonl"
    write_rows(file, made_hellaswag(200))
    config = section(file, validation=0.1)
    held_out = numbers(config, "validation", cache)
    train = numbers(config, "train", cache)
    assert 8 <= len(held_out) <= 35
    assert sorted(held_out + train) == [*range(200)]
    write_rows(file, [*made_hellaswag(200), *({**row, "ind": 200 + row["ind"]} for row in made_hellaswag(50, seed=9))])
    assert [number for number in numbers(config, "validation", cache) if number < 200] == held_out


def test_held_out_rows_come_from_a_path_a_split_or_the_folder(tmp_path: Path, cache: DataCache) -> None:
    folder = write_hellaswag(tmp_path / "rows", 5, 3)
    write_rows(folder / "test.jsonl", made_hellaswag(2))
    write_rows(tmp_path / "other.parquet", made_hellaswag(4))
    for validation, place, count in (
        (None, folder, 3),
        ("test", folder, 2),
        (str(tmp_path / "other.parquet"), tmp_path / "other.parquet", 4),
        (str(folder), folder, 3),
    ):
        rows, title = section(folder, validation=validation).rows("validation", cache)
        assert (len(rows), title) == (count, str(place))
    assert len(section(folder, split="test").rows("train", cache)[0]) == 2


def test_no_held_out_rows_are_an_error_that_says_what_to_set(tmp_path: Path, cache: DataCache) -> None:
    file = tmp_path / "rows.jsonl"
    write_rows(file, made_hellaswag(2))
    with pytest.raises(ValueError, match=r"rows.jsonl: no validation files; set data.validation to a share such as"):
        section(file).source("validation", cache)
    with pytest.raises(ValueError, match=r"missing.jsonl: no such file or folder"):
        section(tmp_path / "missing.jsonl").source("validation", cache)
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder"):
        section(file, validation="nowhere").source("validation", cache)


def test_a_limit_is_of_training_rows_and_duplicates_are_dropped_by_choice(tmp_path: Path, cache: DataCache) -> None:
    folder = write_hellaswag(tmp_path / "rows", 10, 6)
    assert numbers(section(folder, limit=4), "train", cache) == [0, 2, 5, 7]
    assert numbers(section(folder, limit=4), "validation", cache) == [*range(6)]
    write_rows(folder / "train.jsonl", made_hellaswag(5) * 2)
    assert numbers(section(folder), "train", cache) == [*range(5)] * 2
    assert numbers(section(folder, duplicates="drop"), "train", cache) == [*range(5)]


def test_bad_rows_are_an_error_or_are_counted_and_listed(tmp_path: Path, cache: DataCache, notes: list[str]) -> None:
    folder = write_hellaswag(tmp_path / "rows", 0, 1)
    rows = [json.dumps(row) for row in made_hellaswag(8)]
    rows[2] = "{"
    rows[5] = json.dumps({**made_hellaswag(1)[0], "label": "9"})
    (folder / "train.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"train.jsonl line 3: not JSON"):
        encoded(section(folder), "train", 2048, cache)
    kept = encoded(section(folder, on_bad_row="drop"), "train", 2048, cache)
    assert [example.name.split()[-1] for example in kept] == ["1", "2", "4", "5", "7", "8"]
    assert [note.split(": ")[0] for note in notes] == ["1 row left out"] * 2
    assert "train.jsonl line 3: not JSON" in notes[0]
    assert "train.jsonl line 6: label '9' names none" in notes[1]
    (folder / "train.jsonl").write_text("{\n" * 9 + rows[0])
    encoded(section(folder, on_bad_row="drop"), "train", 2048, cache)
    assert notes[-1].startswith("9 rows left out: ")
    assert notes[-1].endswith("; and 4 more")
    assert "line 6" not in notes[-1]


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, "hellaswag"),
        ({"path": "/data/chat"}, "chat"),
        ({"path": "/data/chat.train.jsonl.gz"}, "chat"),
        ({"path": "s3://bucket/chats/*.jsonl"}, "chats"),
        ({"path": "*.jsonl"}, "*.jsonl"),
        ({"path": ".hidden"}, ".hidden"),
        ({"hub": "org/some-rows"}, "some-rows"),
        ({"hub": "org/some-rows", "label": "mine"}, "mine"),
    ],
)
def test_the_name_in_logs_is_the_label_or_the_last_part_of_the_place(keys: dict[str, str], name: str) -> None:
    assert HellaswagConfig(**keys).log_name == name


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"path": "a", "hub": "b/c"}, "path and hub both say where the rows are"),
        ({"path": "a", "name": "x"}, "name is for a dataset on the Hub"),
        ({"revision": "main"}, "revision is for a dataset on the Hub"),
        *(({"validation": value}, "must be a share between 0 and 1") for value in (0, 1, 1.5, -0.1, True, [0.1])),
        ({"validation": ""}, "must not be empty"),
        ({"hub": ""}, "at least 1 character"),
        ({"weight": 0}, "greater than 0"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HellaswagConfig(**keys)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    assert HellaswagConfig(path=f"file://{tmp_path}").path == str(tmp_path)
