"""The command `plan --serve`: which sequences fit beside a model's weights, and how fast they may be decoded."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from seektune.checkpoint.lowbit import value_counts
from seektune.generate.processes import DecodeProcesses, decode_dims
from seektune.io.console import say
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.kv_cache.cache import grown_room
from seektune.model.kv_cache.size import CacheSize
from seektune.model.quantized import KindOf, quantize_modules
from seektune.parallel.layer_split import split_layers
from seektune.parallel.process_group import ProcessSlot
from seektune.planner.hardware import GIGA, Cluster
from seektune.planner.job import Weight
from seektune.planner.serving import ServingPlan
from seektune.planner.serving_stage import ServedWeights, ServingStage
from seektune.serve.limits import Limits
from seektune.workflows.known_architecture import known_architecture
from seektune.workflows.plan import PIPE
from seektune.workflows.planning import PACKED

LENGTHS = (1024, 4096, 16_384, 32_768, 131_072, 1_048_576)
"""Of the table, as far as the model's context reaches."""
RUNNING = (1, 8, 32)
"""Sequences of each process whose speed is planned."""


@dataclass(frozen=True)
class ServingOptions:
    """Options of `seektune plan --serve`."""

    quantized: bool = False
    ep_size: int | None = None
    pp_size: int = 1
    max_model_len: int | None = None
    gpu_memory_utilization: float = Limits.gpu_memory_utilization
    static_steps: bool = False
    """Whether decode steps are to be captured as CUDA graphs."""
    as_json: bool = False


def plan_serving(name: str, cluster: Cluster, asked: ServingOptions) -> bool:
    """Print the plan of serving a checkpoint folder or a preset; returns whether a sequence fits.

    Raises:
        ValueError: there is no such folder or preset, or the experts cannot be spread so.
    """
    found = take_plan(name, cluster, asked)
    if asked.as_json:
        say(json.dumps(_values(found), indent=2))
    else:
        _show(found, asked)
    return found.fits


def take_plan(name: str, cluster: Cluster, asked: ServingOptions, dtype: torch.dtype = torch.bfloat16) -> ServingPlan:
    """The plan as an object."""
    config, kind_of = known_architecture(name)
    longest = asked.max_model_len or min(Limits.max_model_len, config.max_position_embeddings)
    config.check_length(longest, "--max-model-len")
    DecodeProcesses(ProcessSlot(cluster.gpus)).check_static_steps(asked.static_steps, speculative=False)
    dims = decode_dims(cluster.gpus, asked.ep_size, asked.pp_size, config)
    weights = _weights(config, dtype, kind_of if asked.quantized else None)
    ranges = split_layers(config.num_hidden_layers, config.mtp_layers, dims.pp_size)
    parts = (_stage(config, dtype, weights, ranges, number, longest) for number in range(dims.pp_size))
    limits = asked.gpu_memory_utilization, asked.static_steps
    return ServingPlan(tuple(ServingStage(part, cluster, dims, *limits) for part in parts), longest)


def _stage(
    config: DeepseekV4Config,
    dtype: torch.dtype,
    weights: Sequence[Weight],
    ranges: Sequence[range],
    number: int,
    longest: int,
) -> ServedWeights:
    """What a pipeline stage has of the model, with caches of its layers."""
    layers = ranges[number]
    last = number == len(ranges) - 1
    held = tuple(weight for weight in weights if weight.in_stage(layers, number == 0, last))
    size = CacheSize.of(config, layers, longest + 1, dtype)

    def row_bytes(tokens: int) -> int:
        return size.bytes(grown_room(min(tokens, longest), longest + 1))

    return ServedWeights(config, held, dtype.itemsize, layers, not last, row_bytes, size.per_token)


def _weights(config: DeepseekV4Config, dtype: torch.dtype, kind_of: KindOf | None) -> list[Weight]:
    """The tensors of the whole model, quantized ones as the loaders hold them."""
    model = DeepseekV4ForCausalLM(config, "meta", dtype)
    if kind_of is not None:
        quantize_modules(model, kind_of)
    state = model.state_dict()
    counts = value_counts(state)
    parameters = {name for name, _ in model.named_parameters()}
    return [
        Weight(
            name,
            tuple(x.shape),
            1 if x.dtype in PACKED else x.element_size(),
            learns=False,
            buffer=name not in parameters,
            values=counts[name] // max(x.numel(), 1) if x.dtype in PACKED and name in counts else 0,
        )
        for name, x in state.items()
    ]


def _lengths(found: ServingPlan) -> list[int]:
    """Lengths of sequences in the tables, up to the longest that is served."""
    longest = found.longest
    return [*(length for length in LENGTHS if length < longest), longest]


def _values(found: ServingPlan) -> dict[str, object]:
    lengths = _lengths(found)
    tightest = found.tightest
    rates = [
        {"length": length, "running": running, "lower": slow, "upper": fast}
        for length in lengths
        for running in RUNNING
        for slow, fast in [found.rates(running, length)]
    ]
    return {
        "gpu": found.cluster.gpu,
        "gpus": found.cluster.gpus,
        "ep_size": found.ep_size,
        "pp_size": found.pp_size,
        "fits": found.fits,
        "weight_bytes": tightest.weight_bytes,
        "cache_bytes_per_token": tightest.model.token_bytes,
        "free_bytes": round(tightest.free),
        "sequences": {str(length): found.sequences(length) for length in lengths},
        "sequence_bytes": {str(length): tightest.model.row_bytes(length) for length in lengths},
        "stages": [_stage_values(stage) for stage in found.stages],
        "tokens_per_s": rates,
        "assumptions": found.assumptions(),
    }


def _stage_values(stage: ServingStage) -> dict[str, object]:
    return {
        "layers": [stage.model.layers.start, stage.model.layers.stop],
        "weight_bytes": stage.weight_bytes,
        "cache_bytes_per_token": stage.model.token_bytes,
        "free_bytes": round(stage.free),
    }


def _show(found: ServingPlan, asked: ServingOptions) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE)
    cluster = found.cluster
    experts = f"experts over {found.ep_size} processes" if found.ep_size > 1 else "all experts on each process"
    stages = f"layers over {found.pp_size} stages, in each stage " if found.pp_size > 1 else ""
    console.print(f"{cluster.gpus} x {cluster.gpu}: {stages}{experts}, everything else on each", soft_wrap=True)
    console.print(_verdict(found, asked), soft_wrap=True, style="bold")
    for stage in found.stages:
        console.print(_stage_line(stage), soft_wrap=True)
    table = Table(title="sequences, and tokens per second of all processes", title_justify="left")
    columns = ("length", "MB of cache", "sequences that fit", *(f"{count} on each" for count in RUNNING))
    for column in columns:
        table.add_column(column, justify="right")
    for length in _lengths(found):
        most = found.on_each(length)
        rates = [found.rates(count, length) if count <= most else None for count in RUNNING]
        cells = ["" if rate is None else f"{rate[0]:,.0f} to {rate[1]:,.0f}" for rate in rates]
        size = f"{found.tightest.model.row_bytes(length) / 1e6:,.1f}"
        table.add_row(f"{length:,}", size, f"{found.sequences(length):,}", *cells)
    console.print(table)
    for line in found.assumptions():
        console.print(f"- {line}", soft_wrap=True, style="dim")


def _stage_line(stage: ServingStage) -> str:
    layers = stage.model.layers
    where = "a process" if stage.dims.pp_size == 1 else f"a process of layers {layers.start} to {layers.stop - 1}"
    return (
        f"{where}: weights {stage.weight_bytes / GIGA:.2f} GB of {stage.cluster.memory / GIGA:.0f} GB, caches of "
        f"running sequences {max(stage.free, 0) / GIGA:.2f} GB; {stage.model.token_bytes / 1e3:.2f} kB per token"
    )


def _verdict(found: ServingPlan, asked: ServingOptions) -> str:
    if found.fits:
        return "fits"
    hint = "more GPUs, or with more memory" if asked.quantized else "--quantized, or more GPUs"
    stage = found.tightest
    missing = (3 if stage.static_steps else 2) * stage.model.row_bytes(1) - stage.free
    return f"does not fit: {missing / GIGA:.2f} GB of each GPU are missing; try {hint}"
