"""Losses and gradients of policy-gradient objectives are those of TRL's GRPOTrainer on the same rollouts.

The trainer's own loss function runs on our model, one answer in each row; ours takes packed rows. Shapes: B answers,
T tokens.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from seektune.data.rollouts import Rollout, advantages, collate_rollouts
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.policy import PolicyGradient
from seektune.parallel.model import ParallelModel
from seektune.parallel.reference import at_tokens, with_reference
from tests.parity.test_trl import BOUND, Trained, models, ours, same

pytestmark = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")
__all__ = ["models"]

SIZES = [(3, 5), (3, 9), (7, 1), (7, 4)]
"""Tokens of prompt and answer of each rollout."""
REWARDS = [1.0, 0.0, 0.25, 1.0]
LONGEST = 12
BETA = 0.1


@pytest.fixture(scope="module")
def rollouts(models: Trained) -> list[Rollout]:
    """Answers with the log-probabilities of a model near the one that is trained, so that ratios are clipped."""
    dice = torch.Generator().manual_seed(3)

    def ids(count: int) -> list[int]:
        return torch.randint(2, 64, (count,), generator=dice).tolist()

    bare = [Rollout(ids(prompt), ids(answer), [0.0] * answer, 0.0) for prompt, answer in SIZES]
    batch = collate_rollouts([[each] for each in bare], pad_id=0)
    logprobs = at_tokens(ParallelModel.alone(models[1]).logprobs(batch))
    found = []
    for row, (each, reward) in enumerate(zip(bare, REWARDS, strict=True)):
        start = len(each.prompt)
        own = logprobs[row, start : start + len(each.answer)].tolist()
        found.append(replace(each, logprobs=own, reward=reward))
    signed = advantages(REWARDS[:2], scaled=True) + advantages(REWARDS[2:], scaled=True)
    with_signs = [replace(each, advantage=a) for each, a in zip(found, signed, strict=True)]
    return [*with_signs[:1], replace(with_signs[1], masked=True, truncated=True), *with_signs[2:]]


def trainer_of(**settings: Any) -> Any:
    """The attributes of a trainer that its loss reads."""

    accelerator = SimpleNamespace(device="cpu", num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    found = SimpleNamespace(model=SimpleNamespace(training=True), accelerator=accelerator, _metrics={})
    found._metrics["train"] = defaultdict(list)
    found.args = SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    found.aux_loss_enabled = found.use_vllm = found._entropy_bonus_enabled = False
    found.top_entropy_quantile = 1.0
    found.off_policy_mask_threshold = None
    found.current_gradient_accumulation_steps = 1
    found.max_completion_length = LONGEST
    vars(found).update(settings)
    return found


def theirs(models: Trained, rollouts: list[Rollout], trainer: Any) -> Tensor:
    """The loss of GRPOTrainer, of which each row is one answer without padding before it."""
    import trl

    width = max(len(each.answer) for each in rollouts)

    def padded(values: Callable[[Rollout], Any], dtype: torch.dtype) -> Tensor:
        rows = [torch.as_tensor(values(each), dtype=dtype) for each in rollouts]
        return torch.stack([torch.nn.functional.pad(x, (0, width - len(x))) for x in rows])

    def logprobs(model: DeepseekV4ForCausalLM) -> Tensor:
        found = []
        for each in rollouts:
            ids = torch.tensor([*each.prompt, *each.answer])
            logits = model(ids[None]).logits[0, len(each.prompt) - 1 : -1]
            own = logits.log_softmax(-1).gather(1, torch.tensor(each.answer)[:, None]).squeeze(1)
            found.append(torch.nn.functional.pad(own, (0, width - len(own))))
        return torch.stack(found)

    def given(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        return logprobs(models[0]), torch.zeros(len(rollouts), width), None

    trainer._get_per_token_logps_and_entropies = given
    mask = padded(lambda each: [0 if each.masked else 1] * len(each.answer), torch.long)
    with torch.no_grad():
        reference = logprobs(models[1]) if trainer.beta else None
    inputs = {
        "prompt_ids": torch.zeros(len(rollouts), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(rollouts), 1, dtype=torch.long),
        "completion_ids": padded(lambda each: each.answer, torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor([each.advantage for each in rollouts]),
        "old_per_token_logps": padded(lambda each: each.logprobs, torch.float32),
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    return trl.GRPOTrainer._compute_loss(trainer, models[0], inputs)


VARIANTS: dict[str, tuple[PolicyGradient, dict[str, Any]]] = {
    "grpo": (PolicyGradient(0.02, 0.02), {"loss_type": "grpo"}),
    "dr_grpo": (
        PolicyGradient(0.02, 0.02, aggregation="constant", max_new_tokens=LONGEST),
        {"loss_type": "dr_grpo"},
    ),
    "dapo": (PolicyGradient(0.02, 0.05, aggregation="token_mean"), {"loss_type": "dapo"}),
    "gspo": (PolicyGradient(1e-3, 2e-3, sequence_ratio=True), {"loss_type": "grpo"}),
    "cispo": (
        PolicyGradient(0.02, 0.01, aggregation="token_mean", clips_weight=True),
        {"loss_type": "cispo", "epsilon_high": 1.01},
    ),
    "kl": (PolicyGradient(0.02, 0.02, beta=BETA), {"loss_type": "grpo", "beta": BETA}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_grpo_trainer(models: Trained, rollouts: list[Rollout], name: str) -> None:
    objective, settings = VARIANTS[name]
    level = "sequence" if objective.sequence_ratio else "token"
    own = {"beta": 0.0, "epsilon_low": objective.epsilon, "epsilon_high": objective.epsilon_high}
    trainer = trainer_of(**{**own, "importance_sampling_level": level, **settings})
    batch = collate_rollouts([rollouts[:3], rollouts[3:]], pad_id=0)
    if objective.beta:
        batch = with_reference(batch, at_tokens(ParallelModel.alone(models[1]).logprobs(batch)))
    found = ours(models, objective, batch)
    same(models, found, theirs(models, rollouts, trainer))
    metrics = trainer._metrics["train"]
    if objective.beta:
        # TRL's is the mean over tokens; ours weights tokens as the loss does
        assert found["kl"] > 0
    if name == "dapo":
        assert found["clipped_low"] == pytest.approx(metrics["clip_ratio/low_mean"][0], rel=BOUND)
        assert found["clipped_high"] == pytest.approx(metrics["clip_ratio/high_mean"][0], rel=BOUND)
        assert found["clipped_low"] + found["clipped_high"] > 0
