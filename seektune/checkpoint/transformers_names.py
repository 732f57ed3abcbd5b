"""Names of modules and tensors in transformers, and the released ones: rules that work in both directions."""

import re

_RULES = (
    (r"^embed$", "model.embed_tokens"),
    (r"^head$", "lm_head"),
    (r"^norm$", "model.norm"),
    (r"^hc_head_", "model.hc_head.hc_"),
    (r"^layers\.", "model.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ffn\.", ".mlp."),
    (r"\.attn_norm$", ".input_layernorm"),
    (r"\.ffn_norm$", ".post_attention_layernorm"),
    (r"\.hc_attn_", ".attn_hc."),
    (r"\.hc_ffn_", ".ffn_hc."),
    (r"\.attn_sink$", ".sinks"),
    (r"\.ape$", ".position_bias"),
    (r"\.q_norm$", ".q_a_norm"),
    (r"\.compressor\.norm$", ".compressor.kv_norm"),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    (r"\.wq_a$", ".q_a_proj"),
    (r"\.wq_b$", ".q_b_proj"),
    (r"\.wkv$", ".kv_proj"),
    (r"\.wgate$", ".gate_proj"),
    (r"\.wo_a$", ".o_a_proj"),
    (r"\.wo_b$", ".o_b_proj"),
    (r"\.shared_experts\.w1$", ".shared_experts.gate_proj"),
    (r"\.shared_experts\.w2$", ".shared_experts.down_proj"),
    (r"\.shared_experts\.w3$", ".shared_experts.up_proj"),
    (r"\.self_attn\.indexer\.compressor\.", ".self_attn.compressor.indexer."),
    (r"\.self_attn\.indexer\.q_b_proj$", ".self_attn.compressor.indexer.q_b_proj"),
    (r"\.self_attn\.indexer\.weights_proj$", ".self_attn.compressor.indexer.scorer.weights_proj"),
)
"""From released names to those of transformers, one after the other; `released_name` applies them in reverse.

The weight of a module has the module's name here, without `.weight`.
"""
_READ_ONLY = (
    (re.compile(r"\.attn\.norm$"), ".attn.kv_norm"),
    (re.compile(r"(\.experts\.\d+)\.gate_proj$"), r"\1.w1"),
    (re.compile(r"(\.experts\.\d+)\.down_proj$"), r"\1.w2"),
    (re.compile(r"(\.experts\.\d+)\.up_proj$"), r"\1.w3"),
)
"""Further names, to released ones. `save_pretrained` undoes the rules, but for the prefix `model.` and the first of
these, unless `save_original_format` is false; the others are of tools that store each expert."""
FUSED = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
"""transformers' parameters of all routed experts: the released matrices that each stacks, by rows."""

_END = re.compile(r"(\.weight|\.weight_scale|\.weight_scale_2|\.input_scale)?$")
"""The end of a tensor's name after that of its module; the last three are scales of NVFP4."""
_ROOTS = ("model.", "lm_head.")
"""How the names of the tensors in a checkpoint of transformers begin; those of the release never do."""


def transformers_name(released: str) -> str:
    """transformers' name of a module, except routed experts, which it stores as two parameters of one module."""
    for pattern, theirs in _RULES:
        released = re.sub(pattern, theirs, released)
    return released


def released_name(theirs: str) -> str:
    """The inverse of `transformers_name`; names of each expert and of `save_pretrained` are read too."""
    for pattern, ours in (*_READ_ONLY, *_INVERSE):
        theirs = pattern.sub(ours, theirs)
    return theirs


def released_tensor(stored: str) -> str:
    """The released name of a tensor in a checkpoint; a released name stays as it is.

    Routed experts keep the end `gate_up_proj` or `down_proj` if they are stacked.
    """
    if not stored.startswith(_ROOTS):
        return stored
    name = _END.sub("", stored)
    end = stored[len(name) :]
    return released_name(name) + end


def _inverse(pattern: str, theirs: str) -> tuple[re.Pattern[str], str]:
    anchored = ("^" if pattern.startswith("^") else "") + re.escape(theirs) + ("$" if pattern.endswith("$") else "")
    return re.compile(anchored), re.sub(r"[\^$]|\\(?=\.)", "", pattern)


_INVERSE = tuple(_inverse(*rule) for rule in reversed(_RULES))
