"""Rows are what a file holds, whatever its kind: the same values, the same digests, nothing filled in or changed."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seektune.data.sources.row import BadRow, SourceRow

from .made import COMPRESS, SUFFIXES, WRITERS, as_csv, as_json, as_jsonl, as_stream, read, read_bytes, values, write

TEXTS = [
    {"prompt": "a", "answer": "one"},
    {"prompt": "2 + 2 = ?\r\nSay it.", "answer": "“4”, é 漢 😀"},
    {"prompt": '"quoted", with a comma', "answer": ""},
    {"prompt": " [1, 2] ", "answer": "007"},
]
"""Rows that every kind of file can hold."""
OBJECTS = [
    {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "calls": [{"a": {"city": "Rome"}}]}],
        "id": -1,
    },
    {"messages": [{"role": "user", "content": "y", "n": 2.5, "deep": [[1], [2, 3]]}], "id": 2**60},
]
"""Rows whose objects have different keys, as arguments of tools do."""
IN_CI = settings(
    max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SPELLED = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    expected = [SourceRow.of(row, "") for row in TEXTS]
    rows = read(write(tmp_path, suffix, TEXTS))
    assert values(rows) == TEXTS
    assert [row.digest for row in rows if isinstance(row, SourceRow)] == [row.digest for row in expected]
    if not suffix.startswith(".csv"):
        assert values(read(write(tmp_path, suffix, OBJECTS))) == OBJECTS


def test_an_arrow_stream_is_read_as_an_arrow_file(tmp_path: Path) -> None:
    assert values(read_bytes(tmp_path, "x.arrow", as_stream(OBJECTS))) == OBJECTS


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path, kind: str) -> None:
    plain = [{"a": "x", "b": "y"}, {"a": "", "b": "z"}]
    content = b"\xef\xbb\xbf" + WRITERS[kind](plain).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert values(read_bytes(tmp_path, f"x{kind}", content)) == plain
    assert values(read_bytes(tmp_path, f"y{kind}", content.rstrip())) == plain


def test_places_are_lines_of_text_and_rows_of_tables(tmp_path: Path) -> None:
    found = {suffix: [row.place for row in read(write(tmp_path, suffix, TEXTS[:3]))] for suffix in WRITERS}
    at = {suffix: f"{tmp_path}/train{suffix}" for suffix in WRITERS}
    assert found[".jsonl"] == [f"{at['.jsonl']} line {number}" for number in (1, 2, 3)]
    # the second row has a line end inside
    assert found[".csv"] == [f"{at['.csv']} line {number}" for number in (2, 3, 5)]
    for suffix in (".json", ".parquet", ".arrow"):
        assert found[suffix] == [f"{at[suffix]} row {number}" for number in (0, 1, 2)]


def test_empty_lines_are_no_rows_and_keep_the_count_of_lines(tmp_path: Path) -> None:
    rows = read_bytes(tmp_path, "x.jsonl", b'\n{"a": 1}\n \t\r\n\n{"a": 2}')
    assert [row.place.split("/")[-1] for row in rows] == ["x.jsonl line 2", "x.jsonl line 5"]
    assert read_bytes(tmp_path, "x.csv", b"a,b\n\n") == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}', [{"a": 1}]),
        (b'{\n "a": {"b": 2}\n}\n', [{"a": {"b": 2}}]),
        (b'[{"a": 1}, {"a": null, "b": 2}]', [{"a": 1}, {"b": 2}]),
        (b'{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        (b"[]", []),
    ],
)
def test_json_is_a_list_an_object_or_lines(tmp_path: Path, content: bytes, expected: list) -> None:
    assert values(read_bytes(tmp_path, "x.json", content)) == expected


def test_a_null_column_is_a_missing_one_but_nulls_inside_json_stay(tmp_path: Path) -> None:
    rows = [{"a": {"b": None, "c": [None]}, "d": None}, {"a": {"c": [1]}}]
    assert values(read_bytes(tmp_path, "x.jsonl", as_jsonl(rows))) == [
        {"a": {"b": None, "c": [None]}},
        {"a": {"c": [1]}},
    ]


def test_a_table_keeps_json_text_of_its_type_and_gives_other_values_as_text(tmp_path: Path) -> None:
    columns = {
        "call": pa.array(['{"city": "Rome", "unit": null}', None], pa.json_()),
        "list": pa.ListArray.from_arrays([0, 2, 2], pa.array(['{"a": 1}', None], pa.json_())),
        "map": pa.array(
            [[("k", {"x": None, "y": 1})], []], pa.map_(pa.string(), pa.struct({"x": "int8", "y": "int8"}))
        ),
        "day": pa.array(["2026-01-02", None]).cast(pa.date32()),
        "image": pa.array([b"abc", None]),
        "word": pa.array(["x", "y"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert values(read(tmp_path / "x.parquet")) == [
        {
            "call": {"city": "Rome", "unit": None},
            "list": [{"a": 1}, None],
            "map": {"k": {"y": 1}},
            "day": "2026-01-02",
            "image": "3 bytes",
            "word": "x",
        },
        {"list": [], "map": {}, "word": "y"},
    ]


BAD = {
    "x.jsonl": (b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n{"a": "\\ud83d"}\n{"b": 1}\n', [2, 3, 4, 5]),
    "x.csv": (b"a,b\n1,2\n1\n1,2,3\n\xff,2\n3,4\n", [3, 4, 5]),
    "x.json": (b'[{"a": 1}, 5, null, {"a": "\\udc00"}, {"b": 1}]', [1, 2, 3]),
}
REASONS = {
    "x.jsonl": [
        "not JSON (Expecting value",
        "must be a JSON object, not '[1]'",
        "not UTF-8 text",
        "half of a surrogate",
    ],
    "x.csv": ["1 cells, but the header has 2", "3 cells, but the header has 2", "not UTF-8 text"],
    "x.json": ["must be a JSON object, not '5'", "must be a JSON object, not 'null'", "half of a surrogate"],
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_and_the_rows_around_it_are_read(tmp_path: Path, name: str) -> None:
    content, numbers = BAD[name]
    rows = read_bytes(tmp_path, name, content)
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert [int(row.place.split()[-1]) for row in bad] == numbers
    assert all(part in row.reason for part, row in zip(REASONS[name], bad, strict=True))
    assert [isinstance(rows[0], SourceRow), isinstance(rows[-1], SourceRow)] == [True, True]


DAMAGED = {
    "half.jsonl.gz": gzip.compress(as_jsonl(TEXTS * 999))[:-20],
    "half.jsonl.zst": zstandard.compress(as_jsonl(TEXTS * 999))[:-9],
    "not.jsonl.gz": b"{}\n",
    "x.parquet": b"PAR1 nothing",
    "x.parquet.gz": gzip.compress(b""),
    "x.arrow": b"ARROW1 nothing",
    "empty.arrow": b"",
    "x.json": b'[{"a": 1},',
    "deep.json": b"[" * 100_000,
    "utf16.json": "[1]".encode("utf-16"),
    "quote.csv": b'a,b\n"1,2\n',
    "twice.csv": b"a,a\n1,2\n",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    if name == "utf16.json":
        assert "not UTF-8" in str(read_bytes(tmp_path, name, DAMAGED[name])[0])
        return
    with pytest.raises(ValueError, match="cannot be read: ") as caught:
        read_bytes(tmp_path, name, DAMAGED[name])
    assert str(caught.value).startswith(f"{tmp_path}/{name}: ")
    assert str(caught.value).isprintable()


def test_a_cell_and_a_line_of_a_megabyte_are_read(tmp_path: Path) -> None:
    rows = [{"text": "x, y\n" * 200_000}]
    assert values(read_bytes(tmp_path, "x.csv", as_csv(rows))) == rows
    assert values(read_bytes(tmp_path, "x.jsonl.zst", COMPRESS[".zst"](as_jsonl(rows)))) == rows


def test_two_compressed_parts_of_one_file_are_both_read(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        content = COMPRESS[suffix](as_jsonl(TEXTS[:1])) + COMPRESS[suffix](as_jsonl(TEXTS[1:]))
        assert values(read_bytes(tmp_path, f"x.jsonl{suffix}", content)) == TEXTS


@pytest.mark.slow
def test_any_json_is_kept_as_it_is(tmp_path: Path) -> None:
    @IN_CI
    @given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), min_size=1, max_size=4))
    def check(rows: list[dict]) -> None:
        expected = [{key: value for key, value in row.items() if value is not None} for row in rows]
        assert values(read_bytes(tmp_path, "x.jsonl", as_jsonl(rows))) == expected
        assert values(read_bytes(tmp_path, "x.json", as_json(rows))) == expected

    check()


@pytest.mark.slow
def test_any_text_is_the_same_in_every_kind_of_file(tmp_path: Path) -> None:
    @IN_CI
    @given(st.lists(st.tuples(SPELLED, SPELLED), min_size=1, max_size=4))
    def check(pairs: list[tuple[str, str]]) -> None:
        rows = [{"first": first, "second": second} for first, second in pairs]
        for suffix in WRITERS:
            assert values(read(write(tmp_path, suffix, rows))) == rows, suffix

    check()


def test_any_bytes_are_rows_or_an_error_of_one_line(tmp_path: Path) -> None:
    @IN_CI
    @given(st.sampled_from(SUFFIXES), st.binary(max_size=300))
    def check(suffix: str, content: bytes) -> None:
        for said in outcome(tmp_path, f"x{suffix}", content):
            assert said.startswith(f"{tmp_path}/x{suffix}")
            assert said.isprintable()

    check()


def outcome(folder: Path, name: str, content: bytes) -> list[str]:
    """What is said of a file's bad rows, or of the file."""
    try:
        return [str(row) for row in read_bytes(folder, name, content) if isinstance(row, BadRow)]
    except ValueError as error:
        return [str(error)]
