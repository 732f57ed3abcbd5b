"""Decoding on a cluster: which sequences fit on its processes, and bounds of tokens per second.

The processes of a pipeline stage have all its weights but the experts of others, and sequences of their own; see
`seektune.generate`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from seektune.generate.limits import CHUNK
from seektune.planner.hardware import GIGA, Cluster
from seektune.planner.memory import UPPER
from seektune.planner.serving_stage import ServingStage


@dataclass(frozen=True)
class ServingPlan:
    """Decoding on a cluster, one process per GPU."""

    stages: tuple[ServingStage, ...]
    """In order; one without a pipeline."""
    longest: int
    """Maximum tokens of a sequence."""

    @property
    def cluster(self) -> Cluster:
        """The GPUs."""
        return self.stages[0].cluster

    @property
    def ep_size(self) -> int:
        """Processes over which the routed experts are spread."""
        return self.stages[0].dims.ep_size

    @property
    def pp_size(self) -> int:
        """Pipeline stages over which the layers are spread."""
        return len(self.stages)

    @property
    def tightest(self) -> ServingStage:
        """The stage on which the fewest sequences of the maximum length fit; of several, that with least memory."""
        return min(self.stages, key=lambda stage: (stage.sequences(self.longest), stage.free))

    @property
    def fits(self) -> bool:
        """Whether a sequence of any length fits."""
        return self.sequences(1) > 0

    def sequences(self, length: int) -> int:
        """Sequences of that many tokens that run together, on all processes."""
        return self.on_each(length) * self.stages[0].dims.stage_size

    def on_each(self, length: int) -> int:
        """The same of a process; those of a pipeline hold parts of the same sequences."""
        return min(stage.sequences(length) for stage in self.stages)

    def rates(self, running: int, length: int) -> tuple[float, float]:
        """Lower and upper bound of tokens per second of all processes, with `running` sequences on each of a stage.

        The upper bound moves the bytes of weights and caches once at the peak rates; the lower one also dequantizes,
        with the shares, latencies and routing of hardware.json.
        """
        tokens = running * self.stages[0].dims.stage_size
        slow = sum(max(stage.slow(size, length) for stage, size in step) for step in self._steps(running))
        fast = sum(max(stage.fast(size, length) for stage, size in step) for step in self._steps(running))
        return tokens / slow, tokens / fast

    def _steps(self, running: int) -> Iterator[list[tuple[ServingStage, int]]]:
        """The steps in which each sequence gets a token: the sequences of the group that each stage works on."""
        stages = self.pp_size
        groups = [running // stages + (group < running % stages) for group in range(stages)]
        for step in range(stages):
            yield [(stage, groups[(step - number) % stages]) for number, stage in enumerate(self.stages)]

    def assumptions(self) -> list[str]:
        """What the numbers rest on."""
        factors = self.cluster.factors
        stage = self.tightest
        copies = "2 times their size" if self.pp_size == 1 else f"their size and that of one of {self.pp_size} groups"
        if stage.static_steps:
            copies += ", and once more for static steps, whose rows are a power of two (--cuda-graphs)"
        return [
            "weights and caches are counted exactly, as the loaders hold them; nothing was compared with a GPU",
            f"caches are copied when a sequence joins or ends: room for {copies}; the sequences of a "
            "process all have the capacity of its longest, which is a power of two",
            f"weights and caches take at most {stage.gpu_memory_utilization:.0%} of a GPU's memory "
            "(--gpu-memory-utilization)",
            *self._of_pipelines(),
            f"prompts are read {CHUNK:,} tokens at a time: {stage.work_bytes / GIGA:.1f} GB of activations and "
            "dequantized weights, estimated from shapes",
            f"CUDA's context, NCCL and fragmentation: {stage.overhead(UPPER) / GIGA:.1f} GB",
            "upper bound of the speed: each byte of weights and caches is read once at the memory's full rate, "
            "messages are sent at the link's full rate, routing is even",
            f"lower bound: quantized weights are dequantized to memory and read again, {factors['memory']:.0%} of the "
            f"memory's rate, {factors['link']:.0%} of the link's, {factors['latency_s'] * 1e6:.0f} microseconds per "
            f"message, {factors['skew']:g} times the mean pairs on the busiest process",
            "not counted: launching kernels, sampling, the controller's messages between hosts, prompts read beside",
        ]

    def _of_pipelines(self) -> list[str]:
        """Assumptions that differ with pipeline stages."""
        if self.pp_size == 1:
            return [f"a prefix cache of {self.stages[0].prefix_bytes / GIGA:.2g} GB (--prefix-cache-gb)"]
        return [
            f"the sequences of a process are in {self.pp_size} equal groups, and in each step every stage works on "
            "another one; a step takes as long as its slowest stage, the message to the next stage included",
            "a pipeline has no prefix cache and no speculative decoding",
        ]
