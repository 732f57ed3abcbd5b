"""The held-out value by which a run is judged."""

from collections.abc import Mapping
from typing import Any

REWARD = "reward"
"""Its key in a line of validation.jsonl."""


def held_out(line: Mapping[str, Any]) -> tuple[str, float]:
    """Name and value of a line of validation.jsonl: the reward if answers are rewarded, otherwise the loss."""
    return ("held-out reward", line[REWARD]) if REWARD in line else ("validation loss", line["loss"])
