"""What a recipe says about processes: how many share the work along each axis; free of torch, as all sections are."""

from math import lcm
from typing import Literal

from pydantic import PositiveInt

from seektune.section import Section

MAX_PROCESSES = 1_000_000
"""Of a job; a larger number is a typo, and finding a layout for it would take too long."""


class PipelineConfig(Section):
    """How the stages of a pipeline divide the layers and take turns; without meaning at `pp_size` 1."""

    schedule: Literal["1f1b", "interleaved1f1b", "zbv", "dualpipev"] = "1f1b"
    """Order of work. `1f1b` has one stage per process; the others have several, and wait less."""
    layers_per_stage: PositiveInt | None = None
    """Layers of a stage, the MTP block counting as one; null divides them evenly."""
    microbatch: PositiveInt | None = None
    """Most rows that go through at a time; null for `batch.micro_size`. Fewer rows make more micro-batches, which wait
    less for each other."""


class ParallelConfig(Section):
    """Sizes of the mesh: world = pp_size x cp_size x dp; ep_size is carved out of cp_size x dp and divides it."""

    layout: Literal["given", "auto"] = "given"
    """`auto`, or `parallel: auto` for short, lets the planner choose sizes, recompute and schedule at launch, by the
    GPUs that are there."""
    pp_size: PositiveInt = 1
    """Pipeline stages: consecutive groups of layers, each on its own processes."""
    ep_size: PositiveInt = 1
    """Processes over which the routed experts are split; must divide their number (256 in V4-Flash, 384 in V4-Pro)."""
    cp_size: PositiveInt = 1
    """Processes over which the tokens of one row are split; for rows too long for one device."""
    dp_shard: PositiveInt | None = None
    """Processes over which weights, gradients and optimizer state are cut, each with its own rows; null = the rest."""
    dp_replicate: PositiveInt = 1
    """Copies of all that, each with its own rows (HSDP); sensible where links between nodes are slow."""
    pipeline: PipelineConfig = PipelineConfig()
    """How a pipeline works."""
    recompute: Literal["none", "block", "selective"] = "none"
    """What backward computes again to save memory: nothing, whole blocks, or blocks but for their large products."""
    reshard: bool = True
    """Give weights gathered for a layer back after its forward and gather them again for backward; false is faster.
    A pipeline always keeps them until the end of the step."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state of a GPU in the host's memory; slow, for when nothing else fits."""

    def least_world(self) -> int:
        """The smallest number of processes into which these sizes multiply out."""
        data = self.dp_replicate * (self.dp_shard or 1) * self.cp_size
        return self.pp_size * (data if self.dp_shard is not None else lcm(data, self.ep_size))
