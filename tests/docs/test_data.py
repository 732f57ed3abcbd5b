"""What docs/data.md shows can be read, and its table has every kind of file."""

import re
from pathlib import Path

import pytest
import yaml

from seektune.data.sources.data_file import COMPRESSIONS
from seektune.data.sources.raw import READERS
from seektune.recipe.load import load_recipe

from .guides import blocks, text_of

PAGE = "docs/data.md"
REST = "model: {preset: tiny}\nbatch: {global_size: 8, length: 64}\nsteps: 10\n"


@pytest.mark.parametrize("text", blocks(PAGE, "yaml"))
def test_an_example_is_a_recipe(text: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(REST + text)
    shown = yaml.safe_load(text)["data"]
    assert len(load_recipe(file).datasets) == (len(shown) if isinstance(shown, list) else 1)


def test_every_kind_of_file_is_listed() -> None:
    listed = re.findall(r"^\| (`\..*?`) \|", text_of(PAGE), re.MULTILINE)
    assert {kind.strip("`") for row in listed for kind in row.split(", ")} == {*READERS}
    assert all(f"`{suffix}`" in text_of(PAGE) for suffix in COMPRESSIONS)
