"""The kind of each tensor in each format, and all tensors of the released checkpoints on the meta device."""

import json
import lzma
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune.checkpoint.export import ExportReport, export_tensors
from seektune.checkpoint.formats import FORMATS, QUANTIZED, format_named, kind_on_disk
from seektune.checkpoint.header import DTYPES
from seektune.checkpoint.names import scale_name, slots
from seektune.checkpoint.source import StateSource
from seektune.checkpoint.write import LazyTensors, shard_limit, shard_names, split
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes
from seektune.model.config import DeepseekV4Config

RELEASES = {
    "flash": ("v4flash", 69_187, 46, 159_609_485_896),
    "flash-0731": ("v4flash0731", 72_317, 48, 166_878_536_440),
    "pro": ("v4pro", 145_116, 64, None),
    "pro-0813": ("v4pro0813", 149_782, 66, 892_727_580_904),
}
"""Table, tensors, shards and bytes of each release."""


@pytest.fixture(
    scope="module",
    params=[name if name == "flash" else pytest.param(name, marks=pytest.mark.slow) for name in RELEASES],
)
def release(request: pytest.FixtureRequest, released: Path) -> tuple[str, dict[str, Any], list[LazyTensors]]:
    """A preset, the published table of its tensors, and the planned tensors of its export in the released format."""
    file, count, _, _ = RELEASES[request.param]
    table = json.loads(lzma.decompress((released / f"{file}.tensors.json.xz").read_bytes()))
    assert len(table) == count
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset(request.param), device="meta", drafter=True)
    return (
        request.param,
        table,
        list(export_tensors(StateSource(model.state_dict()), FORMATS["released"], ExportReport())),
    )


@pytest.mark.slow
def test_released_tensors_are_written_with_dtype_and_shape(release):
    _, table, planned = release
    found = {name: (DTYPES[dtype], list(shape)) for piece in planned for name, (dtype, shape) in piece.tensors.items()}
    assert found == {name: (tensor["dtype"], tensor["shape"]) for name, tensor in table.items()}


@pytest.mark.slow
def test_released_tensors_are_read_as_the_kind_written(release):
    """Reading: dtypes on disk give the kind, and kind and name give the shape."""
    preset, table, _ = release
    shapes = checkpoint_shapes(DeepseekV4Config.preset(preset))
    seen = 0
    for slot in slots(shapes):
        name, scale = slot.released, table.get(scale_name(slot.released))
        kind = kind_on_disk(table[name]["dtype"], scale["dtype"] if scale else None)
        assert kind == FORMATS["released"].kind(name), name
        if kind in QUANTIZED:
            assert [list(shape) for shape in QUANTIZED[kind].shapes(slot.shape)] == [
                table[name]["shape"],
                scale["shape"],
            ]
        seen += 1 if scale is None else 2
    assert seen == len(table)


def test_shards_match_the_release(release):
    preset, table, planned = release
    shards = split(planned, shard_limit(planned))
    names = shard_names(len(shards))
    assert len(names) == RELEASES[preset][2]
    found = {name: file for file, shard in zip(names, shards, strict=True) for piece in shard for name in piece.tensors}
    assert found == {name: tensor["shard"] for name, tensor in table.items()}


def test_bytes_match_the_release(release):
    preset, table, planned = release
    size = {spelled: dtype.itemsize for dtype, spelled in DTYPES.items()}
    total = sum(prod(tensor["shape"]) * size[tensor["dtype"]] for tensor in table.values())
    assert sum(piece.size for piece in planned) == total
    assert RELEASES[preset][3] in (None, total)


@pytest.mark.parametrize("format", ["bf16", "fp32", "fp8", "base"])
@pytest.mark.slow
def test_every_format_holds_every_tensor_of_flash(format: str):
    config = DeepseekV4Config.preset("flash")
    state = DeepseekV4ForCausalLM(config, device="meta").state_dict()
    planned = list(export_tensors(StateSource(state), FORMATS[format], ExportReport()))
    dtypes = Counter(dtype for piece in planned for dtype, _ in piece.tensors.values())
    weights = len(list(slots({name: tuple(tensor.shape) for name, tensor in state.items()})))
    scales = {"fp8": torch.float8_e8m0fnu, "base": torch.float32}.get(format)
    quantized = sum(len(piece.tensors) == 2 for piece in planned)
    assert len(planned) == weights
    assert sum(dtypes.values()) == weights + quantized
    assert (quantized > 0) == (scales is not None)
    if scales is not None:
        experts = 3 * config.n_routed_experts * (config.num_hidden_layers + 1)
        assert dtypes[torch.float8_e4m3fn] == quantized
        assert dtypes[scales] >= quantized - (experts if format == "fp8" else 0)
        assert dtypes[torch.float32] >= experts
    assert dtypes[torch.int8] == 0
    assert dtypes[torch.int64] == config.num_hash_layers


ALWAYS = {
    "layers.3.attn.attn_sink": "f32",
    "layers.2.attn.compressor.ape": "f32",
    "layers.2.attn.indexer.compressor.ape": "f32",
    "layers.2.hc_attn_fn": "f32",
    "layers.2.hc_ffn_scale": "f32",
    "hc_head_base": "f32",
    "mtp.0.hc_head_fn": "f32",
    "layers.3.ffn.gate.bias": "f32",
    "layers.0.ffn.gate.tid2eid": "i64",
}
NEVER_QUANTIZED = (
    "embed.weight",
    "head.weight",
    "norm.weight",
    "layers.2.attn.compressor.wkv.weight",
    "layers.2.attn.compressor.wgate.weight",
    "layers.2.attn.compressor.norm.weight",
    "layers.2.attn.indexer.compressor.wkv.weight",
    "layers.2.attn.indexer.weights_proj.weight",
    "layers.2.ffn.gate.weight",
    "layers.2.attn.q_norm.weight",
    "mtp.0.enorm.weight",
    "mtp.0.main_norm.weight",
    "mtp.2.markov_head.markov_w1.weight",
    "mtp.2.markov_head.markov_w2.weight",
    "mtp.2.confidence_head.proj.weight",
)
LINEARS = (
    "layers.2.attn.wkv.weight",
    "layers.2.attn.wo_a.weight",
    "layers.2.attn.indexer.wq_b.weight",
    "layers.2.ffn.shared_experts.w2.weight",
    "mtp.0.e_proj.weight",
    "mtp.0.main_proj.weight",
    "mtp.0.attn.wq_a.weight",
)
EXPERTS = ("layers.2.ffn.experts.17.w2.weight", "mtp.0.ffn.experts.0.w1.weight")
KINDS = {
    "released": ("fp4", "fp8", "bf16"),
    "fp8": ("fp8_f32_pow2", "fp8", "bf16"),
    "base": ("fp8_f32", "fp8_f32", "bf16"),
    "bf16": ("bf16", "bf16", "bf16"),
    "fp32": ("f32", "f32", "f32"),
}


@pytest.mark.parametrize("format", KINDS)
def test_kinds_of_each_format(format: str):
    experts, linears, rest = KINDS[format]
    kind = FORMATS[format].kind
    assert {name: kind(name) for name in ALWAYS} == ALWAYS
    assert {kind(name) for name in NEVER_QUANTIZED} == {rest}
    assert {kind(name) for name in LINEARS} == {linears}
    assert {kind(name) for name in EXPERTS} == {experts}
    assert KINDS.keys() == FORMATS.keys()


def test_unknown_format_lists_known_ones():
    assert format_named("bf16") is FORMATS["bf16"]
    with pytest.raises(ValueError, match="'fp4' is unknown; the formats are released, fp8, base, bf16, fp32"):
        format_named("fp4")


@pytest.mark.parametrize(
    ("dtype", "scale", "kind"),
    [
        ("I8", "F8_E8M0", "fp4"),
        ("F8_E4M3", "F8_E8M0", "fp8"),
        ("F8_E4M3", "F32", "fp8_f32"),
        ("BF16", None, "bf16"),
        ("F8_E4M3", None, None),
        ("I8", "F32", None),
        ("I8", None, None),
        ("BF16", "F32", None),
        ("U8", None, None),
    ],
)
def test_kind_from_dtypes_on_disk(dtype: str, scale: str | None, kind: str | None):
    assert kind_on_disk(dtype, scale) == kind


def test_partial_blocks_have_scales():
    assert QUANTIZED["fp8"].shapes((130, 260)) == ((130, 260), (2, 3))
    assert QUANTIZED["fp4"].shapes((130, 64)) == ((130, 32), (130, 2))
    assert QUANTIZED["fp8"].fits((1, 7))
    assert not QUANTIZED["fp4"].fits((4, 48))
    assert not QUANTIZED["fp8"].fits((4,))


@pytest.mark.parametrize("format", FORMATS)
def test_config_describes_storage_and_keeps_other_keys(format: str):
    source = {"hidden_size": 8, "mine": [1], "dtype": "float16", "expert_dtype": "fp4", "quantization_config": {"a": 1}}
    written = FORMATS[format].config(source)
    storage = {key: written.pop(key, None) for key in ("expert_dtype", "quantization_config", "torch_dtype")}
    assert written == {"hidden_size": 8, "mine": [1]}
    quantized = format in ("released", "fp8", "base")
    assert storage["torch_dtype"] == ("float32" if format == "fp32" else "bfloat16")
    assert storage["expert_dtype"] == {"released": "fp4", "fp8": "fp8", "base": "fp8"}.get(format)
    assert (storage["quantization_config"] is not None) == quantized
    if quantized:
        assert storage["quantization_config"]["weight_block_size"] == [128, 128]
        assert storage["quantization_config"].get("scale_fmt") == (None if format == "base" else "ue8m0")
