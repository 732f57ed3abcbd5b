"""What docs/conversations.md shows: its rows are read, its commands run, its tables name what there is."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from seektune.data.conversations.forms import FORMS
from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.registry import DATASETS
from seektune.data.datasets.row_texts import WrittenConfig

from .guides import blocks, commands, printed, text_of

PAGE = "docs/conversations.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows and the recipe of the page."""
    place = tmp_path_factory.mktemp("guide")
    (place / "rows").mkdir()
    (rows,) = blocks(PAGE, "json")
    (place / "rows" / "train.jsonl").write_text(rows, encoding="utf-8")
    (place / "chat.yaml").write_text(blocks(PAGE, "yaml")[0], encoding="utf-8")
    return place


@pytest.mark.slow
def test_the_commands_run(folder: Path) -> None:
    outputs = []
    for command in commands(PAGE):
        outputs.append(printed(command, folder))
    split, calls, stats, as_json, packed = outputs
    assert "2 examples: a server drops old reasoning" in split
    assert "«Easy»" in split or "«</think>»" in split
    assert "weather" in calls
    assert "5 rows, 6 examples" in stats
    (summary,) = json.loads(as_json)
    assert (summary["rows"], summary["bad_rows"], summary["split_rows"]) == (5, 0, 1)
    assert "row 0: step 1" in packed
    assert (folder / "stats.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_tables_name_every_form_kind_and_key() -> None:
    page = text_of(PAGE)
    for form in FORMS:
        assert "| " + ", ".join(f"`{column}`" for column in form.columns) in page
    for kind in (name for name, section in DATASETS.items() if issubclass(section, WrittenConfig)):
        assert re.search(rf"`{kind}`", page), kind
    for key in ("teach", "thinking", "encoding"):
        values = re.findall(r"'(\w+)'", str(ChatConfig.model_fields[key].annotation))
        (row,) = re.findall(rf"^\| `{key}` \| (.*?) \|", page, re.MULTILINE)
        assert re.findall(r"`(\w+)`", row) == values, key
    assert get_args(ChatConfig.model_fields["kind"].annotation) == ("chat",)
