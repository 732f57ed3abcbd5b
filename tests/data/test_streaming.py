"""Streamed rows: the same as prepared ones, exact after a resume, also with another number of processes."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from seektune.data.config import BatchConfig
from seektune.data.datasets.dataset import RowEncoder
from seektune.data.example import Example
from seektune.data.sources.files import FileSource
from seektune.data.sources.find import files_of
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.step_data import ALL, Share, StepData
from seektune.data.streaming import virtual_reader
from seektune.data.streaming.loader import StreamLoader
from seektune.data.streaming.row_stream import ReaderNumber, RowStream, StreamedDataset
from seektune.sequence import Batch

PAD = 2
ONE = {"global_size": 1, "length": 16}
ALONE = ReaderNumber(0, 1, seed=7)


@dataclass(frozen=True)
class Numbered(RowEncoder):
    """Row n is n % 5 + 2 tokens that begin with n + 100."""

    identity: str = "numbered"

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        found = [(row.values["n"], row.place) for row in rows]
        return [[Example([n + 100] + [3] * (n % 5 + 1), [True] * (n % 5 + 2), place)] for n, place in found]


@pytest.fixture(params=[1, 8], ids=["one file", "two files per reader"])
def data(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[StreamedDataset]:
    monkeypatch.setattr(virtual_reader, "BLOCK", 8)
    found = []
    for name, rows in (("many", 90), ("few", 18)):
        (tmp_path / name).mkdir()
        for file in range(request.param):
            numbers = [n + 1000 * (name == "few") for n in range(rows) if n % request.param == file]
            lines = "".join(json.dumps({"n": n}) + "\n" for n in numbers)
            (tmp_path / name / f"train-{file}.jsonl").write_text(lines)
        files = files_of(str(tmp_path / name / "*.jsonl"), "train")
        source = FileSource.of(name, files, tmp_path / "cache")
        found.append(StreamedDataset(source, Numbered(), 3.0 if name == "many" else 1.0, strict=True, held_out_share=0))
    return found


def loader(data: list[StreamedDataset], share: Share = ALL, pack: bool = True, micro_size: int = 1) -> StreamLoader:
    batch = BatchConfig(global_size=4, micro_size=micro_size, length=16, pack=pack)
    return StreamLoader(data, batch, 7, PAD, share)


def rows_of(batches: Sequence[Batch]) -> list[tuple]:
    """Rows without their order: tokens and labels of the real part."""
    return sorted(
        (tuple(tokens[real > 0].tolist()), tuple(labels[real > 0].tolist()))
        for batch in batches
        for tokens, labels, real in zip(*batch.tensors(), strict=True)
    )


def numbers(batches: Sequence[Batch]) -> list[int]:
    return [int(i) - 100 for batch in batches for i in batch.tokens.flatten() if i >= 100]


@pytest.mark.slow
@pytest.mark.parametrize("pack", [False, True])
def test_every_row_of_a_dataset_comes_once_per_epoch_and_weights_count(data: list[StreamedDataset], pack: bool) -> None:
    stream = loader(data[:1], pack=pack)
    seen: Counter[int] = Counter()
    while len(seen) < 90:
        step = stream.next_step()
        assert sum(batch.tokens.shape[0] for batch in step.batches) == 4
        assert (step.taught, step.tokens) == (StepData.of(step.batches).taught, StepData.of(step.batches).tokens)
        seen.update(numbers(step.batches))
    assert set(seen) == set(range(90))
    assert max(seen.values()) <= 2
    mixed = loader(data, pack=pack)
    drawn = [n for _ in range(40) for n in numbers(mixed.next_step().batches)]
    assert sum(n < 1000 for n in drawn) / len(drawn) == pytest.approx(0.75, abs=0.05)


@dataclass(frozen=True)
class Refusing(Numbered):
    """As `Numbered`, but row 13 is bad, or every row."""

    every: bool = False

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        found = super().encode(rows)
        bad = [self.every or row.values["n"] == 13 for row in rows]
        return [BadRow(row.place, "unlucky") if no else each for row, no, each in zip(rows, bad, found, strict=True)]


@pytest.mark.slow
def test_what_is_left_out_is_counted_once_and_known_after_a_resume(data: list[StreamedDataset], tmp_path: Path) -> None:
    first = tmp_path / "many" / "train-0.jsonl"
    first.write_text("{\n" + first.read_text())
    dropping = [replace(each, encoder=Refusing(), strict=False) for each in data]
    batch = BatchConfig(global_size=4, micro_size=1, length=5, overlong="cut")

    def loaders(count: int) -> list[StreamLoader]:
        return [StreamLoader(dropping, batch, 7, PAD, Share(rank, count)) for rank in range(count)]

    def counts(parts: list[StreamLoader]) -> Counter[str]:
        found: Counter[str] = Counter()
        for part in parts:
            found.update(part.next_step().left_out)
        return found

    whole = loaders(1)
    seen = [counts(whole) for _ in range(50)]
    assert seen[-1] == {"bad_rows": 2, "overlong_examples": 18 + 3}
    assert sorted(seen, key=lambda each: each.total()) == seen
    assert sorted(reason.split(" (")[0] for _, reason in whole[0].left_out().listed) == ["not JSON", "unlucky"]
    for steps in (3, 20):
        begun = loaders(1)
        for _ in range(steps):
            counts(begun)
        state = json.loads(json.dumps(begun[0].state_dict()))
        pair = loaders(2)
        for part in pair:
            part.load_state_dict(state)
        assert [counts(pair) for _ in range(50 - steps)] == seen[steps:]


def test_a_bad_row_that_may_not_be_dropped_and_a_long_one_are_errors(data: list[StreamedDataset]) -> None:
    with pytest.raises(ValueError, match=r"line \d+: unlucky$"):
        RowStream(replace(data[0], encoder=Refusing()), 0, ALONE).examples(90, BatchConfig(**ONE))
    short = BatchConfig(**{**ONE, "length": 3})
    with pytest.raises(ValueError, match=r"set --batch.length=\d or more, or --batch.overlong=drop, cut or split$"):
        StreamLoader(data, short, 7, PAD, ALL).next_step()


@pytest.mark.parametrize("changes", [{"length": 1, "overlong": "drop"}, {"length": 16}])
def test_a_whole_epoch_without_an_example_is_an_error(data: list[StreamedDataset], changes: dict) -> None:
    nothing = [replace(each, encoder=Refusing(every=True), strict=False) for each in data]
    used = data if "overlong" in changes else nothing
    stream = StreamLoader(used, BatchConfig(global_size=4, micro_size=1, **changes), 7, PAD, ALL)
    with pytest.raises(ValueError, match=r"a whole epoch gave nothing to train on; see batch\.overlong"):
        stream.next_step()
    one = StreamLoader([data[0], nothing[1]], BatchConfig(**ONE), 7, PAD, ALL)
    for _ in range(100):
        assert max(numbers(one.next_step().batches)) < 1000, "another dataset still gives rows"


@pytest.mark.parametrize("seed", [7, 8])
def test_files_come_in_another_order_in_each_epoch(data: list[StreamedDataset], seed: int) -> None:
    stream = RowStream(data[0], 0, ReaderNumber(0, 1, seed))
    epochs = [[example.name for example in stream.examples(90, BatchConfig(**ONE))] for _ in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    files = [list(dict.fromkeys(name.split()[0] for name in names)) for names in epochs]
    if len(data[0].source.files) > 1:
        assert len({tuple(order) for order in files}) == 3
        assert files[0] != orders_of(data[0], 15 - seed)
    assert RowStream(data[0], 0, ReaderNumber(0, 1, seed)).examples(5, BatchConfig(**ONE))[4].name == epochs[0][4]


def orders_of(dataset: StreamedDataset, seed: int) -> list[str]:
    examples = RowStream(dataset, 0, ReaderNumber(0, 1, seed)).examples(90, BatchConfig(**ONE))
    return list(dict.fromkeys(example.name.split()[0] for example in examples))


@pytest.mark.slow
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_resuming_is_exact_also_with_other_processes(data: list[StreamedDataset], pack: bool, steps: int) -> None:
    whole = loader(data, pack=pack)
    for _ in range(steps):
        whole.next_step()
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = loader(data, pack=pack)
    resumed.load_state_dict(state)
    ranks = [loader(data, Share(rank, 2), pack) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    for _ in range(9):
        step = whole.next_step()
        again = resumed.next_step()
        for one, other in zip(step.batches, again.batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))
        own = [rank.next_step() for rank in ranks]
        assert rows_of([batch for each in own for batch in each.batches]) == rows_of(step.batches)
        assert sum(each.taught for each in own) == step.taught
        assert [len(each.batches) for each in own] == [2, 2]
    parts = [rank.state_dict()["readers"] for rank in ranks]
    assert {**parts[0], **parts[1]} == whole.state_dict()["readers"]


def test_numbers_of_the_step_are_summed_over_processes(data: list[StreamedDataset]) -> None:
    batch = BatchConfig(global_size=4, micro_size=1, length=16, pack=True)
    stream = StreamLoader(data, batch, 7, PAD, Share(0, 2), total=lambda own: [own[0] + 100, own[1] + 1000, *own[2:]])
    step = stream.next_step()
    own = StepData.of(step.batches)
    assert (step.taught, step.tokens, step.micro_batches) == (own.taught + 100, own.tokens + 1000, 4)


def test_readers_that_cannot_be_dealt_out_are_refused(data: list[StreamedDataset]) -> None:
    with pytest.raises(ValueError, match=r"4 readers .* 3 data-parallel groups; set --batch.global_size to a multiple"):
        loader(data, Share(0, 3))


@pytest.mark.parametrize("state", [None, {}, {"readers": {}}, {"readers": {"0": {}, "1": {}, "2": {}, "3": {}}}])
def test_a_damaged_state_is_a_one_line_error(data: list[StreamedDataset], state: object) -> None:
    with pytest.raises(ValueError, match=r"readers of streamed rows|damaged"):
        loader(data).load_state_dict(state)
