"""docs/optimizers.md: its table is the code's, and its recipe is one."""

import re

import yaml

from seektune.train.config import ScheduleConfig
from seektune.train.optim.config import MuonConfig
from seektune.train.optim.muon_table import TABLE

from .guides import blocks, text_of

PAGE = "docs/optimizers.md"


def test_the_table_of_parameters_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| (adamw|muon) \| (\w+) \|$", text_of(PAGE), re.MULTILINE)
    assert rows == [(rule.pattern, rule.what, rule.optimizer, rule.matrices) for rule in TABLE]


def test_the_recipe_of_the_page_is_valid() -> None:
    (block,) = blocks(PAGE, "yaml")
    sections = yaml.safe_load(block)
    assert MuonConfig.model_validate(sections["optimizer"]).groups[0].lr == 1e-4
    assert ScheduleConfig.model_validate(sections["schedule"]).name == "wsd"


def test_every_schedule_is_on_the_page() -> None:
    names = ScheduleConfig.model_json_schema()["properties"]["name"]["enum"]
    assert all(f"| `{name}` |" in text_of(PAGE) for name in names)
