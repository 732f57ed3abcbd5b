"""Megatron-Core's token files: the bytes that its own builder writes, read as its own reader reads them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from seektune.data.datasets.dataset import DataCache, EncodeSettings
from seektune.data.datasets.tokens import TokensConfig
from seektune.data.megatron import open_megatron, paths_of, write_megatron
from seektune.data.store.prepare import prepare

DOCUMENTS = [np.arange(1, 8, dtype=np.uint32), np.array([3], np.uint32), np.arange(400, 430, dtype=np.uint32)]


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("megatron.core.datasets.indexed_dataset")


def built(theirs, prefix: Path, dtype: type, documents: Iterable) -> Path:
    builder = theirs.IndexedDatasetBuilder(f"{prefix}.bin", dtype)
    for sequences in documents:
        builder.add_document(np.concatenate(sequences), [len(each) for each in sequences])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [512, 129280])
def test_files_are_those_of_megatrons_builder_and_reader(theirs, tmp_path: Path, vocab_size: int) -> None:
    assert write_megatron(tmp_path / "ours", iter(DOCUMENTS), vocab_size) == 38
    dtype = theirs.DType.optimal_dtype(vocab_size)
    built(theirs, tmp_path / "theirs", dtype, ([each] for each in DOCUMENTS))
    for kind in (".bin", ".idx"):
        assert (tmp_path / f"ours{kind}").read_bytes() == (tmp_path / f"theirs{kind}").read_bytes()
    read = theirs.IndexedDataset(str(tmp_path / "ours"))
    assert [read[i].tolist() for i in range(len(read))] == [each.tolist() for each in DOCUMENTS]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_documents_of_several_sequences_are_read_whole(theirs, tmp_path: Path, dtype: type) -> None:
    sequences = [[DOCUMENTS[0], DOCUMENTS[1]], [DOCUMENTS[2]]]
    found = open_megatron(built(theirs, tmp_path / "x", dtype, sequences))
    assert [found.document(i).tolist() for i in range(found.documents)] == [
        [*DOCUMENTS[0].tolist(), *DOCUMENTS[1].tolist()],
        DOCUMENTS[2].tolist(),
    ]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_megatron(tmp_path / "x", iter(DOCUMENTS), 129280)
    for name in ("x", "x.bin", "x.idx"):
        found = open_megatron(tmp_path / name)
        assert [found.document(i).tolist() for i in range(found.documents)] == [each.tolist() for each in DOCUMENTS]
    assert [file.name for file in paths_of(tmp_path / "a.v1")] == ["a.v1.bin", "a.v1.idx"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data, index: index.unlink(), "x.idx is missing"),
        (lambda data, index: data.write_bytes(b""), r"x.bin has 0 bytes, not 152"),
        (lambda data, index: index.write_bytes(b"MMIDIDX"), "not an index"),
        (lambda data, index: index.write_bytes(index.read_bytes()[:-8]), "not an index"),
        (lambda data, index: index.write_bytes(b"X" + index.read_bytes()[1:]), "another format or version"),
        (lambda data, index: index.write_bytes(index.read_bytes()[:34] + b"\xff" * 4), "not an index"),
    ],
)
def test_damaged_files_are_one_line_errors(tmp_path: Path, damage, message: str) -> None:
    write_megatron(tmp_path / "x", iter(DOCUMENTS), 129280)
    damage(*paths_of(tmp_path / "x"))
    with pytest.raises(ValueError, match=message) as caught:
        open_megatron(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_token_files_are_a_dataset(tmp_path: Path) -> None:
    write_megatron(tmp_path / "x", iter([*DOCUMENTS, np.array([], np.uint32), np.array([600], np.uint32)]), 129280)
    section = TokensConfig(kind="tokens", path=tmp_path / "x", validation=0.5, on_bad_row="drop")
    assert section.log_name == "x"
    source = section.source("train", DataCache(tmp_path, print))
    store = prepare(source, section.encoder(EncodeSettings(512)), tmp_path / "cache", "x", strict=False)
    assert [store.example(i).tokens.tolist() for i in range(len(store))] == [each.tolist() for each in DOCUMENTS]
    assert store.counted.tolist() == [6, 0, 29]
    assert store.manifest.listed == [
        [f"{tmp_path}/x document 3", "it has no tokens"],
        [f"{tmp_path}/x document 4", "token 600 is not below vocab_size 512"],
    ]
    again = section.source("validation", DataCache(tmp_path, print))
    assert again.identity == source.identity
    apart = TokensConfig(kind="tokens", path=tmp_path / "x")
    with pytest.raises(ValueError, match=r"data\.validation must be a share such as 0\.02, or the path"):
        apart.source("validation", DataCache(tmp_path, print))
