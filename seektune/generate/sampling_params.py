"""Sampling parameters and their defaults; does not import torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; `repetition_penalty` is applied first, then the others in the order of the fields.

    Raises:
        ValueError: a number is outside its range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 = greedy. (The release recommends 1 with top_p 1.)"""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 = all."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose total probability reaches p."""
    min_p: float = 0.0
    """Sample from tokens at least p times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Logits of tokens in the sequence so far, prompt included, are divided by it if positive, multiplied if not."""

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0"),
        )
        for name, value, fits, wanted in checks:
            if not fits:
                raise ValueError(f"{name} must be {wanted}, not {value}")


DEFAULT = Sampling()
GREEDY = Sampling(temperature=0)
