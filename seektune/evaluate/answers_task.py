"""The task `answers`: generated answers to the user's own rows, compared with the rows' answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from seektune.data.chat_format.parse import parse_message
from seektune.data.chat_format.tokens import EOS
from seektune.data.tokenizer import Tokenizer
from seektune.evaluate.config import TaskConfig
from seektune.evaluate.likelihood import Progress, Scorer
from seektune.evaluate.prompts import PromptForm, PromptRow, answer_prompts, read_prompts
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import Metric, TaskInfo, TaskScore
from seektune.generate.detokenize import GeneratedText
from seektune.generate.mesh import DecodeMesh
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.rewards.answer_metrics import METRICS, Answer, AnswerMetric, parsed_calls


@dataclass(frozen=True)
class AnswersTask:
    """Rows with prompts and expected answers; the model answers greedily."""

    config: TaskConfig
    rows: Sequence[PromptRow]
    prompts: Sequence[Sequence[int]]
    expected: Sequence[Any]
    """Prepared by the metric."""
    decodes: ClassVar[bool] = True

    @classmethod
    def of(cls, config: TaskConfig, form: PromptForm, tokenizer: Tokenizer) -> "AnswersTask":
        """Read and check the rows of `config.path`.

        Raises:
            ValueError: a row has no prompt or no answer that the metric takes; the message begins with file and line.
            OSError: the file cannot be read.
        """
        assert config.path is not None, "the section was checked"
        rows = [without_response(row) for row in read_prompts(Path(config.path), form, config.limit)]
        prompts = [row.ids(tokenizer) for row in rows]
        return cls(config, rows, prompts, [_expected(row, METRICS[config.metric]) for row in rows])

    @property
    def info(self) -> TaskInfo:
        """The label of the metric."""
        metric = METRICS[self.config.metric]
        return TaskInfo(
            self.config.title,
            self.config.title,
            items="rows",
            about=f"rows of {self.config.path}, answered greedily with up to {self.config.max_new_tokens} tokens",
            test="McNemar, exact",
            metrics={self.config.metric: Metric(metric.label, ".1%", outcomes="right")},
            facts=(("rows", "{n:,}, {cut:,} answers cut off at {max_new_tokens:,} tokens"),),
        )

    def run(
        self, model: Scorer, tokenizer: Tokenizer, batch_tokens: int, progress: Progress | None = None
    ) -> TaskScore:
        """As `Task.run`; prompts are answered 32 at a time."""
        assert isinstance(model, DeepseekV4ForCausalLM | DecodeMesh), "the model can decode"
        longest = self.config.max_new_tokens
        texts = answer_prompts(model, tokenizer, self.prompts, longest, progress)
        equal = METRICS[self.config.metric].equal
        right = [
            equal(parsed_answer(row, text), expected)
            for row, text, expected in zip(self.rows, texts, self.expected, strict=True)
        ]
        cut = sum(text.end == "length" for text in texts)
        return TaskScore(
            self.info,
            {self.config.metric: Estimate.of_share(right)},
            {"n": len(right), "cut": cut, "max_new_tokens": longest},
            {"right": "".join("1" if each else "0" for each in right)},
        )


def without_response(row: PromptRow) -> PromptRow:
    """A row whose conversation ends with a response, which is its answer, as in rows to train on; others unchanged."""
    messages = row.row.get("messages")
    if "answer" in row.row or not isinstance(messages, list) or not messages:
        return row
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return row
    answer = last.get("tool_calls") or last.get("content")
    return replace(row, row={**row.row, "messages": messages[:-1], "answer": answer})


def parsed_answer(row: PromptRow, text: GeneratedText) -> Answer:
    """What is compared: of a conversation the content and the calls, of a text all of it."""
    if not row.is_chat or text.end == "length":
        return Answer(text.text.strip())
    try:
        message = parse_message(text.text + EOS, row.form.mode, row.form.encoding)
    except ValueError:
        return Answer(text.text.strip())
    return Answer(message["content"].strip(), parsed_calls(message["tool_calls"]))


def _expected(row: PromptRow, metric: AnswerMetric) -> Any:
    if "answer" not in row.row:
        raise ValueError(f"{row.place}: a row of the task answers needs answer")
    try:
        return metric.expected(row.row["answer"])
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from None
