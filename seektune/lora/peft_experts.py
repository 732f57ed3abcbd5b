"""Adapters that hold a pair of A and B for each routed expert, as servers read them: stacked to one change per matrix.

Shapes: R rank, I inputs, O outputs, E experts.
"""

import re
from collections.abc import Mapping

import torch

from seektune.lora.delta import LoraDelta

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(w[123])")


def stack_experts(changes: Mapping[str, LoraDelta]) -> dict[str, LoraDelta]:
    """Changes by released module name, with one for all experts of a matrix in place of one for each.

    Raises:
        ValueError: some experts of a matrix have no change, or their changes differ in shape or scaling, or are DoRA's.
    """
    out: dict[str, LoraDelta] = {}
    stacks: dict[str, dict[int, LoraDelta]] = {}
    for name, change in changes.items():
        if found := _EXPERT.fullmatch(name):
            stacks.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = change
        else:
            out[name] = change
    for name, experts in stacks.items():
        if name in out:
            raise ValueError(f"it changes {name} of all experts together and of each expert")
        out[name] = _stacked(name, experts)
    return out


def _stacked(name: str, experts: Mapping[int, LoraDelta]) -> LoraDelta:
    if sorted(experts) != list(range(len(experts))):
        raise ValueError(f"it changes {name} of {len(experts)} experts, but not of each one up to {max(experts)}")
    present = [experts[number] for number in range(len(experts))]
    forms = {(change.a.shape, change.b.shape, change.scaling, change.magnitude is None) for change in present}
    if len(forms) > 1 or present[0].magnitude is not None:
        raise ValueError(f"its changes of {name} differ in rank, shape or scaling between experts, or use DoRA")
    a_ERI = torch.stack([change.a for change in present])
    b_EOR = torch.stack([change.b for change in present])
    return LoraDelta(a_ERI, b_EOR, present[0].scaling)
