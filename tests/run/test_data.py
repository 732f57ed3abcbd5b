"""The data of a run: prepared, in memory and mixed data give the same rows, in every layout."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from seektune.data.datasets.dataset import DataCache
from seektune.data.datasets.synthetic import made_hellaswag, write_hellaswag, write_rows
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader, in_order
from seektune.data.mixing import Mixture
from seektune.data.step_data import Share, StepData
from seektune.data.streaming import virtual_reader
from seektune.io.jsonl import as_line
from seektune.parallel.dims import ParallelDims
from seektune.parallel.mesh import Mesh
from seektune.recipe.recipe import Recipe
from seektune.run.build import read_config
from seektune.run.data import TrainData, prepare_data
from seektune.sequence import WEIGHTS, Batch
from tests.data.in_memory import encoded


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, toy_config) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    toy_config(vocab_size=512).save(root)
    small = write_hellaswag(root / "small", 7, 4)
    for seed, split in ((5, "train"), (6, "validation")):
        write_rows(small / f"{split}.jsonl", made_hellaswag(7, seed))
    return {"config": root / "config.json", "rows": write_hellaswag(root / "rows", 60, 9), "small": small, "root": root}


def recipe(places: dict[str, Path], pack: bool, *datasets: dict, **batch) -> Recipe:
    values = {
        "model": {"config": str(places["config"]), "dtype": "fp32"},
        "data": list(datasets) or {"path": str(places["rows"])},
        "batch": {"global_size": 4, "micro_size": 2, "length": 100, "pack": pack} | batch,
        "steps": 3,
        "evaluate": {"tasks": ["validation"]},
    }
    return Recipe.model_validate_json(json.dumps(values), strict=True)


def data_of(wanted: Recipe, places: dict[str, Path], notes: list[str] | None = None) -> TrainData:
    said = [] if notes is None else notes
    cache = DataCache(places["root"] / "cache", said.append)
    return prepare_data(wanted, read_config(wanted.model), cache, Mesh.alone())


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x.tensors(), y.tensors(), strict=True))


@pytest.mark.parametrize("pack", [False, True])
def test_prepared_rows_are_those_in_memory(places: dict[str, Path], pack: bool) -> None:
    wanted = recipe(places, pack)
    found = data_of(wanted, places)
    cache = DataCache(places["root"], print)
    train, held = (encoded(wanted.datasets[0], split, 512, cache) for split in ("train", "validation"))
    pad = found.tokenizer.pad_id
    memory = Loader(Mixture([ExampleList(train)], wanted.seed), wanted.batch, pad)
    for _ in range(20):
        step = found.loader.next_step()
        expected = memory.next_step()
        assert same(step.batches, expected.batches)
        whole = StepData.of(step.batches)
        assert (step.taught, step.tokens) == (expected.taught, expected.tokens) == (whole.taught, whole.tokens)
    assert same(list(found.validation), list(in_order(ExampleList(held), wanted.batch, pad)))


@pytest.mark.parametrize("pack", [False, True])
def test_mixed_rows_are_the_same_in_every_layout_and_after_a_resume(places: dict[str, Path], pack: bool) -> None:
    two = {"path": str(places["rows"])}, {"path": str(places["small"]), "weight": 0.5, "label": "few"}
    wanted = recipe(places, pack, *two, micro_size=1)
    alone = data_of(wanted, places).loader
    ranks = [Loader(alone.mixture, alone.batch, 2, Share(rank, 2)) for rank in range(2)]
    for number in range(12):
        if number == 5:  # the process count changes from two to four
            ranks = [Loader(alone.mixture, alone.batch, 2, Share(rank, 4)) for rank in range(4)]
            for rank in ranks:
                rank.load_state_dict(json.loads(json.dumps(alone.state_dict())))
        step = alone.next_step()
        own = [rank.next_step() for rank in ranks]
        dealt = [own[i % len(own)].batches[i // len(own)] for i in range(4)]
        assert same(step.batches, dealt)
        assert {(each.taught, each.tokens) for each in own} == {(step.taught, step.tokens)}


def test_several_datasets_have_held_out_rows_of_their_own(places: dict[str, Path]) -> None:
    two = {"path": str(places["rows"])}, {"path": str(places["small"]), "label": "few"}
    notes: list[str] = []
    found = data_of(recipe(places, False, *two), places, notes)
    assert list(found.validation_by_dataset) == ["rows", "few"]
    assert len(found.validation) == sum(map(len, found.validation_by_dataset.values()))
    parts = [batch for part in found.validation_by_dataset.values() for batch in part]
    assert same(list(found.validation), parts)
    assert found.rows == 60 + 7
    assert [note.split(" from ")[0] for note in notes[:4]] == [
        "HellaSwag: 60 train rows",
        "HellaSwag: 9 validation rows",
        "HellaSwag: 7 train rows",
        "HellaSwag: 7 validation rows",
    ]


def test_long_rows_are_split_and_every_token_that_can_be_is_taught(places: dict[str, Path]) -> None:
    whole = data_of(recipe(places, False), places).loader.mixture
    notes: list[str] = []
    split = data_of(recipe(places, False, length=24, overlong="split"), places, notes).loader.mixture
    tokens = sum(len(split.example(i).tokens) for i in range(len(split)))
    assert tokens < sum(len(whole.example(i).tokens) for i in range(len(whole))), "parts of prompts are left out"
    counted = sum(int(np.count_nonzero(split.example(i).taught[1:])) for i in range(len(split)))
    assert counted == split.counted(np.arange(len(split))).sum()
    taught = sum(int(np.count_nonzero(whole.example(i).taught)) for i in range(len(whole)))
    kept = sum(int(np.count_nonzero(split.example(i).taught)) for i in range(len(split)))
    assert taught - 3 <= kept <= taught, "at most a token that is alone in a part is lost"
    assert any("are longer than batch.length 24: split" in note for note in notes)


def test_the_digest_says_whether_rows_are_the_same(places: dict[str, Path], tmp_path: Path) -> None:
    digest = data_of(recipe(places, False), places).digest
    copied = replace_path(places, write_hellaswag(tmp_path / "copy", 60, 9))
    changed = replace_path(places, write_hellaswag(tmp_path / "other", 59, 9))
    assert data_of(recipe(copied, True), places).digest == digest
    assert data_of(recipe(changed, False), places).digest != digest
    assert data_of(recipe(places, False, length=50, overlong="cut"), places).digest != digest


def replace_path(places: dict[str, Path], rows: Path) -> dict[str, Path]:
    return places | {"rows": rows}


def test_an_epoch_of_streamed_rows_is_that_of_prepared_ones(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_reader, "BLOCK", 15)  # rows of each of four readers
    streamed = data_of(recipe(places, False, {"path": str(places["rows"]), "stream": True}), places)
    prepared = data_of(recipe(places, False), places)
    found = [rows_of(data.loader.next_step().batches) for data in (streamed, prepared) for _ in range(15)]
    assert sorted(chain.from_iterable(found[:15])) == sorted(chain.from_iterable(found[15:]))
    assert same(list(streamed.validation), list(prepared.validation))
    assert streamed.rows is None


def rows_of(batches: Sequence[Batch]) -> tuple:
    return tuple(
        (*tokens[real > 0].tolist(), *labels[real > 0].tolist())
        for batch in batches
        for tokens, labels, real in zip(*batch.tensors(), strict=True)
    )


def test_streamed_and_prepared_datasets_are_not_mixed(places: dict[str, Path]) -> None:
    two = {"path": str(places["rows"]), "stream": True}, {"path": str(places["small"]), "label": "few"}
    with pytest.raises(ValueError, match="all datasets of a recipe are streamed, or none"):
        data_of(recipe(places, False, *two), places)


@pytest.mark.parametrize("pack", [False, True])
def test_weights_of_rows_reach_the_batches_of_a_step(places: dict[str, Path], pack: bool) -> None:
    rows = [{"prompt": f"row {i}", "completion": "text " * (i + 1), "w": i / 2} for i in range(8)]
    file = places["root"] / "weighted.jsonl"
    file.write_text("".join(map(as_line, rows)), encoding="utf-8")
    keys = {"kind": "prompt_completion", "path": str(file), "validation": 0.3}
    weighted = data_of(recipe(places, pack, {**keys, "weight_column": "w"}), places)
    plain = data_of(recipe(places, pack, keys), places)
    assert weighted.digest != plain.digest
    step = weighted.loader.next_step()
    seen = {w for batch in step.batches for w in batch.columns[WEIGHTS][batch.documents > 0].tolist()}
    assert seen <= {i / 2 for i in range(8)}
    assert len(seen) > 2
    assert step.weight == pytest.approx(sum(batch.weight() for batch in step.batches))
    unweighted = plain.loader.next_step()
    assert same(step.batches, unweighted.batches)
    assert (unweighted.weight, unweighted.batches[0].columns) == (None, {})


@pytest.mark.slow
def test_streams_weigh_rows_and_refuse_what_looks_at_all_rows(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_reader, "BLOCK", 15)
    file = places["root"] / "weighed.jsonl"
    rows = [{"prompt": f"row {i}", "completion": "text", "w": 1 + i} for i in range(8)]
    file.write_text("".join(map(as_line, rows)), encoding="utf-8")
    keys = {"kind": "prompt_completion", "path": str(file), "validation": str(file), "stream": True}
    step = data_of(recipe(places, True, {**keys, "weight_column": "w"}), places).loader.next_step()
    assert step.weight == pytest.approx(sum(batch.weight() for batch in step.batches))
    assert step.weight != step.taught
    for more in ({"limit": 3}, {"duplicates": "drop"}):
        with pytest.raises(ValueError, match=r"look at all rows; they need data\.stream false"):
            data_of(recipe(places, True, {**keys, **more}), places)


def test_a_share_that_holds_out_no_row_is_told(places: dict[str, Path]) -> None:
    few = {"path": str(places["small"] / "train.jsonl"), "validation": 0.001}
    with pytest.raises(ValueError, match=r"data\.validation 0\.001 leaves no validation rows of 7; set another share"):
        data_of(recipe(places, False, few), places)


def test_held_out_rows_fill_all_data_parallel_processes(places: dict[str, Path]) -> None:
    wanted = recipe(places, pack=False)
    alone = data_of(wanted, places)
    pair = Mesh(ParallelDims(2, 1, 2, 1, 1, 1), 0, torch.device("cpu"))
    cache = DataCache(places["root"] / "cache", lambda note: None)
    spread = prepare_data(wanted, read_config(wanted.model), cache, pair)
    assert len(spread.validation[0].tokens) == 2 * len(alone.validation[0].tokens)
    taught = [sum(batch.taught() for batch in data.validation) for data in (alone, spread)]
    assert taught[0] == taught[1]
