"""Seconds of the drafts of a micro-batch, where the DSpark stages are trained."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from seektune.model.draft_flops import draft_flops
from seektune.planner.hardware import Cluster
from seektune.planner.job import Layout
from seektune.planner.messages import expert_messages


@dataclass(frozen=True)
class DraftTime:
    """What drafts add to a micro-batch; by default nothing."""

    forward: float = 0.0
    """Seconds, messages included."""
    backward: float = 0.0
    """The same."""
    arithmetic: Mapping[str, float] = field(default_factory=dict)
    """Seconds of both by part of the model."""
    messages: float = 0.0
    """Seconds of messages between experts."""
    flops: int = 0


def draft_time(layout: Layout, cluster: Cluster, factors: Mapping[str, float], rate: float) -> DraftTime:
    """The drafts of a micro-batch of a process, at `rate` operations per second."""
    job = layout.job
    if not job.drafter:
        return DraftTime()
    anchors = min(job.anchors, layout.rows_at_a_time * (layout.length - 1))
    found = draft_flops(job.config, layout.rows_at_a_time * layout.length, anchors)
    drafted = anchors * (job.config.dspark_block_size or 0)
    sent = expert_messages(job, drafted, job.config.dspark_stages, layout.dims.ep_size, cluster, factors)
    left = 1 - factors["hidden"]
    forward = sum(found.forward.values())
    backward = sum(found.backward.values())
    every = Counter(found.forward) + Counter(found.backward)
    return DraftTime(
        forward=forward / rate + left * sent.forward(0),
        backward=backward / rate + left * sent.backward(0),
        arithmetic={part: flops / rate for part, flops in every.items()},
        messages=sent.forward(0) + sent.backward(0),
        flops=forward + backward,
    )
