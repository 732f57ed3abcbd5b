"""`seektune data preview`: what is shown is what training reads."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from seektune.data.example import Example
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader
from seektune.data.mixing import Mixture
from seektune.data.question import right_answers
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.data.training_order import find_row
from seektune.recipe.load import dump_recipe
from seektune.recipe.recipe import Recipe
from seektune.workflows import preview
from tests.questions import read_split
from tests.run_cli import seektune

from .conftest import Make


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(512)


def loader_of(asked: Recipe, examples: list[Example], tokenizer: Tokenizer) -> Loader:
    return Loader(Mixture([ExampleList(examples)], asked.seed), asked.batch, tokenizer.pad_id)


@pytest.mark.parametrize("pack", [False, True])
def test_the_rows_are_those_of_training(recipe: Make, rows: Path, tokenizer: Tokenizer, pack: bool) -> None:
    asked = recipe(batch__pack=pack, batch__length=200)
    examples = right_answers(read_split(rows, "train"), tokenizer)
    loader = loader_of(asked, examples, tokenizer)
    expected = [
        (step, micro, tokens, taught)
        for step in (1, 2, 3)
        for micro, batch in enumerate(loader.next_step().batches, start=1)
        for tokens, taught in zip(batch.tokens.tolist(), (batch.labels != -100).tolist(), strict=True)
    ]
    places = [find_row(loader_of(asked, examples, tokenizer), row) for row in range(len(expected))]
    assert [(each.step, each.micro_batch, each.tokens, each.taught) for each in places] == expected
    assert any(len(each.documents) > 1 for each in places) == pack
    for place in places:
        together = [token for example in place.documents for token in example.tokens]
        assert place.tokens[: len(together)] == together


@pytest.mark.slow
def test_a_pipe_gets_marks_in_text(recipe: Make, tmp_path: Path, rows: Path, tokenizer: Tokenizer) -> None:
    asked = recipe(batch__pack=True, batch__length=150)
    file = tmp_path / "made.yaml"
    file.write_text(dump_recipe(asked), encoding="utf-8")
    answer = seektune("data", "preview", file, "--row", "1")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "\x1b" not in answer.stdout
    place = find_row(loader_of(asked, right_answers(read_split(rows, "train"), tokenizer), tokenizer), 1)
    _, head, legend, *documents = answer.stdout.split("\n")
    used = sum(len(example.tokens) for example in place.documents)
    many = len(place.documents)
    assert many > 1
    assert head == (
        f"row 1: step 1, micro-batch 1; 150 tokens in {many} documents, "
        f"{sum(place.taught)} taught, {150 - used} padding"
    )
    assert legend.startswith("«taught», read")
    assert sum(line.count("«") for line in documents) == sum(place.taught)
    lines = [line for line in documents if line.startswith("  tokens  ")]
    start = 0
    for number, (line, example) in enumerate(zip(lines, place.documents, strict=True), start=1):
        stop = start + len(example.tokens)
        assert f"document {number}, tokens {start} to {stop - 1}: {example.name}" in documents
        words = [re.sub("^«(.*)»$", r"\1", word) for word in line.removeprefix("  tokens  ").split("|")]
        assert words == [tokenizer.decode([token]).replace(" ", "·") for token in example.tokens]
        assert f"  text    {tokenizer.decode(example.tokens)}" in documents
        start = stop
    assert f"padding, tokens {start} to 149: ignored" in documents


def test_a_terminal_gets_colours_instead(
    recipe: Make, tokenizer: Tokenizer, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    paper = Console(file=io.StringIO(), force_terminal=True, color_system="standard", highlight=False, soft_wrap=True)
    examples = right_answers(read_split(rows, "train"), tokenizer)
    place = find_row(loader_of(recipe(), examples, tokenizer), 0)
    preview._show(place, 0, tokenizer, paper)
    shown = paper.file.getvalue()
    assert "«" not in shown
    assert shown.count("\x1b[1;32m") == sum(place.taught) + 1  # and the legend


def test_what_does_not_fit_is_shown_with_the_cut(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"tokens are more than batch\.length 20"):
        preview.preview(recipe(batch__length=20), 0, tmp_path)
    (line,) = (line for line in capsys.readouterr().out.split("\n") if line.startswith("  tokens  "))
    before, after = line.removeprefix("  tokens  ").split(" ✂ batch.length 20 ✂ ")
    assert len(before.split("|")) == 20
    assert after


def test_what_is_left_out_is_counted(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Path, tokenizer: Tokenizer
) -> None:
    lengths = sorted(len(each.tokens) for each in right_answers(read_split(rows, "train"), tokenizer))
    asked = recipe(batch__length=lengths[-1] - 1, batch__overlong="drop")
    preview.preview(asked, 0, tmp_path)
    longest = lengths.count(lengths[-1])
    assert f"\n{longest} of {len(lengths)} train rows are longer than batch.length" in capsys.readouterr().out


def test_a_row_cannot_command_the_terminal(recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"ind": 0, "activity_label": "A\x1b[31m", "ctx_a": "b", "ctx_b": "c", "endings": ["x"] * 4, "label": 0}
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    preview.preview(recipe(data__path=str(tmp_path)), 0, tmp_path)
    shown = capsys.readouterr().out
    assert "A\\x1b[31m: b" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["preview"], "no recipe given"), (["preview", "r.yaml", "--row=-1"], "--row"), (["look"], "No such command")],
)
def test_mistakes_take_one_line(words: list[str], complaint: str) -> None:
    answer = seektune("data", *words)
    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (2, "", 1)
    assert complaint in answer.stderr


@pytest.mark.slow
def test_help_shows_a_call() -> None:
    assert "preview" in seektune("data").stdout
    assert "\n    seektune data preview " in seektune("data", "preview", "--help").stdout
