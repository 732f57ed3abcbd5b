import json
import os
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seektune.data.datasets.dataset import DataCache, spread_evenly
from seektune.data.datasets.hellaswag import HellaswagConfig, clean
from seektune.data.datasets.synthetic import made_hellaswag, write_hellaswag, write_rows
from seektune.data.question import Question, right_answers
from seektune.data.sources.find import split_files
from seektune.data.tokenizer import Tokenizer
from tests.data.in_memory import encoded
from tests.places import HELLASWAG
from tests.questions import question, read_split


def record(**changes) -> dict:
    return made_hellaswag(1)[0] | changes


def test_cleaning_follows_the_harness():
    assert clean(" How to fold [title] Take paper. [step] Fold it.  Then [substeps] stop. ") == (
        "How to fold. Take paper. Fold it. Then stop."
    )
    assert clean("Lay it flat. [title] Press") == "Lay it flat.. Press"
    assert clean("[header] Begin") == " Begin"


def test_cleaning_is_the_expression_of_the_harness_in_linear_time():
    """Texts of brackets, line ends and letters; and one that the expression alone would take minutes for."""
    dice = random.Random(0)
    for _ in range(3000):
        text = "".join(dice.choices("[]a \n\r", k=dice.randrange(14)))
        by_harness = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
        assert clean(text) == by_harness
    many = "[" * 1_000_000
    assert clean(many) == many
    assert clean(f"[a]{many}") == many


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-00000-of-00002"], "train-00000-of-00002.jsonl is one of 2 by its name, but number 1 is missing"),
        (["train-00001-of-00002"], "is one of 2 by its name, but number 0 is missing"),
        (["train-00000-of-00001", "train-00001-of-00002"], "is one of 1 by its name, but there are 2"),
        (["train-00000-of-99999999999"], "number 1 is missing"),
    ],
)
def test_numbered_files_are_all_there(tmp_path, names, said):
    for name in names:
        write_rows(tmp_path / f"{name}.jsonl", made_hellaswag(2))
    with pytest.raises(ValueError, match=said):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_pipe_is_not_waited_for(tmp_path, form):
    os.mkfifo(tmp_path / f"train.{form}")
    with pytest.raises(ValueError, match=rf"train\.{form} is a pipe"):
        read_split(tmp_path, "train")


def test_a_row_is_activity_and_context_with_the_last_part_capitalised():
    row = question(
        record(
            activity_label="Roofing",
            ctx_a="A man climbs. [step] He sits.",
            ctx_b="the MAN",
            endings=["[header] eats.", "b", "c", "d"],
            label="0",
        ),
        "x",
    )
    assert row == Question("Roofing: A man climbs. He sits. The man", (" eats.", "b", "c", "d"), 0, "x")
    assert row.right == " eats."
    assert question(record(ctx_a="Alone.", ctx_b="", activity_label="A"), "x").prompt == "A: Alone."


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_local_folder_is_read(tmp_path, form):
    rows = read_split(write_hellaswag(tmp_path / "rows", 5, 3, form), "train")
    assert len(rows) == 5
    assert len(read_split(tmp_path / "rows", "validation")) == 3
    made = made_hellaswag(5, seed=0)[4]
    assert rows[4].endings == tuple(made["endings"])
    assert rows[4].label == int(made["label"])
    assert rows[4].prompt.startswith(made["activity_label"] + ": " + made["ctx_a"])
    assert "train." + form in rows[4].name


def test_the_section_loads_examples_and_questions_of_its_folder(tmp_path: Path, tokenizer: Tokenizer):
    folder = write_hellaswag(tmp_path / "rows", 5, 7)
    section = HellaswagConfig(path=str(folder))
    notes: list[str] = []
    cache = DataCache(tmp_path / "cache", notes.append)
    section.fetch(cache)
    assert section.source("train", cache).title == str(folder)
    assert encoded(section, "train", 2048, cache) == right_answers(read_split(folder, "train"), tokenizer)
    held_out = spread_evenly(read_split(folder, "validation"), 3)
    assert encoded(section, "validation", 2048, cache, limit=3) == right_answers(held_out, tokenizer)
    assert section.questions(cache, limit=3) == held_out
    file = folder / "train.jsonl"
    assert HellaswagConfig().questions(cache, path=file) == read_split(folder, "train")
    assert notes == []


def test_a_card_names_the_hub_only_for_rows_from_there():
    card = HellaswagConfig().card()
    assert (card.hub_id, card.name, card.language) == ("Rowan/hellaswag", "HellaSwag", "en")
    own = HellaswagConfig(path="rows").card()
    assert (own.kind, own.hub_id, own.name, own.language) == ("hellaswag", None, "rows in HellaSwag's form", None)


def test_a_limit_spreads_over_the_split():
    assert spread_evenly(range(10), 4) == [0, 2, 5, 7]
    assert spread_evenly(range(10), None) == spread_evenly(range(10), 99) == [*range(10)]


@pytest.mark.parametrize("place", [".", "data"])
def test_shards_named_as_on_the_hub_are_joined_in_order(tmp_path, place):
    rows = made_hellaswag(5)
    (tmp_path / place).mkdir(exist_ok=True)
    write_rows(tmp_path / place / "train-00001-of-00002.parquet", rows[3:])
    write_rows(tmp_path / place / "train-00000-of-00002.parquet", rows[:3])
    (tmp_path / place / "training-notes.jsonl").write_text("not of this split")
    assert [row.endings for row in read_split(tmp_path, "train")] == [tuple(row["endings"]) for row in rows]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_labels_may_be_numbers(tmp_path, suffix):
    write_rows(tmp_path / f"train.{suffix}", [record(label=2)])
    assert read_split(tmp_path, "train")[0].label == 2


def test_two_kinds_of_file_for_a_split_are_refused(tmp_path):
    write_rows(tmp_path / "train.jsonl", [record()])
    write_rows(tmp_path / "train.parquet", [record()])
    with pytest.raises(ValueError, match=r"train.jsonl, train.parquet"):
        split_files(str(tmp_path), "train")


def test_a_missing_folder_and_a_missing_split_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        read_split(tmp_path / "nowhere", "train")
    write_rows(tmp_path / "train.jsonl", [record()])
    with pytest.raises(ValueError, match=r"no validation files; set data.validation to a share such as 0.02"):
        HellaswagConfig(path=str(tmp_path)).source("validation", DataCache(tmp_path, print))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_questions_of_an_empty_split_are_refused(tmp_path, form):
    file = tmp_path / f"validation.{form}"
    if form == "jsonl":
        file.write_text("\n")
    else:
        pq.write_table(pa.Table.from_pylist([record()]).slice(0, 0), file)
    with pytest.raises(ValueError, match=f"{tmp_path}: no rows"):
        HellaswagConfig(path=str(tmp_path)).questions(DataCache(tmp_path / "cache", print))


BAD_ROWS = {
    "three endings": ({"endings": ["a", "b", "c"]}, "four endings, this one has 3"),
    "no endings": ({"endings": None}, "no endings; a row needs"),
    "an empty ending": ({"endings": ["a", "b", "[header]", "d"]}, "ending 2 is '.header.'"),
    "label 7": ({"label": "7"}, "label '7'.*0, 1, 2 or 3"),
    "label 7 as a number": ({"label": 7}, "label 7"),
    "negative label": ({"label": -1}, "label -1"),
    "hidden label": ({"label": ""}, "label ''"),
    "no context": ({"ctx_a": None}, "no ctx_a; a row needs"),
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_in_one_line(tmp_path, form, case):
    changes, message = BAD_ROWS[case]
    bad = [record() for _ in range(3)]
    bad[1] |= changes
    if isinstance(bad[1]["label"], int):
        bad = [row | {"label": int(row["label"])} for row in bad]
    write_rows(tmp_path / f"train.{form}", bad)
    where = {"jsonl": "train.jsonl line 2", "parquet": "train.parquet row 1"}[form]
    with pytest.raises(ValueError, match=f"{re.escape(where)}: .*{message}") as caught:
        read_split(tmp_path, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_missing_column_is_named(tmp_path, form):
    row = record()
    del row["endings"]
    write_rows(tmp_path / f"train.{form}", [row])
    with pytest.raises(ValueError, match=rf"train.{form}.*: no.* endings"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"label": ', "line 2: not JSON"), ("[1, 2]", "line 2: must be a JSON object"), ("x" * 99, "not JSON")],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    (tmp_path / "train.jsonl").write_text(json.dumps(record()) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_split(tmp_path, "train")


def test_unreadable_files_are_named_in_one_line(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no parquet at all")
    (tmp_path / "validation.jsonl").write_bytes(b'{"a": "\xff\xfe"}')
    for split, message in {
        "train": r"train.parquet: the first row cannot be read: .*Parquet",
        "validation": "not UTF-8",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            read_split(tmp_path, split)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not HELLASWAG.exists(), reason="the real HellaSwag is not beside this checkout")
def test_the_real_validation_split_is_read_whole():
    rows = read_split(HELLASWAG, "validation")
    assert len(rows) == 10042
    assert not any("[header]" in text or "[title]" in text for row in rows for text in (row.prompt, *row.endings))
    # The harness leaves a space where a mark stood before an ending.
    assert sum(any(ending.startswith(" ") for ending in row.endings) for row in rows) == 4835


def test_a_column_of_floats_serves_as_labels():
    assert question(record(label=2.0), "x").label == 2
    with pytest.raises(ValueError, match=r"x: label 2\.5 names none"):
        question(record(label=2.5), "x")


@pytest.mark.parametrize("changes", [{"ctx_a": "x\ud83d y"}, {"endings": ["a", "b", "c \udc00", "d"]}])
def test_half_a_character_is_no_text(changes):
    with pytest.raises(ValueError, match="x: a text holds half of a surrogate pair"):
        question(record(**changes), "x")


def test_a_byte_order_mark_is_passed_over_and_endless_nesting_is_not(tmp_path):
    write_rows(tmp_path / "train.jsonl", made_hellaswag(2))
    text = (tmp_path / "train.jsonl").read_text(encoding="utf-8")
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8-sig")
    assert len(read_split(tmp_path, "train")) == 2
    (tmp_path / "train.jsonl").write_text(text + "[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.jsonl line 3: .*nested too deeply"):
        read_split(tmp_path, "train")
