"""The training loop: draw a batch, step, record, save and validate; it can stop after any step and resume there."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TypeAlias

from seektune.checkpoint import check_train_state
from seektune.data.held_out_loss import HeldOutLoss
from seektune.data.rollouts import RolloutError
from seektune.data.step_data import StepData
from seektune.io.run_files import CHECKPOINTS
from seektune.model.step_loss import DraftObjective
from seektune.parallel.model import ParallelModel
from seektune.parallel.reference import NO_REFERENCE, ReferenceModel
from seektune.signals import Interrupted, Interruption
from seektune.train.checkpoints import complete_checkpoints, step_of
from seektune.train.config import LossConfig
from seektune.train.export import export_model
from seektune.train.gradient import NotFiniteError
from seektune.train.guard import RETURNS, SpikeError, Watchdog
from seektune.train.heap import frozen_heap
from seektune.train.noise_scale import PartGradient, half_gradients, noise_values
from seektune.train.resumable import ResumableRun
from seektune.train.run_log import RunLog
from seektune.train.schedule import learning_rate, loss_of_step
from seektune.train.settings import BatchStream, Savable, TrainSettings
from seektune.train.step import StepObjective, StepRecord, train_step
from seektune.train.update_ratio import copies, update_ratios

Evaluate: TypeAlias = Callable[[int, RunLog, Callable[[str], None]], None]
"""Runs evaluations that are due after a step; gets the step, the log, and a function to say what the run does now."""


def _nothing(step: int, log: RunLog, watch: Callable[[str], None]) -> None:
    """No evaluation."""


class Trainer(ResumableRun):
    """Trains a model in place and writes its run folder."""

    def __init__(
        self,
        model: ParallelModel,
        tokenizer: Savable,
        stream: BatchStream,
        settings: TrainSettings,
        folder: Path,
        validation_loss: Callable[[Callable[[], None]], HeldOutLoss],
        interruption: Interruption,
        evaluate: Evaluate = _nothing,
        reference: ReferenceModel = NO_REFERENCE,
    ):
        super().__init__(model, stream, settings, folder)
        self.tokenizer = tokenizer
        self.validation_loss = validation_loss
        """Calls its argument as often as it gets on, so that no watchdog ends it."""
        self.interruption = interruption
        self.evaluate = evaluate
        self.reference = reference

    def fit(self, steps: int, log: RunLog) -> tuple[float, float]:
        """Train until `steps` steps are done.

        Returns:
            The first validation loss of the run and the last.

        Raises:
            NotFiniteError: a loss or gradient is not finite; the state before it is saved.
            Interrupted: a signal asked to stop; the state is saved.
            SpikeError: losses spike whatever data follows.
            RuntimeError: a frozen weight moved, which must never be.
            OSError: a file of the run could not be written; `step` says how far it came.
            RolloutError: sampled answers could not be rewarded; the state after the last finished step is saved.
        """
        stopped = None
        try:
            watchdog = Watchdog(self.settings.guard.step_timeout, self.folder)
            with watchdog as watch, self._shielded_if_parallel(), frozen_heap():
                self._validate_if_due(steps, log, watch)
                self._leave_together()
                while self.step < steps:
                    with self.interruption.deferred():
                        self._step(steps, log, watch)
                        self._save_if_due(steps, log, watch)
                    self._log_saves(log)
                    self._validate_if_due(steps, log, watch)
                    self._leave_together()
                watch("waiting for the last checkpoint")
                self._checkpoints.wait()
                self._log_saves(log)
        except Interrupted as signal:
            stopped = signal
        if stopped is not None:
            # not within the handler: a disk that is full now is another matter than the signal
            with self.interruption.shielded():
                self.save(log)
            raise stopped
        self._check_frozen(log)
        losses = log.validations()
        return losses[min(losses)], losses[steps]

    def _shielded_if_parallel(self) -> AbstractContextManager[None]:
        """Defers signals while processes depend on each other, so that none leaves the others waiting."""
        return nullcontext() if self.model.mesh.axes is None else self.interruption.shielded()

    def _leave_together(self) -> None:
        """Stop here if a signal reached any process."""
        if self.model.mesh.axes is not None:
            self.interruption.leave_together(self.model.mesh.any)

    def export(self, folder: Path) -> None:
        """Write the export; see `export_model`.

        Raises:
            OSError: writing failed; nothing new is left under the name.
        """
        export_model(self.model, self.tokenizer, folder, self.settings.origin, self.settings.export_format)

    def _step(self, steps: int, log: RunLog, watch: Watchdog) -> None:
        settings = self.settings
        step = self.step + 1
        before = self.stream.state_dict()
        watch(f"step {step}: drawing data")
        try:
            data = self.stream.next_step()
        except RolloutError as error:
            raise RolloutError(f"{error}. The state before this step is saved in {self.save(log, before)}") from None
        lr = learning_rate(step, steps, settings.optimizer.lr, settings.schedule)
        loss = loss_of_step(step, steps, settings.loss, settings.schedule)
        weights = copies(self.model.named_parameters()) if _due(step, settings.update_ratios_every) else None
        halves = self._half_gradients(step, data, loss, watch)
        try:
            max_norm = settings.optimizer.max_grad_norm
            drafts = self._draft_objective(step, data.micro_batches)
            target = StepObjective(settings.objective, drafts, settings.indexers, self.reference)
            record = train_step(self.model, self.optimizer, data, step, lr, loss, max_norm, watch, target)
        except NotFiniteError as error:
            if not self._guard.may_skip():
                place = self.save(log, before)
                raise NotFiniteError(f"{error}. The state before this step is saved in {place}") from None
            log.skipped(step, str(error))
        else:
            values = noise_values(halves, record.grad_norm, record.taught_tokens)
            if weights is not None:
                values |= update_ratios(weights, self.model.named_parameters(), self.model.mesh)
            record = replace(record, parts=record.parts | values)
            log.step(record)
            if self._rolled_back(record, log):
                return
        self.step = step

    def _half_gradients(self, step: int, data: StepData, loss: LossConfig, watch: Watchdog) -> list[PartGradient]:
        """What the noise scale of a step is computed from, if it is due."""
        if not _due(step, self.settings.noise_scale_every):
            return []
        watch(f"step {step}: measuring the noise scale")
        return half_gradients(self.model, data, loss, self.settings.objective)

    def _draft_objective(self, step: int, micro_batches: int) -> DraftObjective | None:
        """How drafts are trained in a step; None if the model is trained."""
        anchors = self.settings.drafter_anchors
        if anchors is None:
            return None
        return DraftObjective(anchors, micro_batches, self.settings.seed * 1_000_003 + step)

    def _rolled_back(self, record: StepRecord, log: RunLog) -> bool:
        """Check the loss; returns whether it caused a rollback to a checkpoint."""
        usual = self._guard.spike(record.loss)
        if usual is None:
            return False
        said = f"step {record.step}: the loss spiked to {record.loss:.4g}, it was about {usual:.4g}"
        if self.settings.guard.spike_action == "report":
            log.say(f"{said}; guard.spike_action rollback would go back to a checkpoint")
            return False
        self._checkpoints.settle()
        checkpoints = self.model.mesh.ranks.first(lambda: complete_checkpoints(self.folder / CHECKPOINTS))
        if not checkpoints:
            log.say(f"{said}; there is no checkpoint yet to go back to")
            return False
        back = checkpoints[-1]
        if not self._guard.may_go_back(step_of(back) or 0):
            raise SpikeError(
                f"{said}; the run went back to {back} {RETURNS} times, and the data that follows spikes too"
            )
        check_train_state(back, self.model.mesh.ranks.group)
        onward = self.stream.state_dict()
        self.resume(back)
        self._checkpoints.went_back()
        self.stream.load_state_dict(onward)
        log.rewind(self.step, self.log_state)
        log.say(f"{said}; back to step {self.step}, and on with the data that follows")
        return True

    def _save_if_due(self, steps: int, log: RunLog, watch: Watchdog) -> None:
        if _due(self.step, self.settings.checkpoint.every) or self.step == steps:
            watch(f"step {self.step}: saving")
            self.save(log, wait=False)

    def _validate_if_due(self, steps: int, log: RunLog, watch: Watchdog) -> None:
        due = _due(self.step, self.settings.validate_every) or self.step in (0, steps)
        if due and self.step not in log.validations():
            found = self._validation_loss(log, watch)
            if not isfinite(found.loss):
                raise NotFiniteError(f"the validation loss after step {self.step} is not finite; nothing is exported")
            log.validation(self.step, found)
        self.evaluate(self.step, log, watch)

    def _validation_loss(self, log: RunLog, watch: Watchdog) -> HeldOutLoss:
        phase = f"validating after step {self.step}"
        watch(phase)
        try:
            return self.validation_loss(partial(watch, phase))
        except RolloutError as error:
            with self.interruption.shielded():
                place = self.save(log)
            raise RolloutError(f"{error}. The state after step {self.step} is saved in {place}") from error


def _due(step: int, every: int | None) -> bool:
    return every is not None and step > 0 and step % every == 0
