"""Health of the gates: how evenly experts are used, which are not used at all, and how far balancing biases drifted.

Shapes: E experts.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

Loads = Mapping[int, Sequence[int]]
"""Tokens per expert, by layer id."""


def imbalance(loads: Loads) -> dict[int, float]:
    """The largest load of each layer over its mean; 1 is perfectly even."""
    return {layer: max(load) * len(load) / max(sum(load), 1e-9 * len(load)) for layer, load in loads.items()}


def entropy(loads: Loads) -> dict[int, float]:
    """The entropy of each layer's loads as a share of its maximum; 1 is perfectly even, 0 is one expert alone."""
    return {layer: _entropy(load) for layer, load in loads.items()}


def dead_experts(loads: Loads) -> dict[int, int]:
    """Experts of each layer without any token."""
    return {layer: sum(tokens == 0 for tokens in load) for layer, load in loads.items()}


def bias_moves(loads: Loads, speed: float, hash_layers: int) -> dict[int, list[float]]:
    """What `update_biases` adds to each bias after a step with these loads; none at speed 0 or for hash gates."""
    if speed == 0:
        return {}
    return {
        layer: [speed * _sign(load, tokens) for tokens in load] for layer, load in loads.items() if layer >= hash_layers
    }


def health_table(moment: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line of expert_loads.jsonl as rows of the report's table; `HEAD` names the columns."""
    loads = {int(layer): load for layer, load in moment["loads"].items()}
    drifts = moment.get("bias_drift", {})
    found = (imbalance(loads), entropy(loads), dead_experts(loads))
    rows: list[tuple[str, ...]] = []
    for layer in loads:
        busiest, even, dead = (each[layer] for each in found)
        drift = drifts.get(str(layer))
        moved = "none" if drift is None else f"{max(map(abs, drift)):.3f}"
        rows.append((f"layer {layer}", f"{busiest:.2f}", f"{even:.3f}", f"{dead} of {len(loads[layer])}", moved))
    return rows


HEAD = ("", "busiest over mean", "entropy, 1 = even", "experts without a token", "largest drift of a bias")


def _entropy(load: Sequence[int]) -> float:
    total = sum(load)
    if not total or len(load) < 2:
        return 1.0 if total else 0.0
    shares = [tokens / total for tokens in load if tokens]
    return abs(sum(share * log(share) for share in shares)) / log(len(load))


def _sign(load: Sequence[int], tokens: int) -> int:
    """1 for a load below the mean, -1 above."""
    scaled = tokens * len(load)
    total = sum(load)
    return (scaled < total) - (scaled > total)
