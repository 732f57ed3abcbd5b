"""Toy models with packed weights, adapters, or both, whose decode steps have static shapes."""

from typing import Any

import torch

from seektune.checkpoint.formats import FORMATS
from seektune.lora.dora import DoraLinear
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.quantized import quantize_modules

WIDE = {"hidden_size": 64, "moe_intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "released": {"numerics": "released"},
    "quantized": WIDE,
    "adapters": {},
    "quantized, adapters": WIDE,
}
"""Changes of the toy model."""
ADAPTERS = {
    ("embed", "attn", "ffn.experts", "ffn.shared_experts"): AdapterShape(rank=3, alpha=4.0),
    ("ffn.experts",): AdapterShape(rank=2, alpha=4.0, shared_a=True),
    ("attn.compressor",): AdapterShape(rank=2, alpha=4.0, dora=True),
}


def made(toy_model: Any, kind: str, dtype: torch.dtype) -> DeepseekV4ForCausalLM:
    """A toy model with packed weights, adapters, or both."""
    model: DeepseekV4ForCausalLM = toy_model(dtype, **MODELS[kind])
    if "quantized" in kind:
        quantize_modules(model, FORMATS["released"].kind)
    if "adapters" in kind:
        for targets, shape in ADAPTERS.items():
            adapt(model, matching(model, targets), shape, f"of{len(targets)}{shape.shared_a}")
        _fill(model)
    return model


@torch.no_grad()
def _fill(model: DeepseekV4ForCausalLM) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, x in model.named_parameters():
        if ".lora." in name or name.endswith("magnitude"):
            x.copy_(torch.randn(x.shape, generator=generator) * x.shape[-1] ** -0.5)
    for module in model.modules():
        if isinstance(module, DoraLinear):
            module.measure_rows()
