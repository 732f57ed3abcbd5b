import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from seektune.io.atomic import SCRATCH, AtomicAppender, refuse_existing, replacing, write_atomically
from tests.small_disk import small_disk


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_new_file_replaces_an_older_one(tmp_path):
    for text in ("one", b"two", "drei: ö"):
        write_atomically(tmp_path / "a.html", text)
        assert (tmp_path / "a.html").read_bytes() == (text.encode() if isinstance(text, str) else text)
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_a_file_has_the_mode_that_the_user_wants(tmp_path, umask: int):
    write_atomically(tmp_path / "a.html", b"one")
    assert (tmp_path / "a.html").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_full_disk_leaves_the_older_file(tmp_path):
    write_atomically(tmp_path / "a.html", b"old")
    with small_disk(), pytest.raises(OSError, match=r"could not write .*a\.html"):
        write_atomically(tmp_path / "a.html", b"x" * 301)
    assert (tmp_path / "a.html").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def test_an_error_while_writing_leaves_the_older_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def write() -> None:
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_takes_no_part_of_a_piece(tmp_path):
    file = AtomicAppender(tmp_path / "a")
    file.write(b"x" * 200)
    with small_disk(), pytest.raises(OSError, match=r"could not write .*/a: File too large"):
        file.write(b"y" * 200)
    with small_disk():
        file.write(b"z" * 100)
    file.close()
    assert (tmp_path / "a").read_bytes() == b"x" * 200 + b"z" * 100


def test_only_what_killed_writers_left_is_removed(tmp_path):
    for name in (f".a.00000000{SCRATCH}", f".a.b.00000000{SCRATCH}", f".a.mine{SCRATCH}"):
        (tmp_path / name).touch()
    with (tmp_path / f".a.11111111{SCRATCH}").open("wb") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        write_atomically(tmp_path / "a", "new")
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"a", f".a.b.00000000{SCRATCH}", f".a.mine{SCRATCH}", f".a.11111111{SCRATCH}"}


def test_an_output_must_be_new(tmp_path: Path):
    (tmp_path / "full").write_text("mine")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("full")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("full", "full exists already; name a new file"),
        ("empty", "empty exists already; name a new file"),
        ("link", "link exists already; name a new file"),
        ("dangling", "is a link to nowhere, which does not exist"),
        ("folder", "is a folder; name a new file"),
        ("not/there", "there is no folder .*not"),
    ):
        with pytest.raises(ValueError, match=said):
            refuse_existing(tmp_path / name)


def test_an_output_may_be_a_device(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "new", tmp_path / "pipe", Path(os.devnull)):
        refuse_existing(file)
