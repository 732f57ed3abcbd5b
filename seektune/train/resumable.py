"""The state of a training run (model, optimizer, data position, guard): saved to checkpoints, resumed from them."""

from pathlib import Path
from typing import Any

from seektune.checkpoint import read_facts, read_tensors, tensor_names
from seektune.io.console import size
from seektune.io.json_file import MOST_STEPS, whole_number
from seektune.io.run_files import CHECKPOINTS
from seektune.lora.frozen_digest import FrozenDigest, frozen_digest
from seektune.parallel.model import ParallelModel
from seektune.train.checkpoints import Checkpoints, Saved
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.guard import LossGuard
from seektune.train.log_state import check_log_state
from seektune.train.optim.build import build_optimizer
from seektune.train.run_log import RunLog
from seektune.train.settings import BatchStream, TrainSettings
from seektune.train.state_tensors import MODEL, begin_as_saved, is_random_state, run_tensors, set_random_states


class ResumableRun:
    """The state that a step changes; saves it to checkpoints and restores it."""

    def __init__(self, model: ParallelModel, stream: BatchStream, settings: TrainSettings, folder: Path):
        self.model = model
        self.stream = stream
        self.settings = settings
        self.folder = folder
        self.optimizer = build_optimizer(model, settings.optimizer, settings.seed, model.mesh)
        self.step = 0
        """Steps done."""
        self.saved: list[Saved] = []
        """Checkpoints that this process completed."""
        self.log_state: Any = None
        self._logged = 0
        self._logged_failure: Exception | None = None
        group = None if model.mesh.axes is None else model.mesh.axes.checkpoint
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, settings.checkpoint, self.saved.append, group)
        self._guard = LossGuard(settings.guard)
        self._base = self._frozen().digest if model.has_frozen_base else None
        accumulate_in_fp32(model.parameters())

    def resume(self, checkpoint: Path) -> None:
        """Restore the state of a checkpoint.

        Raises:
            ValueError: it is of another model, optimizer or dataset, or was made on other frozen weights.
        """
        facts = read_facts(checkpoint)
        if lacking := {"step", "stream", "log", "guard"} - facts.keys():
            raise ValueError(f"{checkpoint} does not say where its run stood: it lacks {', '.join(sorted(lacking))}")
        self._check_optimizer(checkpoint, facts)
        if facts.get("base") != self._base:
            self._refuse_base(checkpoint)
        try:
            step = whole_number(facts, "step", 0, MOST_STEPS)
            log_state = check_log_state(facts["log"], self.model.config.n_routed_experts)
            self.stream.load_state_dict(facts["stream"])
            self._guard.load_state_dict(facts["guard"])
        except ValueError as error:
            raise ValueError(f"{checkpoint} cannot be resumed: {error}") from None
        begin_as_saved(self.model, self.optimizer, tensor_names(checkpoint))
        tensors = run_tensors(self.model, self.optimizer)
        read_tensors(checkpoint, tensors, self.model.mesh.ranks.group, optional=is_random_state)
        set_random_states(tensors, self.model.mesh.rank)
        self.step = step
        self.log_state = log_state

    def save(self, log: RunLog, stream: Any = None, wait: bool = True) -> Path:
        """Save the state after the last finished step, unless it is already saved.

        Args:
            log: whose state is saved too.
            stream: position in the data; that of now if None.
            wait: return when the checkpoint is complete, not when its tensors are copied.

        Raises:
            OSError: it could not be written.
        """
        facts = {
            "step": self.step,
            "stream": self.stream.state_dict() if stream is None else stream,
            "log": log.state_dict(),
            "guard": self._guard.state_dict(),
            "base": self._base,
            "optimizer": self.settings.optimizer.name,
            **self.settings.record,
        }
        self._checkpoints.save(self.step, run_tensors(self.model, self.optimizer), facts, wait)
        return self._checkpoints.place(self.step)

    def _refuse_base(self, checkpoint: Path) -> None:
        """Say why the frozen weights of a checkpoint's run are not those of this one."""
        own = {name for name in run_tensors(self.model, self.optimizer) if name.startswith(MODEL)}
        if {name for name in tensor_names(checkpoint) if name.startswith(MODEL)} != own:
            raise ValueError(
                f"{checkpoint} does not hold the weights that this run trains, as its run trained others; start from "
                "that run's model/ with model.weights, or from its adapter/ with lora.adapter"
            )
        raise ValueError(f"{checkpoint} was made on other frozen weights than these; give the ones it began with")

    def _check_optimizer(self, checkpoint: Path, facts: dict[str, Any]) -> None:
        """Check that a checkpoint is of this optimizer; early ones, which do not say, are of AdamW."""
        saved = facts.get("optimizer", "adamw")
        ours = self.settings.optimizer.name
        if saved != ours:
            raise ValueError(
                f"{checkpoint} holds the state of optimizer {saved}, which {ours} cannot continue; set "
                f"optimizer.name={saved}, or begin a new run with model.weights"
            )

    @property
    def cannot_save(self) -> bool:
        """Whether the last save failed; the same on every process."""
        return self._checkpoints.failure is not None

    def _log_saves(self, log: RunLog) -> None:
        """Log the checkpoints that were completed since the last call, and a save that failed."""
        failure = self._checkpoints.failure
        if failure is not None and failure is not self._logged_failure:
            log.not_saved(self.step, str(failure))
        self._logged_failure = failure
        fresh = self.saved[self._logged :]
        self._logged = len(self.saved)
        for saved in fresh:
            written = f"{size(saved.size)} in {saved.seconds:.1f} s"
            log.say(f"saved {saved.folder.name}: {written}, training waited {saved.blocked:.2f} s")

    def _check_frozen(self, log: RunLog) -> None:
        """Compare the digest of the base with that before training.

        Raises:
            RuntimeError: one differs.
        """
        if self._base is None:
            return
        frozen = self._frozen()
        if frozen.digest != self._base:
            raise RuntimeError("a frozen weight moved during training; the result is not for the base it names")
        log.say(f"frozen weights: {frozen.nbytes:,} bytes, none changed")

    def _frozen(self) -> FrozenDigest:
        return frozen_digest(self.model.frozen_shards(), self.model.mesh.ranks)
