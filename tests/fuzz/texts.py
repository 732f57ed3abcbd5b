"""Targets: rows of data and of prompts, recipes, overrides, and bodies of requests."""

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from seektune.cli.launch_flags import LaunchFlags
from seektune.cli.start import check_world, make_launch_config
from seektune.data.chat_format.encodings import ENCODINGS
from seektune.data.datasets.dataset import EncodeSettings
from seektune.data.datasets.hellaswag import QuestionEncoder
from seektune.data.sources.data_file import DataFile
from seektune.data.sources.row import BadRow
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.evaluate.perplexity import read_texts
from seektune.recipe.errors import known_keys
from seektune.recipe.load import dump_recipe, load_recipe, read_recipe
from seektune.recipe.recipe import Recipe
from seektune.serve.body import read_body, refusals
from seektune.serve.errors import ApiError
from seektune.serve.limits import Limits
from seektune.serve.messages_api.request import MessagesRequest
from seektune.serve.request_builder import RequestBuilder
from seektune.serve.responses_api.request import ResponsesRequest
from seektune.serve.schema import ChatRequest, CompletionRequest
from seektune.workflows.prompt_rows import read_prompt_rows
from tests.fuzz.row_files import row_or_error
from tests.fuzz.target import Read, Target, as_json, as_lines
from tests.places import TINY, TINY_LORA

VOCAB = 512
ROW = {"activity_label": "Baking", "ctx_a": "A man [title] bakes.", "ctx_b": "he", "endings": [*"abcd"], "label": "1"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "a"]}'}}
MESSAGES = [
    {"role": "system", "content": "Be brief.", "tools": [TOOL], "response_format": {"type": "object"}},
    {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
    {"role": "assistant", "content": None, "reasoning_content": "Well.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "4"},
    {"role": "developer", "content": "x"},
    {"role": "latest_reminder", "content": "now"},
    {"role": "user", "content": "Go on", "task": "action"},
    {"role": "assistant", "content": "So", "wo_eos": True},
]
OPTIONS = {
    "model": "m",
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": -1,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "n": 2,
    "stop": ["a", "b"],
    "seed": 3,
    "stream": True,
    "stream_options": {"include_usage": True},
    "logit_bias": {},
    "store": False,
}
CHAT = {
    **OPTIONS,
    "messages": MESSAGES,
    "tools": [TOOL],
    "tool_choice": "auto",
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "text"},
    "reasoning_effort": "low",
    "thinking": {"type": "enabled"},
    "chat_template_kwargs": {"thinking": True},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": ["string", "null"], "minLength": 1, "maxLength": 3},
        "b": {"anyOf": [{"$ref": "#/$defs/c"}, {"enum": ["x", 1]}, {"type": "string", "pattern": "^a+$"}]},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"c": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 2}},
}
STRUCTURED = {
    "messages": MESSAGES[1:2],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
}
FORMATTED = {
    "messages": MESSAGES[1:2],
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
}
COMPLETIONS = (
    {**OPTIONS, "prompt": "x"},
    {"prompt": ["a", "b"]},
    {"prompt": [1, 2]},
    {"prompt": [[1], [2, 3]]},
    {"prompt": "x", "structured_outputs": {"regex": "[a-c]{2,3}(d|e)*"}},
)
MESSAGES_BODIES = (
    {
        "model": "m",
        "max_tokens": 5,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "2+2?", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Well.", "signature": "s"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": [1, "a"]}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "4"}]},
        ],
        "system": "Be brief.",
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["a"],
    },
    {
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "So"}],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    },
)
RESPONSES_BODIES = (
    {
        "model": "m",
        "input": [
            {"role": "developer", "content": "x"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Well."}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": [1, "a"]}'},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "4"}]},
        ],
        "instructions": "Be brief.",
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
        "tool_choice": {"type": "function", "name": "f"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "max_output_tokens": 5,
    },
    {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
)


@cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(VOCAB)


def open_rows(folder: Path) -> Read:
    file = folder / "rows.jsonl"
    encoder = QuestionEncoder(EncodeSettings(VOCAB), "")

    def read(content: bytes) -> None:
        file.write_bytes(content)
        source = DataFile(str(file), "")
        for found in encoder.encode([row_or_error(row, source) for row in source.rows()]):
            if isinstance(found, BadRow):
                raise ValueError(str(found))

    return read


def open_prompts(folder: Path) -> Read:
    file = folder / "prompts.jsonl"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        list(read_prompt_rows(file, "thinking"))

    return read


def open_texts(folder: Path) -> Read:
    file = folder / "texts.jsonl"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        read_texts(file)

    return read


def open_recipe(folder: Path) -> Read:
    file = folder / "recipe.yaml"
    again = folder / "again.yaml"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        recipe = load_recipe(file)
        again.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(again) == recipe

    return read


def open_override(folder: Path) -> Read:
    def read(content: bytes) -> None:
        overrides = [f"--{line}" for line in content.decode(errors="surrogateescape").split("\n")]
        loaded = read_recipe(TINY, overrides)
        for world in (1, 8):
            with suppress(OSError):  # it names no folder
                check_world(loaded.recipe, world)
                make_launch_config(loaded, str(TINY), overrides, LaunchFlags(str(world)), world, {})

    return read


def open_chat(folder: Path) -> Read:
    builder = _builder()
    return lambda content: builder.chat(read_body(content, ChatRequest)).compiled(VOCAB)


def open_completion(folder: Path) -> Read:
    builder = _builder()
    return lambda content: builder.completion(read_body(content, CompletionRequest)).compiled(VOCAB)


def open_messages(folder: Path) -> Read:
    return _open_dialect(MessagesRequest)


def open_responses(folder: Path) -> Read:
    return _open_dialect(ResponsesRequest)


def _open_dialect(kind: type[MessagesRequest] | type[ResponsesRequest]) -> Read:
    builder = _builder()

    def read(content: bytes) -> None:
        body: Any = read_body(content, kind)
        with refusals():
            chat = body.as_chat(builder.encoding)
        builder.chat(chat).compiled(VOCAB)

    return read


def _builder() -> RequestBuilder:
    return RequestBuilder(tokenizer(), VOCAB, Limits(max_model_len=2000), thinking=False, encoding=ENCODINGS["preview"])


def as_yaml(value: Any) -> bytes:
    """A recipe; a text is one already."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    return text.encode(errors="surrogatepass")


def as_overrides(values: Any) -> bytes:
    """Lines `key=value`; any other document as it is."""
    if not isinstance(values, dict):
        return str(values).encode(errors="surrogatepass")
    lines = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines).encode(errors="surrogatepass")


def recipes() -> tuple[Any, ...]:
    """Whole recipes as values, and the first as its text."""
    texts = [place.read_text(encoding="utf-8") for place in (TINY, TINY_LORA)]
    return (texts[0], *map(yaml.safe_load, texts))


OVERRIDES = (
    {"optimizer.lr": "1e-3", "optimizer.betas": "[0.9, 0.95]", "schedule.warmup_steps": 5},
    {"run_dir": "~/x", "data.path": None, "steps": 50, "batch.global_size": 32},
    {"evaluate.tasks": "[hellaswag]", "checkpoint.keep_last": 3},
)
WORDS = (
    *("0", "2", "7", "-1", "1e-4", "1e400", "16000000000000", "9223372036854775808", "1_000", "0x10", "010", ".nan"),
    *("yes", "none", "auto", "[]", "{}", "''", '"', "'1e-4'", "[", "[attn, ffn.experts]", "[1, 2]", "[[1]]", "[a: b]"),
    *("flash", "pro", "tiny", "bf16", "cosine", "zbv", "~nobody0/x", "$HOME/x", "/dev/null", "a\tb", "\u202e"),
    *("!!python/object:os.system x", "&a", "*a", "a: b", "#", "--", "="),
    *sorted(known_keys(Recipe)),
)
TEXTS = (
    Target("rows", open_rows, ([ROW, {**ROW, "label": 2}],), as_lines),
    Target("prompts", open_prompts, ([{"prompt": "x", "id": 1}, {"messages": MESSAGES, "tools": [TOOL]}],), as_lines),
    Target("texts", open_texts, ([{"text": "a"}, {"text": "b", "id": 1}],), as_lines),
    Target("recipe", open_recipe, recipes(), as_yaml, words=WORDS),
    Target("override", open_override, OVERRIDES, as_overrides, is_file=False, words=WORDS),
    Target(
        "chat", open_chat, (CHAT, {"messages": MESSAGES[1:2]}, STRUCTURED, FORMATTED), as_json, ApiError, is_file=False
    ),
    Target("messages", open_messages, MESSAGES_BODIES, as_json, ApiError, is_file=False),
    Target("responses", open_responses, RESPONSES_BODIES, as_json, ApiError, is_file=False),
    Target("completion", open_completion, COMPLETIONS, as_json, ApiError, is_file=False),
)
