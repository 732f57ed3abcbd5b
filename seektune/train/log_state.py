"""What a checkpoint holds of a run's record: tokens and expert loads so far."""

import re
from math import isfinite
from typing import Any, NotRequired, TypedDict

from seektune.io.json_file import whole_number

MOST_TOKENS = 2**62
"""More tokens than any run has."""
_LAYER = re.compile(r"\d{1,4}", re.ASCII)


class LogState(TypedDict):
    """What the record of a resumed run must know of the steps before."""

    total_tokens: int
    loads: dict[str, list[int]]
    """Tokens per expert since the last line of expert loads, by layer id."""
    bias_drift: NotRequired[dict[str, list[float]]]
    """What balancing added to each gate's biases since the run began, by layer id; absent without balancing."""


def check_log_state(state: Any, experts: int) -> LogState | None:
    """What a checkpoint holds of a run's record, if it holds any; `experts` is the model's number per layer.

    Raises:
        ValueError: it is damaged.
    """
    if not state:
        return None
    loads = state.get("loads") if isinstance(state, dict) else None
    if not isinstance(loads, dict) or not all(
        _LAYER.fullmatch(layer) and _is_load(load, experts) for layer, load in loads.items()
    ):
        raise ValueError(f"its expert loads are not a list of {experts} numbers for each layer")
    found: LogState = {"total_tokens": whole_number(state, "total_tokens", 0, MOST_TOKENS), "loads": loads}
    if "bias_drift" not in state:
        return found
    drift = state["bias_drift"]
    if not isinstance(drift, dict) or not all(
        _LAYER.fullmatch(layer) and _is_drift(each, experts) for layer, each in drift.items()
    ):
        raise ValueError(f"its drift of biases is not a list of {experts} numbers for each layer")
    return found | {"bias_drift": drift}


def _is_drift(drift: object, experts: int) -> bool:
    return (
        isinstance(drift, list) and len(drift) == experts and all(isinstance(x, float) and isfinite(x) for x in drift)
    )


def _is_load(load: object, experts: int) -> bool:
    return isinstance(load, list) and len(load) == experts and all(map(_is_count, load))


def _is_count(tokens: object) -> bool:
    return isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens <= MOST_TOKENS
