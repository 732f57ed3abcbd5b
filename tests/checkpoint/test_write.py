"""Files as the standard library of the format reads them, and the division into shards."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from seektune.checkpoint.header import DTYPES, read_header
from seektune.checkpoint.write import (
    LARGEST_SHARD_BYTES,
    SHARD_BYTES,
    FilePiece,
    file_size,
    shard_limit,
    shard_names,
    split,
    write_index,
    write_shard,
)


def piece(name: str, size: int) -> FilePiece:
    """One tensor of `size` bytes."""
    return FilePiece({name: (torch.uint8, (size,))}, lambda: {name: torch.full((size,), 7, dtype=torch.uint8)})


def model(embed: int, layers: list[tuple[int, ...]], head: int, mtp: int = 0) -> list[FilePiece]:
    pieces = [piece("embed.weight", embed)]
    for number, sizes in enumerate(layers):
        pieces += [piece(f"layers.{number}.{part}.weight", size) for part, size in enumerate(sizes)]
    pieces += [piece("norm.weight", 1), piece("head.weight", head), piece("hc_head_fn", 1)]
    return pieces + ([piece("mtp.0.norm.weight", mtp)] if mtp else [])


def names(shards: list[list[FilePiece]]) -> list[list[str]]:
    return [[name for each in shard for name in each.tensors] for shard in shards]


def test_a_layer_is_not_torn_where_it_fits():
    found = names(split(model(10, [(20, 20), (20, 20), (5, 5)], 10), limit=60))
    assert found == [
        ["embed.weight", "layers.0.0.weight", "layers.0.1.weight"],
        ["layers.1.0.weight", "layers.1.1.weight", "layers.2.0.weight", "layers.2.1.weight"],
        ["norm.weight", "head.weight", "hc_head_fn"],
    ]


def test_what_is_around_the_head_stays_together():
    """The release has norm, head and hc_head in one shard, although norm alone would fit behind the last layer."""
    found = names(split(model(90, [(90,)], 90, mtp=90), limit=100))
    assert found == [
        ["embed.weight"],
        ["layers.0.0.weight"],
        ["norm.weight", "head.weight", "hc_head_fn"],
        ["mtp.0.norm.weight"],
    ]


def test_a_layer_that_is_too_large_is_torn_between_tensors():
    found = split(model(10, [(40, 40, 40)], 10), limit=50)
    assert all(sum(each.size for each in shard) <= 50 for shard in found)
    assert sum(map(len, names(found)), 0) == 7
    alone = names(split(model(10, [(500,)], 10), limit=50))
    assert ["layers.0.0.weight"] in alone, "a tensor beyond the limit has a shard of its own"


def test_shards_hold_a_layer_each_up_to_a_size():
    assert shard_limit(model(10, [(20,)], 10)) == SHARD_BYTES
    assert shard_limit(model(10, [(SHARD_BYTES, 5)], 10)) == SHARD_BYTES + 5
    assert shard_limit(model(10, [(SHARD_BYTES, 5), (LARGEST_SHARD_BYTES + 1,)], 10)) == SHARD_BYTES + 5
    assert shard_limit([]) == SHARD_BYTES


def test_shards_are_numbered_as_loaders_expect():
    assert shard_names(1) == ["model.safetensors"]
    assert shard_names(2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


TENSORS = {
    "a.weight": torch.randn(3, 5).bfloat16(),
    "b": torch.tensor(2.5, dtype=torch.float64),
    "c": torch.arange(6).reshape(2, 3),
    "d": torch.randn(2, 4).to(torch.float8_e4m3fn),
    "e": torch.tensor([[1, 255]], dtype=torch.uint8).view(torch.float8_e8m0fnu),
    "ü.empty": torch.ones(0, 7),
    "g": torch.randn(4, 6).T,
    "h": torch.tensor([-1, 5], dtype=torch.int8),
    "i": torch.tensor([1.0], dtype=torch.float16),
}


def pieces_of(tensors: dict[str, torch.Tensor]) -> list[FilePiece]:
    return [
        FilePiece({name: (x.dtype, tuple(x.shape))}, lambda name=name, x=x: {name: x}) for name, x in tensors.items()
    ]


def test_what_is_written_is_what_the_library_reads(tmp_path: Path):
    file, told = tmp_path / "model.safetensors", []
    write_shard(file, pieces_of(TENSORS), told.append)
    found = load_file(file)
    assert found.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
        assert torch.equal(
            found[name].contiguous().reshape(-1).view(torch.uint8), x.contiguous().reshape(-1).view(torch.uint8)
        )
    assert told == [x.nbytes for x in TENSORS.values()]
    assert file.stat().st_size == file_size(pieces_of(TENSORS))
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}, "transformers asks for it"
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_our_own_header_reader_agrees_with_the_library(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    write_shard(file, pieces_of(TENSORS))
    content = file.read_bytes()
    for name, entry in read_header(file).items():
        x = TENSORS[name]
        assert (entry.dtype, entry.shape, entry.size) == (DTYPES[x.dtype], tuple(x.shape), x.nbytes)
        assert content[entry.start : entry.start + entry.size] == bytes(
            x.contiguous().reshape(-1).view(torch.uint8).tolist()
        )


def test_data_begin_at_a_multiple_of_eight(tmp_path: Path):
    for length in range(1, 12):
        write_shard(tmp_path / "x", [piece("n" * length, 3)])
        assert int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") % 8 == 0


def test_a_piece_that_is_not_what_was_planned_is_a_mistake_of_ours(tmp_path: Path):
    wrong = FilePiece({"a": (torch.uint8, (3,))}, lambda: {"a": torch.ones(4, dtype=torch.uint8)})
    with pytest.raises(AssertionError, match="was planned"):
        write_shard(tmp_path / "x", [wrong])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_file_leaves_nothing_and_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "x", [piece("a", 3)])
    assert list(tmp_path.iterdir()) == []


def test_the_index_places_every_tensor_and_counts_the_bytes(tmp_path: Path):
    shards = split(model(10, [(40, 40, 40)], 10), limit=50)
    write_index(tmp_path, shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 142
    listed = [
        [name for name, file in index["weight_map"].items() if file == shard] for shard in shard_names(len(shards))
    ]
    assert listed == names(shards)


def test_a_single_file_needs_no_index(tmp_path: Path):
    write_index(tmp_path, [model(1, [], 1)])
    assert list(tmp_path.iterdir()) == []
