"""The section `parallel` of a recipe."""

from math import lcm
from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from seektune.section import Section

MAX_PROCESSES = 1_000_000
"""Of a job; a larger number is a typo, and finding a layout for it would take too long."""


EXPERT_MESSAGES = ("ep_backend", "ep_message_dtype", "ep_parts")
"""Settings of the messages between experts, which one process of experts does not send."""


class PipelineConfig(Section):
    """Schedule and stages of the pipeline; no effect with `pp_size` 1."""

    schedule: Literal["1f1b", "interleaved1f1b", "zbv", "dualpipev"] = "1f1b"
    """Pipeline schedule. `1f1b` has one stage per process; the others have several and less idle time."""
    layers_per_stage: PositiveInt | None = None
    """Layers per stage, the MTP block counting as one; null = as even as possible."""
    microbatch: PositiveInt | None = None
    """Maximum rows of a micro-batch in the pipeline; null = `batch.micro_size`. Smaller micro-batches reduce idle
    time."""


class ParallelConfig(Section):
    """Sizes of the mesh: world = pp_size x cp_size x dp; ep_size divides cp_size x dp and adds no processes."""

    layout: Literal["given", "auto"] = "given"
    """`auto`, or `parallel: auto` for short, lets the planner choose sizes, recompute and schedule at launch for the
    available GPUs; `given` uses the sizes below."""
    pp_size: PositiveInt = 1
    """Pipeline stages: consecutive groups of layers, each on its own processes."""
    ep_size: PositiveInt = 1
    """Processes over which the routed experts are sharded; must divide their number (V4-Flash: 256, V4-Pro: 384)."""
    ep_backend: Literal["torch", "deep_ep"] = "torch"
    """What carries messages between experts: torch's all-to-all, or DeepEP 1.2 where it is installed, for bf16 models;
    it sends a token once to each process and sums outputs in bf16."""
    ep_message_dtype: Literal["model", "fp8"] = "model"
    """Tokens are sent to their experts in the model's dtype, or in FP8 (E4M3, a scale per 128 columns), which halves
    these messages and rounds; outputs and gradients are never rounded."""
    ep_parts: PositiveInt = 1
    """Parts of a micro-batch's tokens that go to the experts one after the other, so that the messages of one travel
    while the experts of another compute; frozen low-bit experts are dequantized for each part."""
    cp_size: PositiveInt = 1
    """Processes over which the tokens of one row are sharded; for rows too long for one device."""
    dp_shard: PositiveInt | None = None
    """Processes over which weights, gradients and optimizer state are sharded, each with its own rows; null = rest."""
    dp_replicate: PositiveInt = 1
    """Replicas of these shards, each with its own rows (HSDP); for slow links between nodes."""
    pipeline: PipelineConfig = PipelineConfig()
    """Settings of the pipeline."""
    recompute: Literal["none", "block", "selective"] = "none"
    """Activation checkpointing: none, whole blocks, or everything in a block except its large products."""
    reshard: bool = True
    """Reshard a block's weights after its forward and gather them again for backward; false is faster. A pipeline
    always keeps them until the end of the step."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in the host's memory (FSDP2's CPU offload); slow."""

    @model_validator(mode="after")
    def _backend_fits(self) -> Self:
        if self.ep_backend == "deep_ep" and (self.ep_message_dtype != "model" or self.ep_parts > 1):
            raise ValueError("parallel.ep_backend deep_ep cannot be combined with ep_message_dtype or ep_parts")
        return self

    @model_validator(mode="after")
    def _messages_are_sent(self) -> Self:
        # `auto` chooses ep_size later
        if self.layout == "given":
            for name, usual in self.without_effect().items():
                raise ValueError(
                    f"parallel.{name} needs parallel.ep_size above 1: with 1 there are no messages; set it to {usual}"
                )
        return self

    def without_effect(self) -> dict[str, object]:
        """Settings that `ep_size` 1 leaves without an effect, with their defaults."""
        if self.ep_size > 1:
            return {}
        given = self.model_dump()
        usual = {name: type(self).model_fields[name].default for name in EXPERT_MESSAGES}
        return {name: default for name, default in usual.items() if given[name] != default}

    def least_world(self) -> int:
        """The smallest number of processes that fits these sizes."""
        data = self.dp_replicate * (self.dp_shard or 1) * self.cp_size
        return self.pp_size * (data if self.dp_shard is not None else lcm(data, self.ep_size))
