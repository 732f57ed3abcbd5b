"""Parsing YAML into nodes: numbers, locations, and everything that a recipe must not contain."""

from pathlib import Path

import pytest

from seektune.recipe.document import MAX_FILE_SIZE, parse, read_document, read_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("2E3", 2000.0),
        (".5", 0.5),
        ("-0.1", -0.1),
        ("300", 300),
        ("010", 10),
        ("10_000", 10_000),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1e400", "1e400"),
        (".inf", ".inf"),
        ("nan", "nan"),
        ("9" * 19, "9" * 19),
        ("9" * 5000, "9" * 5000),
        ("1__0.5", "1__0.5"),
        ("٣", "٣"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = read_scalar(text)
    assert read == value
    assert type(read) is type(value)


def test_nodes_know_their_line() -> None:
    entry = parse("a: 1\nb:\n  c: [1e-5, '2']  # why\n", "r.yaml")
    assert entry is not None
    assert entry.plain() == {"a": 1, "b": {"c": [1e-5, "2"]}}
    found = entry.find(("b", "c"))
    assert found is not None
    assert found.where == "r.yaml:3"
    assert entry.find(("b", "d")) is None


def test_put_does_not_change_the_original() -> None:
    entry = parse("a: 1\n", "r.yaml")
    assert entry is not None
    other = entry.put(("b", "c"), entry.find(("a",)))  # type: ignore[arg-type]
    assert other.plain() == {"a": 1, "b": {"c": 1}}
    assert entry.plain() == {"a": 1}


BAD = {
    "a: 1\na: 2\n": "r.yaml:2: a is given twice (first on line 1)",
    "a: !!python/object/apply:os.system ['true']\n": "r.yaml:1: tags (!)",
    "a: &x 1\nb: *x\n": "r.yaml:1: anchors (&)",
    "a: 1\n---\nb: 2\n": "r.yaml:3: a file holds one YAML document",
    "a:\n\tb: 1\n": "r.yaml:2: a tab cannot indent YAML",
    "a: [1, 2\n": "r.yaml:2: this is not YAML",
    "a: 1\n  b: 2\n": "r.yaml:2: this is not YAML",
    "a: 'x\n": "r.yaml:2: this is not YAML",
    "5: 1\n": "r.yaml:1: '5' cannot be a key",
    "a.b: 1\n": "r.yaml:1: 'a.b' cannot be a key",
    "? [a]\n: 1\n": "r.yaml:1: a list or mapping cannot be a key",
    "a: " + "[" * 50 + "]" * 50: "r.yaml:1: brackets are nested more than 8 deep",
    "a: \x00\n": "r.yaml:1: this is not text",
    "%YAML 1.1\n%YAML 1.1\n---\na: 1\n": "r.yaml:2: this is not YAML",
}


@pytest.mark.parametrize(("text", "start"), BAD.items(), ids=[text[:12] for text in BAD])
def test_invalid_yaml_is_refused_in_one_line_with_its_location(text: str, start: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="yaml") as caught:
        read_document(file)
    message = str(caught.value)
    assert message.removeprefix(f"{tmp_path}/").startswith(start)
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"null\n", "is empty"),
        (b"- a\n- b\n", "holds a list"),
        (b"just words\n", "holds a single value"),
        (b"a: 1\nb: \xff\xfe\n", ":2: this is not UTF-8"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "this is not text"),
        (b"a: 1\n" * MAX_FILE_SIZE, "larger than 256 KiB"),
        (b"&a " * 100, "anchor"),
    ],
)
def test_files_that_are_not_recipes_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"r\.yaml") as caught:
        read_document(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        read_document(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="is a folder"):
        read_document(tmp_path)


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_document(file).plain() == {"a": 1, "b": 2}
