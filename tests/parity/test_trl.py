"""Losses, gradients and rewards of preference objectives are those of TRL's trainers on the same weights and pairs.

The trainers' own loss functions run on our model; ours takes packed rows of several pairs. Shapes: B rows, T tokens.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from seektune.data.answers import AnswerExamples, PairExamples, documents_of
from seektune.data.example import Example
from seektune.data.examples import ExampleList
from seektune.data.packing import collate
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.objective import Objective, TokenLogprobs
from seektune.model.preference import DPO, IPO, KTO, ORPO, AnswerLogprobs, AnswerPairs, PairLoss, SimPO
from seektune.model.preference_objective import AnswerFeedback, Preference, pairs_of
from seektune.model.step_loss import StepLoss
from seektune.parallel.model import ParallelModel
from seektune.parallel.reference import at_tokens, with_reference
from seektune.sequence import IGNORE_INDEX, Batch

pytestmark = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")

SIZES = [(3, 5, 9), (7, 4, 2), (1, 12, 11), (5, 1, 6)]
"""Tokens of prompt, chosen and rejected answer of each pair."""
BOUND = 1e-5
Trained = tuple[DeepseekV4ForCausalLM, DeepseekV4ForCausalLM]


@pytest.fixture(scope="module")
def models(toy_model: Callable[..., DeepseekV4ForCausalLM]) -> Trained:
    """The model that is trained, and the reference: near it, so that margins are neither 0 nor extreme."""
    policy = toy_model()
    reference = toy_model()
    dice = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for x in reference.parameters():
            x.mul_(1 + 0.05 * torch.randn(x.shape, generator=dice, dtype=x.dtype))
    return policy, reference


@pytest.fixture(scope="module")
def pairs() -> PairExamples:
    dice = torch.Generator().manual_seed(3)

    def ids(count: int) -> list[int]:
        return torch.randint(2, 64, (count,), generator=dice).tolist()

    found = []
    for prompt, *answers in SIZES:
        begin = ids(prompt)
        found += [Example(begin + ids(n), [False] * prompt + [True] * n, "made") for n in answers]
    return PairExamples(ExampleList(found))


class Padded(SimpleNamespace):
    """Documents as TRL's collators make them: one in each row, `[B, T]` each."""

    @classmethod
    def of(cls, documents: Sequence[Example]) -> "Padded":
        batch = collate([[each] for each in documents], pad_id=0)
        mask = (batch.labels != IGNORE_INDEX).long()
        return cls(input_ids=batch.tokens, attention_mask=(batch.documents > 0).long(), completion_mask=mask)


def as_trl_sees(model: DeepseekV4ForCausalLM) -> Callable[..., Any]:
    """What TRL's trainers call as a model with a fused head."""

    def forward(input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> Any:
        logits = model(input_ids, documents=attention_mask).logits[:, :-1]
        targets = labels[:, 1:]
        found = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
        zero = torch.zeros_like(found)
        log_probs = torch.where(targets != IGNORE_INDEX, found, zero)
        return SimpleNamespace(log_probs=log_probs, entropy=zero, mean_logits=zero, is_top1=zero.bool())

    forward.training = True  # type: ignore[attr-defined]
    return forward


def trainer_of(**settings: Any) -> Any:
    """The attributes of a trainer that its loss reads."""
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    found = SimpleNamespace(model=SimpleNamespace(training=True), accelerator=accelerator, _metrics={})
    found._metrics["train"] = defaultdict(list)
    found.aux_loss_enabled = found.use_weighting = False
    found.precompute_ref_logps = found.calculate_KL = True
    found.ld_alpha = None
    found._total_train_tokens = 0
    found._tp_size = 1
    found.f_divergence_type = "reverse_kl"
    found.loss_weights = [1.0]
    vars(found).update(settings)
    return found


@torch.no_grad()
def sums(model: DeepseekV4ForCausalLM, rows: Padded) -> Tensor:
    """The log-probabilities of the completions, `[B]`."""
    labels = rows.input_ids.masked_fill(rows.completion_mask == 0, IGNORE_INDEX)
    return as_trl_sees(model)(rows.input_ids, rows.attention_mask, labels).log_probs.sum(1)


def dpo_loss(models: Trained, pairs: PairExamples, which: Sequence[int], trainer: Any) -> Tensor:
    """The loss of DPOTrainer on some of the pairs."""
    import trl

    documents = [documents_of(pairs.example(n))[rejected] for rejected in (0, 1) for n in which]
    rows = Padded.of(documents)
    chosen, rejected = sums(models[1], rows).chunk(2)
    inputs = {**vars(rows), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return trl.DPOTrainer._compute_loss(trainer, as_trl_sees(models[0]), inputs, False)


def kto_loss(models: Trained, answers: AnswerExamples, trainer: Any) -> Tensor:
    """The loss of KTOTrainer on all answers."""
    import trl

    own, other = zip(*(documents_of(answers.example(n)) for n in range(len(answers))), strict=True)
    rows = Padded.of(own)
    mismatched = Padded.of(other)
    trainer._compute_kl_logps = lambda model, batch: trl.KTOTrainer._compute_kl_logps(trainer, model, batch)
    inputs = {
        **vars(rows),
        **{f"KL_{name}": x for name, x in vars(mismatched).items()},
        "label": torch.tensor([True, False] * (len(answers) // 2)),
        "ref_logps": sums(models[1], rows),
        "ref_KL_logps": sums(models[1], mismatched),
    }
    return trl.KTOTrainer._compute_loss(trainer, as_trl_sees(models[0]), inputs, False)


def packed(models: Trained, examples: Any, which: Sequence[int]) -> Batch:
    """The examples in two packed rows, with the reference's log-probabilities."""
    found = [examples.example(n) for n in which]
    batch = collate([row for row in (found[::2], found[1::2]) if row], pad_id=0)
    return with_reference(batch, at_tokens(ParallelModel.alone(models[1]).logprobs(batch)))


def ours(models: Trained, objective: Objective, batch: Batch) -> dict[str, float]:
    """Loss and parts of a training step; gradients are left in the model."""
    models[0].zero_grad()
    wanted = StepLoss(batch.taught(), 1, mtp=False, objective=objective, count=objective.count(batch))
    return objective.means(ParallelModel.alone(models[0]).train([batch], wanted, lambda phase: None).totals())


def gradients(model: DeepseekV4ForCausalLM) -> dict[str, Tensor]:
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def same(models: Trained, found: dict[str, float], theirs: Tensor) -> None:
    """Loss and gradients on every weight."""
    assert found["loss"] == pytest.approx(theirs.item(), rel=BOUND)
    mine = gradients(models[0])
    models[0].zero_grad()
    theirs.backward()
    expected = gradients(models[0])
    assert mine.keys() >= expected.keys()
    scale = max(float(x.norm()) for x in expected.values())
    assert scale > 1e-3
    for name, x in expected.items():
        assert float((mine[name] - x).norm()) <= BOUND * max(float(x.norm()), 1e-3 * scale), name


REWARDS = {
    "chosen_reward": "rewards/chosen",
    "rejected_reward": "rewards/rejected",
    "reward_margin": "rewards/margins",
    "reward_accuracy": "rewards/accuracies",
}
LOSSES: list[tuple[str, PairLoss]] = [
    ("sigmoid", DPO(beta=0.3)),
    ("sigmoid_norm", DPO(beta=0.3, length_normalized=True)),
    ("ipo", IPO(beta=0.3)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "loss"), LOSSES, ids=[kind for kind, _ in LOSSES])
def test_dpo_trainer(models: Trained, pairs: PairExamples, kind: str, loss: PairLoss) -> None:
    trainer = trainer_of(beta=0.3, loss_types=[kind])
    everything = range(len(pairs))
    found = ours(models, Preference(loss), packed(models, pairs, everything))
    same(models, found, dpo_loss(models, pairs, everything, trainer))
    if kind == "sigmoid":
        metrics = trainer._metrics["train"]
        assert {name: found[name] for name in REWARDS} == pytest.approx(
            {name: metrics[theirs][0] for name, theirs in REWARDS.items()}, rel=BOUND, abs=BOUND
        )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "loss"), LOSSES, ids=[kind for kind, _ in LOSSES])
def test_dpo_trainer_pair_by_pair(models: Trained, pairs: PairExamples, kind: str, loss: PairLoss) -> None:
    trainer = trainer_of(beta=0.3, loss_types=[kind])
    batch = packed(models, pairs, [0, 2, 1, 3])
    with torch.no_grad():
        logprobs = ParallelModel.alone(models[0]).logprobs(batch)
        mine = loss.losses(pairs_of(TokenLogprobs.given(logprobs, batch)))
        theirs = [float(dpo_loss(models, pairs, [n], trainer)) for n in (0, 1, 2, 3)]
    assert mine.tolist() == pytest.approx(theirs, rel=BOUND)


@pytest.mark.slow
def test_kto_trainer(models: Trained, pairs: PairExamples) -> None:
    answers = AnswerExamples(pairs.singles(), length=100)
    trainer = trainer_of(beta=0.3, desirable_weight=0.8, undesirable_weight=1.3, loss_type="kto")
    found = ours(models, AnswerFeedback(KTO(0.3, 0.8, 1.3)), packed(models, answers, range(len(answers))))
    same(models, found, kto_loss(models, answers, trainer))
    metrics = trainer._metrics["train"]
    assert found["kl"] == pytest.approx(metrics["kl"][0], rel=BOUND)
    for name in ("chosen_reward", "rejected_reward"):
        assert found[name] == pytest.approx(metrics[REWARDS[name]][0], rel=BOUND, abs=BOUND)


def mean_pairs() -> AnswerPairs:
    """Log-probabilities of 64 made answers, with gradient."""
    dice = torch.Generator().manual_seed(5)
    both = []
    for _ in range(2):
        tokens = torch.randint(1, 40, (64,), generator=dice)
        means = -3 * torch.rand(64, generator=dice, dtype=torch.float64) - 1e-3
        both.append(AnswerLogprobs((means * tokens).requires_grad_(), tokens))
    return AnswerPairs(*both)


def check_of_means(loss: PairLoss, theirs: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Of each pair, values and gradients of functions of the log-probabilities per token."""
    pairs = mean_pairs()
    inputs = (pairs.chosen.policy_P, pairs.rejected.policy_P)
    mine = loss.losses(pairs)
    expected = theirs(pairs.chosen.mean(), pairs.rejected.mean())
    torch.testing.assert_close(mine, expected.double(), rtol=BOUND, atol=BOUND)
    found = torch.autograd.grad(mine.sum(), inputs)
    for x, y in zip(found, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=BOUND, atol=BOUND)


@pytest.mark.slow
def test_orpo_trainer() -> None:
    """TRL adds the mean cross-entropy of prompt and chosen answer; ours is that of each chosen answer."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    trainer = trainer_of(beta=0.2)

    def theirs(chosen: Tensor, rejected: Tensor) -> Tensor:
        return -chosen - orpo.ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]

    check_of_means(ORPO(beta=0.2), theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_of_cpo_trainer(smoothing: float) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    trainer = trainer_of(beta=2.0, alpha=0.0, loss_type="simpo", simpo_gamma=0.7, label_smoothing=smoothing)
    check_of_means(
        SimPO(beta=2.0, gamma=0.7, label_smoothing=smoothing),
        lambda chosen, rejected: cpo.CPOTrainer.cpo_loss(trainer, chosen, rejected)[0],
    )
