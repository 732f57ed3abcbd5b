"""The sections of objectives that learn from answers which the model samples during training; does not import torch."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from seektune.rewards.config import MeasuredSection, RewardConfig, RewardSection, ToolServerConfig
from seektune.section import PathString, Positive, Section
from seektune.train.config import NotNegative
from seektune.train.objective_section import CheckpointReferenceConfig, FrozenModel, ObjectiveConfig, Offload


class RolloutConfig(ObjectiveConfig):
    """Base of the sections of objectives that learn from sampled answers."""

    compares: ClassVar[bool] = False
    samples: ClassVar[bool] = True
    group_size: PositiveInt = 1
    """Answers to each prompt."""
    max_new_tokens: PositiveInt = 256
    """Maximum tokens of an answer."""
    temperature: Positive = 1.0
    """Temperature of sampling, and of the log-probabilities that a policy gradient compares."""
    steps_per_rollout: PositiveInt = 1
    """Optimizer steps on the answers that are sampled together."""
    tools: ToolServerConfig = ToolServerConfig()
    """Runs the tool calls of answers."""

    @property
    def rewards(self) -> list[RewardConfig]:
        """The sections of `reward`; none if answers are not rewarded."""
        return []


Variant = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]


class GrpoConfig(RolloutConfig, CheckpointReferenceConfig):
    """Group relative policy optimization (arXiv:2402.03300) on rewards of sampled answers, and its corrections."""

    name: Literal["grpo"]
    """Name of the objective."""
    variant: Variant = "grpo"
    """Defaults of the keys that are null: as published, or as Dr. GRPO, DAPO, GSPO or CISPO correct it."""
    reward: RewardSection
    """What an answer is rewarded for."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt, which are compared with each other."""
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
    """Weight of the divergence from the reference: `reference_checkpoint`, or the model without its new adapters, which
    needs `lora.targets`."""

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

    @model_validator(mode="after")
    def _reference_counts(self) -> Self:
        if self.reference_checkpoint is not None and not self.beta:
            raise ValueError("reference_checkpoint needs beta, the weight of the divergence from it")
        return self

    @property
    def reference_choice(self) -> Literal["adapters_off", "checkpoint"] | None:
        """As `ObjectiveConfig`."""
        if not self.beta:
            return None
        return "adapters_off" if self.reference_checkpoint is None else "checkpoint"

    @property
    def rewards(self) -> list[RewardConfig]:
        """As `RolloutConfig`."""
        return self.reward if isinstance(self.reward, list) else [self.reward]


class TeacherConfig(Section):
    """A teacher: a checkpoint, an adapter on the frozen weights of the model, or with neither the model without its
    adapters."""

    checkpoint: PathString | None = None
    """Checkpoint folder or Hub id, with the model's vocabulary; of any depth and width."""
    adapter: PathString | None = None
    """Folder of an adapter in PEFT's format for the model's own frozen weights, of which there is no copy."""
    label: str | None = None
    """Name in the metrics; null = its place in the list, from 0."""
    datasets: tuple[str, ...] = ()
    """Labels of the datasets whose prompts it teaches; none = those that no other teacher names."""
    weight: Positive = 1.0
    """Weight of its tokens in the loss."""
    quantized: bool = False
    """Keep the checkpoint's FP4 and FP8 weights quantized, dequantized only while in use."""
    offload: Offload = "none"
    """`stream` keeps its quantized weights on disk and reads them one block ahead; one process only."""

    @model_validator(mode="after")
    def _is_one_model(self) -> Self:
        if self.adapter is not None and self.checkpoint is not None:
            raise ValueError("checkpoint and adapter exclude each other; an adapter is on the model's own weights")
        if self.checkpoint is None and (self.quantized or self.offload == "stream"):
            raise ValueError("quantized and offload are of checkpoint, which is null")
        if self.offload == "stream" and not self.quantized:
            raise ValueError("offload stream needs quantized")
        return self


class OpdConfig(RolloutConfig):
    """On-policy distillation: reverse KL to teachers, over the whole vocabulary, on answers that the model samples."""

    distills: ClassVar[bool] = True
    name: Literal["opd"]
    """Name of the objective."""
    teachers: Annotated[list[TeacherConfig], Field(min_length=1)]
    """The teachers; the dataset of a prompt decides which of them teaches its answers."""
    reward: MeasuredSection = Field(default_factory=list)
    """What answers are measured by, in rollouts and on held-out prompts; nothing learns from it. [] = nothing."""

    @property
    def rewards(self) -> list[RewardConfig]:
        """As `RolloutConfig`."""
        return self.reward if isinstance(self.reward, list) else [self.reward]

    @property
    def frozen_models(self) -> list[FrozenModel]:
        """As `ObjectiveConfig`."""
        return [
            FrozenModel(
                f"objective.teachers.{number}.checkpoint", each.checkpoint, each.quantized, each.offload == "stream"
            )
            for number, each in enumerate(self.teachers)
            if each.checkpoint is not None
        ]

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("teachers need labels that differ")
        return self

    @property
    def labels(self) -> list[str]:
        """The names of the teachers in the metrics."""
        return [str(number) if each.label is None else each.label for number, each in enumerate(self.teachers)]

    def teacher_numbers(self, datasets: Sequence[str]) -> list[int]:
        """The teacher of each dataset, by its place in the list.

        Raises:
            ValueError: a dataset has no teacher or several, or a teacher has none or names an unknown one.
        """
        named = {label: number for number, each in enumerate(self.teachers) for label in each.datasets}
        others = [number for number, each in enumerate(self.teachers) if not each.datasets]
        if sum(len(each.datasets) for each in self.teachers) > len(named) or len(others) > 1:
            raise ValueError("objective.teachers: a dataset has several teachers; set datasets of each teacher")
        if unknown := sorted(named.keys() - set(datasets)):
            raise ValueError(f"objective.teachers names the dataset {unknown[0]}; data has {', '.join(datasets)}")
        found = [named.get(label, others[0] if others else -1) for label in datasets]
        if -1 in found:
            raise ValueError(f"objective.teachers: no teacher for the dataset {datasets[found.index(-1)]}")
        if idle := sorted(set(range(len(self.teachers))) - set(found)):
            raise ValueError(f"objective.teachers.{idle[0]} teaches no dataset; remove it")
        return found
