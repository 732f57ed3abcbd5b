"""Answers that the model of a run samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from seektune.generate.engine import DecodeEngine, Decodes
from seektune.generate.request import Request

TOGETHER = 64
"""Answers that are decoded together."""
Progress: TypeAlias = Callable[[], None]
"""Called after each decoding step; may raise `Interrupted`."""


@dataclass
class SampledAnswer:
    """An answer as it was decoded."""

    ids: list[int]
    logprobs: list[float]
    truncated: bool = False


def sample_answers(model: Decodes, requests: Sequence[Request], progress: Progress) -> list[SampledAnswer]:
    """The answers to requests; those of a group share the prefill of their prompt."""
    longest = max(request.longest for request in requests)
    engine = DecodeEngine(model, requests, longest=longest, cpu_kernels=False, max_num_seqs=TOGETHER)
    found = [SampledAnswer([], []) for _ in requests]
    while not engine.done:
        for token in engine.step():
            answer = found[token.request]
            answer.ids.append(token.id)
            answer.logprobs.append(token.logprob)
            answer.truncated = token.end == "length"
        progress()
    return found
