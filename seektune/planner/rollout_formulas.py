"""Memory of sampled answers: sizes of their KV caches, which are there while nothing is trained, and formulas."""

from dataclasses import dataclass

from seektune.planner.expressions import Formula


@dataclass(frozen=True)
class AnswerCaches:
    """The KV caches of answers that the model samples, by layer."""

    together: int
    """Answers that are sampled at a time, on all processes."""
    fixed: tuple[int, ...]
    """Bytes of an answer of any length."""
    per_token: tuple[float, ...]
    """Bytes of each of its tokens, those of the prompt included."""


ROLLOUT = (
    Formula(
        "rollout_caches",
        "answers_here * (answer_fixed + (length + 1) * answer_token) * (1 + twice)",
        "of the answers that are sampled together; the upper bound has a copy of them, as answers join or leave",
    ),
    Formula(
        "rollout_work",
        "max(0, rollout_caches - made - optimizer_work)",
        "of these, what does not fit where forward, backward and the optimizer had theirs",
    ),
)
"""Formulas that follow what a step makes: answers are sampled before it."""
