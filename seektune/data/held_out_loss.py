"""The loss on held-out examples, over all datasets and of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean next-token cross-entropy per taught token, in nats, or the loss of another objective."""

    loss: float
    """Over all datasets together."""
    datasets: Mapping[str, float] = field(default_factory=dict)
    """Of each dataset by its name in logs; empty if there is only one."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Further parts of the objective by name, over all datasets together."""
    parts_of_datasets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Those of each dataset; empty if there is only one."""
