"""Saving and loading weights; a final name only ever holds a complete checkpoint."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from seektune.checkpoint import save_weights
from seektune.checkpoint.names import slots
from seektune.model.causal_lm import DeepseekV4ForCausalLM

FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32}

KEPT_F32 = ("hc_attn_", "hc_ffn_", "hc_head_", "attn_sink", ".ape", "gate.bias")


def stored(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor on disk."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                entry = tensors.get_slice(name)
                assert name not in found
                found[name] = entry.get_dtype(), tuple(entry.get_shape())
    return found


def save_sharded(model: DeepseekV4ForCausalLM, folder: Path, format: str, shard_bytes: int) -> None:
    config = {"model_type": "deepseek_v4", **model.config.to_dict()}
    save_weights(model.state_dict(), config, folder, format, shard_bytes=shard_bytes)


@pytest.fixture(scope="module")
def model(toy_model) -> DeepseekV4ForCausalLM:
    return toy_model(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shard_bytes", [None, 60_000, 1], ids=["single", "sharded", "one tensor a shard"])
def test_save_load_round_trip(model, tmp_path: Path, format: str, shard_bytes: int | None):
    folder = tmp_path / "out"
    if shard_bytes is None:
        model.save_pretrained(folder, format=format)
        assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    else:
        save_sharded(model, folder, format, shard_bytes)
    again = DeepseekV4ForCausalLM.from_pretrained(folder)
    for name, x in model.state_dict().items():
        kept = not x.is_floating_point() or any(part.strip("_") in name for part in KEPT_F32)
        expected = x if kept else x.to(FORMATS[format]).float()
        assert torch.equal(again.state_dict()[name], expected), name
    tokens = torch.randint(64, (1, 140))
    if format == "fp32":
        assert torch.equal(again(tokens, mtp=True).mtp_logits, model(tokens, mtp=True).mtp_logits)


@pytest.mark.parametrize("format", FORMATS)
def test_names_dtypes_and_shapes_match_the_release(model, tmp_path: Path, format: str):
    model.save_pretrained(tmp_path / "out", format=format)
    found = stored(tmp_path / "out")
    expected = {
        slot.released: tuple(slot.shape) for slot in slots({n: tuple(x.shape) for n, x in model.state_dict().items()})
    }
    assert {name: shape for name, (_, shape) in found.items()} == expected
    for name, (dtype, _) in found.items():
        if name.endswith("tid2eid"):
            assert dtype == "I64"
        elif any(part in name for part in KEPT_F32):
            assert dtype == "F32", name
        else:
            assert dtype == {"bf16": "BF16", "fp32": "F32"}[format], name
    assert sum(name.endswith("tid2eid") for name in found) == 1


def test_index_lists_shards_and_total_size(model, tmp_path: Path):
    folder, limit = tmp_path / "out", 60_000
    save_sharded(model, folder, "bf16", limit)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    size = {"BF16": 2, "F32": 4, "I64": 8}
    found = {name: torch.Size(shape).numel() * size[dtype] for name, (dtype, shape) in stored(folder).items()}
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(found.values())
    for file in files:
        inside = [name for name, listed in index["weight_map"].items() if listed == file]
        assert len(inside) == 1 or sum(found[name] for name in inside) <= limit
        with safe_open(folder / file, "pt") as tensors:
            assert set(tensors.keys()) == set(inside)


@pytest.mark.slow
def test_bf16_export_of_released_weights_is_lossless(parity_folder: Path, tmp_path: Path):
    """FP4 and FP8 values are representable in bf16."""
    original = DeepseekV4ForCausalLM.from_pretrained(parity_folder)
    original.save_pretrained(tmp_path / "out")
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out")
    for name, x in original.state_dict().items():
        assert torch.equal(x, again.state_dict()[name]), name


def test_config_of_export_matches_storage(parity_folder: Path, tmp_path: Path):
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder)
    original = json.loads((parity_folder / "config.json").read_text())
    for format, dtype in (("bf16", "bfloat16"), ("fp32", "float32")):
        model.save_pretrained(tmp_path / format, format=format)
        written = json.loads((tmp_path / format / "config.json").read_text())
        storage = ("quantization_config", "expert_dtype")
        assert not any(key in written for key in storage), "an export without low-bit weights must not claim any"
        expected = {key: value for key, value in original.items() if key not in storage}
        assert written == expected | {"torch_dtype": dtype}


def test_bf16_model_saves_fp32_parameters(toy_model, tmp_path: Path):
    model = toy_model(torch.bfloat16)
    model.save_pretrained(tmp_path / "out")
    again = DeepseekV4ForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    for name, x in model.state_dict().items():
        assert again.state_dict()[name].dtype == x.dtype
        assert torch.equal(again.state_dict()[name], x), name


def test_saving_does_not_change_the_model(model, tmp_path: Path):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.save_pretrained(tmp_path / "out")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_empty_folder_is_used_and_parents_are_created(model, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    model.save_pretrained(str(tmp_path / "a" / "b" / "c"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "empty"]
    assert stored(tmp_path / "empty") == stored(tmp_path / "a" / "b" / "c")


def test_nonempty_folder_is_rejected_and_untouched(model, tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="mine") as error:
        model.save_pretrained(folder)
    assert "\n" not in str(error.value)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
    assert (folder / "notes.txt").read_text() == "keep"
    (tmp_path / "file").write_text("keep")
    with pytest.raises(ValueError, match="file"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "keep"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "mine"]


def test_unknown_format_is_rejected_before_writing(model, tmp_path: Path):
    with pytest.raises(ValueError, match="bf16"):
        model.save_pretrained(tmp_path / "out", format="fp16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limit", "shard_bytes"), [(1000, 10**9), (40_000, 10**9), (200_000, 10**9), (1000, 60_000), (40_000, 60_000)]
)
def test_full_disk_leaves_nothing_behind(model, tmp_path: Path, limit: int, shard_bytes: int):
    """RLIMIT_FSIZE makes the operating system refuse writes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r".") as error:
            save_sharded(model, tmp_path / "out", "fp32", shard_bytes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_failed_flush_leaves_nothing_behind(model, tmp_path: Path, monkeypatch, call: int, error):
    """The disk may turn out to be full in fsync rather than in write, and Ctrl-C can arrive at any time."""
    calls = 0
    flush = os.fsync

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > call:
            raise error
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(type(error)):
        save_sharded(model, tmp_path / "out", "bf16", 60_000)
    assert calls > call
    assert list(tmp_path.iterdir()) == []


def test_existing_empty_folder_stays_empty_when_saving_fails(model, tmp_path: Path, monkeypatch):
    (tmp_path / "out").mkdir()

    def failing(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []
