"""Targets: rows of the evaluation tasks `answers` and `samples`."""

from pathlib import Path
from typing import get_args

from seektune.evaluate.answers_task import AnswersTask
from seektune.evaluate.config import TaskConfig
from seektune.evaluate.prompts import PromptForm
from seektune.evaluate.samples import Samples
from seektune.rewards.config import VerifierName
from tests.fuzz.target import Read, Target, as_lines, check_refusal
from tests.fuzz.texts import CALL, MESSAGES, TOOL, tokenizer

FORM = PromptForm("preview")
QUESTION = {"role": "user", "content": "2+2?"}
SAMPLES = [{"prompt": "x"}, {"messages": MESSAGES[:2], "tools": [TOOL]}]
ANSWERS = (
    [{"prompt": "2+2=", "answer": 4}, {"prompt": "x", "answer": "[1, {}] [0-9]+"}],
    [{"messages": [QUESTION], "answer": "4,000.5"}, {"messages": [QUESTION, {"role": "assistant", "content": "4"}]}],
    [{"messages": [QUESTION, {"role": "assistant", "tool_calls": [CALL]}], "tools": [TOOL]}],
)


def open_answers(folder: Path) -> Read:
    """Reads rows for every metric; what all refuse is refused."""
    file = folder / "answers.jsonl"
    tasks = [TaskConfig(name="answers", path=str(file), metric=metric) for metric in get_args(VerifierName)]

    def read(content: bytes) -> None:
        file.write_bytes(content)
        for task in tasks[:-1]:
            try:
                AnswersTask.of(task, FORM, tokenizer())
            except ValueError as error:
                check_refusal(error, ValueError, str(folder))
            else:
                return
        AnswersTask.of(tasks[-1], FORM, tokenizer())

    return read


def open_samples(folder: Path) -> Read:
    """Reads prompts, and shows them as a report does."""
    file = folder / "samples.jsonl"
    task = TaskConfig(name="samples", path=str(file))

    def read(content: bytes) -> None:
        file.write_bytes(content)
        for row in Samples.of(task, FORM, tokenizer()).rows:
            assert isinstance(row.shown, str)

    return read


TASK_ROWS = (
    Target("answers", open_answers, ANSWERS, as_lines, words=("answer", "function", "(", "1,0", 1e400)),
    Target("samples", open_samples, (SAMPLES,), as_lines),
)
