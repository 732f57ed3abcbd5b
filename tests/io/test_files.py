import pytest

from seektune.io.files import JsonLines, read_lines, write_whole


def test_lines_are_on_disk_as_soon_as_written(tmp_path):
    with JsonLines(tmp_path / "a.jsonl") as lines:
        lines.append({"step": 1})
        assert read_lines(tmp_path / "a.jsonl") == [{"step": 1}]
        lines.append({"step": 2})
    assert read_lines(tmp_path / "a.jsonl") == [{"step": 1}, {"step": 2}]


def test_an_older_file_is_continued_after_a_step(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with JsonLines(file) as lines:
        lines.rewind(2)
        lines.append({"step": 3, "again": True})
    assert read_lines(file) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def fill(lines):
    for step in range(100):
        lines.append({"step": step, "loss": 1.0})


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_whole_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    with JsonLines(file) as lines, pytest.raises(OSError, match=r"could not write .*a\.jsonl: .*stays in"):
        fill(lines)
    assert [line["step"] for line in read_lines(file)] == list(range(len(read_lines(file))))
    assert len(read_lines(file)) > 5


def test_a_whole_file_replaces_an_older_one(tmp_path):
    for text in (b"one", b"two"):
        write_whole(tmp_path / "a.html", text)
        assert (tmp_path / "a.html").read_bytes() == text
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]
    assert (tmp_path / "a.html").stat().st_mode & 0o777 == 0o644


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_the_older_file(tmp_path):
    write_whole(tmp_path / "a.html", b"old")
    with pytest.raises(OSError, match=r"could not write .*a\.html"):
        write_whole(tmp_path / "a.html", b"x" * 301)
    assert (tmp_path / "a.html").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]
