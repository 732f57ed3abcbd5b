"""What a checkpoint holds of a run's record: tokens and expert loads so far."""

from typing import Any, TypedDict

from seektune.io.json_file import whole_number

MOST_TOKENS = 2**62
"""More tokens than any run has."""


class LogState(TypedDict):
    """What the record of a resumed run must know of the steps before."""

    total_tokens: int
    loads: dict[str, list[int]]
    """Tokens per expert since the last line of expert loads, by layer id."""


def check_log_state(state: Any) -> LogState | None:
    """What a checkpoint holds of a run's record, if it holds any.

    Raises:
        ValueError: it is damaged.
    """
    if not state:
        return None
    loads = state.get("loads") if isinstance(state, dict) else None
    if not isinstance(loads, dict) or not all(layer.isdecimal() and _is_load(load) for layer, load in loads.items()):
        raise ValueError("its expert loads are not a list of numbers for each layer")
    return {"total_tokens": whole_number(state, "total_tokens", 0, MOST_TOKENS), "loads": loads}


def _is_load(load: object) -> bool:
    return isinstance(load, list) and all(isinstance(tokens, int) for tokens in load)
