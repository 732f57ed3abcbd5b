"""Targets: config.json, the index and the safetensors files of a checkpoint folder, and an adapter's two files."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from seektune.checkpoint.files import INDEX, SINGLE
from seektune.checkpoint.header import header_bytes
from seektune.checkpoint.scan import format_of, mismatch, scan
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.stored import all_finite
from seektune.io.config_json import CONFIG
from seektune.io.console import listed
from seektune.lora.coverage import check_coverage
from seektune.lora.delta import LoraDelta
from seektune.lora.format import CONFIG as ADAPTER_CONFIG
from seektune.lora.format import WEIGHTS, read_adapter, trained_on, write_adapter
from seektune.lora.targets import adaptable
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.workflows.inspect import inspect
from tests.conftest import TOY
from tests.fuzz.target import Read, Target, as_json, framed, unframed

CONFIG_DOCUMENT = DeepseekV4Config.preset("tiny").replace(**TOY).to_dict()
SMALLER = {"num_hidden_layers": 3, "compress_ratios": [0, 4, 128, 0], "n_routed_experts": 8}
OTHER_CONFIG = {**DeepseekV4Config.preset("flash").to_dict(), **SMALLER}
TENSORS = {
    "embed.weight": (torch.bfloat16, (2, 3)),
    "layers.0.attn.wq_a.weight": (torch.float8_e4m3fn, (2, 4)),
    "layers.0.attn.wq_a.scale": (torch.float8_e8m0fnu, (1, 1)),
    "layers.0.ffn.experts.0.w1.weight": (torch.int8, (1, 16)),
    "layers.0.ffn.experts.0.w1.scale": (torch.float8_e8m0fnu, (1, 1)),
    "layers.0.ffn.gate.tid2eid": (torch.int64, (1, 2)),
    "norm.weight": (torch.float32, (3,)),
}
DATA = bytes(12) + bytes(8) + b"\x7f" + bytes(16) + b"\x7f" + bytes(16) + bytes(12)
HEADER = unframed(header_bytes(TENSORS))[0]
INDEX_DOCUMENT: dict[str, Any] = {"metadata": {}, "weight_map": dict.fromkeys(TENSORS, "b.safetensors")}
ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4.0,
    "rank_pattern": {"layers.1.self_attn.q_a_proj": 1, r"layers\.(5|6)\..*": 3},
    "alpha_pattern": {"q_a_proj": 2},
    "target_modules": ["model.layers.0.self_attn.q_b_proj", "layers.1.self_attn.q_a_proj"],
    "target_parameters": None,
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "init_lora_weights": True,
    "base_model_name_or_path": "deepseek-ai/DeepSeek-V4-Flash",
    "revision": None,
}


def open_config(folder: Path) -> Read:
    def read(content: bytes) -> None:
        (folder / CONFIG).write_bytes(content)
        with redirect_stdout(StringIO()) as printed:
            inspect(folder)
        assert all(line.isprintable() for line in printed.getvalue().split("\n"))
        config = DeepseekV4Config.from_pretrained(folder)
        given = json.loads(content)
        unknown = given.keys() - DeepseekV4Config.model_fields.keys()
        kept = config.to_dict()
        assert as_json([given[key] for key in unknown]) == as_json([kept[key] for key in unknown])

    return read


def open_index(folder: Path) -> Read:
    for file in (SINGLE, "b.safetensors"):
        (folder / file).write_bytes(framed(HEADER, DATA))

    def read(content: bytes) -> None:
        (folder / INDEX).write_bytes(content)
        describe(folder)
        FolderSource(folder)

    return read


def open_header(folder: Path) -> Read:
    def read(content: bytes) -> None:
        (folder / SINGLE).write_bytes(content)
        describe(folder)
        source = FolderSource(folder)
        for name, _ in source.shapes():
            all_finite(source.values(name))

    return read


def describe(folder: Path) -> None:
    """What `inspect` says of a folder: it never refuses."""
    found = scan(folder)
    format_of(found)
    odd = mismatch(found, {name: shape for name, (_, shape) in TENSORS.items() if not name.endswith("scale")})
    assert (listed(odd.missing + odd.extra + odd.wrong)).isprintable()


def _adapter(folder: Path) -> list[str]:
    changes = {name: LoraDelta(torch.ones(2, 8), torch.ones(6, 2), 2.0) for name in ("layers.0.attn.wq_b",)}
    (folder / ADAPTER_CONFIG).touch()
    write_adapter(folder, changes | {"layers.1.attn.wq_a": LoraDelta(torch.ones(1, 8), torch.ones(6, 1), 2.0)}, {})
    return adaptable(DeepseekV4ForCausalLM(DeepseekV4Config.from_dict(CONFIG_DOCUMENT), device="meta"))


def open_adapter_config(folder: Path) -> Read:
    modules = _adapter(folder)

    def read(content: bytes) -> None:
        (folder / ADAPTER_CONFIG).write_bytes(content)
        changes, config, _ = read_adapter(folder)
        check_coverage(changes, config, modules, folder)
        trained_on(folder)

    return read


def open_adapter_weights(folder: Path) -> Read:
    _adapter(folder)
    (folder / ADAPTER_CONFIG).write_bytes(as_json(ADAPTER))

    def read(content: bytes) -> None:
        (folder / WEIGHTS).write_bytes(content)
        read_adapter(folder)

    return read


def _adapter_header() -> dict[str, Any]:
    shapes = {"0.self_attn.q_b_proj": 2, "1.self_attn.q_a_proj": 1, "0.mlp.experts": 2}
    tensors = {}
    for module, rank in shapes.items():
        tensors[f"base_model.model.model.layers.{module}.lora_A.weight"] = (torch.float32, (rank, 8))
        tensors[f"base_model.model.model.layers.{module}.lora_B.weight"] = (torch.float32, (6, rank))
    header: dict[str, Any] = json.loads(header_bytes(tensors)[8:])
    return header


ADAPTER_HEADER = _adapter_header()
CHECKPOINTS = (
    Target("config", open_config, (CONFIG_DOCUMENT, OTHER_CONFIG), as_json),
    Target("index", open_index, (INDEX_DOCUMENT,), as_json),
    Target("header", open_header, (HEADER,), lambda header: framed(header, DATA)),
    Target("adapter_config", open_adapter_config, (ADAPTER,), as_json),
    Target(
        "adapter_weights", open_adapter_weights, (ADAPTER_HEADER,), lambda header: framed(header, b"\0\0\x80?" * 70)
    ),
)
