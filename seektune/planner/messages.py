"""Time of messages between processes, and what of those between experts is hidden behind arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass

from seektune.planner.hardware import Cluster
from seektune.planner.job import TrainingJob

FP8_BYTES = 1 + 1 / 128
"""Of a column, with its share of the scales."""
OUTPUT_BYTES = 4
"""Of a column of outputs, and of their gradients: fp32."""
WEIGHT_BYTES = 4
"""Of the weight of a pair: fp32."""
COUNT_BYTES = 8
"""Of the number of pairs of an expert: int64."""


@dataclass(frozen=True)
class ExpertMessages:
    """Seconds of a stage's messages for one micro-batch."""

    counts: float
    """Of pairs by expert, before everything else in a forward pass; all processes wait for them."""
    tokens: float
    """To the experts, with the weights of pairs."""
    gradients: float
    """Of tokens and weights, back from the experts."""
    outputs: float
    """Back from the experts, in fp32, or their gradients to them."""
    one_part: bool
    """Whether only the shared expert computes meanwhile, while tokens or their gradients travel."""

    def forward(self, hidden: float) -> float:
        """Seconds of a forward pass that are not hidden, with `hidden` seconds of arithmetic to hide behind."""
        return self.counts + self._exposed(self.tokens, hidden)

    def backward(self, hidden: float) -> float:
        """The same of a backward pass."""
        return self._exposed(self.gradients, hidden)

    def _exposed(self, rows: float, hidden: float) -> float:
        coverable = rows if self.one_part else rows + self.outputs
        return rows + self.outputs - min(coverable, hidden)


def expert_messages(
    job: TrainingJob, tokens: int, layers: int, ep_size: int, cluster: Cluster, factors: Mapping[str, float]
) -> ExpertMessages:
    """The messages of `tokens` tokens through `layers` layers."""
    pairs = tokens * job.config.num_experts_per_tok
    width = job.config.hidden_size
    sent = FP8_BYTES if job.parallel.ep_message_dtype == "fp8" else job.itemsize

    parts = job.parallel.ep_parts

    def seconds(row: float) -> float:
        # each part is a message of its own, with its latency
        return layers * parts * exchange(pairs / parts * row, ep_size, cluster, factors)

    # those of all parts are one message
    counts = layers * exchange(COUNT_BYTES * parts * job.config.n_routed_experts, ep_size, cluster, factors)
    weights = seconds(WEIGHT_BYTES)
    rows = seconds(width * sent) + weights, seconds(width * job.itemsize) + weights, seconds(width * OUTPUT_BYTES)
    return ExpertMessages(counts, *rows, parts == 1)


def hiding(job: TrainingJob, experts: float, factors: Mapping[str, float]) -> float:
    """Seconds of a forward pass's experts behind which messages are hidden: of the shared one, or in parts of all."""
    share = 1 / (1 + job.config.num_experts_per_tok) if job.parallel.ep_parts == 1 else 1.0
    return factors["ep_overlap"] * share * experts


def exchange(size: float, processes: int, cluster: Cluster, factors: Mapping[str, float]) -> float:
    """Seconds of an all-to-all or all-gather among adjacent ranks, of which some may be on other nodes."""
    if processes == 1:
        return 0.0
    near = min(processes, cluster.gpus_per_node)
    inside = (near - 1) / processes
    outside = (processes - near) / processes
    # both kinds of links are used at the same time
    slower = max(inside / cluster.link, outside / cluster.network)
    return size * slower / factors["link"] + factors["latency_s"]
