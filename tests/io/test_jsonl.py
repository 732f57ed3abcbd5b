import re

import pytest

from seektune.io import jsonl
from seektune.io.jsonl import JsonlWriter, as_line, read_jsonl, read_records
from tests.small_disk import small_disk


def test_lines_are_on_disk_as_soon_as_written(tmp_path):
    with JsonlWriter(tmp_path / "a.jsonl") as lines:
        lines.append({"step": 1})
        assert read_records(tmp_path / "a.jsonl") == [{"step": 1}]
        lines.append({"step": 2})
    assert read_records(tmp_path / "a.jsonl") == [{"step": 1}, {"step": 2}]


def test_an_older_file_is_continued_after_a_step(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with JsonlWriter(file) as lines:
        lines.rewind(2)
        lines.append({"step": 3, "again": True})
    assert read_records(file) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def fill(lines: JsonlWriter) -> None:
    for step in range(100):
        lines.append({"step": step, "loss": 1.0})


def test_a_full_disk_leaves_whole_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    with (
        small_disk(),
        JsonlWriter(file) as lines,
        pytest.raises(OSError, match=r"could not write .*a\.jsonl: .*stays in"),
    ):
        fill(lines)
    assert [line["step"] for line in read_records(file)] == list(range(len(read_records(file))))
    assert len(read_records(file)) > 5


def test_a_line_without_end_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jsonl, "MOST_BYTES", 2**20)
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n' + bytes(3 * 2**20))
    lines = read_jsonl(file)
    assert next(lines) == (f"{file} line 1", {"a": 1})
    with pytest.raises(ValueError, match=r"a\.jsonl line 2: longer than 1 MiB"):
        next(lines)


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"step": 1}\n\0\0\0\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl line 2: not JSON"):
        read_records(file)


def test_objects_come_with_the_place_where_they_were_read(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"a": 1}, {"text": "line separator \u2028 and emoji \U0001f642"}]
    text = f"\ufeff{as_line(rows[0])}\r\n \n{as_line(rows[1])}".replace("}\n", "}\r\n").removesuffix("\r\n")
    file.write_bytes(text.encode())
    assert list(read_jsonl(file)) == [(f"{file} line 1", rows[0]), (f"{file} line 4", rows[1])]


def test_an_escaped_pair_of_surrogates_is_one_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude42"}')
    assert [row for _, row in read_jsonl(tmp_path / "a.jsonl")] == [{"text": "\U0001f642"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: not JSON (Expecting property name enclosed in double quotes at column 2)"),
        (b"\xff", "line 2: not UTF-8 text (invalid start byte at byte 0)"),
        (b"\xff\xfe{\0}\0", "line 2: not UTF-8 text"),
        (b"[1, 2]", "line 2: must be a JSON object, not '[1, 2]'"),
        (b"7", "line 2: must be a JSON object, not '7'"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 2: not JSON that can be read (Exceeds the limit"),
        (b'{"a": ' * 100_000, "line 2: JSON that is nested too deeply"),
        (b'{"a": "\\ud83d"}', "line 2: a text holds half of a surrogate pair"),
        (b'{"a\\uDC00": 1}', "line 2: a text holds half of a surrogate pair"),
    ],
)
def test_what_cannot_be_read_is_told_by_file_and_line(tmp_path, line: bytes, message: str):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match="^" + re.escape(f"{file} {message}")):
        list(read_jsonl(file))
