"""The loop over steps: draw, step, record, and from time to time validate and save."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from seektune.checkpoint import complete_folder
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.sequence import Batch
from seektune.train.config import CheckpointConfig, LossConfig, OptimizerConfig, ScheduleConfig
from seektune.train.files import cannot_write
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.metrics import MetricsLog
from seektune.train.optimizer import build_optimizer
from seektune.train.schedule import learning_rate
from seektune.train.step import train_step

CHECKPOINTS, MODEL = "checkpoints", "model"
"""Names in the run folder."""


class Saved(Protocol):
    """Something beside the weights that a checkpoint folder holds, such as the tokenizer."""

    def save(self, folder: Path) -> None:
        """Write it into an existing folder."""


@dataclass(frozen=True)
class TrainSettings:
    """The sections of a recipe that the loop reads."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    validate_every: int | None
    """Steps between validation losses; None for only before and after."""
    seed: int


class Trainer:
    """Trains a model in place and writes its run folder."""

    def __init__(
        self,
        model: DeepseekV4ForCausalLM,
        tokenizer: Saved,
        settings: TrainSettings,
        folder: Path,
        validation_loss: Callable[[], float],
    ):
        self.model, self.tokenizer, self.settings, self.folder = model, tokenizer, settings, folder
        self.validation_loss = validation_loss
        self.optimizer = build_optimizer(model, settings.optimizer, settings.seed)
        accumulate_in_fp32(model)

    def fit(self, draw: Callable[[], Sequence[Batch]], steps: int, log: MetricsLog) -> tuple[float, float]:
        """Train for `steps` steps; each call of `draw` gives the micro-batches of the next one.

        Returns:
            The validation loss before and after.

        Raises:
            NotFiniteError: a loss or gradient is not finite.
            OSError: a file of the run could not be written.
        """
        before = self._validate(0, log)
        after = None
        for step in range(1, steps + 1):
            self._step(step, steps, draw(), log)
            after = self._validate(step, log) if _due(step, self.settings.validate_every) or step == steps else None
            if _due(step, self.settings.checkpoint.every):
                self.export(self.folder / CHECKPOINTS / f"step-{step:06}")
        assert after is not None, "there was no step"
        return before, after

    def export(self, folder: Path) -> None:
        """Write weights (bf16, released names), config.json and tokenizer; the folder appears when complete.

        Raises:
            OSError: writing failed; nothing is left under the name.
        """
        try:
            with complete_folder(folder) as scratch:
                self.model.save_pretrained(scratch)
                self.tokenizer.save(scratch)
        except OSError as error:
            raise cannot_write(folder, error) from error

    def _step(self, step: int, steps: int, micro_batches: Sequence[Batch], log: MetricsLog) -> None:
        settings = self.settings
        lr = learning_rate(step, steps, settings.optimizer.lr, settings.schedule)
        max_norm = settings.optimizer.max_grad_norm
        log.step(train_step(self.model, self.optimizer, micro_batches, step, lr, settings.loss, max_norm))

    def _validate(self, step: int, log: MetricsLog) -> float:
        loss = self.validation_loss()
        log.validation(step, loss)
        return loss


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
