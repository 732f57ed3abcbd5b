"""What a worker has between the parts of a step: after a forward pass, after sampling, and at the end.

Shapes: B rows, T tokens, S streams, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from seektune.generate.request import DraftCounts, Token
from seektune.generate.running_batch import RunningBatch


@dataclass(frozen=True)
class ForwardResult:
    """Sequences after a forward pass, from which their next tokens are sampled."""

    texts: RunningBatch
    streams: Tensor
    """`[B, T, S, D]` of each row's last token and of its drafts."""
    features: Tensor | None
    """What the drafter reads of these tokens."""


@dataclass(frozen=True)
class Continuing:
    """Sequences that have not ended, after their next tokens are sampled."""

    texts: RunningBatch
    features: Tensor | None
    """What the drafter reads of the tokens before the sampled ones, `[B, T, ...]`."""
    taken: list[list[int]]
    """The sampled tokens of each row."""


@dataclass
class StepResult:
    """What a step has done so far on this rank."""

    tokens: list[Token] = field(default_factory=list)
    drafts: dict[int, DraftCounts] = field(default_factory=dict)
    """Counts of the verified drafts by request."""
    error: Exception | None = None

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Code between forward passes: its error is kept, since the other ranks wait in the passes that follow."""
        try:
            yield
        except (ArithmeticError, MemoryError, RuntimeError) as error:  # RuntimeError is also torch's out of memory
            self.error = self.error or error
