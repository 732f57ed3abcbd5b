"""Files of others are opened only if they are regular: a pipe would block, a device would never end."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from seektune.io.json_file import read_json
from seektune.io.jsonl import read_jsonl
from seektune.io.regular_file import open_regular
from seektune.io.text import read_text


def pipe(place: Path) -> None:
    os.mkfifo(place)


def device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def folder(place: Path) -> None:
    place.mkdir()


def listener(place: Path) -> None:
    # a socket's path is limited to about 100 characters
    here = os.open(place.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(f"/proc/self/fd/{here}/{place.name}")
    os.close(here)


def dangling(place: Path) -> None:
    place.symlink_to("nowhere")


KINDS = [
    (pipe, "is a pipe, not a file"),
    (device, "is a device, not a file"),
    (folder, "is a folder, not a file"),
    (listener, "is a socket, not a file"),
    (dangling, "is a link to a file that does not exist"),
]
READERS: list[Callable[[Path], object]] = [open_regular, read_json, read_text, lambda path: list(read_jsonl(path))]


@pytest.mark.parametrize(("make", "said"), KINDS, ids=[make.__name__ for make, _ in KINDS])
@pytest.mark.parametrize("read", READERS, ids=["open", "json", "text", "jsonl"])
def test_what_is_no_regular_file_is_refused_by_every_reader(
    tmp_path: Path, make: Callable[[Path], None], said: str, read: Callable[[Path], object]
) -> None:
    make(tmp_path / "file")
    with pytest.raises(ValueError, match=f"{tmp_path / 'file'} {said}"):
        read(tmp_path / "file")


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\r\nb\n")
    (tmp_path / "link").symlink_to("file")
    assert read_text(tmp_path / "link") == "a\r\nb\n"
