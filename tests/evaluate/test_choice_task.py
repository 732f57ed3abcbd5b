import json
import math
from itertools import pairwise

import pytest
import torch

from seektune.data.datasets.synthetic import made_hellaswag
from seektune.data.question import Question
from seektune.evaluate.choice_task import ChoiceTask
from seektune.evaluate.statistics import Estimate
from seektune.evaluate.task import TaskScore
from tests.questions import question


def rows(count: int) -> list[Question]:
    return [question(record, f"row {i}") for i, record in enumerate(made_hellaswag(count, seed=3))]


def task(questions: list[Question]) -> ChoiceTask:
    return ChoiceTask("hellaswag", "HellaSwag", questions)


def by_hand(model, tokenizer, row: Question) -> tuple[list[float], list[float]]:
    """Log-likelihood of each ending, and the log-likelihoods of the right ending's tokens with EOS; one by one."""
    log_p = torch.log_softmax(model.table.detach().double(), dim=-1)
    sums, taught = [], []
    for ending in row.endings:
        prompt = [tokenizer.bos_id, *tokenizer.encode(row.prompt)]
        whole = prompt + tokenizer.encode(" " + ending)
        steps = [float(log_p[whole[t - 1], whole[t]]) for t in range(len(prompt), len(whole))]
        sums.append(sum(steps))
        if ending == row.right:
            taught = [*steps, float(log_p[whole[-1], tokenizer.eos_id])]
    return sums, taught


@pytest.mark.parametrize("batch_tokens", [1, 100, 100000])
def test_scores_are_those_of_one_ending_at_a_time(bigram, tokenizer, batch_tokens):
    asked = rows(20)
    score = task(asked).run(bigram, tokenizer, batch_tokens)
    hits: list[bool] = []
    norm_hits: list[bool] = []
    taught: list[float] = []
    for row in asked:
        sums, steps = by_hand(bigram, tokenizer, row)
        norms = [s / len(ending) for s, ending in zip(sums, row.endings, strict=True)]
        hits.append(max(range(4), key=lambda i: sums[i]) == row.label)
        norm_hits.append(max(range(4), key=lambda i: norms[i]) == row.label)
        taught += steps
    assert score.metrics["acc"] == Estimate.of_share(hits)
    assert score.metrics["acc_norm"] == Estimate.of_share(norm_hits)
    assert (score.outcomes["right"], score.outcomes["right_norm"]) == tuple(
        "".join(str(int(x)) for x in each) for each in (hits, norm_hits)
    )
    assert score.n == 20
    assert score.counts["loss_tokens"] == len(taught)
    assert score.counts["loss"] == pytest.approx(-sum(taught) / len(taught), rel=1e-5)


def test_acc_norm_divides_by_characters_without_the_space(bigram, tokenizer):
    asked = [Question("Q: x", ("aa", "in the other", "zqzqzqzqzqzq", "xkxkxkxkxkxkxk"), 1, "x")]
    with torch.no_grad():
        bigram.table.zero_()
    # Every token is equally unlikely: the sum prefers few tokens, the share per character many characters a token.
    tokens = [len(tokenizer.encode(" " + ending)) for ending in asked[0].endings]
    assert min(tokens) == tokens[0] < tokens[1]
    score = task(asked).run(bigram, tokenizer, 1000)
    assert (score.metrics["acc"].value, score.metrics["acc_norm"].value) == (0.0, 1.0)
    assert score.counts["loss"] == pytest.approx(math.log(512), rel=1e-6)


def test_a_model_that_knows_the_answers_gets_full_marks(bigram, tokenizer):
    asked = [Question("Q: the", ("x", "yes", "zz", "w"), 1, "x")]
    with torch.no_grad():
        bigram.table.fill_(0)
        path = [tokenizer.encode("Q: the")[-1], *tokenizer.encode(" yes"), tokenizer.eos_id]
        for a, b in pairwise(path):
            bigram.table[a, b] = 50.0
    score = task(asked).run(bigram, tokenizer, 1000)
    assert (score.metrics["acc"].value, score.metrics["acc_norm"].value) == (1.0, 1.0)
    assert score.counts["loss"] < 1e-6


def test_forwards_stay_under_their_tokens_without_gradients(bigram, tokenizer):
    told: list[tuple[int, int]] = []
    task(rows(10)).run(bigram, tokenizer, 200, lambda done, of: told.append((done, of)))
    assert all(b * t <= 200 for b, t in bigram.shapes)
    assert len(bigram.shapes) < 40
    assert not bigram.graded
    assert told[-1] == (40, 40)
    assert len(told) == len(bigram.shapes)


def test_a_model_that_gives_no_number_is_named_with_the_row(bigram, tokenizer):
    with torch.no_grad():
        bigram.table[:] = torch.nan
    with pytest.raises(ArithmeticError, match=r"row 0: .* not a number"):
        task(rows(2)).run(bigram, tokenizer, 1000)


def test_a_score_becomes_plain_values(bigram, tokenizer):
    score = task(rows(3)).run(bigram, tokenizer, 1000)
    plain = json.loads(json.dumps(score.to_dict()))
    assert plain["acc_norm"]["value"] == score.metrics["acc_norm"].value
    assert set(plain) == {"acc", "acc_norm", "n", "loss", "loss_tokens", "right", "right_norm"}
    assert TaskScore.from_dict(score.task, plain) == score


def test_what_changed_is_told_by_the_questions_that_one_model_alone_gets_right():
    info = task(rows(8)).info
    first, second = (
        TaskScore(info, {}, {"n": 8}, {"right": right, "right_norm": "0" * 8}) for right in ("11100000", "10111111")
    )
    change = second.since(first)
    assert change["acc"].difference == 0.5
    assert change["acc"].p_value == 2 * (1 + 6) / 2**6
    assert change["acc_norm"] == first.since(second)["acc_norm"]
    assert (change["acc_norm"].difference, change["acc_norm"].p_value) == (0, 1)


def test_guessing_is_right_once_in_as_many_endings(bigram, tokenizer):
    two = Question("Q: x", ("a", "b"), 0, "x")
    four = Question("Q: x", ("a", "b", "c", "d"), 3, "x")
    asked = task([two, four])
    for name in ("acc", "acc_norm"):
        baseline = asked.info.metrics[name].baseline
        assert (baseline.label, baseline.value) == ("guessing", (1 / 2 + 1 / 4) / 2)
    score = asked.run(bigram, tokenizer, 1000)
    sums = [by_hand(bigram, tokenizer, question)[0] for question in (two, four)]
    assert score.outcomes["right"] == "".join(
        str(int(max(range(len(each)), key=each.__getitem__) == question.label))
        for each, question in zip(sums, (two, four), strict=True)
    )
