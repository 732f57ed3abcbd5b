"""The section `objective` of a recipe: what a model is trained for, by name; does not import torch."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from seektune.rewards.config import RewardConfig, RewardSection
from seektune.section import OneOf, PathString, Positive, Section
from seektune.train.config import NotNegative, Share

ReferenceChoice = Literal["auto", "adapters_off", "cached"]
Smoothing = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]


class ObjectiveConfig(Section):
    """Base of the sections of objectives."""

    compares: ClassVar[bool] = True
    """Whether it learns from chosen and rejected answers, and not from texts."""
    samples: ClassVar[bool] = False
    """Whether it learns from answers that the model samples during training."""
    name: str
    """Name of the objective."""

    @property
    def reference_choice(self) -> ReferenceChoice | None:
        """Where the reference model's log-probabilities come from; None for objectives without a reference."""
        return None


class ReferencedConfig(ObjectiveConfig):
    """Base of the sections of objectives that compare with a reference model."""

    beta: Positive = 0.1
    """Strength of the pull to the reference model."""
    reference: ReferenceChoice = "auto"
    """The reference: `adapters_off` is the model without its new adapters, at each step; `cached` the model as training
    begins, computed once and kept in the run folder. `auto` takes the first with `lora.targets`, if it can."""

    @property
    def reference_choice(self) -> ReferenceChoice | None:
        """As `ObjectiveConfig`."""
        return self.reference


class CrossEntropyConfig(ObjectiveConfig):
    """The cross-entropy of the next token."""

    compares: ClassVar[bool] = False
    name: Literal["cross_entropy"] = "cross_entropy"
    """Name of the objective."""


class DistillConfig(ObjectiveConfig):
    """Distillation from a teacher's distributions over the whole vocabulary."""

    compares: ClassVar[bool] = False
    name: Literal["distill"]
    """Name of the objective."""
    teacher: PathString | None = None
    """Checkpoint folder or Hub id of the teacher, with the model's vocabulary; null = the model without adapters."""
    teacher_quantized: bool = False
    """Keep the teacher's FP4 and FP8 weights quantized, dequantized only while in use."""
    teacher_offload: Literal["none", "stream"] = "none"
    """`stream` keeps the teacher's quantized weights on disk and reads them one block ahead; one process only."""
    share: Share = 1.0
    """Share of the divergence in the loss; cross-entropy has the rest."""
    temperature: Positive = 1.0
    """Divides the logits of both; the divergence is multiplied by its square."""
    divergence: Literal["forward", "reverse"] = "forward"
    """`forward`: KL(teacher || model), weighted by the teacher's probabilities; `reverse`: KL(model || teacher)."""


class DpoConfig(ReferencedConfig):
    """Direct preference optimization (arXiv:2305.18290)."""

    name: Literal["dpo"]
    """Name of the objective."""
    label_smoothing: Smoothing = 0.0
    """Share of the pairs whose answers are assumed to be swapped (conservative DPO)."""
    length_normalized: bool = False
    """Divide the log-ratio of an answer by its number of tokens."""
    supervised_weight: NotNegative = 0.0
    """Weight of the chosen answer's cross-entropy per token, in addition."""


class IpoConfig(ReferencedConfig):
    """Identity preference optimization (arXiv:2310.12036)."""

    name: Literal["ipo"]
    """Name of the objective."""
    length_normalized: bool = True
    """Divide the log-ratio of an answer by its number of tokens."""
    supervised_weight: NotNegative = 0.0
    """Weight of the chosen answer's cross-entropy per token, in addition."""


class KtoConfig(ReferencedConfig):
    """Kahneman-Tversky optimization (arXiv:2402.01306), on the answers of pairs, each by itself."""

    name: Literal["kto"]
    """Name of the objective."""
    desirable_weight: NotNegative = 1.0
    """Weight of chosen answers."""
    undesirable_weight: NotNegative = 1.0
    """Weight of rejected answers."""


class OrpoConfig(ObjectiveConfig):
    """Odds-ratio preference optimization (arXiv:2403.07691); needs no reference model."""

    name: Literal["orpo"]
    """Name of the objective."""
    beta: Positive = 0.1
    """Weight of the odds ratio beside the chosen answer's cross-entropy per token."""


class SimpoConfig(ObjectiveConfig):
    """Simple preference optimization (arXiv:2405.14734); needs no reference model."""

    name: Literal["simpo"]
    """Name of the objective."""
    beta: Positive = 2.0
    """Scale of the reward, the log-probability per token."""
    gamma: NotNegative = 1.0
    """Margin of the rewards that is aimed at."""
    label_smoothing: Smoothing = 0.0
    """Share of the pairs whose answers are assumed to be swapped."""
    supervised_weight: NotNegative = 0.0
    """Weight of the chosen answer's cross-entropy per token, in addition."""


Variant = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]


class GrpoConfig(ObjectiveConfig):
    """Group relative policy optimization (arXiv:2402.03300) on rewards of sampled answers, and its corrections."""

    compares: ClassVar[bool] = False
    samples: ClassVar[bool] = True
    name: Literal["grpo"]
    """Name of the objective."""
    variant: Variant = "grpo"
    """Defaults of the keys that are null: as published, or as Dr. GRPO, DAPO, GSPO or CISPO correct it."""
    reward: RewardSection
    """What an answer is rewarded for."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt, which are compared with each other."""
    max_new_tokens: PositiveInt = 256
    """Maximum tokens of an answer."""
    temperature: Positive = 1.0
    """Temperature of sampling, and of the log-probabilities that the loss compares."""
    steps_per_rollout: PositiveInt = 1
    """Optimizer steps on the answers that are sampled together."""
    resample: NonNegativeInt | None = None
    """Maximum rounds of new prompts for groups whose rewards are all equal; null = 0, or 3 for dapo."""
    overlong: Literal["keep", "mask", "penalize"] = "keep"
    """Answers that are cut off: rewarded as they are, ignored, or `penalize` as DAPO's soft punishment does."""
    overlong_buffer: PositiveInt = 32
    """Last tokens before `max_new_tokens` in which `penalize` takes away up to 1."""
    epsilon: NotNegative | None = None
    """How far a ratio of probabilities may fall below 1; null = 0.2, or 3e-4 for gspo; not of cispo."""
    epsilon_high: NotNegative | None = None
    """How far it may rise above 1; null = 0.2, 0.28 for dapo, 4e-4 for gspo, 4 for cispo."""
    aggregation: Literal["sequence_mean", "token_mean", "constant"] | None = None
    """Mean over answers of means over tokens, mean over tokens, or sum over answers x `max_new_tokens`; null = the
    first, `token_mean` for dapo and cispo, `constant` for dr_grpo."""
    scale_rewards: bool | None = None
    """Divide advantages by the standard deviation of the group's rewards; null = all but dr_grpo."""
    beta: NotNegative = 0.0
    """Weight of the divergence from the reference, the model without its new adapters; needs `lora.targets`."""

    @model_validator(mode="after")
    def _cispo_has_no_lower_bound(self) -> Self:
        if self.variant == "cispo" and self.epsilon is not None:
            raise ValueError("epsilon must be null: variant cispo clips above alone, at epsilon_high")
        return self

    @model_validator(mode="after")
    def _buffer_is_shorter(self) -> Self:
        if self.overlong == "penalize" and self.overlong_buffer >= self.max_new_tokens:
            raise ValueError(f"overlong_buffer must be below max_new_tokens {self.max_new_tokens}")
        return self

    @property
    def reference_choice(self) -> ReferenceChoice | None:
        """As `ObjectiveConfig`."""
        return "adapters_off" if self.beta else None

    @property
    def rewards(self) -> list[RewardConfig]:
        """The sections of `reward`."""
        return self.reward if isinstance(self.reward, list) else [self.reward]


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "cross_entropy": CrossEntropyConfig,
    "distill": DistillConfig,
    "dpo": DpoConfig,
    "ipo": IpoConfig,
    "kto": KtoConfig,
    "orpo": OrpoConfig,
    "simpo": SimpoConfig,
    "grpo": GrpoConfig,
}
"""Sections by the value of `objective.name`; the first is the default."""

ObjectiveSection = Annotated[ObjectiveConfig, OneOf("name", OBJECTIVES)]
"""The type of a recipe's `objective`."""
