"""How much of a device's memory KV caches may take; does not import torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheLimit:
    """How much of a device's memory KV caches may take.

    Raises:
        ValueError: the share is not one.
    """

    gpu_memory_utilization: float = 0.9
    """Share of the device's memory for weights and caches together, as in vLLM; the rest is for activations."""
    engines: int = 1
    """Engines that share the memory."""

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"--gpu-memory-utilization={self.gpu_memory_utilization} must be above 0 and at most 1")


WHOLE_DEVICE = CacheLimit()
"""Of the only engine on a device."""


@dataclass(frozen=True)
class CacheUse:
    """What an engine has caches for."""

    prefix_bytes: int = 0
    """Wanted for a prefix cache."""
    longest: int | None = None
    """Maximum tokens of a sequence; None = the model's context."""
    speculative: bool = False
    static_steps: bool = False
    """Whether decode steps have copies of the caches."""


WHOLE_CONTEXT = CacheUse()
"""Sequences of any length, and no prefix cache."""
