"""The task `answers`, with a model that repeats the last token: what is generated is known."""

import json
from pathlib import Path

import pytest

from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate.answers_task import AnswersTask, parsed_answer
from seektune.evaluate.config import TaskConfig
from seektune.evaluate.prompts import PromptForm, PromptRow
from seektune.evaluate.samples import Samples
from seektune.evaluate.task import TaskScore
from seektune.generate.detokenize import GeneratedText
from tests.evaluate.test_drafter_task import copying

FORM = PromptForm("preview")
TOKENIZER = load_tokenizer(512)


def written(place: Path, rows: list[dict[str, object]]) -> Path:
    place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def task(path: Path, **changes: object) -> AnswersTask:
    config = TaskConfig(name="answers", path=str(path), max_new_tokens=3, **changes)
    return AnswersTask.of(config, FORM, TOKENIZER)


@pytest.fixture
def parrot(toy_model):
    """Repeats the last token of a prompt; its vocabulary holds the single bytes."""
    return copying(toy_model(vocab_size=128, hidden_size=128))


def test_the_share_of_right_answers_with_its_interval(tmp_path: Path, parrot) -> None:
    words = ["a", "b", "!"]
    rows: list[dict[str, object]] = [{"prompt": word, "answer": word * 3} for word in words]
    rows[1]["answer"] = "other"
    found = task(written(tmp_path / "rows.jsonl", rows))
    score = found.run(parrot, TOKENIZER, 8192)
    assert score.metrics["exact_match"].value == 2 / 3
    assert score.metrics["exact_match"].low < 2 / 3 < score.metrics["exact_match"].high
    assert score.outcomes == {"right": "101"}
    assert (score.n, score.counts["cut"]) == (3, 3)
    assert score.lines()[0] == ("rows", "3, 3 answers cut off at 3 tokens")
    again = TaskScore.from_dict(found.info, score.to_dict())
    assert again.since(score)["exact_match"].difference == 0


def test_the_last_response_of_a_conversation_is_its_answer(tmp_path: Path) -> None:
    question = {"role": "user", "content": "Say a."}
    calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    rows: list[dict[str, object]] = [
        {"messages": [question, {"role": "assistant", "content": "a"}]},
        {"messages": [question], "answer": "a"},
        {"messages": [question, {"role": "assistant", "content": "a"}, question], "answer": "b"},
    ]
    found = task(written(tmp_path / "rows.jsonl", rows))
    assert found.expected == ["a", "a", "b"]
    assert found.prompts[0] == found.prompts[1]
    called: list[dict[str, object]] = [{"messages": [question, {"role": "assistant", "tool_calls": calls}]}]
    by_calls = task(written(tmp_path / "calls.jsonl", called), metric="tool_call_equal")
    assert by_calls.expected == [[("f", "{}")]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "line 1: a row of the task answers needs answer"),
        ({"answer": "a"}, "line 1: a row needs either prompt .* or messages"),
        ({"prompt": 5, "answer": "a"}, "line 1: prompt must be a text, not int"),
        ({"messages": [], "answer": "a"}, "line 1: "),
        ({"prompt": "a", "answer": ["x"]}, "line 1: answer must be a text or a number"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(written(tmp_path / "rows.jsonl", [row]))


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rows"):
        task(written(tmp_path / "rows.jsonl", []))


def test_of_a_conversation_content_and_calls_are_compared() -> None:
    row = PromptRow("x", {"messages": []}, PromptForm("preview", thinking=True))
    answer = parsed_answer(row, GeneratedText("Two and two.</think> 4 ", end="stop"))
    assert (answer.text, answer.calls) == ("4", [])
    assert parsed_answer(row, GeneratedText("cut", end="length")).text == "cut"
    assert parsed_answer(row, GeneratedText("no end of reasoning", end="stop")).text == "no end of reasoning"


def test_samples_are_answers_to_prompts_of_the_recipe_or_a_file(tmp_path: Path, parrot) -> None:
    config = TaskConfig(name="samples", prompts=["a", {"prompt": "b"}], max_new_tokens=2)
    found = Samples.of(config, FORM, TOKENIZER).run(parrot, TOKENIZER)
    assert found == [
        {"prompt": "a", "answer": "aa", "tokens": 2, "end": "length"},
        {"prompt": "b", "answer": "bb", "tokens": 2, "end": "length"},
    ]
    file = written(tmp_path / "prompts.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    (row,) = Samples.of(TaskConfig(name="samples", path=str(file)), FORM, TOKENIZER).rows
    assert row.shown == "Hi"
    with pytest.raises(ValueError, match=r"prompts\[0\]: a row needs either prompt"):
        Samples.of(TaskConfig(name="samples", prompts=[{}]), FORM, TOKENIZER)
