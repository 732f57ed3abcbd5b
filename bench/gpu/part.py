"""A part of the benchmark, and what it is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from seektune.model.config import DeepseekV4Config

Found = dict[str, Any]
"""What a part measured: names to numbers, texts and further such tables."""
TINY = {4096: 24, 16384: 80}
"""Tokens of a row in place of those of the released width."""


@dataclass
class Deadline:
    """When a part should begin no further case, and whether it was told so."""

    at: float = float("inf")
    """By `monotonic`."""
    was_over: bool = False

    def is_over(self) -> bool:
        """Whether the time has come."""
        self.was_over = self.was_over or monotonic() > self.at
        return self.was_over


@dataclass(frozen=True)
class Bench:
    """The device, the size of the model, and what earlier parts found."""

    device: str
    """`cuda` or `cpu`."""
    tiny: bool = False
    """Toy sizes, with which the whole flow runs on a CPU."""
    found: Mapping[str, Found] = field(default_factory=dict)
    deadline: Deadline = field(default_factory=Deadline)
    """A part of many cases stops then, before it is killed."""

    @property
    def config(self) -> DeepseekV4Config:
        """V4-Flash, or the tiny model."""
        return DeepseekV4Config.preset("tiny" if self.tiny else "flash")

    def tokens(self, length: int) -> int:
        """Tokens of a row that stands for one of `length`."""
        return TINY[length] if self.tiny else length

    @property
    def matmul(self) -> float | None:
        """10^12 operations per second of one large product in this run; None if that part failed."""
        return self.found.get("ceilings", {}).get("matmul_tflops")

    @property
    def copied(self) -> float | None:
        """10^9 bytes per second, read and written, of a large copy in this run; None if that part failed."""
        return self.found.get("ceilings", {}).get("copy_gb_s")

    def share(self, value: float, of: float | None) -> float | None:
        """A rate as a share of a ceiling."""
        return None if of is None else round(value / of, 3)

    @property
    def is_late(self) -> bool:
        """Whether no further case should begin."""
        return self.deadline.is_over()


Measure = Callable[[Bench], Found]
"""A function of a module's top level, or a `partial` of one: it is sent to the process that measures."""


@dataclass(frozen=True)
class Part:
    """Something to measure."""

    name: str
    seconds: float
    """Estimate on an H200, compilation included; it decides whether the part still fits the budget."""
    measure: Measure
    limit: float | None = None
    """Seconds after which it is killed; three times the estimate and 20 s if None."""

    @property
    def patience(self) -> float:
        """Seconds after which it is killed."""
        return 3 * self.seconds + 20 if self.limit is None else self.limit
