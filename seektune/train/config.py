"""Recipe sections of training; does not import torch, so that errors in a recipe are reported at once."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from seektune.section import Positive, Section

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class OptimizerConfig(Section):
    """AdamW: fp32 moments and fp32 arithmetic whatever the model's dtype."""

    name: Literal["adamw"] = "adamw"
    """The optimizer; there is one so far."""
    lr: Annotated[float, Field(gt=0, le=1e3, allow_inf_nan=False)] = 1e-5
    """Peak learning rate; `schedule` says how it rises and falls."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NotNegative = 0.1
    """Decoupled decay; norms, biases and the parameters of mHC, sinks and compressors are not decayed."""
    max_grad_norm: Positive | None = 1.0
    """The gradient is scaled down to this norm over all parameters; null for never."""
    master: Literal["fp32", "bf16_stochastic"] = "fp32"
    """How small updates of bf16 weights survive: an fp32 copy, or stochastic rounding, which needs no extra memory."""


class ScheduleConfig(Section):
    """How the learning rate rises and falls."""

    name: Literal["cosine", "constant"] = "cosine"
    """Its course after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which it rises linearly to the peak."""
    min_lr_ratio: Share = 0.1
    """Where a cosine ends, as a share of the peak."""


class LossConfig(Section):
    """What is added to the next-token loss, and how expert loads are balanced."""

    mtp_weight: NotNegative = 0.1
    """Weight of the MTP block's loss where the model has one; 0 leaves the block out."""
    balance_weight: NotNegative = 0.0
    """Weight of the sequence-wise balance loss (the paper's pre-training: 1e-4); off for fine-tuning."""
    bias_update_speed: NotNegative = 0.0
    """Step of the gates' balancing bias (the paper's pre-training: 0.001); 0 leaves the biases as they are."""


class CheckpointConfig(Section):
    """When the run's whole state is saved, so that it can be resumed exactly. The end of a run always saves it."""

    every: PositiveInt | None = None
    """Also save each so many steps, to `checkpoints/step-NNNNNN`; null for only at the end."""
    keep_last: PositiveInt = 2
    """Checkpoints that are kept; older ones are removed when a new one is complete."""
    keep_every: PositiveInt | None = None
    """Also keep those whose step is a multiple of this."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in memory as large as what is saved."""


class GuardConfig(Section):
    """What happens when a run goes wrong."""

    skip_nonfinite: NonNegativeInt = 0
    """Steps in a row whose loss or gradient may be infinite or NaN: they are skipped; one more stops the run."""
    spike_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """A loss above the median of the last 32 times this is a spike; null for not looking."""
    spike_action: Literal["report", "rollback"] = "report"
    """`rollback` goes back to the last checkpoint of this run and on with the data after the spike."""
    step_timeout: Positive | None = None
    """Seconds after which a phase of the loop is stuck and the process ends, naming the phase; null for never."""


class LoggingConfig(Section):
    """What the run says while it runs; metrics.jsonl always gets a line per step."""

    every: PositiveInt = 1
    """Steps between two lines on the console, where it is not a terminal."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl."""
