"""Which parameters Muon trains and which AdamW, by their released names; does not import torch."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

Matrices = Literal["none", "one", "groups", "experts"]
"""What a parameter is: no matrix, one, one for each group of wo_a's inputs (its rows), one for each expert."""


@dataclass(frozen=True)
class MuonRule:
    """A row of the table."""

    pattern: str
    """Of names, as in a shell."""
    what: str
    matrices: Matrices

    @property
    def optimizer(self) -> str:
        """Its name."""
        return "adamw" if self.matrices == "none" else "muon"


TABLE = (
    MuonRule("embed.weight", "embedding", "none"),
    MuonRule("head.weight", "head", "none"),
    MuonRule("*norm.weight", "norms", "none"),
    MuonRule("*.attn_sink", "attention sinks", "none"),
    MuonRule("*.ape", "position biases of compressors", "none"),
    MuonRule("*hc_*.base", "static biases of mHC", "none"),
    MuonRule("*hc_*.scale", "gating factors of mHC", "none"),
    MuonRule("mtp.*.markov_head.*", "token tables of the drafter", "none"),
    MuonRule("mtp.*.confidence_head.*", "one row of the drafter", "none"),
    MuonRule("*hc_*.fn", "dynamic mappings of mHC", "one"),
    MuonRule("*.attn.wo_a.weight", "grouped output projection", "groups"),
    MuonRule("*.ffn.experts.w?", "routed experts", "experts"),
    MuonRule("*.attn.*.weight", "other projections of attention", "one"),
    MuonRule("*.ffn.gate.weight", "gates", "one"),
    MuonRule("*.ffn.shared_experts.w?.weight", "shared experts", "one"),
    MuonRule("mtp.*_proj.weight", "projections of the MTP block and the drafter", "one"),
)
"""The first row whose pattern fits a name decides."""


def muon_rule(name: str) -> MuonRule:
    """The row of a parameter.

    Raises:
        ValueError: there is none.
    """
    for rule in TABLE:
        if fnmatchcase(name, rule.pattern):
            return rule
    raise ValueError(f"Muon's table has no row for {name}; use optimizer.name adamw")


def shares(shapes: Mapping[str, Iterable[int]]) -> dict[str, int]:
    """Parameters of each optimizer, of tensors of those names and shapes."""
    found: Counter[str] = Counter()
    for name, shape in shapes.items():
        found[muon_rule(name).optimizer] += prod(shape)
    return dict(found)


def table_lines(shapes: Mapping[str, Iterable[int]]) -> list[str]:
    """The table as lines: each row's optimizer, and how many parameters of those names and shapes it has."""
    tensors: Counter[MuonRule] = Counter()
    elements: Counter[MuonRule] = Counter()
    for name, shape in shapes.items():
        rule = muon_rule(name)
        tensors[rule] += 1
        elements[rule] += prod(shape)
    width = max(len(rule.pattern) for rule in TABLE)
    return [
        f"{rule.optimizer:<6} {rule.pattern:<{width}} {elements[rule]:>16,} in {tensors[rule]:>4} tensors  {rule.what}"
        for rule in TABLE
        if tensors[rule]
    ]
