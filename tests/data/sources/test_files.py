"""Files as a source: any part of their rows, in other processes too, streamed, and what happens when it fails."""

import pickle
import resource
from pathlib import Path

import pytest

from seektune.data.sources.files import FileSource
from seektune.data.sources.find import files_of
from seektune.data.sources.row import BadRow

from .made import as_jsonl, values

ROWS = [{"text": f"row {i}", "x": [{"i": i}]} for i in range(200)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_bytes(as_jsonl(ROWS[:150]))
    (tmp_path / "rows" / "b.jsonl").write_bytes(as_jsonl(ROWS[150:]))
    return tmp_path / "rows"


def source(folder: Path) -> FileSource:
    return FileSource.of("rows", files_of(str(folder), "train"), folder.parent / "cache")


def test_any_part_is_read_in_order_and_by_another_process(folder: Path) -> None:
    rows = source(folder)
    assert rows.count() == 200
    for start, stop in ((0, 200), (149, 151), (63, 130), (7, 7), (190, 999)):
        assert values(list(rows.read(start, stop))) == ROWS[start:stop]
    copied = pickle.loads(pickle.dumps(rows))
    assert list(copied.read(100, 102)) == list(rows.read(100, 102))
    places = [row.place for row in rows.read(149, 151)]
    assert places == [f"{folder}/a.jsonl line 150", f"{folder}/b.jsonl line 1"]


def test_a_stream_gives_the_same_rows_and_resumes_at_its_state(folder: Path) -> None:
    rows = source(folder)
    whole = [rows.row(record) for record in rows.stream()]
    assert whole == list(rows.read(0, 200))
    stream = rows.stream()
    records = iter(stream)
    before = [rows.row(next(records)) for _ in range(160)]
    state = stream.state_dict()
    resumed = rows.stream()
    resumed.load_state_dict(state)
    assert before + [rows.row(record) for record in resumed] == whole
    assert stream.num_shards == 2


def test_changed_files_are_read_again(folder: Path) -> None:
    before = source(folder)
    assert before.count() == 200
    (folder / "b.jsonl").write_bytes(as_jsonl(ROWS[:3]))
    after = source(folder)
    assert after.identity != before.identity
    assert after.count() == 153
    assert source(folder).identity == after.identity


def test_a_bad_row_is_in_its_place(folder: Path) -> None:
    (folder / "b.jsonl").write_bytes(b'{"a": 1}\n{"a":\n{"a": 2}\n')
    found = list(source(folder).read(150, 153))
    assert [isinstance(row, BadRow) for row in found] == [False, True, False]
    assert str(found[1]).startswith(f"{folder}/b.jsonl line 2: not JSON")


def test_a_damaged_file_and_no_rows_are_named_and_nothing_is_kept(folder: Path) -> None:
    (folder / "b.jsonl").write_bytes(b"\n\n")
    (folder / "a.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^rows: no rows$"):
        source(folder).count()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).unlink()
    (folder / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"^{folder}/c.parquet: the first row cannot be read"):
        source(folder).count()
    assert list((folder.parent / "cache").rglob("*.arrow")) == []


def test_a_cache_that_cannot_be_written_is_one_line(folder: Path) -> None:
    (folder.parent / "cache").write_text("a file")
    with pytest.raises(OSError, match="cache") as caught:
        source(folder).count()
    assert "\n" not in str(caught.value)


def test_a_disk_that_fills_is_one_line_and_half_a_copy_is_never_used(folder: Path) -> None:
    rows = [{"text": "x" * 1000, "x": i} for i in range(500)]
    (folder / "b.jsonl").write_bytes(as_jsonl(rows))
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, allowed[1]))
    try:
        with pytest.raises(OSError, match=r"cache: the rows of rows cannot be copied \(.*File too large") as caught:
            source(folder).count()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert "\n" not in str(caught.value)
    assert source(folder).count() == 650
    assert values(list(source(folder).read(150, 650))) == rows
