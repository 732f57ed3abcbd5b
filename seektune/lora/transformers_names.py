"""Names of modules in transformers, and the released ones: rules that work in both directions."""

import re

_RULES = (
    (r"^embed$", "model.embed_tokens"),
    (r"^head$", "lm_head"),
    (r"^layers\.", "model.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ffn\.", ".mlp."),
    (r"\.wq_a$", ".q_a_proj"),
    (r"\.wq_b$", ".q_b_proj"),
    (r"\.wkv$", ".kv_proj"),
    (r"\.wgate$", ".gate_proj"),
    (r"\.wo_a$", ".o_a_proj"),
    (r"\.wo_b$", ".o_b_proj"),
    (r"\.shared_experts\.w1$", ".shared_experts.gate_proj"),
    (r"\.shared_experts\.w2$", ".shared_experts.down_proj"),
    (r"\.shared_experts\.w3$", ".shared_experts.up_proj"),
    (r"\.self_attn\.indexer\.compressor\.kv_proj$", ".self_attn.compressor.indexer.kv_proj"),
    (r"\.self_attn\.indexer\.compressor\.gate_proj$", ".self_attn.compressor.indexer.gate_proj"),
    (r"\.self_attn\.indexer\.q_b_proj$", ".self_attn.compressor.indexer.q_b_proj"),
    (r"\.self_attn\.indexer\.weights_proj$", ".self_attn.compressor.indexer.scorer.weights_proj"),
)
"""From released names to those of transformers, one after the other; `released_name` applies them in reverse."""


def transformers_name(released: str) -> str:
    """transformers' name of a module, except routed experts, which it stores as two parameters of one module."""
    for pattern, theirs in _RULES:
        released = re.sub(pattern, theirs, released)
    return released


def released_name(theirs: str) -> str:
    """The inverse of `transformers_name`."""
    for pattern, text in reversed(_RULES):
        ours = re.sub(r"[\^$]|\\(?=\.)", "", pattern)
        anchored = ("^" if pattern.startswith("^") else "") + re.escape(text) + ("$" if pattern.endswith("$") else "")
        theirs = re.sub(anchored, ours, theirs)
    return theirs
