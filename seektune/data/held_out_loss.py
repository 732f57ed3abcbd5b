"""The loss on held-out examples, over all datasets and of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean next-token cross-entropy per taught token, in nats."""

    loss: float
    """Over all datasets together."""
    datasets: Mapping[str, float] = field(default_factory=dict)
    """Of each dataset by its name in logs; empty if there is only one."""
