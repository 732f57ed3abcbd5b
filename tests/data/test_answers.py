"""Pairs of answers stay together from the index to the batch, whatever is cut, packed or drawn."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seektune.data.answers import AnswerExamples, PairExamples, SingleAnswers, documents_of
from seektune.data.config import BatchConfig, OverlongChoice
from seektune.data.datasets.dataset import RowEncoder
from seektune.data.example import Example
from seektune.data.examples import ExampleList, count_taught
from seektune.data.loader import Loader, in_order
from seektune.data.mixing import Mixture
from seektune.data.store.pair_parts import pair_lengths
from seektune.data.store.prepare import prepare
from seektune.data.store.select import Selection
from seektune.data.store.view import ViewChoice, ViewReport, view
from seektune.sequence import PAIRS, Batch

from .test_store import Numbers

PROMPT = 3


def answer(pair: int, size: int, rejected: bool) -> Example:
    """A prompt of the pair's number and an answer of another."""
    tokens = [10 * pair + 1] * PROMPT + [10 * pair + 2 + rejected] * size
    return Example(tokens, [False] * PROMPT + [True] * size, f"pair {pair}")


def pairs(sizes: list[tuple[int, int]]) -> PairExamples:
    found = [answer(n, size, rejected) for n, both in enumerate(sizes) for rejected, size in enumerate(both)]
    return PairExamples(ExampleList(found))


SIZES = [(1, 4), (2, 2), (5, 1), (3, 3), (1, 1), (4, 6), (2, 5)]


def batches_of(examples: PairExamples | AnswerExamples, steps: int, **settings: object) -> list[Batch]:
    batch = BatchConfig.model_validate({"length": 40, **settings})
    loader = Loader(Mixture([examples], seed=3), batch, pad_id=0)
    found = []
    for _ in range(steps):
        data = loader.next_step()
        found += list(data.batches)
        numbers = [set(one.columns[PAIRS].abs().flatten().tolist()) - {0} for one in data.batches]
        assert sum(map(len, numbers)) == data.examples
        assert sum(one.taught() for one in data.batches) == data.taught
    return found


@pytest.mark.parametrize("pack", [False, True])
def test_a_micro_batch_has_both_answers_of_each_pair(pack: bool) -> None:
    seen = []
    for batch in batches_of(pairs(SIZES), steps=6, global_size=2, micro_size=2, pack=pack):
        numbers = batch.columns[PAIRS]
        for number in range(1, int(numbers.max()) + 1):
            row, places = (numbers.abs() == number).nonzero().T
            assert len(row.unique()) == 1, "both answers share a row"
            tokens = batch.tokens[row, places].tolist()
            pair = tokens[0] // 10
            chosen = numbers[row, places] > 0
            assert tokens == [*answer(pair, SIZES[pair][0], False).tokens, *answer(pair, SIZES[pair][1], True).tokens]
            assert int(chosen.sum()) == PROMPT + SIZES[pair][0]
            assert len(batch.documents[row, places].unique()) == 2, "neither sees the other"
            seen.append(pair)
        assert (numbers[batch.documents == 0] == 0).all()
    assert set(seen) == set(range(len(SIZES)))


def test_all_pairs_once_in_order() -> None:
    examples = pairs(SIZES)
    (batch,) = in_order(examples, BatchConfig(global_size=8, micro_size=8, length=40), pad_id=0)
    assert batch.columns[PAIRS].abs().max() == len(SIZES)
    assert [len(documents_of(examples.example(n))) for n in range(len(examples))] == [2] * len(SIZES)


def test_single_answers_have_one_to_another_prompt_beside_them_where_both_fit() -> None:
    examples = AnswerExamples(pairs(SIZES).singles(), length=14)
    assert len(examples) == 2 * len(SIZES)
    for number in range(len(examples)):
        pair, rejected = divmod(number, 2)
        found = examples.example(number)
        own, *other = documents_of(found)
        assert own.tokens.tolist() == answer(pair, SIZES[pair][rejected], bool(rejected)).tokens
        following = SIZES[(pair + 1) % len(SIZES)][rejected]
        assert bool(other) == (2 * PROMPT + SIZES[pair][rejected] + following <= 14)
        if other:
            last = 10 * ((pair + 1) % len(SIZES)) + 2 + rejected
            assert other[0].tokens.tolist() == [10 * pair + 1] * PROMPT + [last] * following
            assert found.answers[1].role == "mismatched"
        assert examples.lengths[number] == len(found.tokens) <= 14
        assert examples.counted[number] == sum(count_taught(each) for each in [own, *other])
    for batch in batches_of(examples, steps=3, global_size=4, micro_size=2):
        numbers = batch.columns[PAIRS]
        assert ((numbers == 0) & (batch.documents > 0)).any(), "mismatched answers have no number"


def test_labelled_answers_to_the_same_prompt_are_not_mismatched() -> None:
    prompts = [0, 0, 0, 1, 1, 0]
    found = AnswerExamples(
        SingleAnswers.labelled(ExampleList([answer(n, size, False) for size, n in enumerate(prompts, start=1)])), 40
    )
    sizes = [[each.tokens - PROMPT for each in found.example(n).answers] for n in range(6)]
    assert sizes == [[1, 4], [2, 4], [3, 4], [4, 6], [5, 6], [6, 4]]
    same = AnswerExamples(SingleAnswers.labelled(ExampleList([answer(0, 2, False)] * 3)), 40)
    assert [len(same.example(n).answers) for n in range(3)] == [1, 1, 1]


def test_labelled_answers_have_the_role_of_their_sign() -> None:
    examples = [replace(answer(n, n + 1, False), weight=-1.0 if n % 3 else 1.0) for n in range(5)]
    found = AnswerExamples(SingleAnswers.labelled(ExampleList(examples)), length=40)
    roles = [[each.role for each in found.example(n).answers] for n in range(5)]
    assert roles == [["rejected" if n % 3 else "chosen", "mismatched"] for n in range(5)]
    other = documents_of(found.example(4))[1]
    assert other.tokens.tolist() == [41] * PROMPT + [2], "the last has an answer to the first prompt"
    for batch in batches_of(found, steps=2, global_size=4, micro_size=2):
        assert "weights" not in batch.columns


@pytest.mark.parametrize("length", [7, 8, 20])
def test_both_answers_fit_after_the_cut_and_the_longer_is_cut_first(length: int) -> None:
    lengths = np.array([(a, b) for a in range(1, 25) for b in range(1, 25)])
    found = pair_lengths(lengths, length)
    assert (found.sum(axis=1) <= length).all()
    fits = lengths.sum(axis=1) <= length
    assert (found[fits] == lengths[fits]).all()
    short = lengths <= length // 2
    assert (found[short] == lengths[short]).all(), "no answer within half of the row is cut"
    one = ~fits & short.any(axis=1)
    assert (found[one].sum(axis=1) == length).all(), "no room is left"


class TwoAnswers(RowEncoder):
    """Rows n of two answers: of n + 1 and of 3 taught tokens, after a prompt."""

    identity = "two answers"

    def encode(self, rows):
        return [[answer(row.values["n"], size, rejected) for rejected, size in enumerate((row.values["n"] + 1, 3))]
                for row in rows]  # fmt: skip


def viewed(folder: Path, overlong: OverlongChoice, length: int = 16) -> tuple[PairExamples, ViewReport]:
    store = prepare(Numbers(12), TwoAnswers(), folder, "x", strict=False)
    everything = np.arange(len(store))
    choice = ViewChoice(length, overlong, "all", paired=True)
    found, report = view(store, choice, lambda: Selection(everything, 0, 0, rows=12))
    return PairExamples(found), report


def test_long_pairs_are_left_out_or_cut_together(tmp_path: Path) -> None:
    dropped, report = viewed(tmp_path, "drop")
    assert (len(dropped), report.examples, report.overlong) == (7, 12, 5)
    assert max(dropped.lengths) == 16
    cut, report = viewed(tmp_path, "cut")
    assert (len(cut), report.overlong, report.untaught) == (12, 5, 0)
    assert [len(cut.example(n).tokens) for n in range(12)] == cut.lengths.tolist()
    last = cut.example(11)
    assert [each.tokens for each in last.answers] == [10, 6]
    assert cut.counted[11] == 7 + 3


@pytest.mark.parametrize(
    ("overlong", "length", "said"),
    [
        (
            "error",
            16,
            "21 tokens of both answers are more than batch.length 16 (it is the longest of 5 examples that do not fit, "
            "of 12); set --batch.length=21 or --batch.overlong=drop or cut",
        ),
        ("cut", 6, "no pair has a taught token of each answer within 6 tokens"),
        ("drop", 3, "set --batch.length=21"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, overlong: OverlongChoice, length: int, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        viewed(tmp_path, overlong, length)
