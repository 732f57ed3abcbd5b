"""Files that the safetensors library can read, and the split into shards."""

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
    LazyTensors,
    file_size,
    shard_limit,
    shard_names,
    split,
    write_index,
    write_shard,
)


def tensors(name: str, size: int) -> LazyTensors:
    """One tensor of `size` bytes."""
    return LazyTensors({name: (torch.uint8, (size,))}, lambda: {name: torch.full((size,), 7, dtype=torch.uint8)})


def model(embed: int, layers: list[tuple[int, ...]], head: int, mtp: int = 0) -> list[LazyTensors]:
    items = [tensors("embed.weight", embed)]
    for number, sizes in enumerate(layers):
        items += [tensors(f"layers.{number}.{part}.weight", size) for part, size in enumerate(sizes)]
    items += [tensors("norm.weight", 1), tensors("head.weight", head), tensors("hc_head_fn", 1)]
    return items + ([tensors("mtp.0.norm.weight", mtp)] if mtp else [])


def names(shards: list[list[LazyTensors]]) -> list[list[str]]:
    return [[name for each in shard for name in each.tensors] for shard in shards]


def test_layer_that_fits_is_not_split():
    found = names(split(model(10, [(20, 20), (20, 20), (5, 5)], 10), limit=60))
    assert found == [
        ["embed.weight", "layers.0.0.weight", "layers.0.1.weight"],
        ["layers.1.0.weight", "layers.1.1.weight", "layers.2.0.weight", "layers.2.1.weight"],
        ["norm.weight", "head.weight", "hc_head_fn"],
    ]


def test_head_norm_and_hc_head_share_a_shard():
    """The release has norm, head and hc_head in one shard, although norm alone would fit next to the last layer."""
    found = names(split(model(90, [(90,)], 90, mtp=90), limit=100))
    assert found == [
        ["embed.weight"],
        ["layers.0.0.weight"],
        ["norm.weight", "head.weight", "hc_head_fn"],
        ["mtp.0.norm.weight"],
    ]


def test_oversized_layer_is_split_between_tensors():
    found = split(model(10, [(40, 40, 40)], 10), limit=50)
    assert all(sum(each.size for each in shard) <= 50 for shard in found)
    assert sum(map(len, names(found)), 0) == 7
    alone = names(split(model(10, [(500,)], 10), limit=50))
    assert ["layers.0.0.weight"] in alone, "a tensor beyond the limit has a shard of its own"


def test_shard_limit_fits_one_layer_up_to_a_size():
    assert shard_limit(model(10, [(20,)], 10)) == SHARD_BYTES
    assert shard_limit(model(10, [(SHARD_BYTES, 5)], 10)) == SHARD_BYTES + 5
    assert shard_limit(model(10, [(SHARD_BYTES, 5), (LARGEST_SHARD_BYTES + 1,)], 10)) == SHARD_BYTES + 5
    assert shard_limit([]) == SHARD_BYTES


def test_shard_names():
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


def lazy_tensors(tensors: dict[str, torch.Tensor]) -> list[LazyTensors]:
    return [
        LazyTensors({name: (x.dtype, tuple(x.shape))}, lambda name=name, x=x: {name: x}) for name, x in tensors.items()
    ]


def test_safetensors_reads_what_is_written(tmp_path: Path):
    file, sizes = tmp_path / "model.safetensors", []
    write_shard(file, lazy_tensors(TENSORS), sizes.append)
    found = load_file(file)
    assert found.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
        assert torch.equal(
            found[name].contiguous().reshape(-1).view(torch.uint8), x.contiguous().reshape(-1).view(torch.uint8)
        )
    assert sizes == [x.nbytes for x in TENSORS.values()]
    assert file.stat().st_size == file_size(lazy_tensors(TENSORS))
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}, "transformers asks for it"
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_header_reader_agrees_with_safetensors(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    write_shard(file, lazy_tensors(TENSORS))
    content = file.read_bytes()
    for name, entry in read_header(file).items():
        x = TENSORS[name]
        assert (entry.dtype, entry.shape, entry.size) == (DTYPES[x.dtype], tuple(x.shape), x.nbytes)
        assert content[entry.start : entry.start + entry.size] == bytes(
            x.contiguous().reshape(-1).view(torch.uint8).tolist()
        )


def test_data_is_aligned_to_eight_bytes(tmp_path: Path):
    for length in range(1, 12):
        write_shard(tmp_path / "x", [tensors("n" * length, 3)])
        assert int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") % 8 == 0


def test_unplanned_shape_fails_an_assertion(tmp_path: Path):
    wrong = LazyTensors({"a": (torch.uint8, (3,))}, lambda: {"a": torch.ones(4, dtype=torch.uint8)})
    with pytest.raises(AssertionError, match="was planned"):
        write_shard(tmp_path / "x", [wrong])
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "x", [tensors("a", 3)])
    assert list(tmp_path.iterdir()) == []


def test_index_lists_every_tensor_and_total_size(tmp_path: Path):
    shards = split(model(10, [(40, 40, 40)], 10), limit=50)
    write_index(tmp_path, shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 142
    listed = [
        [name for name, file in index["weight_map"].items() if file == shard] for shard in shard_names(len(shards))
    ]
    assert listed == names(shards)


def test_single_file_has_no_index(tmp_path: Path):
    write_index(tmp_path, [model(1, [], 1)])
    assert list(tmp_path.iterdir()) == []
