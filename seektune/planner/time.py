"""Predicts the time of a step: arithmetic and memory traffic by part, communication by axis, the pipeline bubble."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seektune.model.config import SLIDING
from seektune.model.flops import PARTS, forward_flops, layer_flops
from seektune.planner.draft_time import draft_time
from seektune.planner.hardware import GIGA, Cluster
from seektune.planner.job import Layout, TrainingJob
from seektune.planner.memory import Numbers, RankMemory
from seektune.planner.messages import ExpertMessages, exchange, expert_messages, hiding
from seektune.planner.timeline import Span, StageTime, bubble_share, simulate

AXES = ("ep", "cp", "pp", "fsdp", "replicate")
"""Axes of communication; `replicate` is HSDP's all-reduce over replicas."""
DAY = 86400.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, on the slowest process of the pipeline."""

    seconds: float
    arithmetic: dict[str, float]
    """Forward and backward by part of the model, recomputation included."""
    memory: float
    """Elementwise passes over activations, reading weights, and dequantizing them."""
    communication: dict[str, float]
    """By axis; only what is not hidden behind arithmetic."""
    bubble: float
    """Idle seconds in the pipeline."""
    optimizer: float
    tokens: int
    """Of a step, all rows full."""
    flops: float
    """Operations of a step without recomputation."""
    spans: list[Span]

    @property
    def tokens_per_s(self) -> float:
        """Total of all GPUs."""
        return self.tokens / self.seconds

    def mfu(self, cluster: Cluster) -> float:
        """Model FLOPs utilization: operations without recomputation over the GPUs' peak."""
        return self.flops / (self.seconds * cluster.flops * cluster.gpus)

    def days(self, tokens: float) -> float:
        """Days to train on that many tokens."""
        return tokens / self.tokens_per_s / DAY

    def cost(self, tokens: float, price: float, gpus: int) -> float:
        """Cost of that many tokens at a price per GPU-hour."""
        return self.days(tokens) * 24 * price * gpus


def step_time(layout: Layout, cluster: Cluster, ranks: Sequence[RankMemory]) -> StepTime:
    """Simulate a step of the layout on the cluster; `ranks` is the result of `first_ranks`."""
    factors = cluster.factors
    job = layout.job
    numbers = [each.lower for each in ranks]
    process_of = {stage: process for process in range(layout.pp) for stage in layout.stages_of(process)}
    stages = {stage: _stage(layout, cluster, stage, numbers[process_of[stage]], factors) for stage in process_of}
    times = {stage: each.time for stage, each in stages.items()}
    order = layout.order or {0: [(kind, 0, n) for n in range(layout.micro_batches) for kind in "FB"]}
    spans = simulate(order, times)
    end = max(span.end for span in spans)
    slowest = max(range(layout.pp), key=lambda process: sum(_busy(times[s]) for s in layout.stages_of(process)))
    held = layout.stages_of(slowest)
    fsdp, replicate = _sharding(layout, cluster, numbers[slowest], factors)
    optimizer = _optimizer(layout, numbers[slowest], cluster, factors)
    messages = {axis: layout.micro_batches * sum(stages[s].messages[axis] for s in held) for axis in ("ep", "cp", "pp")}
    shown = {
        axis: (1 - factors["hidden"]) * value
        for axis, value in {**messages, "fsdp": fsdp, "replicate": replicate}.items()
    }
    step = end + shown["fsdp"] + shown["replicate"] + optimizer
    useful = forward_flops(job.config, layout.length, job.mtp, job.indexers)
    drafted = draft_time(layout, cluster, factors, _matmul_rate(job, cluster, factors)).flops
    return StepTime(
        seconds=step,
        arithmetic={p: layout.micro_batches * sum(stages[s].arithmetic[p] for s in held) for p in PARTS},
        memory=layout.micro_batches * sum(stages[s].memory for s in held),
        communication=shown,
        bubble=end * bubble_share(spans),
        optimizer=optimizer,
        tokens=job.rows * layout.length,
        flops=job.rows * sum(flops * _times(job, part) for part, flops in useful.items())
        + job.rows // layout.rows_at_a_time * drafted,
        spans=spans,
    )


@dataclass(frozen=True)
class _StageCost:
    """Seconds of a stage for one micro-batch."""

    time: StageTime
    arithmetic: dict[str, float]
    memory: float
    messages: dict[str, float]


def _times(job: TrainingJob, part: str) -> float:
    """Passes over a part's products without recomputation: forward, gradients of inputs and of trainable weights."""
    if part == "head" and job.drafter:
        return 0  # the backbone computes no logits, but those of drafts
    return 1 if part == "indexer" or job.runs_forward_only else 2 + job.weights.trainable_share


def _busy(time: StageTime) -> float:
    return time.of("F") + time.of("B")


def _stage(layout: Layout, cluster: Cluster, stage: int, numbers: Numbers, factors: Mapping[str, float]) -> _StageCost:
    job = layout.job
    rows = layout.rows_at_a_time / layout.dims.cp_size
    flops = _forward(layout, stage)
    rate = _matmul_rate(job, cluster, factors)
    forward = {part: rows * value / rate for part, value in flops.items()}
    # forward passes that are recomputed in backward
    again = {"none": 0.0, "block": 1.0, "selective": factors["selective"]}[job.parallel.recompute]
    again = 0.0 if job.drafter else again
    backward = 0 if job.runs_forward_only else 1
    only = job.runs_forward_only
    grads = {part: 0.0 if part == "indexer" or only else 2 * value for part, value in forward.items()}
    trained = job.weights.trainable_share
    stages_here = layout.stages // layout.pp
    # saved activations are written and read; weights are read; dequantized weights are written and read
    traffic = 2 * numbers["blocks_saved"] + numbers["read"] + 2 * job.itemsize * numbers["dequantized"]
    passes = traffic / (cluster.memory_rate * factors["memory"]) + numbers["from_disk"] / (factors["disk_gb_s"] * GIGA)
    passes /= stages_here
    rounding = numbers["rounding_traffic"] / (cluster.memory_rate * factors["memory"]) / stages_here
    messages = _messages(layout, cluster, stage, factors)
    between = _expert_messages(layout, cluster, stage, factors)
    behind = hiding(job, forward["experts"], factors)
    ahead = between.forward(behind)
    # gradients of inputs and of trainable weights take as long as forward, each
    back = backward * between.backward(behind * (1 + job.weights.trainable_share))
    left = 1 - factors["hidden"]
    drafts = draft_time(layout, cluster, factors, rate)
    once = sum(forward.values()) + passes + rounding + left * (ahead + messages["cp"])
    half = sum(grads.values()) / 2
    time = StageTime(
        forward=(1 + job.references) * once + drafts.forward,
        backward_input=again * once + backward * (half + passes + left * (back + messages["cp"])) + drafts.backward,
        backward_weights=backward * (half * trained + passes * trained),
        send=messages["pp"] / 2,
    )
    forwards = 1 + job.references + again
    spent = {
        part: forward[part] * forwards + grads[part] * (1 + trained) / 2 + drafts.arithmetic.get(part, 0)
        for part in forward
    }
    total = {
        "ep": ahead * forwards + back + drafts.messages,
        "cp": messages["cp"] * (backward + forwards),
        "pp": messages["pp"],
    }
    memory = passes * (forwards + backward * (1 + trained)) + rounding * forwards
    return _StageCost(time, spent, memory, total)


def _forward(layout: Layout, stage: int) -> Counter[str]:
    """Operations of a forward pass of one row through a stage, by part."""
    config = layout.job.config
    length = layout.length
    last = stage == layout.stages - 1
    total: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
    for layer in layout.layers(stage):
        total.update(layer_flops(config, config.ratio(layer), length, layout.job.indexers))
    if last:
        whole = Counter(forward_flops(config, length, layout.job.mtp, layout.job.indexers))
        for layer in range(config.num_hidden_layers):
            whole.subtract(layer_flops(config, config.ratio(layer), length, layout.job.indexers))
        total.update(whole)
    if layout.job.drafter:
        total["head"] = 0
    return total


def _messages(layout: Layout, cluster: Cluster, stage: int, factors: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a forward pass's messages of a micro-batch along cp, and of both directions along pp."""
    job = layout.job
    dims = layout.dims
    config = layout.job.config
    tokens = layout.rows_at_a_time * layout.length // dims.cp_size
    last = stage == layout.stages - 1
    layers = len(layout.layers(stage)) + int(last and job.mtp)
    compressing = [config.ratio(layer) for layer in layout.layers(stage) if config.ratio(layer) != SLIDING]
    entries = sum(layout.rows_at_a_time * layout.length // ratio for ratio in compressing) * config.head_dim
    before = layers * layout.rows_at_a_time * (config.sliding_window - 1) * config.head_dim
    cp = exchange((entries + before) * job.itemsize, dims.cp_size, cluster, factors)
    streams = tokens * (config.hc_mult + int(job.mtp)) * config.hidden_size * job.itemsize
    rate = cluster.between(dims.pp_size, dims.stage_size) * factors["link"]
    pp = 0.0 if last or dims.pp_size == 1 else 2 * (streams / rate + factors["latency_s"])
    return {"cp": cp, "pp": pp}


def _expert_messages(layout: Layout, cluster: Cluster, stage: int, factors: Mapping[str, float]) -> ExpertMessages:
    """Those of a micro-batch."""
    tokens = layout.rows_at_a_time * layout.length // layout.dims.cp_size
    layers = len(layout.layers(stage)) + int(stage == layout.stages - 1 and layout.job.mtp)
    return expert_messages(layout.job, tokens, layers, layout.dims.ep_size, cluster, factors)


def _sharding(layout: Layout, cluster: Cluster, numbers: Numbers, factors: Mapping[str, float]) -> tuple[float, float]:
    """Seconds of FSDP2's all-gathers and reduce-scatters in a step, and of the all-reduce over replicas."""
    dims = layout.dims
    gathers = 1 if dims.pp_size > 1 else layout.micro_batches * (2 if layout.job.parallel.reshard else 1)
    dense = numbers["dense_sum"]
    experts = numbers["expert_sum"]
    learns = numbers["dense_learn_sum"], numbers["expert_learn_sum"]
    total = replicate = 0.0
    for size, learning, shards, apart, replicas in (
        (dense, learns[0], dims.fsdp_size, 1, dims.dp_replicate),
        (experts, learns[1], dims.expert_shard, dims.ep_size, dims.expert_replicate),
    ):
        if shards > 1:
            rate = cluster.between(shards, apart) * factors["link"]
            total += (gathers * size + 4 * learning) * (shards - 1) / shards / rate
        if replicas > 1:
            rate = cluster.between(replicas, apart * shards) * factors["link"]
            replicate += 2 * (replicas - 1) / replicas * 4 * learning / shards / rate
    return total, replicate


def _optimizer(layout: Layout, numbers: Numbers, cluster: Cluster, factors: Mapping[str, float]) -> float:
    """Seconds of the optimizer: memory traffic, and of Muon matrix products and messages.

    Gradients are read twice, for the norm and the update; all other state is read and written.
    """
    dims = layout.dims
    touched = 2 * numbers["gradients"] + 2 * (numbers["moments"] + numbers["master"] + 2 * numbers["trained"])
    products = numbers["orthogonal_flops"] / _matmul_rate(layout.job, cluster, factors)
    shares = (dims.fsdp_size - 1) / dims.fsdp_size
    messages = 2 * numbers["exchanged"] * shares / (cluster.between(dims.fsdp_size) * factors["link"])
    messages += numbers["copied"] / (cluster.between(dims.dp_replicate, dims.fsdp_size) * factors["link"])
    return touched / (cluster.memory_rate * factors["memory"]) + products + messages


def _matmul_rate(job: TrainingJob, cluster: Cluster, factors: Mapping[str, float]) -> float:
    """Operations per second of matrix products in the model's dtype."""
    return cluster.flops * factors["matmul"] * (1 if job.itemsize < 4 else factors["tf32"])
