"""Rows of a micro-batch, so that a step's rows divide over processes and pipeline; plain arithmetic."""

from itertools import count

from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import ModelSizes, ParallelDims, divisors
from seektune.parallel.layer_split import count_stages, schedule_problem


def micro_batch_rows(
    dims: ParallelDims, config: ParallelConfig, architecture: ModelSizes, rows: int, micro_size: int
) -> int:
    """Rows of a micro-batch: at most the recipe's number, and such that all processes get equally many.

    A pipeline needs a certain number of them. How many there are changes memory and waiting, never the result.

    Args:
        dims: sizes of the mesh.
        config: the recipe's section.
        architecture: of the model.
        rows: of a step, `batch.global_size`.
        micro_size: the recipe's `batch.micro_size`.

    Raises:
        ValueError: the rows of a step do not divide; the message names a number that does.
    """
    own, left = divmod(rows, dims.data_size)
    sizes = [] if left else _sizes(own, dims, config, architecture, micro_size)
    if sizes:
        return sizes[0]
    larger = (n for n in count(own + 1) if n * dims.data_size % micro_size == 0)
    enough = next(n for n in larger if _sizes(n, dims, config, architecture, micro_size)) * dims.data_size
    if left:
        problem = f"batch.global_size {rows} cannot be dealt out to {dims.data_size} data-parallel groups"
    else:
        groups = "" if dims.data_size == 1 else f"each of {dims.data_size} data-parallel groups gets "
        why = schedule_problem(config.pipeline.schedule, own, dims.pp_size, _stages(dims, config, architecture))
        problem = f"{why}: {groups}{own} of batch.global_size {rows} rows"
    raise ValueError(f"{problem}; set --batch.global_size={enough}")


def _sizes(
    own: int, dims: ParallelDims, config: ParallelConfig, architecture: ModelSizes, micro_size: int
) -> list[int]:
    """Possible rows of a micro-batch if a process gets `own` rows per step, the largest first."""
    schedule = config.pipeline.schedule
    microbatch = config.pipeline.microbatch
    most = micro_size if dims.pp_size == 1 or microbatch is None else microbatch
    sizes = [size for size in reversed(divisors(own)) if size <= most]
    if dims.pp_size == 1:
        return sizes
    stages = _stages(dims, config, architecture)
    return [size for size in sizes if schedule_problem(schedule, own // size, dims.pp_size, stages) is None]


def _stages(dims: ParallelDims, config: ParallelConfig, architecture: ModelSizes) -> int:
    layers = architecture.num_hidden_layers
    mtp = architecture.mtp_layers
    return count_stages(config.pipeline, dims.pp_size, layers, mtp)
