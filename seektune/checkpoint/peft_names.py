"""The released names of modules and those that transformers, and so PEFT, has for them."""

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
)
"""From the released names to those of transformers; each is undone by reading it backwards."""


def transformers_name(released: str) -> str:
    """What transformers calls a module; routed experts aside, which it keeps in two parameters of one module."""
    for pattern, theirs in _RULES:
        released = re.sub(pattern, theirs, released)
    return released


def released_name(theirs: str) -> str:
    """The inverse."""
    for pattern, text in reversed(_RULES):
        ours = re.sub(r"[\^$]|\\(?=\.)", "", pattern)
        anchored = ("^" if pattern.startswith("^") else "") + re.escape(text) + ("$" if pattern.endswith("$") else "")
        theirs = re.sub(anchored, ours, theirs)
    return theirs
