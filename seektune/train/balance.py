"""Loss-free balancing of expert loads: a bias per expert that is adjusted by its load.

Shapes: E experts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from seektune.model.gate import Gate, TopKGate


@torch.no_grad()
def update_biases(gates: Mapping[int, Gate], loads: Mapping[int, Tensor], speed: float) -> None:
    """Move each gate's bias by `speed` towards even loads: up for an expert below the mean, down for one above.

    The sign form of DeepSeek-V3 (section 2.1.2 there). Hash gates choose by table and have no bias. At speed 0 not a
    byte changes.

    Args:
        gates: by layer id.
        loads: tokens of the whole step per expert `[E]`, by layer id; a layer that did not run is absent.
        speed: 0.001 in the paper's pre-training.
    """
    if speed == 0:
        return
    for layer, gate in gates.items():
        if isinstance(gate, TopKGate) and layer in loads:
            load_E = loads[layer].to(gate.bias.device, torch.float32)
            gate.bias += speed * (load_E.mean() - load_E).sign()
