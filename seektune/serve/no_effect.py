"""Fields of the APIs of OpenAI, Anthropic and vLLM that this server does not implement, and those of their values that
ask for nothing: these are accepted, all others are refused by name."""

import json
from collections.abc import Mapping

IGNORED = frozenset(
    {
        "cache_control",
        "eager_input_streaming",
        "inference_geo",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)
"""Fields that change no response."""

NO_EFFECT: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "background": (False,),
    "bad_words": ([],),
    "best_of": (),
    "citations": ([],),
    "context_management": ({}, []),
    "continue_final_message": (False,),
    "defer_loading": (False,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_obfuscation": (False,),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "mcp_servers": ([],),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
    "stop_token_ids": ([],),
    "store": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
"""Values that mean the same as leaving the field out."""
EMPTY: tuple[object, ...] = ([], {}, "")
REPLACED: Mapping[str, str] = {
    "guided_choice": "choice",
    "guided_json": "json",
    "guided_regex": "regex",
    "json_schema": "json",
}
"""Former fields of vLLM and SGLang, by what `structured_outputs` has in their place."""


def asks_for_nothing(field: str, value: object, request: Mapping[str, object]) -> bool:
    """Whether a field of a request that is not implemented may have this value."""
    if field == "best_of" and value is not None:  # as many as are answered: none is left out
        return same(value, request.get("n") or 1)
    if field == "logit_bias" and isinstance(value, dict):
        return all(same(bias, 0) for bias in value.values())
    return value is None or field in IGNORED or any(same(value, each) for each in NO_EFFECT.get(field, ()))


def same(value: object, other: object) -> bool:
    """Whether two JSON values are equal; Python also takes true for 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def refusal(field: str) -> str:
    """Why any other value is refused."""
    if field == "best_of":
        return "only the value of n is supported"
    if field in REPLACED:
        return f"give it as structured_outputs: {{{json.dumps(REPLACED[field])}: ...}}"
    values = [json.dumps(value) for value in NO_EFFECT.get(field, ()) if value not in EMPTY]
    return f"only {' or '.join(values)} is supported" if values else "this field is not supported"
