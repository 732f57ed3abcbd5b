"""`seektune data example`: conversations that are right, held out properly, and read by the commands it prints."""

import json
import re
from pathlib import Path

import pytest

from tests.run_cli import seektune


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("example")
    done = seektune("data", "example", "my rows", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    (place / "said.txt").write_text(done.stdout)
    return place


def rows(place: Path, split: str) -> list[list[dict[str, str]]]:
    lines = (place / "my rows" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def test_questions_and_answers_alternate_and_sums_are_right(written: Path) -> None:
    for messages in [*rows(written, "train"), *rows(written, "validation")]:
        short = messages[0]["role"] == "system"
        roles = [message["role"] for message in messages[short:]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        for question, answer in zip(messages[short::2], messages[short + 1 :: 2], strict=True):
            assert len(answer["content"].split()) == 1 if short else len(answer["content"].split()) > 2
            if found := re.search(r"(\d+) plus (\d+)", question["content"]):
                assert re.findall(r"\d+", answer["content"])[-1] == str(int(found[1]) + int(found[2]))


def test_held_out_rows_are_not_among_the_training_rows(written: Path) -> None:
    training = rows(written, "train")
    held_out = rows(written, "validation")
    assert len(training) > 400
    assert len(held_out) > 50
    assert not [row for row in held_out if row in training]
    assert len({json.dumps(row) for row in training}) == len(training)


def test_the_commands_that_it_prints_work(written: Path) -> None:
    said = (written / "said.txt").read_text()
    commands = [line.split("seektune ")[1] for line in said.splitlines() if "seektune " in line]
    assert [command.split()[0] for command in commands] == ["init", "data", "train"]
    assert seektune("init", "deepseek_v4_tiny_chat", "recipes", cwd=written).returncode == 0
    recipe = "recipes/deepseek_v4_tiny_chat.yaml"
    shown = seektune("data", "preview", recipe, "--data.path=my rows", cwd=written)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "<｜Assistant｜>" in shown.stdout


def test_nothing_is_overwritten(written: Path) -> None:
    again = seektune("data", "example", "my rows", cwd=written)
    assert again.returncode == 2
    assert "already exists and is not empty" in again.stderr
