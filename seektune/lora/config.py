"""The section `lora` of a recipe."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from seektune.section import PathString, Positive, Section


class LoraConfig(Section):
    """LoRA adapters on frozen weights; off if `targets` is empty."""

    targets: tuple[str, ...] = ()
    """Released module names, such as attn.wq_b or ffn.experts; a parent such as attn covers its direct children."""
    adapter: PathString | None = None
    """Folder of an adapter in PEFT's format to start from, with the same targets, rank and alpha; null = a new one."""
    rank: PositiveInt = 16
    """Rank of the adapters: rows of A and columns of B."""
    alpha: Positive = 32.0
    """B A is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Dropout probability of the adapters' inputs during training."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA), so that a higher rank does not weaken the adapter."""
    dora: bool = False
    """Also train the norm of each weight row (DoRA); not for routed experts."""
    shared_a: bool = False
    """The routed experts of a layer share A, each with its own B; takes less memory."""
    merge_into: Literal["released", "fp8", "base", "bf16"] | None = None
    """Train through the rounding of this format, so that the merged checkpoint computes what training computed."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.targets and self != LoraConfig.model_construct():
            raise ValueError("lora.targets is empty but other lora keys are set; list the modules to adapt")
        if self.merge_into is not None and (self.dora or self.dropout):
            raise ValueError("lora.merge_into cannot be combined with lora.dora or lora.dropout; remove them")
        tables = [target for target in self.targets if target in ("embed", "head")]
        if tables and (self.dora or self.merge_into is not None):
            raise ValueError(f"lora.dora and lora.merge_into do not support {tables[0]}; remove it from lora.targets")
        return self
