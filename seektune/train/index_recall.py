"""Recall of trained indexers: the share of the entries with the most attention that they would choose."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from seektune.model.step_loss import INDEXER_LOSS

INDEX_RECALL = "index_recall"
"""Name of the mean over the layers in a step's metrics."""
RECALL_HEAD = ("", "first step", "last step")
"""The columns of `recall_table`."""


def recall_of(counts: Mapping[int, Tensor]) -> dict[int, float]:
    """By layer id, from `[2]` entries found and entries there were; without layers that had nothing to choose from."""
    found = {layer: each.tolist() for layer, each in counts.items()}
    return {layer: hits / wanted for layer, (hits, wanted) in found.items() if wanted}


def mean_recall(recall: Mapping[int, float]) -> dict[str, float]:
    """The mean over the layers, as a value to log; nothing without layers."""
    return {INDEX_RECALL: sum(recall.values()) / len(recall)} if recall else {}


def indexer_changes(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Divergence and recall in the first and the last step that measured them, from the lines of metrics.jsonl."""
    values = {"indexer loss": INDEXER_LOSS, "index recall": INDEX_RECALL}
    found = {name: [line[key] for line in steps if key in line] for name, key in values.items()}
    return [f"{name}: {each[0]:z.4f} → {each[-1]:z.4f}" for name, each in found.items() if each]


def recall_table(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the report's table from the lines of metrics.jsonl: divergence, and recall of each layer."""
    told = [line for line in steps if INDEXER_LOSS in line]
    if not told:
        return []
    ends = told[0], told[-1]
    rows: list[tuple[str, ...]] = [("divergence of all layers", *(f"{line[INDEXER_LOSS]:z.4f}" for line in ends))]
    of_layers = [line.get("index_recall_of_layers", {}) for line in ends]
    for layer in sorted(of_layers[0].keys() | of_layers[1].keys(), key=int):
        each = [recall.get(layer) for recall in of_layers]
        rows.append((f"recall in layer {layer}", *("none" if x is None else f"{x:.3f}" for x in each)))
    return rows
