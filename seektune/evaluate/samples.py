"""The task `samples`: greedy answers to fixed prompts, kept as texts to be read side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.config import TaskConfig
from seektune.evaluate.likelihood import Progress
from seektune.evaluate.prompts import PromptForm, PromptRow, answer_prompts, read_prompts, written_prompts
from seektune.generate.engine import Decodes


@dataclass(frozen=True)
class Samples:
    """Prompts of the user, which the model answers at each evaluation."""

    config: TaskConfig
    rows: Sequence[PromptRow]
    prompts: Sequence[Sequence[int]]

    @classmethod
    def of(cls, config: TaskConfig, form: PromptForm, tokenizer: Tokenizer) -> "Samples":
        """The prompts of the recipe or of its file.

        Raises:
            ValueError: one is neither a text nor a conversation that asks for an answer.
            OSError: the file cannot be read.
        """
        rows = written_prompts(config.prompts, form) if config.prompts else read_prompts(Path(str(config.path)), form)
        return cls(config, rows, [row.ids(tokenizer) for row in rows])

    def run(self, model: Decodes, tokenizer: Tokenizer, progress: Progress | None = None) -> list[dict[str, Any]]:
        """The answers: `prompt`, `answer`, the number of `tokens`, and `end`, which is `stop` or `length`."""
        texts = answer_prompts(model, tokenizer, self.prompts, self.config.max_new_tokens, progress)
        return [
            {"prompt": row.shown, "answer": text.text, "tokens": len(text.tokens), "end": text.end}
            for row, text in zip(self.rows, texts, strict=True)
        ]
