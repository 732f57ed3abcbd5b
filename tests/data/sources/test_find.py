"""Which files a place stands for: files, folders with and without splits, globs and URLs."""

import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

from seektune.data.sources.find import files_of, split_files

from .made import read, values, write

LINE = b'{"a": 1}\n'


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(LINE)


def found(place: object, split: str = "train") -> list[str]:
    return [Path(file.path).name for file in files_of(str(place), split)]


def test_a_folder_gives_the_files_of_its_split(tmp_path: Path) -> None:
    make(tmp_path, "train.jsonl.gz", "validation.jsonl", "training-notes.jsonl", "readme.md")
    assert found(tmp_path) == ["train.jsonl.gz"]
    assert found(tmp_path, "validation") == ["validation.jsonl"]
    assert split_files(str(tmp_path), "test") == []


def test_a_folder_without_a_split_gives_all_its_files_of_rows(tmp_path: Path) -> None:
    make(tmp_path, "b.jsonl", "a.jsonl", "notes.txt", "inner/c.jsonl")
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path) == ["a.jsonl", "b.jsonl"]


def test_a_glob_gives_files_sorted_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "x/b.jsonl", "x/a.csv", "y/c.jsonl", "y/d.txt")
    assert found(f"{tmp_path}/*/*.jsonl") == ["b.jsonl", "c.jsonl"]
    assert found(f"{tmp_path}/**/[ab].*") == ["a.csv", "b.jsonl"]
    monkeypatch.chdir(tmp_path)
    assert found("x/*.jsonl") == ["b.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    make(tmp_path, "rows [1].jsonl", "rows 1.jsonl")
    assert found(tmp_path / "rows [1].jsonl") == ["rows [1].jsonl"]


@pytest.mark.parametrize(
    ("names", "place", "said"),
    [
        ([], "nowhere", "nowhere: no such file or folder; data.path must name one, a glob or a URL"),
        ([], "*.jsonl", r"\*.jsonl: no files of rows"),
        (["notes.txt"], "", "no files of rows .*jsonl"),
        (["notes.txt"], "notes.txt", "notes.txt: rows are read from .jsonl, .ndjson, .json"),
        (["rows.jsonl.bz2"], "rows.jsonl.bz2", "rows.jsonl.bz2: rows are read from"),
        (["a.jsonl", "b.parquet"], "", "a.jsonl, b.parquet are several kinds of file"),
        (["train.jsonl", "train.jsonl.gz"], "", "are several kinds of file"),
        (["train-00000-of-00002.csv"], "", "is one of 2 by its name, but number 1 is missing"),
        (["rows-00000-of-00002.csv"], "", "is one of 2 by its name, but number 1 is missing"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, names: list[str], place: str, said: str) -> None:
    make(tmp_path, *names)
    with pytest.raises(ValueError, match=said) as caught:
        files_of(str(tmp_path / place) if place else str(tmp_path), "train")
    assert str(caught.value).startswith(str(tmp_path))


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    (before,) = files_of(str(tmp_path), "train")
    (tmp_path / "a.jsonl").write_bytes(LINE * 2)
    (after,) = files_of(str(tmp_path), "train")
    assert before.path == after.path
    assert before.stamp != after.stamp


def test_urls_name_files_folders_and_globs() -> None:
    system = fsspec.filesystem("memory")
    system.pipe({"/find/train.jsonl": LINE, "/find/more/a.jsonl": LINE * 2, "/find/more/b.jsonl": LINE})
    assert values(read("memory://find")) == [{"a": 1}]
    assert len(read("memory://find/more")) == 3
    assert len(read("memory://find/*/a.jsonl")) == 2
    assert [row.place for row in read("memory://find/train.jsonl")] == ["memory:///find/train.jsonl line 1"]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("suffix", [".jsonl", ".csv.gz", ".parquet", ".json.zst", ".arrow"])
def test_files_of_a_web_server_are_read(tmp_path: Path, suffix: str) -> None:
    rows = [{"a": "x", "b": "“y”"}, {"a": "", "b": "z"}]
    write(tmp_path, suffix, rows)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/train{suffix}"
        assert values(read(url)) == rows
        with pytest.raises(OSError, match=r"none.jsonl cannot be reached .*404"):
            files_of(url.replace(f"train{suffix}", "none.jsonl"), "train")
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("memory://none/x.jsonl", ValueError, "memory://none/x.jsonl: no such file; data.path must name one"),
        ("memory://none", ValueError, "memory://none: no files of rows"),
        ("nosuch://x/y.jsonl", ValueError, "nosuch://x/y.jsonl: Protocol not known: nosuch"),
        (
            "http://127.0.0.1:9/x.jsonl",
            OSError,
            "http://127.0.0.1:9/x.jsonl cannot be reached .*; copy the files to this",
        ),
        ("s3://bucket/x.jsonl", ValueError, "s3://bucket/x.jsonl: a package for this file system is missing .*s3fs"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_line_that_says_what_to_do(url: str, kind: type, said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        files_of(url, "train")
    assert str(caught.value).isprintable()
