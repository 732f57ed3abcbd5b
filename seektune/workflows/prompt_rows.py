"""Rows of prompts, as `generate --file` reads them: checked before a model is loaded, by the server's rules."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seektune.data.chat_format.choices import DEFAULT, EncodingName
from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.chat_format.message import shown
from seektune.data.tokenizer import Tokenizer
from seektune.io.jsonl import read_jsonl
from seektune.io.text import check_unicode
from seektune.serve.no_effect import NO_EFFECT, asks_for_nothing, same
from seektune.serve.schema import ChatRequest, CompletionRequest

ANSWER_KEYS = ("sample", "text", "end", "message", "problem", "tokens")
"""Keys that an answer adds to its row."""
FOR_ROWS = frozenset({"messages", "prompt", "tools", "tool_choice"})
WITHOUT_MEANING = frozenset({"model", "stream", "stream_options"})
SETTINGS = (
    frozenset({*ChatRequest.model_fields, *CompletionRequest.model_fields, *NO_EFFECT}) - FOR_ROWS - WITHOUT_MEANING
)
"""Fields of a request that a row cannot have: options of the command set them for all rows."""
DEFAULTS: Mapping[str, object] = {
    "n": 1,
    "logprobs": False,
    "response_format": {"type": "text"},
    "parallel_tool_calls": True,
}


def read_prompt_rows(file: Path, mode: str, encoding: EncodingName = DEFAULT) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl file; `mode` and `encoding` are those of conversations.

    Raises:
        ValueError: a row cannot be answered; the message begins with file and line.
        OSError: the file cannot be read.
    """
    for place, row in read_jsonl(file):
        try:
            _check_keys(row)
            check_unicode(prompt_text(row, mode, encoding))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        except RecursionError:
            raise ValueError(f"{place}: a message is nested too deeply") from None
        yield row


def prompt_text(row: Mapping[str, Any], mode: str, encoding: EncodingName = DEFAULT) -> str:
    """The text that a row's answer follows.

    Raises:
        ValueError: the conversation does not follow the chat format, or does not ask for an answer.
    """
    if "prompt" in row:
        return str(row["prompt"])
    return render_chat_prompt(row["messages"], offered_tools(row), mode, encoding=encoding).text


def prompt_ids(row: Mapping[str, Any], mode: str, encoding: EncodingName, tokenizer: Tokenizer) -> list[int]:
    """Ids of `prompt_text`; control tokens in a text prompt or in messages are plain characters.

    Raises:
        ValueError: as `prompt_text`.
    """
    if "prompt" in row:
        return [tokenizer.bos_id, *tokenizer.encode(row["prompt"])]
    return render_chat_prompt(row["messages"], offered_tools(row), mode, encoding=encoding).ids(tokenizer)


def offered_tools(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The tools that a row's prompt describes."""
    return () if row.get("tool_choice") == "none" else row.get("tools") or ()


def _check_keys(row: Mapping[str, Any]) -> None:
    if ("prompt" in row) == ("messages" in row):
        raise ValueError("a row needs either prompt (a text) or messages (a conversation)")
    if "prompt" in row and not isinstance(row["prompt"], str):
        raise ValueError(f"prompt must be a text, not {type(row['prompt']).__name__}")
    taken = [key for key in ANSWER_KEYS if key in row]
    if taken:
        raise ValueError(f"{taken[0]} is a key of the answers; rename it in the row")
    asked = [key for key in row if key in SETTINGS and not asks_for_nothing(key, row[key], row)]
    asked = [key for key in asked if not same(row[key], DEFAULTS.get(key))]
    if asked:
        raise ValueError(f"a row cannot set {asked[0]}; use the command's options, or rename the key")
    if "prompt" in row and row.get("tools"):
        raise ValueError("tools are described in a conversation; give messages instead of prompt")
    if row.get("tool_choice") not in (None, "auto", "none"):
        raise ValueError(f"tool_choice {shown(row['tool_choice'])} is not supported; it may be auto or none")
