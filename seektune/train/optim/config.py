"""Recipe sections of optimizers, by the value of `optimizer.name`; does not import torch."""

from typing import Annotated, Literal

from pydantic import Field

from seektune.section import OneOf, Positive, Section
from seektune.train.config import Momentum, NotNegative

Rate = Annotated[float, Field(gt=0, le=1e3, allow_inf_nan=False)]


class ParameterGroupConfig(Section):
    """Parameters with a rate or decay of their own."""

    pattern: Annotated[str, Field(min_length=1, max_length=1000)]
    """Regular expression (RE2) that is found in the parameters' names in the model, such as `ffn[.]experts`."""
    lr: Rate | None = None
    """Their peak learning rate; null = that of `optimizer`."""
    weight_decay: NotNegative | None = None
    """Their decay, whatever kind of parameter they are; null = as without the group."""


class OptimizerConfig(Section):
    """Keys that every optimizer has."""

    name: str
    """Name of the optimizer."""
    lr: Rate = 1e-5
    """Peak learning rate; see `schedule`."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """Decay of the first and second moment of AdamW."""
    eps: Positive = 1e-8
    """Added to the root of the second moment of AdamW."""
    weight_decay: NotNegative = 0.1
    """Decoupled decay; norms, biases, sinks, parameters of mHC and compressors' position biases are not decayed."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are clipped to this norm over all parameters; null = no clipping."""
    master: Literal["fp32", "bf16_stochastic"] = "fp32"
    """How small updates of bf16 weights are kept: an fp32 copy, or stochastic rounding, without extra memory."""
    groups: list[ParameterGroupConfig] = Field(default_factory=list)
    """Parameters with their own rate or decay; the first group whose pattern is found in a name applies."""


class AdamWConfig(OptimizerConfig):
    """AdamW: fp32 moments and fp32 arithmetic whatever the model's dtype."""

    name: Literal["adamw"] = "adamw"
    """Name of the optimizer."""


class AdamW8bitConfig(OptimizerConfig):
    """AdamW with moments of 8 bits for matrices, by torchao (an extra): 2.06 bytes per element instead of 8."""

    name: Literal["adamw_8bit"]
    """Name of the optimizer."""


class MuonConfig(OptimizerConfig):
    """Muon for matrices, with fp32 momentum; AdamW for everything else (the page on optimizers has the table)."""

    name: Literal["muon"]
    """Name of the optimizer."""
    momentum: Momentum = 0.95
    """Decay of Muon's momentum."""
    eps: Positive = 1e-20
    """Added to the root of the second moment of AdamW."""
    weight_decay: NotNegative = 0.1
    """Decoupled decay of Muon's matrices, the embedding and the head."""


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adamw": AdamWConfig,
    "muon": MuonConfig,
    "adamw_8bit": AdamW8bitConfig,
}
"""Sections by the value of `optimizer.name`; the first is the default."""

OptimizerSection = Annotated[OptimizerConfig, OneOf("name", OPTIMIZERS)]
"""The type of a recipe's `optimizer`."""
