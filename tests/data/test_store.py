"""Prepared examples: the same as those in memory, made once, whole or not at all."""

import errno
import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from seektune.data.datasets.dataset import RowEncoder
from seektune.data.example import Example
from seektune.data.examples import count_taught
from seektune.data.mixing import Mixture
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowSource
from seektune.data.store import index, prepared, shard, workers
from seektune.data.store import prepare as preparing
from seektune.data.store import view as views
from seektune.data.store.manifest import MANIFEST, VERSION
from seektune.data.store.prepare import prepare
from seektune.data.store.prepared import PreparedExamples
from seektune.data.store.select import Selection
from seektune.data.store.view import ViewChoice, view
from seektune.io.json_file import write_json
from tests.forks import run_forked


@dataclass(frozen=True)
class Numbers(RowSource):
    """Rows of one number each."""

    rows: int
    title: str = "numbers"
    identity: str = "numbers 1"
    unreadable: tuple[int, ...] = ()

    def count(self) -> int:
        return self.rows

    def read(self, start: int, stop: int) -> Iterator[SourceRow | BadRow]:
        for i in range(start, stop):
            bad = i in self.unreadable
            yield BadRow(f"numbers {i}", "not a number") if bad else SourceRow.of({"n": i % 50}, f"numbers {i}")


@dataclass(frozen=True)
class Counting(RowEncoder):
    """Row n is n % 7 + 1 tokens, a second example follows where n is odd; the last half is taught."""

    identity: str = "counting 1"
    killed_at: str = ""

    def encode(self, rows: Sequence[SourceRow]) -> list[list[Example] | BadRow]:
        return [self._examples(row) for row in rows]

    def _examples(self, row: SourceRow) -> list[Example] | BadRow:
        if row.place == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        n = row.values["n"]
        if n == 49:
            return BadRow(row.place, "49 is refused")
        size = n % 7 + 1
        one = Example([100_000 + n] * size, [2 * i >= size for i in range(size)], row.place)
        return [one, replace(one, tokens=[7] * size)] if n % 2 else [one]


def small(patch: pytest.MonkeyPatch) -> None:
    """Shards of 20 rows, record batches of 4 examples."""
    patch.setattr(preparing, "LEAST_ROWS", 20)
    patch.setattr(shard, "BATCH", 4)
    patch.setattr(prepared, "BATCH", 4)
    patch.setattr(shard, "ENCODED_ROWS", 3)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)


def prepare_killed(cache: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        prepare(Numbers(130), Counting(killed_at="numbers 45"), cache, "x", strict=False)


def in_memory(source: RowSource) -> list[tuple[int, SourceRow, Example]]:
    found = []
    for number, row in enumerate(source.read(0, source.count())):
        if isinstance(row, SourceRow) and isinstance(examples := Counting().encode([row])[0], list):
            found += [(number, row, example) for example in examples]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_prepared_examples_are_those_in_memory(tmp_path: Path) -> None:
    source = Numbers(130, unreadable=(3, 77))
    store = prepare(source, Counting(), tmp_path, "my numbers", strict=False)
    expected = in_memory(source)
    assert len(store) == len(expected)
    for i, (number, row, example) in enumerate(expected):
        found = store.example(i)
        assert (found.tokens.tolist(), found.taught.tolist()) == (example.tokens, example.taught)
        assert found.name == example.name
        assert (store.rows[i], store.digests[i]) == (number, row.digest)
        assert (store.lengths[i], store.counted[i]) == (len(example.tokens), count_taught(example))
    manifest = store.manifest
    assert (manifest.rows, manifest.examples, len(manifest.shards)) == (130, len(expected), 7)
    assert manifest.tokens == sum(len(example.tokens) for *_, example in expected)
    assert (manifest.bad_rows, manifest.listed[:2]) == (
        4,
        [["numbers 3", "not a number"], ["numbers 49", "49 is refused"]],
    )
    assert store.folder.parent == tmp_path / "prepared"
    assert store.folder.name.startswith("my-numbers-")


@dataclass(frozen=True)
class Weighing(Counting):
    """Row n weighs n / 4."""

    identity: str = "weighing 1"

    def _examples(self, row: SourceRow) -> list[Example] | BadRow:
        found = super()._examples(row)
        weight = row.values["n"] / 4
        return found if isinstance(found, BadRow) else [replace(each, weight=weight) for each in found]


def test_weights_are_kept_and_counted(tmp_path: Path) -> None:
    plain = prepare(Numbers(30), Counting(), tmp_path, "x")
    assert plain.weights is None
    store = prepare(Numbers(30), Weighing(), tmp_path, "x")
    assert store.manifest.digest != plain.manifest.digest
    expected = [row.values["n"] / 4 for _, row, _ in in_memory(Numbers(30))]
    assert store.weights is not None
    assert store.weights.tolist() == expected
    assert [store.example(i).weight for i in range(len(store))] == expected
    ids = np.array([5, 9, 2])
    found, _ = view(store, ViewChoice(3, "cut", "three"), lambda: Selection(ids, 0, 0, 3))
    assert found.weights is not None
    assert [found.example(i).weight for i in range(len(found))] == found.weights.tolist()
    numbers = np.arange(len(found))
    whole = sum(weight * int(count) for weight, count in zip(found.weights, found.counted, strict=True))
    assert Mixture([found], seed=0).weight(numbers) == pytest.approx(whole)
    assert Mixture([plain], seed=0).weighted is False


def test_it_is_made_once_and_anew_for_other_rows_encoder_or_version(tmp_path: Path, monkeypatch) -> None:
    made: list[int] = []
    plain = shard.ShardJob.run
    monkeypatch.setattr(shard.ShardJob, "run", lambda self: made.append(self.number) or plain(self))
    source = Numbers(45)
    first = prepare(source, Counting(), tmp_path, "x")
    assert made == [0, 1, 2]
    again = prepare(source, Counting(), tmp_path, "x")
    assert (made, again.folder) == ([0, 1, 2], first.folder)
    others = [
        prepare(replace(source, identity="numbers 2"), Counting(), tmp_path, "x"),
        prepare(source, Counting("counting 2"), tmp_path, "x"),
    ]
    monkeypatch.setattr("seektune.data.store.manifest.VERSION", VERSION + 1)
    others.append(prepare(source, Counting(), tmp_path, "x"))
    assert len({store.folder for store in (first, *others)}) == 4
    assert made == [0, 1, 2] * 4


@pytest.mark.parametrize("content", ["", "[]", '{"key": 1}', '{"key": "other"}'])
def test_a_damaged_manifest_is_not_used(tmp_path: Path, content: str) -> None:
    store = prepare(Numbers(45), Counting(), tmp_path, "x")
    before = files(store.folder)
    (store.folder / MANIFEST).write_text(content)
    prepare(Numbers(45), Counting(), tmp_path, "x")
    assert files(store.folder) == before


def test_a_bad_row_is_an_error_and_a_later_drop_keeps_what_is_done(tmp_path: Path) -> None:
    source = Numbers(130, unreadable=(45,))
    with pytest.raises(ValueError, match=r"^numbers 45: not a number$"):
        prepare(source, Counting(), tmp_path, "x")
    (folder,) = (tmp_path / "prepared").iterdir()
    assert sorted(file.name for file in folder.glob("*.arrow")) == ["shard-00000.arrow", "shard-00001.arrow"]
    assert not (folder / MANIFEST).exists()
    prepare(source, Counting(), tmp_path, "x", strict=False)
    with pytest.raises(ValueError, match=r"^numbers 45: not a number$"):
        prepare(source, Counting(), tmp_path, "x")


def test_a_source_of_bad_rows_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no row gives an example; the first is bad: numbers 0: not a number"):
        prepare(Numbers(2, unreadable=(0, 1)), Counting(), tmp_path, "x", strict=False)


@pytest.mark.slow
def test_a_killed_preparation_continues_at_the_first_missing_shard(tmp_path: Path, monkeypatch) -> None:
    assert run_forked(prepare_killed, tmp_path / "a") == -signal.SIGKILL
    (folder,) = (tmp_path / "a" / "prepared").iterdir()
    kept = {name: (folder / name).stat().st_mtime_ns for name in files(folder) if name.startswith("shard")}
    assert sorted(kept) == [f"shard-0000{i}.{kind}" for i in (0, 1) for kind in ("arrow", "json")]
    assert list(folder.glob(".shard-00002*"))
    store = prepare(Numbers(130), Counting(), tmp_path / "a", "x", strict=False)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert not list(folder.glob(".*"))
    assert files(store.folder) == files(prepare(Numbers(130), Counting(), tmp_path / "b", "x", strict=False).folder)


@pytest.mark.parametrize(
    ("module", "name", "left"), [(shard, "shard-00002.arrow", 2), (index, "counted.npy", 7)], ids=["shard", "index"]
)
def test_a_full_disk_is_one_line_and_nothing_half_written_is_used(tmp_path: Path, monkeypatch, module, name, left):
    plain = module.write_all

    def full(file, data, path):
        if path.name == name and file.tell() > 100:
            file.write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        plain(file, data, path)

    monkeypatch.setattr(module, "write_all", full)
    with pytest.raises(OSError, match=r"could not write the prepared .* No space left .* XDG_CACHE_HOME") as caught:
        prepare(Numbers(130), Counting(), tmp_path, "x", strict=False)
    assert "\n" not in str(caught.value)
    (folder,) = (tmp_path / "prepared").iterdir()
    shards = [f"shard-0000{i}.{kind}" for i in range(left) for kind in ("arrow", "json")]
    columns = ["lengths.npy"] if module is index else []
    assert sorted(files(folder)) == sorted(["lock", *columns, *shards])
    monkeypatch.setattr(module, "write_all", plain)
    assert len(prepare(Numbers(130), Counting(), tmp_path, "x", strict=False)) == len(in_memory(Numbers(130)))


def test_a_disk_that_is_full_for_a_view_leaves_none(tmp_path: Path, monkeypatch) -> None:
    store = made(tmp_path)
    choice = ViewChoice(7, "error", "three")
    chosen = Selection(np.array([5, 2, 11]), 0, 0, 3)

    def full(path, values):
        raise OSError(errno.ENOSPC, "No space", str(path))

    monkeypatch.setattr(views, "write_json", full)
    with pytest.raises(OSError, match=r"could not write the prepared examples into .*: No space; .* XDG_CACHE_HOME"):
        view(store, choice, lambda: chosen)
    assert [*(store.folder / "views").iterdir()] == []
    monkeypatch.setattr(views, "write_json", write_json)
    found, _ = view(store, choice, lambda: chosen)
    assert len(found) == 3


@pytest.mark.slow
def test_processes_write_the_same_bytes_and_name_the_first_bad_row(tmp_path: Path, monkeypatch) -> None:
    for module in (shard, prepared):  # as in the processes
        monkeypatch.setattr(module, "BATCH", 256)

    def run(jobs, done):
        return workers.run_in_processes(jobs, done, 2)

    here = prepare(Numbers(130), Counting(), tmp_path / "a", "x", strict=False)
    there = prepare(Numbers(130), Counting(), tmp_path / "b", "x", strict=False, run=run)
    assert files(here.folder) == files(there.folder)
    with pytest.raises(ValueError, match=r"^numbers 49: 49 is refused$"):
        prepare(Numbers(130), Counting(), tmp_path / "c", "x", run=run)


def test_the_second_of_two_processes_waits_and_uses_the_result(tmp_path: Path) -> None:
    """The first holds the lock until the second has begun to wait for it."""
    import threading

    begun = threading.Event()
    made: list[str] = []

    def slow(jobs, done):
        begun.set()
        made.append("first")
        return workers.run_here(jobs, done)

    def other(jobs, done):
        made.append("second")
        return workers.run_here(jobs, done)

    found: list[PreparedExamples] = []
    first = threading.Thread(target=lambda: found.append(prepare(Numbers(45), Counting(), tmp_path, "x", run=slow)))
    first.start()
    begun.wait()
    found.append(prepare(Numbers(45), Counting(), tmp_path, "x", run=other))
    first.join()
    assert made == ["first"]
    assert found[0].manifest == found[1].manifest


@pytest.mark.slow
def test_open_shards_are_bounded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(prepared, "MOST_OPEN", 2)
    store = prepare(Numbers(130), Counting(), tmp_path, "x", strict=False)
    names = [store.example(i).name for i in (0, 150, 60, 100, 0)]
    assert names[0] == names[-1] == "numbers 0"
    assert len(store._open) == 2


# ---- views


def everything(store: PreparedExamples) -> Selection:
    return Selection(np.arange(len(store)), 0, 0, store.manifest.rows)


def made(tmp_path: Path) -> PreparedExamples:
    return prepare(Numbers(45), Counting(), tmp_path, "x")


@pytest.mark.slow
def test_a_store_in_which_all_fits_is_its_own_view(tmp_path: Path) -> None:
    store = made(tmp_path)
    found, report = view(store, ViewChoice(7, "error", ""), lambda: everything(store))
    assert found is store
    assert (report.examples, report.overlong, report.is_whole) == (len(store), 0, True)


def test_a_view_holds_the_chosen_examples_and_is_made_once(tmp_path: Path) -> None:
    store = made(tmp_path)
    chosen = np.array([5, 2, 11])
    found, _ = view(store, ViewChoice(7, "error", "three"), lambda: Selection(chosen, 1, 2, 3))
    again, report = view(store, ViewChoice(7, "error", "three"), lambda: pytest.fail("made again"))
    assert (report.duplicates, report.also_held_out, report.rows) == (1, 2, 3)
    assert np.array_equal(found.lengths, store.lengths[chosen])
    assert np.array_equal(again.counted, store.counted[chosen])
    for i, number in enumerate(chosen):
        assert again.example(i).name == store.example(number).name
        assert np.array_equal(again.example(i).tokens, store.example(number).tokens)


def test_overlong_examples_are_an_error_that_names_the_longest(tmp_path: Path) -> None:
    store = made(tmp_path)
    said = (
        "numbers 6: 7 tokens are more than batch.length 5 (it is the longest of 18 examples that do not fit, of 67); "
        "set --batch.length=7 or --batch.overlong=drop, cut or split"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        view(store, ViewChoice(5, "error", ""), lambda: everything(store))


@pytest.mark.parametrize("overlong", ["drop", "cut", "split"])
def test_parts_of_long_examples_count_what_the_loss_counts(tmp_path: Path, overlong) -> None:
    store = made(tmp_path)
    found, report = view(store, ViewChoice(3, overlong, ""), lambda: everything(store))
    whole = [store.example(i) for i in range(len(store))]
    expected = []
    for example in whole:
        parts = [slice(start, start + 3) for start in range(0, len(example.tokens), 3)]
        kept = {"drop": parts if len(parts) == 1 else [], "cut": parts[:1], "split": parts}[overlong]
        cut = [Example(example.tokens[part].tolist(), example.taught[part].tolist(), "") for part in kept]
        expected += cut if len(parts) == 1 else [each for each in cut if count_taught(each)]
    assert [found.example(i).tokens.tolist() for i in range(len(found))] == [each.tokens for each in expected]
    assert [found.example(i).taught.tolist() for i in range(len(found))] == [each.taught for each in expected]
    assert found.counted.tolist() == [count_taught(each) for each in expected]
    assert found.lengths.tolist() == [len(each.tokens) for each in expected]
    assert report.overlong == sum(len(each.tokens) > 3 for each in whole)
    assert (report.untaught > 0) == (overlong != "drop")


def test_dropping_everything_is_an_error(tmp_path: Path) -> None:
    store = made(tmp_path)
    long = np.flatnonzero(store.lengths > 3)
    for overlong in ("error", "drop"):
        with pytest.raises(
            ValueError, match=r"that do not fit, of \d+\); set --batch\.length=7 or --batch\.overlong=cut or split$"
        ):
            view(store, ViewChoice(3, overlong, ""), lambda: Selection(long, 0, 0, len(long)))


def test_the_record_of_a_shard_is_json_that_says_what_it_holds(tmp_path: Path) -> None:
    store = made(tmp_path)
    record = json.loads((store.folder / "shard-00000.json").read_text())
    assert record["examples"] == store.manifest.shards[0]
    assert record["bad_rows"] == 0
