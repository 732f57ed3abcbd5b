"""What a reward judges: an answer, its prompt, and the answer of the row."""

from dataclasses import dataclass

from seektune.rewards.answer_metrics import Answer


@dataclass(frozen=True)
class RewardSample:
    """An answer and what it is judged by."""

    prompt: str
    answer: Answer
    """Of the model."""
    reference: Answer
    """Of the row."""
    truncated: bool
    """Whether the answer was cut off at the maximum number of tokens."""
    transcript: str = ""
    """All that follows the prompt, with results of tools and control tokens; `answer` is the last response of it."""
