"""Prompts of tasks that generate: rows of the user's own, and the model's greedy answers to them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.likelihood import Progress
from seektune.generate.detokenize import GeneratedText, generate_all
from seektune.generate.engine import Decodes
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.io.jsonl import read_jsonl

TOGETHER = 32
"""Prompts that are answered together."""


@dataclass(frozen=True)
class PromptForm:
    """How conversations become prompts."""

    encoding: EncodingName
    thinking: bool = False

    @property
    def mode(self) -> str:
        """The mode of the chat format."""
        return "thinking" if self.thinking else "chat"


@dataclass(frozen=True)
class PromptRow:
    """A prompt of the user."""

    place: str
    """Where it was read."""
    row: Mapping[str, Any]
    """With `prompt`, a text, or `messages` and perhaps `tools`."""
    form: PromptForm

    @property
    def is_chat(self) -> bool:
        """Whether it is a conversation."""
        return "messages" in self.row

    @property
    def shown(self) -> str:
        """The text, or the last message."""
        return str(self.row["messages"][-1].get("content") if self.is_chat else self.row["prompt"])

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Ids of the prompt; control tokens that a text spells are plain characters.

        Raises:
            ValueError: it is neither a text nor a conversation that asks for an answer; the message begins with the
                place.
        """
        try:
            if self.is_chat == ("prompt" in self.row):
                raise ValueError("a row needs either prompt (a text) or messages (a conversation)")
            if self.is_chat:
                tools = self.row.get("tools") or ()
                return render_chat_prompt(self.row["messages"], tools, self.form.mode, encoding=self.form.encoding).ids(
                    tokenizer
                )
            if not isinstance(self.row["prompt"], str):
                raise ValueError(f"prompt must be a text, not {type(self.row['prompt']).__name__}")
            return [tokenizer.bos_id, *tokenizer.encode(self.row["prompt"])]
        except ValueError as error:
            raise ValueError(f"{self.place}: {error}") from None


def read_prompts(path: Path, form: PromptForm, limit: int | None = None) -> list[PromptRow]:
    """The rows of a .jsonl file, the first `limit`.

    Raises:
        ValueError: the file cannot be read as JSON lines, or has no rows.
        OSError: it cannot be read.
    """
    rows = [PromptRow(place, row, form) for place, row in islice(read_jsonl(path), limit)]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def written_prompts(prompts: Iterable[str | Mapping[str, Any]], form: PromptForm) -> list[PromptRow]:
    """The prompts of a recipe."""
    rows = [{"prompt": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]
    return [PromptRow(f"prompts[{number}]", row, form) for number, row in enumerate(rows)]


def answer_prompts(
    model: Decodes,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    progress: Progress | None = None,
) -> list[GeneratedText]:
    """Greedy answers to prompts of ids, up to EOS."""
    stop = frozenset({tokenizer.eos_id})
    requests = [Request(prompt, max_new_tokens, GREEDY, stop) for prompt in prompts]
    answers: list[GeneratedText] = []
    for start in range(0, len(requests), TOGETHER):
        some, _ = generate_all(model, tokenizer, requests[start : start + TOGETHER], TOGETHER, cpu_kernels=False)
        answers += some
        if progress is not None:
            progress(len(answers), len(requests))
    return answers
