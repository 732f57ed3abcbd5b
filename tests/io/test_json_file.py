import re

import pytest

from seektune.io.config_json import read_config
from seektune.io.json_file import read_json, write_json
from seektune.lora.format import read_adapter
from tests.small_disk import small_disk


def test_an_object_is_read_as_it_was_written(tmp_path):
    value = {"a": [1, 2.5, None], "ö": {"b": True}}
    write_json(tmp_path / "a.json", {"old": 1})
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_older_file_and_names_it(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with small_disk(), pytest.raises(OSError, match="File too large") as error:
        write_json(tmp_path / "a.json", {"new": "x" * 300})
    assert error.value.filename == str(tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == {"old": 1}


def test_a_config_is_bounded_more_tightly(tmp_path):
    for name, read in (("config.json", read_config), ("adapter_config.json", read_adapter)):
        (tmp_path / name).write_bytes(b'{"a": [' + b"[]," * 2**21 + b"[]]}")
        with pytest.raises(ValueError, match=rf"/{name} is larger than 4 MiB, which no such file"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"{", "is not JSON: Expecting property name"),
        (b"", "is not JSON: Expecting value"),
        (b"\xff\xfe", "is not JSON: 'utf-8' codec can't decode"),
        (b"[]", "must hold a JSON object, not a list"),
        (b" " * (2**26 + 1), "is larger than 64 MiB"),
        (b"7", "must hold a JSON object, not a int"),
        (b'{"a": ' * 100_000, "is not JSON that can be read: it is nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_told_by_file(tmp_path, content: bytes | None, message: str):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match="^" + re.escape(f"{file} {message}")):
        read_json(file)
