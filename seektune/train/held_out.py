"""The held-out values by which a run is judged."""

from collections.abc import Mapping
from typing import Any

from seektune.model.distillation import DIVERGENCE, ENTROPY

REWARD = "reward"
"""Its key in a line of validation.jsonl."""
NAMES = {
    DIVERGENCE: "held-out divergence per token",
    ENTROPY: "held-out entropy per token",
    REWARD: "held-out reward",
}
"""Values that are shown in place of the loss, by key."""
JUDGES = (DIVERGENCE, REWARD)
"""The first of them that a line has judges the run."""


def held_out(line: Mapping[str, Any]) -> tuple[str, float]:
    """Name and value of a line of validation.jsonl: divergence from teachers, otherwise the reward, or the loss."""
    key = next((key for key in JUDGES if key in line), None)
    return ("validation loss", line["loss"]) if key is None else (NAMES[key], line[key])


def held_out_changes(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Name, value before and value after, of two lines of validation.jsonl; the one that judges the run is first."""
    found = [(name, first[key], last[key]) for key, name in NAMES.items() if key in first and key in last]
    return found or [(held_out(first)[0], held_out(first)[1], held_out(last)[1])]
