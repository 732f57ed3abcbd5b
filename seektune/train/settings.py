"""Inputs of the training loop besides the model: recipe sections, and protocols of data and tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from seektune.data.step_data import StepData
from seektune.model.choices import IndexerStage
from seektune.model.objective import CROSS_ENTROPY, Objective
from seektune.train.config import CheckpointConfig, GuardConfig, LossConfig, ScheduleConfig
from seektune.train.optim.config import OptimizerConfig


class Savable(Protocol):
    """A part of an export besides the weights, such as the tokenizer."""

    def save(self, folder: Path) -> None:
        """Write it into an existing folder."""


class BatchStream(Protocol):
    """A source of steps."""

    def next_step(self) -> StepData:
        """The next step: the micro-batches of this process, and the numbers of the whole step."""

    def state_dict(self) -> Any:
        """The position, as plain values."""

    def load_state_dict(self, state: Any) -> None:
        """Continue at the position of another."""


@dataclass(frozen=True)
class Origin:
    """The source of frozen weights, and the recipe that trained adapters for them."""

    base: str | None
    """Folder or Hub id."""
    revision: str | None
    """Commit on the Hub."""
    recipe: str
    """As YAML."""
    folder: Path | None = None
    """The local folder of the base, whose licence and other small files exports get."""


UNKNOWN = Origin(None, None, "")


@dataclass(frozen=True)
class TrainSettings:
    """The sections of a recipe that the loop reads."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    validate_every: int | None
    """Steps between validation losses; None for only before and after."""
    seed: int
    record: Mapping[str, Any]
    """Facts for checkpoints: the recipe and versions."""
    update_ratios_every: int | None = None
    """Steps between two measurements of update-to-weight ratios; None for none."""
    noise_scale_every: int | None = None
    """Steps between two measurements of the noise scale of gradients; None for none."""
    drafter_anchors: int | None = None
    """Tokens of a micro-batch from which drafts are trained, if the DSpark stages are trained; None otherwise."""
    indexers: IndexerStage = "frozen"
    """What is trained of the indexers."""
    objective: Objective = CROSS_ENTROPY
    """What the model is trained for."""
    origin: Origin = UNKNOWN
    """Base and recipe for exports."""
    export_format: str = "bf16"
    """Checkpoint format of exported weights."""
