"""A recipe's `data`: one dataset or a list of them, in files, overrides and errors."""

from pathlib import Path

import pytest

from seektune.recipe.load import dump_recipe, load_recipe

SMALLEST = """\
model: {preset: tiny}
batch: {global_size: 8, length: 64}
steps: 10
data:
"""
ONE = f"{SMALLEST}  path: rows/a.jsonl\n"
SEVERAL = f"""\
{SMALLEST}- path: rows/a.jsonl
- kind: hellaswag
  hub: org/rows
  weight: 2
  validation: 0.05
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def complaint(file: Path, text: str, *overrides: str) -> str:
    file.write_text(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_recipe(file, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{file.parent}/")


def test_one_section_is_a_list_of_one(file: Path) -> None:
    file.write_text(ONE)
    recipe = load_recipe(file)
    assert recipe.datasets == [recipe.data]
    assert recipe.datasets[0].log_name == "a"
    assert load_recipe(file, ["--data.path=b.jsonl"]).datasets[0].log_name == "b"


def test_a_list_is_read_overridden_and_dumped(file: Path) -> None:
    file.write_text(SEVERAL)
    recipe = load_recipe(file)
    assert [(each.log_name, each.weight, each.held_out_share) for each in recipe.datasets] == [
        ("a", 1.0, None),
        ("rows", 2.0, 0.05),
    ]
    changed = load_recipe(file, ["--data.0.path=c.jsonl", "--data.1.label=x", "--data.1.weight=3"]).datasets
    assert [(each.log_name, each.weight) for each in changed] == [("c", 1.0), ("x", 3.0)]
    assert load_recipe(file, ["--data=[{path: d.jsonl}]"]).datasets[0].log_name == "d"
    again = file.with_name("again.yaml")
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    ("text", "override", "said"),
    [
        (SEVERAL, "--data.path=x", "--data.path=x: data is a list here; write --data.0.path for the first one"),
        (
            SEVERAL,
            "--data.2.path=x",
            "--data.2.path=x: data has no entry 2; it has 2, from 0",
        ),
        (ONE, "--data.0.path=x", "--data.0.path=x: data is one section here, not a list; write --data.path"),
        (
            SEVERAL,
            "--data.1.pat=x",
            "--data.1.pat=x: data.1.pat is not a key of this section; did you mean data.1.path?",
        ),
        (SEVERAL, "--data.1.weight=0", "--data.1.weight=0: data.1.weight must be greater than 0.0, not 0"),
        (SEVERAL, "--data.1.hub=none", "--data.1.hub=none: data.hub: write null for none, not none"),
        (SEVERAL, "--data.1.dataset=chat", "--data.1.dataset=chat: data.1.dataset is now called data.kind"),
        (SEVERAL, "--data.0.overlong=drop", "--data.0.overlong=drop: data.0.overlong is now called batch.overlong"),
        (SEVERAL, "--data.1.path=x", "data.1: path and hub both say where the rows are; set one of them to null"),
        (SEVERAL, "--data.1.label=a", "--data.1.label=a: data.0 and data.1 are both called a; set data.1.label"),
        (SEVERAL, "--data=[]", "--data=[]: data must hold at least 1 value, not []"),
        (
            ONE,
            "--data.validation=1.5",
            "--data.validation=1.5: data.validation: must be a share between 0 and 1, a path",
        ),
    ],
)
def test_errors_name_the_entry(file: Path, text: str, override: str, said: str) -> None:
    assert said in complaint(file, text, override)


def test_a_number_as_a_path_stays_as_it_is_written(file: Path) -> None:
    file.write_text(SEVERAL.replace("rows/a.jsonl", "007"))
    assert load_recipe(file, ["--data.1.label=1e5"]).datasets[0].log_name == "007"
    assert load_recipe(file, ["--data.1.label=1e5"]).datasets[1].log_name == "1e5"
