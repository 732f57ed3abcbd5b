"""Time of messages between processes, and what of those between experts is hidden behind arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass

from seektune.planner.hardware import Cluster
from seektune.planner.job import TrainingJob

FP8_BYTES = 1 + 1 / 128
"""Of a column, with its share of the scales."""


@dataclass(frozen=True)
class ExpertMessages:
    """Seconds of a stage's messages for one micro-batch."""

    tokens: float
    """To the experts."""
    gradients: float
    """Of tokens, back from the experts."""
    outputs: float
    """Back from the experts, in fp32, or their gradients to them."""
    one_part: bool
    """Whether only the shared expert computes meanwhile, while tokens or their gradients travel."""

    def forward(self, hidden: float) -> float:
        """Seconds of a forward pass that are not hidden, with `hidden` seconds of arithmetic to hide behind."""
        return self._exposed(self.tokens, hidden)

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
    columns = tokens * job.config.num_experts_per_tok * job.config.hidden_size
    sent = FP8_BYTES if job.parallel.ep_message_dtype == "fp8" else job.itemsize

    parts = job.parallel.ep_parts

    def seconds(column: float) -> float:
        # each part is a message of its own, with its latency
        return layers * parts * exchange(columns / parts * column, ep_size, cluster, factors)

    return ExpertMessages(seconds(sent), seconds(job.itemsize), seconds(4), parts == 1)


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
