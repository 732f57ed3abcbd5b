"""`seektune data stats`: numbers of every dataset as text, JSON and a page."""

import json
from pathlib import Path
from typing import Any

import pytest

from seektune.workflows.data_stats import StatsOptions, data_stats
from tests.data.conversations.rows import CALLS, PLAIN, REASONED
from tests.run_cli import seektune

from .conftest import Make

SCRIPT = {"messages": [{"role": "user", "content": "<script>"}, {"role": "assistant", "content": "да"}]}
NAUGHTY = {"messages": [{"role": "<b>\x1b[31m", "content": "a"}]}


@pytest.fixture
def several(recipe: Make, tmp_path: Path) -> Any:
    """A recipe of two datasets that share a row."""

    def write(name: str, *rows: dict[str, Any]) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (tmp_path / name / "validation.jsonl").write_text(json.dumps(PLAIN) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    first = write("first", PLAIN, REASONED, CALLS, PLAIN, NAUGHTY)
    second = write("second", PLAIN, SCRIPT)
    sections = [{"kind": "chat", "path": path, "on_bad_row": "drop"} for path in (first, second)]
    return recipe(data=sections, batch__length=1024)


def test_json_has_every_dataset(several: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_stats(several, StatsOptions(as_json=True), tmp_path / "cache")
    first, second = json.loads(capsys.readouterr().out)
    assert (first["dataset"], first["rows"], first["examples"], first["bad_rows"]) == ("first", 5, 5, 1)
    assert (second["dataset"], second["rows"], second["examples"], second["bad_rows"]) == ("second", 2, 2, 0)
    assert first["duplicates"] == {
        "repeated_rows": 1,
        "also_in": {"second train": 1, "first validation": 1, "second validation": 1},
    }
    assert second["taught_scripts"]["Cyrillic"] > 0.1
    assert [each["length"] for each in first["batch_lengths"]] == [512, 1024, 2048]
    assert sum(each["examples"] for each in first["histogram"]) == 5


def test_text_says_what_needs_attention(several: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_stats(several, StatsOptions(), tmp_path / "cache")
    out = capsys.readouterr().out
    for line in (
        "first (chat, ",
        "  5 rows, 5 examples, ",
        "1 bad row: ",
        "1 row became several examples: a server drops old reasoning",
        "1 row repeats an earlier one",
        "1 row is also in second train",
        "(the recipe's)",
        "1 tool described, 3 calls",
    ):
        assert line in out, line
    assert "\x1b" not in out


def test_the_page_needs_no_network_and_trusts_no_row(
    several: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "stats.html"
    data_stats(several, StatsOptions(html=page), tmp_path / "cache")
    text = page.read_text(encoding="utf-8")
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
    assert "<b>\x1b" not in text
    assert text.count("<svg") == 2
    assert "Letters by script" in text
    with pytest.raises(ValueError, match="exists already"):
        data_stats(several, StatsOptions(html=page), tmp_path / "cache")


@pytest.mark.slow
def test_the_command_measures_a_recipe_of_hellaswag(recipe: Make, tmp_path: Path) -> None:
    from seektune.recipe.load import dump_recipe

    (tmp_path / "r.yaml").write_text(dump_recipe(recipe()), encoding="utf-8")
    done = seektune("data", "stats", tmp_path / "r.yaml", "--json", XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    (summary,) = json.loads(done.stdout)
    assert (summary["kind"], summary["rows"], summary["examples"]) == ("hellaswag", 40, 40)
