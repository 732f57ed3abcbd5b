"""The section `lora` of a recipe."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from seektune.section import Positive, Section


class LoraConfig(Section):
    """Low-rank adapters on frozen weights; off while `targets` is empty."""

    targets: tuple[str, ...] = ()
    """Names as the checkpoint has them, such as attn.wq_b, ffn.experts, or attn for all maps directly in it."""
    adapter: str | None = None
    """Folder of an adapter in PEFT's form to begin from, of the same targets, rank and alpha; null for a fresh one."""
    rank: PositiveInt = 16
    """Columns of B and rows of A."""
    alpha: Positive = 32.0
    """B A is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Share of an adapter's inputs that are dropped while training."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that a higher rank does not weaken the adapter."""
    dora: bool = False
    """Also train the length of each output's weight (DoRA); not for routed experts."""
    shared_a: bool = False
    """The routed experts of a layer share A and keep a B each: less memory."""
    merge_into: Literal["released", "fp8", "base", "bf16"] | None = None
    """Train through the rounding of that format, so that the merged checkpoint computes what training saw."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.targets and self != LoraConfig.model_construct():
            raise ValueError("lora.targets is empty, so nothing else of lora has a meaning; name what to adapt")
        if self.merge_into is not None and (self.dora or self.dropout):
            raise ValueError("lora.merge_into trains what a merge will store, without lora.dora and lora.dropout")
        tables = [target for target in self.targets if target in ("embed", "head")]
        if tables and (self.dora or self.merge_into is not None):
            raise ValueError(f"lora.dora and lora.merge_into do not cover {tables[0]}; leave it out of lora.targets")
        return self
