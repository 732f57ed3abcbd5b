"""Inputs that once ended in another error than a refusal in one printable line, by target; made small by hand."""

from typing import Any

from tests.fuzz.checkpoints import ADAPTER, ADAPTER_HEADER, CONFIG_DOCUMENT, HEADER, INDEX_DOCUMENT
from tests.fuzz.runs import MANIFEST_DOCUMENT, STATE
from tests.fuzz.texts import CHAT, ROW

LONG = {str(i): i for i in range(1000)}
INFINITY = float("inf")
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
LISTED = INDEX_DOCUMENT["weight_map"]
LORA_A = next(name for name in ADAPTER_HEADER if name.endswith("lora_A.weight"))
SHARDS = {name: {**entry, "bytes": INFINITY} for name, entry in MANIFEST_DOCUMENT.items()}

FOUND: dict[str, tuple[Any, ...]] = {
    "config": ({**CONFIG_DOCUMENT, "architectures": [INFINITY]},),
    "index": (
        {"weight_map": {**LISTED, "norm.weight": "\x1fb.safetensors"}},
        {"weight_map": {**LISTED, "norm.weight": "x" * 300}},
        {"weight_map": {**LISTED, "norm\x1b[31m": "b.safetensors"}},
    ),
    "header": (
        {**HEADER, "layers.0.attn.wq_a.scale": {**HEADER["layers.0.attn.wq_a.scale"], "shape": [1] * 1000}},
        {**HEADER, "\x1b[31m": {**HEADER["norm.weight"], "dtype": "I32"}, "norm.weight": EMPTY},
    ),
    "adapter_config": (
        {**ADAPTER, "rank_pattern": {")_a_pr\x7fj": 2}},
        {**ADAPTER, "use_" + "x" * 5000: True},
        {**ADAPTER, "init_lora_weights": "pissa\n" + "x" * 5000},
    ),
    "adapter_weights": ({**ADAPTER_HEADER, LORA_A.replace("weight", "\x7feight"): ADAPTER_HEADER[LORA_A]},),
    "recipe": (
        {"model": {"preset": "tiny"}, "data": {"path": "$HOME/" + "x" * 4000}},
        {"model": {"preset": "tiny", "weights": "x" * 5000}},
    ),
    "chat": (
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "\x8b"}}}},
    ),
    "override": ({"\x08optimizer.lr": "1e-3"}, {"data.path": "$A\u202e"}),
    "rows": tuple([{**ROW, key: [LONG] * 4}] for key in ROW),
    "cluster": ({"gpu": "h100-80gb", "gpus": 8, "memory_gb": 1e308}, {"gpu": "h100-80gb", "gpus": True}),
    "measured": (
        {"device": "NVIDIA H200", "parts": {"products": {"found": {"layer": {"tflops": 10**400}}}}},
        {"device": "NVIDIA H200", "parts": {"products": {"found": {"layer": {"tflops": 1e-320}}}}},
    ),
    "rewards": ({"rewards": [10**400]}, {"rewards": [INFINITY]}),
    "state": (
        {**STATE, "guard": {"recent": [10**400] * 8, "skipped": 0}},
        {**STATE, "log": {"total_tokens": 1, "loads": {"1" * 5000: [0] * 4}}},
        {**STATE, "log": {"total_tokens": 1, "loads": {"0": [0]}}},
        {**STATE, "recipe": {**STATE["recipe"], "optimizer": []}},
        {**STATE, "recipe": {**STATE["recipe"], "optimizer": {"name": "x" * 5000}}},
        {**STATE, "recipe": {**STATE["recipe"], "optimizer": {"name": []}}},
    ),
    "manifest": (SHARDS, {**MANIFEST_DOCUMENT, "a\nb": MANIFEST_DOCUMENT["state.json"]}),
    "metrics": ([{"": 1}], [{"step": []}, {"step": 1}], [{"step": "1"}]),
}
