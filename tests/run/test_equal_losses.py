"""Losses do not depend on how data is prepared: prepared, streamed, mixed and resumed runs are equal in every digit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seektune.data.datasets.dataset import DataCache
from seektune.data.datasets.synthetic import write_hellaswag
from seektune.data.examples import ExampleList
from seektune.data.loader import Loader, MicroBatches
from seektune.data.mixing import Mixture
from seektune.data.packing import RowPlan
from seektune.data.step_data import StepData
from seektune.data.store import shard
from seektune.recipe.recipe import Recipe
from seektune.workflows.prepare_data import prepare_data
from tests.data.in_memory import encoded
from tests.distributed.workers import run_workers
from tests.run.few_steps import Course, Resumed, course, loader_of, small_recipe, train_few, write_pairs

pytestmark = pytest.mark.slow
PAD = 2


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hellaswag(tmp_path_factory.mktemp("rows"), 60, 6)


@pytest.mark.parametrize("pack", [False, True])
def test_prepared_before_or_by_training_or_not_at_all(
    tmp_path: Path, rows: Path, pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, {"path": str(rows)}, pack=pack)
    by_training = train_few(recipe, tmp_path / "a")
    prepare_data(recipe, tmp_path / "b")
    monkeypatch.setattr(shard.ShardJob, "run", lambda self: pytest.fail("encoded again"))
    assert train_few(recipe, tmp_path / "b") == by_training
    memory = ExampleList(encoded(recipe.datasets[0], "train", 512, DataCache(tmp_path / "c", print)))
    assert course(recipe, Loader(Mixture([memory], recipe.seed), recipe.batch, PAD)) == by_training
    assert len({loss for loss, _ in by_training}) == recipe.steps


def test_streamed_rows_of_which_each_step_holds_an_epoch(tmp_path: Path) -> None:
    """Rows of a step are ordered by length, so that both ways have one order; each of eight readers reads one row."""
    section = write_pairs(tmp_path / "pairs", 8)
    prepared = train_few(small_recipe(tmp_path, section), tmp_path)
    assert train_few(small_recipe(tmp_path, {**section, "stream": True}), tmp_path) == prepared
    unweighted = small_recipe(tmp_path, {**section, "weight_column": None, "stream": True})
    assert train_few(unweighted, tmp_path) != prepared


def test_streamed_packed_rows_are_those_of_the_prepared_examples(tmp_path: Path) -> None:
    """Streams have an order of their own; the same rows of prepared examples give the same losses."""
    section = write_pairs(tmp_path / "pairs", 24, files=3)
    recipe = small_recipe(tmp_path, {**section, "stream": True}, pack=True)
    streamed = train_few(recipe, tmp_path)
    prepared = loader_of(small_recipe(tmp_path, section, pack=True), tmp_path)
    assert isinstance(prepared, Loader)
    assert course(recipe, SameRows(loader_of(recipe, tmp_path), prepared.mixture, recipe)) == streamed


class SameRows:
    """The rows of a stream, made of prepared examples that are found by their tokens."""

    def __init__(self, stream: Any, mixture: Mixture, recipe: Recipe):
        self._stream = stream
        self._mixture = mixture
        self._recipe = recipe
        self._numbers = {tuple(mixture.example(i).tokens): i for i in range(len(mixture))}

    def next_step(self) -> StepData:
        rows = [row for batch in self._stream.next_step().batches for row in documents(batch)]
        numbers = np.array([self._numbers[each] for row in rows for each in row])
        plan = RowPlan(numbers, np.concatenate([[0], np.cumsum([len(row) for row in rows])]))
        batches = list(MicroBatches(self._mixture, plan, self._recipe.batch, PAD, weighted=True))
        taught = int(self._mixture.counted(numbers).sum())
        tokens = int(self._mixture.lengths(numbers).sum())
        return StepData(batches, taught, tokens, len(batches), self._mixture.weight(numbers))


def documents(batch: Any) -> Iterator[list[tuple[int, ...]]]:
    """The tokens of each document, row by row."""
    for tokens, numbers in zip(batch.tokens, batch.documents, strict=True):
        yield [tuple(tokens[numbers == number].tolist()) for number in range(1, int(numbers.max()) + 1)]


@pytest.mark.parametrize(("pack", "stream"), [(True, False), (False, True)])
def test_mixed_resumed_or_on_two_processes(tmp_path: Path, pack: bool, stream: bool) -> None:
    many = write_pairs(tmp_path / "many", 24, files=3)
    few = write_pairs(tmp_path / "few", 9)
    data = [{**many, "stream": stream}, {**few, "stream": stream, "weight": 0.5}]
    recipe = small_recipe(tmp_path, data, pack=pack)
    whole = train_few(recipe, tmp_path)
    assert course(recipe, Resumed(recipe, tmp_path)) == whole
    if not stream:
        pair = run_workers(2, train_few, recipe, tmp_path)
        assert pair[0] == pair[1]
        assert close(pair[0], whole)


def close(one: Course, other: Course) -> bool:
    return bool(np.allclose(one, other, rtol=1e-5))
