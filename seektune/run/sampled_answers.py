"""Answers that the model of a run samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from seektune.generate.engine import DecodeEngine, Decodes
from seektune.generate.request import Request

TOGETHER = 64
"""Answers that are decoded together."""
Progress: TypeAlias = Callable[[], None]
"""Called after each decoding step; may raise `Interrupted`."""


@dataclass
class SampledAnswer:
    """An answer: the responses that were decoded, and the results of tools between them."""

    ids: list[int]
    logprobs: list[float]
    """0 for tokens of results."""
    truncated: bool = False
    taught: list[bool] = field(default_factory=list)
    """Whether each token was sampled."""
    response: int = 0
    """Where its last response begins in `ids`."""
    calls: int = 0
    """Tool calls that were run."""

    @property
    def sampled(self) -> int:
        """Number of sampled tokens."""
        return sum(self.taught)

    def add(self, token: int, logprob: float) -> None:
        """Append a sampled token."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.taught.append(True)

    def add_results(self, ids: Sequence[int]) -> None:
        """Append the results of tool calls, which are not taught; another response follows."""
        self.ids += ids
        self.logprobs += [0.0] * len(ids)
        self.taught += [False] * len(ids)
        self.response = len(self.ids)


def sample_responses(
    model: Decodes, requests: Sequence[Request], answers: Sequence[SampledAnswer], progress: Progress
) -> None:
    """Append a response to each answer; those of a group share the prefill of their prompt."""
    longest = max(request.longest for request in requests)
    engine = DecodeEngine(model, requests, longest=longest, cpu_kernels=False, max_num_seqs=TOGETHER)
    while not engine.done:
        for token in engine.step():
            answer = answers[token.request]
            answer.add(token.id, token.logprob)
            answer.truncated = token.end == "length"
        progress()
