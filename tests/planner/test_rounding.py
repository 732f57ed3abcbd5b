"""The planned memory traffic of rounding weights is what its operations read and write."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seektune.kernels.eager.fake_weight import BAND, fake_quantize_weight
from seektune.planner.qat_formulas import PASSES


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views and new tensors without values cost none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if not is_view and not func.name().startswith("aten::empty"):
            # the target of a copy is written, not read
            read = args[1:] if func.name() == "aten::copy_" else args
            tensors = [each for each in tree_leaves((read, kwargs, found)) if isinstance(each, Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in tensors)
        return found


@pytest.mark.parametrize("kind", PASSES)
def test_planned_passes_of_rounding_are_those_of_its_operations(kind: str) -> None:
    weight = torch.empty(1024, BAND // 1024, dtype=torch.bfloat16, device="meta")
    with Traffic() as traffic:
        fake_quantize_weight(weight, kind)
    assert traffic.bytes / (4 * weight.numel()) == pytest.approx(PASSES[kind], abs=0.1)
