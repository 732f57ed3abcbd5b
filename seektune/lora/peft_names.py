"""Names of an adapter's tensors: their modules by the end of the name, whatever wrapped the model in training."""

import re

from seektune.checkpoint.transformers_names import released_name

PREFIX = "base_model.model."
"""Prefix of PEFT's keys, from its two wrappers."""
_MODULE = re.compile(r"(?:.*?\.)??((?:layers|mtp)\.\d+\..*|embed_tokens|lm_head|embed|head)")
"""The name of a module without prefixes; its root in transformers is added again by `_ROOTS`."""
_ROOTS = (("layers.", "model.layers."), ("embed_tokens", "model.embed_tokens"))
_ENDS = (".lora_embedding_A", ".lora_A.weight")


def stem_of(key: str) -> str:
    """The name of A's tensor without its end."""
    return key.removesuffix(_ENDS[0]).removesuffix(_ENDS[1])


def wrapped_module(key: str) -> str:
    """The module of an A as PEFT's patterns of rank and alpha see it: with the trainer's prefixes, without PEFT's."""
    return stem_of(key).removeprefix(PREFIX)


def released_module(wrapped: str) -> str:
    """The released name of a module with any prefix: `base_model.model.model.`, `model.`, `module.`, or none."""
    found = _MODULE.fullmatch(wrapped)
    if found is None:
        return released_name(wrapped)
    name = found[1]
    for root, theirs in _ROOTS:
        if name.startswith(root):
            return released_name(theirs + name.removeprefix(root))
    return released_name(name)
