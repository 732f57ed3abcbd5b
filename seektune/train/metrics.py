"""The logs of a run: metrics.jsonl, validation.jsonl, expert loads, trackers and the console.

Shapes: E experts.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

from seektune.data.held_out_loss import HeldOutLoss
from seektune.io.console import counted
from seektune.io.jsonl import JsonlWriter, read_records
from seektune.io.run_files import EXPERT_LOADS, METRICS, SAMPLES, TENSORBOARD, VALIDATION
from seektune.model.distillation import ENTROPY
from seektune.train.config import LoggingConfig
from seektune.train.evaluation_log import EvaluationLog
from seektune.train.index_recall import mean_recall
from seektune.train.log_state import LogState
from seektune.train.progress import chosen_parts, open_display
from seektune.train.router_health import dead_experts, entropy, imbalance
from seektune.train.step import StepRecord
from seektune.train.system_metrics import system_metrics
from seektune.train.tensorboard import Events
from seektune.train.trackers.tracker_thread import TrackerThread

LOAD_LINES = 50
"""Maximum lines of expert loads in a run, so that a long run of a large model does not fill the disk."""
CURVES = ("loss", "mtp_loss", "balance_loss", "grad_norm", "lr", "tokens_per_s", "memory_gb")
"""Values of a step that trackers plot."""
APART = ("loads", "parts", "left_out", "bias_moves", "index_recall")
"""Fields of a step that its line has in another form, or not at all."""
SPOKEN = (ENTROPY, "reward_margin", "reward_accuracy", "reward")
"""Parts of a validation that are printed beside its loss."""


class Scalars(Protocol):
    """Receives values by name at a step: TensorBoard's events, or the thread of another tracker."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write or queue the values of a step."""


class MetricsLog:
    """The logs of one run; a context manager that closes its files however the run ends.

    A resumed run appends to the files as they were after step `last_step`; later lines are removed. `trackers` stay
    open.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        config: LoggingConfig,
        last_step: int = 0,
        state: LogState | None = None,
        trackers: Sequence[TrackerThread] = (),
    ):
        self._steps = steps
        self._trackers = trackers
        self._scalars: list[Scalars] = [*trackers]
        self._folder = folder
        self._evaluations = EvaluationLog(folder)
        with ExitStack() as stack:
            self._metrics = stack.enter_context(JsonlWriter(folder / METRICS))
            self._validation = stack.enter_context(JsonlWriter(folder / VALIDATION))
            self._load_lines = stack.enter_context(JsonlWriter(folder / EXPERT_LOADS))
            self.rewind(last_step, state)
            if "tensorboard" in config.to:
                self._scalars.append(stack.enter_context(Events(folder / TENSORBOARD, last_step)))
            self._display = open_display(steps, config.every, last_step)
            stack.callback(self._display.close)
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: Any) -> None:
        self._closing.__exit__(*problem)

    def rewind(self, last_step: int, state: LogState | None) -> None:
        """Remove what was written after `last_step`; without a state, everything."""
        self._total_tokens = state["total_tokens"] if state else 0
        self._loads = {int(layer): load for layer, load in state["loads"].items()} if state else {}
        self._drift = {int(layer): drift for layer, drift in state.get("bias_drift", {}).items()} if state else {}
        for lines in (self._metrics, self._validation, self._load_lines):
            lines.rewind(last_step if state else -1)
        self._evaluations.rewind(last_step if state else -1)

    def step(self, record: StepRecord) -> None:
        """Write a finished step to all logs."""
        self._total_tokens += record.tokens
        self._metrics.append(as_line(record, self._total_tokens))
        self._note_loads(record)
        if self._scalars:
            values = {name: vars(record)[name] for name in CURVES} | record.parts | record.left_out
            values |= mean_recall(record.index_recall)
            curves = {f"train/{name}": value for name, value in values.items()}
            layers = {f"expert_imbalance/layer_{layer}": ratio for layer, ratio in imbalance(record.loads).items()}
            layers |= {f"expert_entropy/layer_{layer}": share for layer, share in entropy(record.loads).items()}
            layers |= {f"dead_experts/layer_{layer}": count for layer, count in dead_experts(record.loads).items()}
            layers |= {f"index_recall/layer_{layer}": share for layer, share in record.index_recall.items()}
            total = {"train/total_tokens": self._total_tokens}
            self.values(record.step, curves | total | layers | system_metrics())
        self._display.step(record)

    def validation(self, step: int, found: HeldOutLoss) -> None:
        """Write a validation loss, measured after `step`."""
        datasets = {"datasets": dict(found.datasets)} if found.datasets else {}
        parts = {"parts_of_datasets": found.parts_of_datasets} if found.parts_of_datasets else {}
        self._validation.append({"step": step, "loss": found.loss, **found.parts, **datasets, **parts})
        self.values(step, {f"validation/{name}": value for name, value in _curves_of(found).items()})
        each = ", ".join(f"{name} {loss:z.4f}" for name, loss in found.datasets.items())
        more = "".join(f", {name} {value:z.4f}" for name, value in chosen_parts(found.parts, SPOKEN).items())
        self._display.say(f"validation loss {found.loss:z.4f}{more} after step {step}{f' ({each})' if each else ''}")

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Hand values to the trackers, and print the first problem of each."""
        for scalars in self._scalars:
            scalars.add(step, values)
        for message in filter(None, (tracker.news() for tracker in self._trackers)):
            self._display.say(message)

    def evaluation(self, step: int, name: str, lines: Sequence[tuple[str, str]], values: Mapping[str, float]) -> None:
        """Write a task's result."""
        self._evaluations.evaluation(step, name, lines, values)
        self.values(step, {f"{name}/{metric}": value for metric, value in values.items()})
        self._display.say(f"{name} after step {step}: {', '.join(f'{label} {text}' for label, text in lines)}")

    def samples(self, step: int, name: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """Write answers to fixed prompts."""
        self._evaluations.samples(step, name, answers)
        self._display.say(f"{name} after step {step}: {counted(len(answers), 'answer')} in {SAMPLES}")

    def evaluated(self) -> set[tuple[int, str]]:
        """Step and name of the results of tasks and samples so far."""
        return self._evaluations.done()

    def state_dict(self) -> LogState:
        """State for a checkpoint."""
        loads = {str(layer): load for layer, load in self._loads.items()}
        state: LogState = {"total_tokens": self._total_tokens, "loads": loads}
        if self._drift:
            state["bias_drift"] = {str(layer): drift for layer, drift in self._drift.items()}
        return state

    def validations(self) -> dict[int, float]:
        """The validation losses so far, by step."""
        return {line["step"]: line["loss"] for line in read_records(self._folder / VALIDATION)}

    def skipped(self, step: int, reason: str) -> None:
        """Print that a step was skipped."""
        self._metrics.append({"step": step, "skipped": reason})
        self._display.say(f"skipped: {reason}")

    def not_saved(self, step: int, reason: str) -> None:
        """Note a checkpoint that failed: on the console first, as the file may lie on the same full disk."""
        self._display.say(f"not saved: {reason}")
        self._metrics.append({"step": step, "not_saved": reason})

    def say(self, sentence: str) -> None:
        """Print a message."""
        self._display.say(sentence)

    def _note_loads(self, record: StepRecord) -> None:
        for layer, load_E in record.loads.items():
            before_E = self._loads.get(layer, [0] * len(load_E))
            self._loads[layer] = [old + new for old, new in zip(before_E, load_E, strict=True)]
        for layer, move_E in record.bias_moves.items():
            drift_E = self._drift.get(layer, [0.0] * len(move_E))
            self._drift[layer] = [old + new for old, new in zip(drift_E, move_E, strict=True)]
        every = -(-self._steps // LOAD_LINES)
        if record.step % every == 0 or record.step == self._steps:
            drift = {"bias_drift": self._drift} if self._drift else {}
            self._load_lines.append({"step": record.step, "loads": self._loads, **drift})
            self._loads = {}


def _curves_of(found: HeldOutLoss) -> dict[str, float]:
    """A validation's values by the names that trackers plot."""
    losses = {f"{name}_loss": loss for name, loss in found.datasets.items()}
    parts = {f"{name}_{part}": x for name, own in found.parts_of_datasets.items() for part, x in own.items()}
    return {"loss": found.loss, **losses, **found.parts, **parts}


def as_line(record: StepRecord, total_tokens: int) -> dict[str, Any]:
    """A step as a line of metrics.jsonl: its values, further parts of the objective and rows left out by name, the
    tokens of the run so far, the imbalance of the experts, and what trained indexers find."""
    recall = {"index_recall_of_layers": record.index_recall} if record.index_recall else {}
    values = {name: value for name, value in vars(record).items() if name not in APART}
    return {
        **values,
        **record.parts,
        **record.left_out,
        "total_tokens": total_tokens,
        "expert_imbalance": imbalance(record.loads),
        "expert_entropy": entropy(record.loads),
        "dead_experts": dead_experts(record.loads),
        **mean_recall(record.index_recall),
        **recall,
    }
