"""Recipe sections of training; does not import torch, so that errors in a recipe are reported at once."""

from math import floor
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from seektune.model.choices import IndexerStage
from seektune.section import Positive, Section

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class ScheduleConfig(Section):
    """Learning rate schedule: linear warm-up, then a shape of `seektune/train/schedule.py`."""

    name: Literal["cosine", "constant", "linear", "wsd"] = "cosine"
    """Schedule after the warm-up: `cosine` and `linear` fall all the time, `wsd` only in its last steps."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up to the peak."""
    min_lr_ratio: Share = 0.1
    """Final learning rate, as a share of the peak; not of `constant`."""
    decay_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.2
    """Share of the steps after the warm-up in which `wsd` falls."""
    decay_shape: Literal["linear", "cosine"] = "linear"
    """How `wsd` falls."""

    def decay_start(self, steps: int) -> int:
        """The last step at the peak, of a run of `steps`; `constant` never falls."""
        if self.name == "constant":
            return steps
        stable = 1 - self.decay_share if self.name == "wsd" else 0.0
        return self.warmup_steps + 1 + floor(stable * (steps - self.warmup_steps) + 1e-9)


class LossConfig(Section):
    """Loss terms in addition to the next-token loss, and balancing of expert loads."""

    mtp_weight: NotNegative = 0.1
    """Weight of the MTP block's loss, if the model has one; 0 does not run the block."""
    mtp_decay_weight: Positive | None = None
    """Weight of that loss from the step on in which the learning rate begins to fall; null = `mtp_weight`."""
    balance_weight: NotNegative = 0.0
    """Weight of the sequence-wise balance loss (the paper's pre-training: 1e-4); off for fine-tuning."""
    bias_update_speed: NotNegative = 0.0
    """Step of the gates' balancing bias (the paper's pre-training: 0.001); 0 leaves the biases as they are."""
    z_weight: NotNegative = 0.0
    """Weight of the z-loss, the squared logarithm of the logits' normalizer, which keeps logits small; 0 = off."""

    @model_validator(mode="after")
    def _mtp_runs_all_the_time(self) -> Self:
        if self.mtp_decay_weight is not None and not self.mtp_weight:
            raise ValueError("mtp_decay_weight needs an mtp_weight above 0; set it to null")
        return self


class TrainConfig(Section):
    """How weights are trained, or what else is."""

    qat: Literal["none", "released", "fp8"] = "none"
    """Quantization-aware training: compute with the weights' values in this checkpoint format and with FP8 activations;
    `model/` is then written in it. `released`: FP4 experts, other matrices FP8; `fp8`: all in FP8."""
    indexer: Literal["frozen", "kl"] = "frozen"
    """`kl` trains the indexers of CSA layers by their divergence from attention, the rest by the objective."""
    indexer_warmup: bool = False
    """Train the indexers alone, on attention to all entries instead of the chosen ones; needs `indexer: kl`."""
    drafter: bool = False
    """Train the DSpark stages alone, on answers that the model itself gives to the training prompts."""
    drafter_answers: PositiveInt = 256
    """Training prompts that the model answers before training, at temperature 1."""
    drafter_answer_tokens: PositiveInt = 64
    """Maximum tokens of an answer."""
    drafter_anchors: PositiveInt = 64
    """Tokens of a micro-batch from which drafts are trained, at random."""

    @property
    def indexer_stage(self) -> IndexerStage:
        """What is trained of the indexers."""
        if self.indexer == "frozen":
            return "frozen"
        return "warmup" if self.indexer_warmup else "sparse"


class CheckpointConfig(Section):
    """When checkpoints are saved, from which a run resumes exactly. One is always saved at the end."""

    every: PositiveInt | None = None
    """Steps between two checkpoints, `checkpoints/step-NNNNNN`; null = only at the end."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints to keep; older ones are removed when a new one is complete."""
    keep_every: PositiveInt | None = None
    """Also keep those whose step is a multiple of this."""
    asynchronous: bool = True
    """Write checkpoints during training, from a copy in memory of the same size."""


class GuardConfig(Section):
    """Reactions to bad losses and gradients, and to steps that hang."""

    skip_nonfinite: NonNegativeInt = 0
    """Consecutive steps with a non-finite loss or gradient that may be skipped; one more stops the run."""
    spike_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """A loss above this factor times the median of the last 32 is a spike; null = no check."""
    spike_action: Literal["report", "rollback"] = "report"
    """`rollback` returns to the last checkpoint of this run and continues with the data after the spike."""
    step_timeout: Positive | None = None
    """Timeout in seconds of a phase of the loop; the process then exits and names the phase; null = none."""


def _named_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"names {twice[0]} twice")
    return names


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""A tool that shows the curves of runs."""


class LoggingConfig(Section):
    """Console output and experiment trackers; metrics.jsonl always gets a line per step."""

    every: PositiveInt = 1
    """Steps between two lines on the console, if it is not a terminal."""
    to: Annotated[tuple[TrackerName, ...], AfterValidator(_named_once)] = ("tensorboard",)
    """Trackers that get the metrics, too; each but TensorBoard is an extra of the same name."""
    update_ratios_every: PositiveInt | None = None
    """Steps between two measurements of how far a step moves weights relative to their size; each copies the weights.
    null = none."""
    noise_scale_every: PositiveInt | None = None
    """Steps between two measurements of the noise scale of gradients; each takes the time of two more steps. null =
    none."""
    project: Annotated[str, Field(min_length=1, max_length=128)] = "seektune"
    """Project (Weights & Biases, trackio) or experiment (MLflow) of the run."""
    offline: bool = False
    """Write what a server would get to files in the run folder; trackio keeps it in its local database."""
    flush_timeout: Positive = 30.0
    """Maximum seconds that the end of a run waits for a server to receive what is left."""
