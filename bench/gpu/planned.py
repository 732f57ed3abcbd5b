"""The planner's bounds of the memory of one process, for a model that exists."""

import torch

from seektune.checkpoint.lowbit import value_counts
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.config import ParallelConfig
from seektune.parallel.pipeline_order import schedule_actions
from seektune.planner.job import TrainingJob, Weight, Weights, make_layout
from seektune.planner.memory import rank_memory

PACKED = (torch.int8, torch.uint8)


def planned_bytes(model: DeepseekV4ForCausalLM, rank: int, length: int) -> tuple[float, float]:
    """Lower and upper bound of what tensors take, without CUDA's context, for one row of adapters with AdamW."""
    state = model.state_dict()
    parameters = dict(model.named_parameters())
    counts = value_counts(state)
    weights = [
        Weight(
            name,
            tuple(tensor.shape),
            1 if tensor.dtype in PACKED else tensor.element_size(),
            name in parameters and parameters[name].requires_grad,
            buffer=name not in parameters,
            values=counts.get(name, 0) // max(tensor.numel(), 1),
        )
        for name, tensor in state.items()
    ]
    job = TrainingJob(
        config=model.config,
        weights=Weights(weights),
        itemsize=model.dtype.itemsize,
        parallel=ParallelConfig(),
        rows=1,
        micro_size=1,
        length=length,
        mtp=False,
        masters=True,
        lora_rank=rank,
    )
    memory = rank_memory(make_layout(job, 1, schedule_actions), 0)
    return tuple(bound["total"] - bound["context"] for bound in (memory.lower, memory.upper))
