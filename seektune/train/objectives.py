"""The section `objective` of a recipe: what a model is trained for, by name; does not import torch."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from seektune.section import OneOf, PathString, Positive
from seektune.train.config import NotNegative, Share
from seektune.train.objective_section import (
    CheckpointReferenceConfig,
    FrozenModel,
    ObjectiveConfig,
    Offload,
    ReferenceChoice,
)
from seektune.train.rollout_objectives import GrpoConfig, OpdConfig

Smoothing = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]


class ReferencedConfig(CheckpointReferenceConfig):
    """Base of the sections of objectives that compare with a reference model."""

    beta: Positive = 0.1
    """Strength of the pull to the reference model."""
    reference: ReferenceChoice = "auto"
    """The reference: `adapters_off` is the model without its new adapters, at each step; `cached` the model as training
    begins, computed once and kept in the run folder. `auto` takes `reference_checkpoint` if it is set, else the first
    with `lora.targets`, if it can."""

    @model_validator(mode="after")
    def _has_one_reference(self) -> Self:
        if self.reference_checkpoint is not None and self.reference != "auto":
            raise ValueError(f"reference_checkpoint must be null with reference {self.reference}")
        return self

    @property
    def reference_choice(self) -> ReferenceChoice | Literal["checkpoint"] | None:
        """As `ObjectiveConfig`."""
        return self.reference if self.reference_checkpoint is None else "checkpoint"


class CrossEntropyConfig(ObjectiveConfig):
    """The cross-entropy of the next token."""

    compares: ClassVar[bool] = False
    name: Literal["cross_entropy"] = "cross_entropy"
    """Name of the objective."""


class DistillConfig(ObjectiveConfig):
    """Distillation from a teacher's distributions over the whole vocabulary."""

    compares: ClassVar[bool] = False
    distills: ClassVar[bool] = True
    name: Literal["distill"]
    """Name of the objective."""
    teacher: PathString | None = None
    """Checkpoint folder or Hub id of the teacher, with the model's vocabulary; null = the model without adapters."""
    teacher_quantized: bool = False
    """Keep the teacher's FP4 and FP8 weights quantized, dequantized only while in use."""
    teacher_offload: Offload = "none"
    """`stream` keeps the teacher's quantized weights on disk and reads them one block ahead; one process only."""
    teacher_files: PathString | None = None
    """Folder with the teacher's likeliest tokens for each taught token, from which training reads. What it lacks is
    computed by `teacher` before training; with `teacher: null` it must have all. null = no files."""
    teacher_top_k: PositiveInt = 64
    """Likeliest tokens of the teacher that `teacher_files` keeps; all others count as one."""
    share: Share = 1.0
    """Share of the divergence in the loss; cross-entropy has the rest."""
    temperature: Positive = 1.0
    """Divides the logits of both; the divergence is multiplied by its square."""
    divergence: Literal["forward", "reverse"] = "forward"
    """`forward`: KL(teacher || model), weighted by the teacher's probabilities; `reverse`: KL(model || teacher)."""

    @property
    def frozen_models(self) -> list[FrozenModel]:
        """As `ObjectiveConfig`."""
        return self.named_models if self.teacher_files is None else []

    @property
    def runs_teachers(self) -> bool:
        """As `ObjectiveConfig`."""
        return self.teacher_files is None

    @property
    def named_models(self) -> list[FrozenModel]:
        """As `ObjectiveConfig`; with `teacher_files`, the teacher only computes what these lack."""
        if self.teacher is None:
            return []
        streamed = self.teacher_offload == "stream"
        return [FrozenModel("objective.teacher", self.teacher, self.teacher_quantized, streamed)]


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


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "cross_entropy": CrossEntropyConfig,
    "distill": DistillConfig,
    "dpo": DpoConfig,
    "ipo": IpoConfig,
    "kto": KtoConfig,
    "orpo": OrpoConfig,
    "simpo": SimpoConfig,
    "grpo": GrpoConfig,
    "opd": OpdConfig,
}
"""Sections by the value of `objective.name`; the first is the default."""

ObjectiveSection = Annotated[ObjectiveConfig, OneOf("name", OBJECTIVES)]
"""The type of a recipe's `objective`."""
