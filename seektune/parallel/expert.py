"""Expert parallelism: the experts of a layer are sharded over processes, and tokens are sent to them and back.

Shapes: E experts, L experts of a process.
"""

import torch.distributed as dist
from torch import nn

from seektune.model.transformer import TransformerPart
from seektune.parallel.config import ParallelConfig
from seektune.parallel.deep_ep import DeepEpDispatch
from seektune.parallel.expert_dispatch import ExpertDispatch
from seektune.parallel.mesh import Mesh
from seektune.parallel.messages import ENCODINGS


def apply_expert_parallel(part: TransformerPart, mesh: Mesh, config: ParallelConfig | None = None) -> None:
    """Keep this process's experts of every layer and set the all-to-all as `dispatch` of the expert layers.

    Without `config`, messages are exact, and tokens are sent in one part.
    """
    if mesh.axes is None or mesh.dims.ep_size == 1:
        return
    dispatch = _dispatch(mesh.axes.experts, ParallelConfig() if config is None else config)
    for block in part.blocks():
        shard_experts(block.ffn.experts, mesh)
        block.ffn.dispatch = dispatch


def shard_experts(experts: nn.Module, mesh: Mesh) -> None:
    """Replace each stacked parameter `[E, ...]` by the `[L, ...]` of this process; it must still be on `meta`.

    Bytes of frozen experts and their adapters are cut like weights; an A that all experts share stays whole.
    """
    for module in experts.modules():
        for name, whole in list(module.named_parameters(recurse=False)):
            assert whole.is_meta, "experts are split before they have memory"
            if whole.dim() == 3:
                mine = whole.new_empty(whole.shape[0] // mesh.dims.ep_size, *whole.shape[1:])
                module.register_parameter(name, nn.Parameter(mine, requires_grad=whole.requires_grad))


def _dispatch(group: dist.ProcessGroup, config: ParallelConfig) -> ExpertDispatch:
    if config.ep_backend == "deep_ep":
        return DeepEpDispatch(group)
    return ExpertDispatch(group, ENCODINGS[config.ep_message_dtype], config.ep_parts)
