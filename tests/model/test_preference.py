"""Preference losses equal their formulas, written out here number by number; gradients equal the formulas' own."""

import math
from collections.abc import Callable

import pytest
import torch

from seektune.model.preference import (
    DPO,
    IPO,
    KTO,
    ORPO,
    AnswerLogprobs,
    AnswerPairs,
    PairLoss,
    SimPO,
    kto_baseline,
    supervised,
)

CHOSEN = [(-12.0, 5, -14.5), (-3.25, 2, -2.0), (-40.0, 31, -39.0), (-0.01, 1, -2.5)]
REJECTED = [(-15.0, 7, -13.5), (-1.5, 2, -6.0), (-55.0, 20, -50.0), (-9.0, 3, -8.0)]
"""Log-probability, tokens and the reference's log-probability of four pairs."""
Answer = tuple[float, int, float]


def answers(rows: list[Answer]) -> AnswerLogprobs:
    policy, tokens, reference = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True))
    return AnswerLogprobs(policy.requires_grad_(), tokens, reference)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gap(chosen: Answer, rejected: Answer) -> float:
    return (chosen[0] - chosen[2]) - (rejected[0] - rejected[2])


def gap_per_token(chosen: Answer, rejected: Answer) -> float:
    return (chosen[0] - chosen[2]) / chosen[1] - (rejected[0] - rejected[2]) / rejected[1]


def smoothed(x: float, smoothing: float) -> float:
    return -(1 - smoothing) * math.log(sigmoid(x)) - smoothing * math.log(sigmoid(-x))


def odds_ratio(chosen: Answer, rejected: Answer) -> float:
    p, q = (math.exp(answer[0] / answer[1]) for answer in (chosen, rejected))
    return (p / (1 - p)) / (q / (1 - q))


def orpo(chosen: Answer, rejected: Answer) -> float:
    return -chosen[0] / chosen[1] - 0.3 * math.log(sigmoid(math.log(odds_ratio(chosen, rejected))))


CASES: dict[str, tuple[PairLoss, Callable[[Answer, Answer], float]]] = {
    "dpo": (DPO(beta=0.3), lambda c, r: -math.log(sigmoid(0.3 * gap(c, r)))),
    "dpo smoothed": (DPO(beta=0.3, label_smoothing=0.2), lambda c, r: smoothed(0.3 * gap(c, r), 0.2)),
    "dpo per token": (
        DPO(beta=2.0, length_normalized=True),
        lambda c, r: -math.log(sigmoid(2 * gap_per_token(c, r))),
    ),
    "ipo": (IPO(beta=0.4), lambda c, r: (gap_per_token(c, r) - 1 / 0.8) ** 2),
    "ipo of sums": (IPO(beta=0.4, length_normalized=False), lambda c, r: (gap(c, r) - 1 / 0.8) ** 2),
    "simpo": (SimPO(beta=2.5, gamma=1.4), lambda c, r: smoothed(2.5 * (c[0] / c[1] - r[0] / r[1]) - 1.4, 0.0)),
    "simpo smoothed": (
        SimPO(beta=2.5, gamma=1.4, label_smoothing=0.1),
        lambda c, r: smoothed(2.5 * (c[0] / c[1] - r[0] / r[1]) - 1.4, 0.1),
    ),
    "orpo": (ORPO(beta=0.3), orpo),
}


def slope(function: Callable[[float], float], at: float) -> float:
    """The derivative by central differences."""
    step = 1e-5
    return (function(at + step) - function(at - step)) / (2 * step)


@pytest.mark.parametrize(("loss", "formula"), CASES.values(), ids=CASES)
def test_losses_and_gradients_are_those_of_the_formula(loss, formula):
    pairs = AnswerPairs(answers(CHOSEN), answers(REJECTED))
    found = loss.losses(pairs)
    assert found.tolist() == pytest.approx([formula(c, r) for c, r in zip(CHOSEN, REJECTED, strict=True)], rel=1e-9)
    gradients = torch.autograd.grad(found.sum(), (pairs.chosen.policy_P, pairs.rejected.policy_P))
    for n, (chosen, rejected) in enumerate(zip(CHOSEN, REJECTED, strict=True)):
        by_chosen = slope(lambda x, c=chosen, r=rejected: formula((x, *c[1:]), r), chosen[0])
        by_rejected = slope(lambda x, c=chosen, r=rejected: formula(c, (x, *r[1:])), rejected[0])
        assert float(gradients[0][n]) == pytest.approx(by_chosen, rel=1e-4, abs=1e-8)
        assert float(gradients[1][n]) == pytest.approx(by_rejected, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("loss", [DPO(), IPO(), SimPO(), ORPO()], ids=lambda loss: type(loss).__name__)
def test_the_margin_is_the_reward_of_the_chosen_over_the_rejected(loss):
    pairs = AnswerPairs(answers(CHOSEN), answers(REJECTED))
    swapped = AnswerPairs(pairs.rejected, pairs.chosen)
    margins = loss.margins(pairs)
    torch.testing.assert_close(margins, -loss.margins(swapped))
    chosen, _ = torch.autograd.grad(margins.sum(), (pairs.chosen.policy_P, pairs.rejected.policy_P))
    assert (chosen > 0).all()


@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_kto_weighs_desirable_and_undesirable_answers(shift):
    found = answers(CHOSEN)
    desirable = torch.tensor([True, False, True, False])
    baseline = torch.tensor(shift, dtype=torch.float64, requires_grad=True)
    losses = KTO(beta=0.2, desirable_weight=1.5, undesirable_weight=0.7).losses(found, desirable, baseline)
    expected, slopes = [], []
    for (policy, _, reference), good in zip(CHOSEN, desirable.tolist(), strict=True):
        value = sigmoid(0.2 * (policy - reference - shift) * (1 if good else -1))
        weight = 1.5 if good else 0.7
        expected.append(weight * (1 - value))
        slopes.append(weight * value * (1 - value) * 0.2 * (-1 if good else 1))
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), found.policy_P)
    assert gradient.tolist() == pytest.approx(slopes, rel=1e-12)


def test_the_baseline_of_kto_is_never_negative_and_has_no_gradient():
    low, high = answers([(-9.0, 2, -1.0), (-3.0, 4, -2.0)]), answers([(-1.0, 2, -4.0), (-3.0, 4, -2.0)])
    assert float(kto_baseline(low)) == 0
    assert float(kto_baseline(high)) == pytest.approx(1.0)
    assert not kto_baseline(high).requires_grad


def test_losses_without_a_reference_need_none_and_the_others_say_so():
    bare = [AnswerLogprobs(x.policy_P, x.tokens_P) for x in (answers(CHOSEN), answers(REJECTED))]
    pairs = AnswerPairs(*bare)
    assert (SimPO().losses(pairs) > 0).all()
    assert (ORPO().losses(pairs) > 0).all()
    with pytest.raises(ValueError, match="needs the log-probabilities of a reference model"):
        DPO().losses(pairs)


def test_the_supervised_term_is_the_cross_entropy_per_token():
    assert supervised(answers(CHOSEN)).tolist() == pytest.approx([2.4, 1.625, 40 / 31, 0.01])


def test_odds_are_exact_where_probabilities_are_near_zero_and_one():
    sure = AnswerLogprobs(torch.tensor([-1e-6]), torch.tensor([1.0]))
    never = AnswerLogprobs(torch.tensor([-90.0]), torch.tensor([1.0]))
    loss = ORPO(beta=1.0).losses(AnswerPairs(never, sure))
    assert loss.item() == pytest.approx(90 + 90 + math.log(1e6), rel=1e-5)


@pytest.mark.parametrize("sure", [0.0, -1e-9])
def test_odds_of_a_certain_answer_have_finite_values_and_gradients(sure):
    certain, other = (AnswerLogprobs(torch.tensor([x], requires_grad=True), torch.tensor([1.0])) for x in (sure, -2.0))
    for pairs in (AnswerPairs(certain, other), AnswerPairs(other, certain)):
        loss = ORPO(beta=1.0).losses(pairs).sum()
        gradients = torch.autograd.grad(loss, (certain.policy_P, other.policy_P))
        assert all(torch.isfinite(x).all() for x in (loss, *gradients))
