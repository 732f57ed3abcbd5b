"""Loading the released layout: exact values from every dtype, and a one-line error for every fault."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.names import model_name
from seektune.model.causal_lm import DeepseekV4ForCausalLM

INDEX = "model.safetensors.index.json"
FP8 = "layers.1.attn.wq_a.weight"
FP4 = "layers.2.ffn.experts.3.w2.weight"
BF16 = "layers.1.attn_norm.weight"
F32 = "layers.2.attn.attn_sink"
I64 = "layers.0.ffn.gate.tid2eid"


@pytest.fixture
def folder(parity_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(parity_folder, copy, ignore=shutil.ignore_patterns("expected*"))
    return copy


def raw(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of every tensor, read by hand from the format's definition."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8 : 8 + size]).items():
            if name != "__metadata__":
                start, stop = (8 + size + offset for offset in entry["data_offsets"])
                tensors[name] = entry["dtype"], entry["shape"], content[start:stop]
    return tensors


def e4m3(byte: int) -> float:
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if byte & 128 else size


E4M3 = torch.tensor([math.nan if byte & 127 == 127 else e4m3(byte) for byte in range(256)])
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def decoded(name: str, tensors: dict[str, tuple[str, list[int], bytes]]) -> Tensor:
    """The values of a tensor, decoded by tables."""
    dtype, shape, content = tensors[name]
    if dtype in ("BF16", "F32", "I64"):
        kinds = {"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}
        return torch.frombuffer(bytearray(content), dtype=kinds[dtype]).view(shape)
    rows, columns = shape
    codes = torch.frombuffer(bytearray(content), dtype=torch.uint8).long().view(shape)
    _, (up, across), scale = tensors[name.removesuffix(".weight") + ".scale"]
    scales = 2.0 ** (torch.frombuffer(bytearray(scale), dtype=torch.uint8).view(up, across).double() - 127)
    if dtype == "I8":
        values = torch.empty(rows, 2 * columns)
        values[:, 0::2], values[:, 1::2] = E2M1[codes % 16], E2M1[codes // 16]
        by_element = scales[:, torch.arange(2 * columns) // 32]
    else:
        assert dtype == "F8_E4M3"
        values = E4M3[codes]
        by_element = scales[torch.arange(rows) // 128][:, torch.arange(columns) // 128]
    return (values * by_element).float()


def model_tensor(model: DeepseekV4ForCausalLM, released: str) -> Tensor:
    name, expert = model_name(released)
    tensor = model.state_dict()[name]
    return tensor if expert is None else tensor[expert]


@pytest.mark.slow
def test_every_tensor_decodes_to_its_values(folder: Path):
    model = DeepseekV4ForCausalLM.from_pretrained(folder)
    tensors = raw(folder)
    kinds = set()
    for name, (dtype, _, _) in tensors.items():
        if not (name.endswith(".scale") and dtype == "F8_E8M0"):
            kinds.add(dtype)
            assert torch.equal(model_tensor(model, name), decoded(name, tensors).to(model_tensor(model, name).dtype)), (
                name
            )
    assert kinds == {"BF16", "F32", "I64", "I8", "F8_E4M3"}


@pytest.mark.slow
def test_bf16_model_loads_rounded_values_and_keeps_fp32_parameters(parity_folder: Path):
    full = DeepseekV4ForCausalLM.from_pretrained(parity_folder)
    low = DeepseekV4ForCausalLM.from_pretrained(parity_folder, dtype=torch.bfloat16)
    for name, x in low.state_dict().items():
        assert torch.equal(x, full.state_dict()[name].to(x.dtype)), name
    assert model_tensor(low, F32).dtype == torch.float32
    assert model_tensor(low, I64).dtype == torch.int64


def scale_of(name: str) -> str:
    stem = name.removesuffix(".weight")
    return f"{stem}.scale" if stem != name else "none"


def edit(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace, add or (None) remove tensors in the files and the index."""
    index = json.loads((folder / INDEX).read_text())
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        last = file == max(folder.glob("*.safetensors"))
        for name, value in changes.items():
            if name in tensors or (last and name not in index["weight_map"]):
                tensors.pop(name, None)
                index["weight_map"].pop(name, None)
                if value is not None:
                    tensors[name] = value.contiguous()
                    index["weight_map"][name] = file.name
        save_file(tensors, file)
    (folder / INDEX).write_text(json.dumps(index))


def read(folder: Path, name: str) -> Tensor:
    return load_file(folder / json.loads((folder / INDEX).read_text())["weight_map"][name])[name]


def base_layout(weight: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 with F32 scales that are not powers of two."""
    up, across = (-(-size // 128) for size in weight.shape)
    return weight.to(torch.float8_e4m3fn), torch.rand(up, across) + 0.5


@pytest.mark.slow
def test_dtype_on_disk_overrides_config(folder: Path):
    """Experts in FP8 with F32 scales as in Base, others in BF16, F32 and F16, under a config that says fp4."""
    assert json.loads((folder / "config.json").read_text())["expert_dtype"] == "fp4"
    model = DeepseekV4ForCausalLM.from_pretrained(folder)
    expected: dict[str, Tensor] = {}
    changes: dict[str, Tensor | None] = {}
    for name in (FP4, FP8, "mtp.0.e_proj.weight"):
        values, scale = base_layout(torch.randn_like(model_tensor(model, name)))
        changes |= {name: values, scale_of(name): scale}
        full = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: values.shape[0], : values.shape[1]]
        expected[name] = values.float() * full
    plain = {
        "layers.0.attn.wq_b.weight": torch.bfloat16,
        "layers.0.ffn.experts.1.w1.weight": torch.float32,
        "layers.1.ffn.shared_experts.w2.weight": torch.float16,
        BF16: torch.float32,
        F32: torch.bfloat16,
    }
    for name, dtype in plain.items():
        changes[name] = expected[name] = torch.randn_like(model_tensor(model, name)).to(dtype)
        if scale_of(name) in raw(folder):
            changes[scale_of(name)] = None
    edit(folder, changes)
    found = DeepseekV4ForCausalLM.from_pretrained(folder)
    for name, value in expected.items():
        assert torch.equal(model_tensor(found, name), value.float()), name


def test_single_file_without_index_loads(folder: Path):
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / INDEX).unlink()
    save_file(tensors, folder / "model.safetensors")
    before, after = tensors[BF16], model_tensor(DeepseekV4ForCausalLM.from_pretrained(folder), BF16)
    assert torch.equal(after, before.float())


def test_extreme_scales_are_decoded(folder: Path):
    """Exponent byte 0 is 2^-127, not zero; byte 253 with small codes is still finite."""
    scale = read(folder, scale_of(FP4)).view(torch.uint8)
    scale[0], scale[1] = 0, 200
    edit(folder, {scale_of(FP4): scale.view(torch.float8_e8m0fnu)})
    tensors = raw(folder)
    found = model_tensor(DeepseekV4ForCausalLM.from_pretrained(folder), FP4)
    assert torch.equal(found, decoded(FP4, tensors))
    assert 0 < found[0].abs().max() < 1e-36


Fault = Callable[[Path], object]


def replaced(name: str, change: Callable[[Tensor], Tensor | None]) -> Fault:
    return lambda folder: edit(folder, {name: change(read(folder, name))})


def with_byte(name: str, byte: int) -> Fault:
    """One byte flipped in the middle of a tensor of one-byte elements."""

    def change(x: Tensor) -> Tensor:
        flat = x.view(torch.uint8).flatten().clone()
        flat[len(flat) // 2] = byte
        return flat.view(x.dtype).view(x.shape)

    return replaced(name, change)


def filled(name: str, value: float) -> Fault:
    def change(x: Tensor) -> Tensor:
        x.flatten()[-1] = value
        return x

    return replaced(name, change)


SHARD = "model-00001-of-00002.safetensors"


def bytes_changed(change: Callable[[bytes], bytes]) -> Fault:
    return lambda folder: (folder / SHARD).write_bytes(change((folder / SHARD).read_bytes()))


def index_changed(change: Callable[[dict], object]) -> Fault:
    return lambda folder: (folder / INDEX).write_text(json.dumps(change(json.loads((folder / INDEX).read_text()))))


def mapped(name: str, file: object) -> Fault:
    return index_changed(lambda index: {**index, "weight_map": index["weight_map"] | {name: file}})


def as_directory(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()


def without_weights(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()


def as_pipe(folder: Path) -> None:
    (folder / SHARD).unlink()
    os.mkfifo(folder / SHARD)


def as_dangling_link(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to("nowhere")


def stale_index(folder: Path) -> None:
    (folder / SHARD).rename(folder / "model.safetensors")


def renamed_scales(folder: Path) -> None:
    edit(folder, {scale_of(FP8): None, f"{FP8}_scale_inv": read(folder, scale_of(FP8))})


def config_changed(**changes: object) -> Fault:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return change


FAULTS: dict[str, tuple[Fault, list[str]]] = {
    "missing tensor": (replaced(BF16, lambda x: None), [BF16]),
    "missing low-bit tensor with its scales": (
        lambda folder: edit(folder, {FP4: None, scale_of(FP4): None}),
        [FP4],
    ),
    "missing FP8 scale": (replaced(scale_of(FP8), lambda x: None), [scale_of(FP8)]),
    "missing FP4 scale": (replaced(scale_of(FP4), lambda x: None), [scale_of(FP4)]),
    "scale without its weight": (replaced(FP8, lambda x: None), [FP8]),
    "unexpected tensor": (
        lambda folder: edit(folder, {"layers.9.attn_norm.weight": torch.ones(128)}),
        ["layers.9.attn"],
    ),
    "unexpected bias in a hash layer": (
        lambda folder: edit(folder, {"layers.0.ffn.gate.bias": torch.ones(8)}),
        ["layers.0.ffn.gate.bias"],
    ),
    "unexpected scale": (
        lambda folder: edit(folder, {"layers.1.attn_norm.scale": torch.ones(1, 1)}),
        ["layers.1.attn_norm"],
    ),
    "short vector": (replaced(BF16, lambda x: x[:-1]), [BF16, "shape"]),
    "scalar instead of a vector": (replaced(BF16, lambda x: x[0].clone()), [BF16, "shape"]),
    "transposed FP8": (replaced(FP8, lambda x: x.T), [FP8, "shape"]),
    "FP8 scales of another shape": (replaced(scale_of(FP8), lambda x: x.repeat(2, 1)), [scale_of(FP8), "shape"]),
    "FP4 of twice the columns": (replaced(FP4, lambda x: x.repeat(1, 2)), [FP4, "shape"]),
    "FP4 with scales of FP8 blocks": (replaced(scale_of(FP4), lambda x: x[:1, :1]), [scale_of(FP4), "shape"]),
    "table of another vocabulary": (replaced(I64, lambda x: x[:-1]), [I64, "shape"]),
    "integers for a float": (replaced(BF16, lambda x: x.long()), [BF16]),
    "floats for an integer": (replaced(I64, lambda x: x.float()), [I64]),
    "FP8 vector": (replaced(BF16, lambda x: x.to(torch.float8_e4m3fn)), [BF16]),
    "FP8 bytes without a dtype": (replaced(FP8, lambda x: x.view(torch.uint8)), [FP8]),
    "FP4 with F32 scales": (replaced(scale_of(FP4), lambda x: x.float()), [FP4.removesuffix(".weight")]),
    "scales as bare bytes": (replaced(scale_of(FP8), lambda x: x.view(torch.uint8)), [FP8.removesuffix(".weight")]),
    "bit rot to NaN in FP8": (with_byte(FP8, 0x7F), [FP8, "NaN"]),
    "bit rot to NaN in FP8 scales": (with_byte(scale_of(FP8), 0xFF), [FP8, "NaN"]),
    "bit rot to NaN in FP4 scales": (with_byte(scale_of(FP4), 0xFF), [FP4, "NaN"]),
    "NaN in BF16": (filled(BF16, math.nan), [BF16, "NaN"]),
    "infinity in F32": (filled(F32, -math.inf), [F32, "NaN"]),
    "table lists an expert that does not exist": (filled(I64, 8), [I64]),
    "table lists a negative expert": (filled(I64, -1), [I64]),
    "truncated by a few bytes": (bytes_changed(lambda content: content[:-100]), [SHARD]),
    "truncated within the header": (bytes_changed(lambda content: content[:1000]), [SHARD]),
    "truncated to nothing": (bytes_changed(lambda content: b""), [SHARD]),
    "bytes after the end": (bytes_changed(lambda content: content + b"more"), [SHARD]),
    "header of absurd length": (bytes_changed(lambda content: b"\xff" * 8 + content[8:]), [SHARD]),
    "header that is not JSON": (bytes_changed(lambda content: content[:8] + b"#" * 200 + content[208:]), [SHARD]),
    "a web page instead of weights": (bytes_changed(lambda content: b"<!DOCTYPE html><html>" * 50), [SHARD]),
    "a folder instead of a file": (as_directory, [SHARD]),
    "a pipe instead of a file": (as_pipe, [SHARD, "is a pipe"]),
    "a link that leads nowhere": (as_dangling_link, [SHARD, "is a link to a file that does not exist"]),
    "a stale index beside a single file": (stale_index, [SHARD, "is missing", f"remove {INDEX}"]),
    "shards without an index": (lambda folder: (folder / INDEX).unlink(), [SHARD, f"but no {INDEX}"]),
    "names of transformers": (
        lambda folder: edit(folder, {"model.layers.0.self_attn.q_a_proj.weight": torch.ones(1)}),
        ["layers.0.attn.wq_a.weight", "model.layers.0.self_attn.q_a_proj.weight", "two spellings of one tensor"],
    ),
    "config of transformers": (
        lambda folder: (folder / "config.json").write_text(
            '{"model_type": "deepseek_v4", "compress_rates": {}, "layer_types": []}'
        ),
        ["config.json", "has the keys of transformers", "num_hidden_layers"],
    ),
    "config of a million layers": (
        config_changed(num_hidden_layers=10**6, num_nextn_predict_layers=0, compress_ratios=[0] * 10**6),
        ["config.json", "num_hidden_layers", "larger than any DeepSeek-V4"],
    ),
    "config of an absurd vocabulary": (
        config_changed(vocab_size=2**62),
        ["config.json", "vocab_size", "larger than any DeepSeek-V4"],
    ),
    "config of more layers than there are": (
        config_changed(num_hidden_layers=40, compress_ratios=[0] * 41),
        ["lacks layers."],
    ),
    "config of a larger vocabulary": (config_changed(vocab_size=2**20), ["embed.weight", "shape", "1048576"]),
    "config of absurd ratios": (config_changed(compress_ratios=[10**400] * 5), ["config.json", "compress_ratios"]),
    "scales named as in V3": (renamed_scales, [FP8, "its scales are named layers.1.attn.wq_a.weight_scale_inv"]),
    "FP4 scales that overflow": (with_byte(scale_of(FP4), 0xFE), [FP4, "infinity"]),
    "FP64 that no other dtype holds": (replaced(BF16, lambda x: x.double() * 1e300), [BF16, "infinity"]),
    "index names a missing file": (mapped(BF16, "model-00003-of-00002.safetensors"), ["model-00003-of-00002"]),
    "index names a file outside": (mapped(BF16, "../outside.safetensors"), [INDEX]),
    "index names an absolute path": (mapped(BF16, "/etc/passwd"), [INDEX]),
    "index names the parent": (mapped(BF16, ".."), [".."]),
    "index names no file": (mapped(BF16, None), [INDEX]),
    "index lists a tensor that the file lacks": (mapped("layers.0.extra", SHARD), ["layers.0.extra", SHARD]),
    "index leaves out a tensor": (
        index_changed(lambda index: {"weight_map": {n: f for n, f in index["weight_map"].items() if n != BF16}}),
        [BF16],
    ),
    "index without a map": (index_changed(lambda index: {"metadata": {}}), [INDEX]),
    "index is a list": (index_changed(lambda index: [1]), [INDEX]),
    "index maps a list": (index_changed(lambda index: {"weight_map": ["a"]}), [INDEX]),
    "index is empty": (index_changed(lambda index: {"weight_map": {}}), ["lacks"]),
    "index is binary": (lambda folder: (folder / INDEX).write_bytes(bytes(range(256))), [INDEX]),
    "index is very deep": (
        lambda folder: (folder / INDEX).write_text('{"weight_map":' + "[" * 200_000 + "]" * 200_000 + "}"),
        [INDEX],
    ),
    "no weights": (without_weights, ["model.safetensors"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
    "config of another model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
        ["config.json", "llama"],
    ),
    "config of V4.1": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "deepseek_v41"}'),
        ["config.json", "deepseek_v41"],
    ),
}


@pytest.mark.parametrize("quantized", [False, True], ids=["decoded", "quantized"])
@pytest.mark.parametrize(("damage", "expected"), FAULTS.values(), ids=FAULTS)
def test_fault_is_one_line_that_names_tensor_or_file(folder: Path, damage: Fault, expected: list[str], quantized: bool):
    damage(folder)
    with pytest.raises(ValueError, match=r".") as error:
        DeepseekV4ForCausalLM.from_pretrained(folder, quantized=quantized)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in expected:
        assert part in message


@pytest.mark.parametrize("where", ["nowhere", "not a hub id!", "a/b/c"])
def test_source_that_is_not_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor a Hub id") as error:
        DeepseekV4ForCausalLM.from_pretrained(where)
    assert where in str(error.value)


def test_empty_folder_lacks_config(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json"):
        DeepseekV4ForCausalLM.from_pretrained(tmp_path)


def test_first_missing_tensor_is_named_and_others_counted(folder: Path):
    edit(folder, dict.fromkeys((BF16, F32, I64)))
    with pytest.raises(ValueError, match="2 more") as error:
        DeepseekV4ForCausalLM.from_pretrained(folder)
    assert any(name in str(error.value) for name in (BF16, F32, I64))
