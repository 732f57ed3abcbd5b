"""Names that inference engines use for our modules, and the matrices that they load into one parameter."""

import re
from collections.abc import Iterator

_FUSED = (
    (re.compile(r"\.experts\.\d+\.w[123]$"), ".experts"),
    (re.compile(r"\.attn\.(wq_a|wkv)$"), ".attn.wq_a+wkv"),
    (re.compile(r"\.shared_experts\.w[13]$"), ".shared_experts.w1+w3"),
)
_EXPERT = re.compile(r"\.experts\.\d+\.w[123]$")
_SGLANG = (
    (re.compile(r"^layers\."), "model.layers."),
    (re.compile(r"^mtp\.0\.([eh]_proj)$"), r"model.\1"),
    (re.compile(r"^mtp\.0\."), "model.decoder."),
    (re.compile(r"\.attn\."), ".self_attn."),
    (re.compile(r"\.ffn\."), ".mlp."),
    (_EXPERT, ".experts"),
)
"""From released names to the prefixes of SGLang 0.5.23, one after the other."""


def fused(module: str) -> str:
    """What vLLM and SGLang load that matrix into: the same for matrices that must be of one kind."""
    for pattern, name in _FUSED:
        module = pattern.sub(name, module)
    return module


def engine_names(module: str, layers: int) -> Iterator[str]:
    """The names by which engines look for a module in `modules_to_not_convert`: the released one, and their own.

    Args:
        module: a released name without `.weight`.
        layers: `num_hidden_layers`; vLLM's drafter calls the MTP block the layer after the last.
    """
    yield module
    if module.startswith("mtp."):
        _, block, rest = module.split(".", 2)
        yield f"layers.{layers + int(block)}.{rest}"
    if ".shared_experts." not in module:
        yield from _sglang_names(module)


def _sglang_names(module: str) -> Iterator[str]:
    for pattern, name in _SGLANG:
        module = pattern.sub(name, module)
    yield module
    if module.endswith((".self_attn.wq_a", ".self_attn.wkv")):
        yield f"{module.rpartition('.')[0]}.wqkv_a"
