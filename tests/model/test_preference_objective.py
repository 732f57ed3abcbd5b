"""Preference objectives find their pairs in packed rows and neighbouring ones, and count what they average over."""

import pytest
import torch

from seektune.model.head import Taught
from seektune.model.objective import TokenLogprobs
from seektune.model.preference import DPO, KTO, ORPO, AnswerLogprobs, AnswerPairs, kto_baseline
from seektune.model.preference_objective import AnswerFeedback, Preference
from seektune.sequence import Batch, SequenceLayout

NUMBERS = [[3, 3, 3, 3, -3, -3, -3, 7, 7, 0], [-7, -7, -7, -7, -7, 9, 9, 9, 0, 0], [-2, -2, 2, 2, 2, 2, 2, 0, 0, 0]]
"""Pair 3 is in one row, the answers of 7 in two; 9 has no counterpart, and the rejected answer of 2 teaches nothing."""


@pytest.fixture
def batch() -> Batch:
    numbers = torch.tensor(NUMBERS)
    documents = torch.tensor(
        [[1] * 4 + [2] * 3 + [3] * 2 + [0], [1] * 5 + [2] * 3 + [0] * 2, [1] * 2 + [2] * 5 + [0] * 3]
    )
    tokens = torch.randint(11, documents.shape)
    labels = torch.where(documents > 0, tokens, -100)
    labels[2, :2] = -100
    return Batch(tokens, labels, documents, {"pairs": numbers, "reference": -torch.rand(documents.shape) * 4})


def logprobs_of(batch: Batch) -> tuple[TokenLogprobs, torch.Tensor]:
    hidden = torch.randn(*batch.tokens.shape, 6, dtype=torch.float64, requires_grad=True)
    layout = SequenceLayout.from_documents(batch.documents)
    weight = torch.randn(11, 6, dtype=torch.float64)
    return TokenLogprobs.of(hidden, layout, Taught(batch.labels, 1, batch.columns), weight), hidden


def sums(batch: Batch, tokens: TokenLogprobs, documents: list[tuple[int, int]]) -> AnswerLogprobs:
    """Of documents, by their row and the number of the pair."""
    layout = SequenceLayout.from_documents(batch.documents)
    rows = torch.arange(3)[:, None].expand(batch.tokens.shape)
    rows_N, _ = layout.taught(rows, layout.targets(batch.labels, 1))
    masks = [(rows_N == row) & (tokens.columns["pairs"] == number) for row, number in documents]
    policy = torch.stack([tokens.values_N[mask].sum() for mask in masks])
    reference = torch.stack([tokens.columns["reference"][mask].sum() for mask in masks])
    return AnswerLogprobs(policy, torch.tensor([float(mask.sum()) for mask in masks]), reference)


@pytest.mark.parametrize("pair_loss", [DPO(beta=0.5), ORPO()], ids=["dpo", "orpo"])
def test_losses_gradients_and_parts_are_those_of_the_pairs(batch, pair_loss):
    tokens, hidden = logprobs_of(batch)
    objective = Preference(pair_loss, supervised_weight=0.25)
    assert objective.count(batch) == 2
    found = objective.loss(tokens, 2)
    pairs = AnswerPairs(sums(batch, tokens, [(0, 3), (0, 7)]), sums(batch, tokens, [(0, -3), (1, -7)]))
    expected = (pair_loss.losses(pairs) - 0.25 * pairs.chosen.mean()).mean()
    torch.testing.assert_close(found.loss, expected, rtol=1e-6, atol=0)
    gradients = (torch.autograd.grad(x, hidden, retain_graph=True)[0] for x in (found.loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
    assert found.parts.keys() == set(objective.part_names)
    margins = pair_loss.margins(pairs)
    assert float(found.parts["reward_margin"]) == pytest.approx(margins.mean().item(), rel=1e-5)
    assert float(found.parts["reward_accuracy"]) == (margins > 0).double().mean().item()
    assert float(found.parts["chosen_tokens"]) == pytest.approx((3 + 1) / 2)
    assert float(found.parts["rejected_tokens"]) == pytest.approx((2 + 4) / 2)


def test_single_answers_are_compared_with_those_to_other_prompts(batch):
    """Of KTO: each numbered document is an answer, and those without a number give the baseline."""
    batch.columns["pairs"][0, 7:9] = 0
    batch.columns["pairs"][1, 5:8] = 0
    batch.columns["reference"][:] = -6.0
    tokens, hidden = logprobs_of(batch)
    objective = AnswerFeedback(KTO(beta=0.3, desirable_weight=0.7))
    assert objective.count(batch) == 4
    found = objective.loss(tokens, 4)
    own = sums(batch, tokens, [(0, 3), (0, -3), (1, -7), (2, 2)])
    layout = SequenceLayout.from_documents(batch.documents)
    chosen = torch.tensor([True, False, False, True])
    places = [(0, 7), (1, 5)]
    values = [tokens.values_N[tokens.documents_N == layout.numbered()[0][place]].sum() for place in places]
    lengths = torch.tensor([1.0, 2.0])
    baseline = kto_baseline(AnswerLogprobs(torch.stack(values), lengths, -6.0 * lengths))
    assert baseline > 0, "the baseline must count"
    losses = objective.kto.losses(own, chosen, baseline)
    torch.testing.assert_close(found.loss, losses.mean(), rtol=1e-6, atol=0)
    gradients = (torch.autograd.grad(x, hidden, retain_graph=True)[0] for x in (found.loss, losses.mean()))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
    means = objective.means({name: float(value) for name, value in found.parts.items()})
    rewards = 0.3 * own.ratio()
    assert means["chosen_share"] == 0.5
    assert means["chosen_reward"] == pytest.approx(rewards[chosen].mean().item(), rel=1e-5)
    assert means["rejected_reward"] == pytest.approx(rewards[~chosen].mean().item(), rel=1e-5)
    assert means["chosen_tokens"] == pytest.approx((3 + 4) / 2)
    assert means["kl"] == pytest.approx(baseline.item(), rel=1e-5)


def test_micro_batches_sum_to_the_step(batch):
    """Rows 0 and 1 hold all pairs; row 2 none, which is no error."""
    objective = Preference(DPO())
    rows = Batch.cat([batch.share(0, 3), batch.share(1, 3)])
    assert [objective.count(x) for x in (rows, batch.share(2, 3))] == [2, 0]
    tokens, hidden = logprobs_of(batch.share(2, 3))
    nothing = objective.loss(tokens, 2)
    assert nothing.loss.item() == 0
    assert (torch.autograd.grad(nothing.loss, hidden)[0] == 0).all()
