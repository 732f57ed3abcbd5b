"""The loop over steps: draw, step, record, save and validate; it can stop after any step and go on exactly there."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from seektune.checkpoint import (
    check_train_state,
    clean_up_partial,
    complete_folder,
    read_facts,
    read_tensors,
    tensor_names,
)
from seektune.io.files import cannot_write
from seektune.lora.frozen_digest import FrozenDigest, frozen_digest
from seektune.parallel.lora import save_adapter
from seektune.parallel.model import ParallelModel
from seektune.sequence import Batch
from seektune.signals import Interrupted, Interruption
from seektune.train.checkpoints import Checkpoints, Saved, complete_checkpoints, step_of
from seektune.train.config import CheckpointConfig, GuardConfig, LossConfig, OptimizerConfig, ScheduleConfig
from seektune.train.gradient import NotFiniteError, accumulate_in_fp32
from seektune.train.guard import RETURNS, LossGuard, SpikeError, Watchdog
from seektune.train.metrics import RunLog
from seektune.train.optim.build import build_optimizer
from seektune.train.schedule import learning_rate
from seektune.train.state_tensors import begin_as_saved, is_random_state, run_tensors, set_random_states
from seektune.train.step import StepRecord, train_step

CHECKPOINTS = "checkpoints"
MODEL = "model"
ADAPTER = "adapter"
"""Names in the run folder."""


class Savable(Protocol):
    """Something beside the weights that an export holds, such as the tokenizer."""

    def save(self, folder: Path) -> None:
        """Write it into an existing folder."""


class Stream(Protocol):
    """Where batches come from."""

    def next_step(self) -> Sequence[Batch]:
        """The micro-batches of the next step."""

    def state_dict(self) -> Any:
        """Where it stands, as plain values."""

    def load_state_dict(self, state: Any) -> None:
        """Go on where another stood."""


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
    """What a checkpoint says of its run: the recipe and versions."""
    origin: "Origin | None" = None
    """Of a model with adapters: what adapter files say of its base and training."""


@dataclass(frozen=True)
class Origin:
    """Where frozen weights are from, and the recipe that trained adapters for them."""

    base: str | None
    revision: str | None
    recipe: str


class Trainer:
    """Trains a model in place and writes its run folder."""

    def __init__(
        self,
        model: ParallelModel,
        tokenizer: Savable,
        stream: Stream,
        settings: TrainSettings,
        folder: Path,
        validation_loss: Callable[[], float],
        interruption: Interruption,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.stream = stream
        self.settings = settings
        self.folder = folder
        self.interruption = interruption
        self.validation_loss = validation_loss
        self.optimizer = build_optimizer(model, settings.optimizer, settings.seed)
        self.step = 0
        """Steps done."""
        self.saved: list[Saved] = []
        """Checkpoints that this process completed."""
        self.log_state: Any = None
        self._told = 0
        self._told_failure: Exception | None = None
        self._group = None if model.mesh.axes is None else model.mesh.axes.checkpoint
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, settings.checkpoint, self.saved.append, self._group)
        self._guard = LossGuard(settings.guard)
        self._base = self._frozen().digest if model.is_adapted() else None
        accumulate_in_fp32(model.parameters())

    def resume(self, checkpoint: Path) -> None:
        """Take over the whole state of a checkpoint.

        Raises:
            ValueError: it is of another model, optimizer or dataset, or its adapters are for other frozen weights.
        """
        facts = read_facts(checkpoint)
        if lacking := {"step", "stream", "log", "guard"} - facts.keys():
            raise ValueError(f"{checkpoint} does not say where its run stood: it lacks {', '.join(sorted(lacking))}")
        if facts.get("base") != self._base:
            raise ValueError(f"{checkpoint} was made on other frozen weights than these; give the ones it began with")
        self.stream.load_state_dict(facts["stream"])
        self._guard.load_state_dict(facts["guard"])
        begin_as_saved(self.model, self.optimizer, tensor_names(checkpoint))
        tensors = run_tensors(self.model, self.optimizer)
        read_tensors(checkpoint, tensors, self.model.mesh.ranks.group, optional=is_random_state)
        set_random_states(tensors, self.model.mesh.rank)
        self.step = facts["step"]
        self.log_state = facts["log"]

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
        """
        stopped = None
        try:
            with Watchdog(self.settings.guard.step_timeout, self.folder) as watch, self._together():
                self._validate_if_due(steps, log, watch)
                self._leave_together()
                while self.step < steps:
                    with self.interruption.deferred():
                        self._step(steps, log, watch)
                        self._save_if_due(steps, log, watch)
                    self._validate_if_due(steps, log, watch)
                    self._tell_saved(log)
                    self._leave_together()
                watch("waiting for the last checkpoint")
                self._checkpoints.wait()
                self._tell_saved(log)
        except Interrupted as signal:
            stopped = signal
        if stopped is not None:
            # not within the handler: a disk that is full now is another matter than the signal
            with self.interruption.shielded():
                self.save(log)
            raise stopped
        self._prove_frozen(log)
        losses = log.validations()
        return losses[min(losses)], losses[steps]

    def _together(self) -> AbstractContextManager[None]:
        """Where processes work together, none may leave the others alone in the middle of something."""
        return nullcontext() if self.model.mesh.axes is None else self.interruption.shielded()

    def _leave_together(self) -> None:
        """Stop here if a signal reached any process."""
        if self.model.mesh.axes is not None:
            self.interruption.leave_together(self.model.mesh.any)

    @property
    def cannot_save(self) -> bool:
        """Whether the last save failed, which every process knows."""
        return self._checkpoints.failure is not None

    def _prove_frozen(self, log: RunLog) -> None:
        """Compare every byte of the base with what it was."""
        if self._base is None:
            return
        frozen = self._frozen()
        if frozen.digest != self._base:
            raise RuntimeError("a frozen weight moved during training; the adapters are not for the base they name")
        log.say(f"frozen weights: {frozen.nbytes:,} bytes, none changed")

    def _frozen(self) -> FrozenDigest:
        return frozen_digest(self.model.base(), self.model.mesh.ranks)

    def save(self, log: RunLog, stream: Any = None, wait: bool = True) -> Path:
        """Save the state after the last finished step, unless it is saved already.

        Raises:
            OSError: it could not be written.
        """
        facts = {
            "step": self.step,
            "stream": self.stream.state_dict() if stream is None else stream,
            "log": log.state_dict(),
            "guard": self._guard.state_dict(),
            "base": self._base,
            **self.settings.record,
        }
        self._checkpoints.save(self.step, run_tensors(self.model, self.optimizer), facts, wait)
        return self._checkpoints.place(self.step)

    def export(self, folder: Path) -> None:
        """Write weights (bf16, released names), config.json and tokenizer, or only adapters where those were trained.

        The folder appears when complete.

        Raises:
            OSError: writing failed; nothing new is left under the name.
        """
        ranks = self.model.mesh.ranks
        folder = folder.resolve()
        try:
            if self.model.is_adapted():
                origin = self.settings.origin or Origin(None, None, "")
                ranks.first(lambda: clean_up_partial(folder.parent, folder.name))
                save_adapter(self.model, folder, origin.base, origin.revision, origin.recipe)
                return
            with ExitStack() as stack:
                scratch = ranks.first(lambda: self._open_export(folder, stack))
                self.model.save_pretrained(scratch)
                ranks.first(lambda: self.tokenizer.save(scratch))
                ranks.first(stack.close)
        except OSError as error:
            raise cannot_write(folder, error) from error

    def _open_export(self, folder: Path, stack: ExitStack) -> Path:
        clean_up_partial(folder.parent, folder.name)
        return stack.enter_context(complete_folder(folder, replace=True))

    def _step(self, steps: int, log: RunLog, watch: Watchdog) -> None:
        settings = self.settings
        step = self.step + 1
        before = self.stream.state_dict()
        watch(f"step {step}: drawing data")
        batches = self.stream.next_step()
        lr = learning_rate(step, steps, settings.optimizer.lr, settings.schedule)
        try:
            max_norm = settings.optimizer.max_grad_norm
            record = train_step(self.model, self.optimizer, batches, step, lr, settings.loss, max_norm, watch)
        except NotFiniteError as error:
            if not self._guard.may_skip():
                place = self.save(log, before)
                raise NotFiniteError(f"{error}. The state before this step is saved in {place}") from None
            log.skipped(step, str(error))
        else:
            log.step(record)
            if self._rolled_back(record, log):
                return
        self.step = step

    def _rolled_back(self, record: StepRecord, log: RunLog) -> bool:
        """Look at the loss; True if the run went back to a checkpoint because of it."""
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

    def _tell_saved(self, log: RunLog) -> None:
        """Report the checkpoints that were completed since the last look, and one that failed."""
        failure = self._checkpoints.failure
        if failure is not None and failure is not self._told_failure:
            log.say(f"not saved: {failure}")
        self._told_failure = failure
        fresh = self.saved[self._told :]
        self._told = len(self.saved)
        for saved in fresh:
            size = f"{saved.size / 1e6:,.0f} MB in {saved.seconds:.1f} s"
            log.say(f"saved {saved.folder.name}: {size}, training waited {saved.blocked:.2f} s")

    def _validate_if_due(self, steps: int, log: RunLog, watch: Watchdog) -> None:
        due = _due(self.step, self.settings.validate_every) or self.step in (0, steps)
        if due and self.step not in log.validations():
            watch(f"validating after step {self.step}")
            loss = self.validation_loss()
            if not isfinite(loss):
                raise NotFiniteError(f"the validation loss after step {self.step} is not finite; nothing is exported")
            log.validation(self.step, loss)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step > 0 and step % every == 0
