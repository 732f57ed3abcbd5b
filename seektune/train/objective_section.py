"""The base of the sections of objectives, and the checkpoints that run beside the model; does not import torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from seektune.section import PathString, Section

ReferenceChoice = Literal["auto", "adapters_off", "cached"]
Offload = Literal["none", "stream"]


@dataclass(frozen=True)
class FrozenModel:
    """A checkpoint that runs beside the model and is not trained."""

    key: str
    """Of the recipe, for messages."""
    checkpoint: str
    """Folder or Hub id."""
    quantized: bool = False
    """Whether FP4 and FP8 weights keep their bytes."""
    streamed: bool = False
    """Whether they stay on disk."""


class ObjectiveConfig(Section):
    """Base of the sections of objectives."""

    compares: ClassVar[bool] = True
    """Whether it learns from chosen and rejected answers, and not from texts."""
    samples: ClassVar[bool] = False
    """Whether it learns from answers that the model samples during training."""
    distills: ClassVar[bool] = False
    """Whether it learns from the distributions of teachers."""
    name: str
    """Name of the objective."""

    @property
    def reference_choice(self) -> ReferenceChoice | Literal["checkpoint"] | None:
        """Where the reference model's log-probabilities come from; None for objectives without a reference."""
        return None

    @property
    def frozen_models(self) -> list[FrozenModel]:
        """The checkpoints that run beside the model: teachers or a reference."""
        return []

    @property
    def named_models(self) -> list[FrozenModel]:
        """The checkpoints that the section names, those included that do not run beside the model."""
        return self.frozen_models

    @property
    def runs_teachers(self) -> bool:
        """Whether each micro-batch has a forward pass of a teacher."""
        return self.distills


class CheckpointReferenceConfig(ObjectiveConfig):
    """Base of the sections of objectives whose reference model can be a checkpoint."""

    reference_checkpoint: PathString | None = None
    """Checkpoint folder or Hub id of the reference model, with the model's vocabulary; null = no second model."""
    reference_quantized: bool = False
    """Keep the reference's FP4 and FP8 weights quantized, dequantized only while in use."""
    reference_offload: Offload = "none"
    """`stream` keeps its quantized weights on disk and reads them one block ahead; one process only."""

    @model_validator(mode="after")
    def _reference_can_be_kept_so(self) -> Self:
        kept = self.reference_quantized or self.reference_offload == "stream"
        if kept and self.reference_checkpoint is None:
            raise ValueError("reference_quantized and reference_offload are of reference_checkpoint, which is null")
        if self.reference_offload == "stream" and not self.reference_quantized:
            raise ValueError("reference_offload stream needs reference_quantized")
        return self

    @property
    def frozen_models(self) -> list[FrozenModel]:
        """As `ObjectiveConfig`."""
        if self.reference_checkpoint is None:
            return []
        key = "objective.reference_checkpoint"
        streamed = self.reference_offload == "stream"
        return [FrozenModel(key, self.reference_checkpoint, self.reference_quantized, streamed)]
