"""How long a step takes: arithmetic and memory traffic by part, communication by axis, waiting; all by arithmetic."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seektune.model.config import SLIDING
from seektune.model.flops import PARTS, forward_flops, layer_flops
from seektune.planner.hardware import GIGA, Cluster, assumed
from seektune.planner.job import Layout, TrainingJob
from seektune.planner.memory import Numbers, RankMemory
from seektune.planner.timeline import Span, StageTime, play, waiting

AXES = ("ep", "cp", "pp", "fsdp", "copies")
"""Along which messages travel; `copies` is HSDP's sum over replicas."""
DAY = 86400.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, on the slowest process of the pipeline."""

    seconds: float
    arithmetic: dict[str, float]
    """Forward and backward by part of the model, what is computed again included."""
    memory: float
    """Passes over activations that are no products, the weights' reading, and dequantizing what is packed."""
    communication: dict[str, float]
    """By axis; what no arithmetic hides."""
    waiting: float
    """Seconds without work in the pipeline."""
    optimizer: float
    tokens: int
    """Of a step, all rows full."""
    flops: float
    """Useful operations of a step, nothing computed again."""
    pieces: list[Span]

    @property
    def tokens_per_s(self) -> float:
        """Of all GPUs together."""
        return self.tokens / self.seconds

    def mfu(self, cluster: Cluster) -> float:
        """Useful operations over what the GPUs could do in that time."""
        return self.flops / (self.seconds * cluster.flops * cluster.gpus)

    def days(self, tokens: float) -> float:
        """For a budget of tokens."""
        return tokens / self.tokens_per_s / DAY

    def cost(self, tokens: float, price: float, gpus: int) -> float:
        """Of a budget of tokens at a price of a GPU's hour."""
        return self.days(tokens) * 24 * price * gpus


def step_time(layout: Layout, cluster: Cluster, ranks: Sequence[RankMemory]) -> StepTime:
    """Play a step of the layout on the cluster; `ranks` is what `first_ranks` found."""
    known = assumed()
    job = layout.job
    numbers = [each.lower for each in ranks]
    process_of = {stage: process for process in range(layout.pp) for stage in layout.stages_of(process)}
    stages = {stage: _stage(layout, cluster, stage, numbers[process_of[stage]], known) for stage in process_of}
    times = {stage: each.time for stage, each in stages.items()}
    order = layout.order or {0: [(kind, 0, n) for n in range(layout.micro_batches) for kind in "FB"]}
    pieces = play(order, times)
    end = max(piece.end for piece in pieces)
    slowest = max(range(layout.pp), key=lambda process: sum(_busy(times[s]) for s in layout.stages_of(process)))
    held = layout.stages_of(slowest)
    fsdp, copies = _sharding(layout, cluster, numbers[slowest], known)
    optimizer = _optimizer(numbers[slowest], cluster, known)
    messages = {axis: layout.micro_batches * sum(stages[s].messages[axis] for s in held) for axis in ("ep", "cp", "pp")}
    shown = {
        axis: (1 - known["hidden"]) * value for axis, value in {**messages, "fsdp": fsdp, "copies": copies}.items()
    }
    step = end + shown["fsdp"] + shown["copies"] + optimizer
    useful = forward_flops(job.config, layout.length, job.mtp)
    return StepTime(
        seconds=step,
        arithmetic={p: layout.micro_batches * sum(stages[s].arithmetic[p] for s in held) for p in PARTS},
        memory=layout.micro_batches * sum(stages[s].memory for s in held),
        communication=shown,
        waiting=end * waiting(pieces),
        optimizer=optimizer,
        tokens=job.rows * layout.length,
        flops=job.rows * sum(flops * _times(job, part) for part, flops in useful.items()),
        pieces=pieces,
    )


@dataclass(frozen=True)
class _StageCost:
    """Seconds of a stage for one micro-batch."""

    time: StageTime
    arithmetic: dict[str, float]
    memory: float
    messages: dict[str, float]


def _times(job: TrainingJob, part: str) -> float:
    """Useful passes over a part's products: forward, gradients of inputs, and of the weights that train."""
    return 1 if part == "indexer" else 2 + job.weights.share_that_learns


def _busy(time: StageTime) -> float:
    return time.of("F") + time.of("B")


def _stage(layout: Layout, cluster: Cluster, stage: int, numbers: Numbers, known: Mapping[str, float]) -> _StageCost:
    job = layout.job
    rows = layout.rows_at_a_time / layout.dims.cp_size
    flops = _forward(layout, stage)
    rate = cluster.flops * known["matmul"]
    rate *= 1 if job.itemsize < 4 else known["tf32"]
    forward = {part: rows * value / rate for part, value in flops.items()}
    # forward passes that backward runs again
    again = {"none": 0.0, "block": 1.0, "selective": known["selective"]}[job.parallel.recompute]
    grads = {part: 0.0 if part == "indexer" else 2 * value for part, value in forward.items()}
    trained = job.weights.share_that_learns
    stages_here = layout.stages // layout.pp
    # what is saved is written and read; weights are read, and what they are dequantized to is written and read
    traffic = 2 * numbers["blocks_saved"] + numbers["read"] + 2 * job.itemsize * numbers["multiplied_out"]
    passes = traffic / (cluster.memory_rate * known["memory"]) + numbers["from_disk"] / (known["disk_gb_s"] * GIGA)
    passes /= stages_here
    messages = _messages(layout, cluster, stage, known)
    shown = (1 - known["hidden"]) * (messages["ep"] + messages["cp"])
    once = sum(forward.values()) + passes
    half = sum(grads.values()) / 2
    time = StageTime(
        forward=once + shown,
        backward_input=again * (once + shown) + half + passes + shown,
        backward_weights=half * trained + passes * trained,
        send=messages["pp"] / 2,
    )
    spent = {part: forward[part] * (1 + again) + grads[part] * (1 + trained) / 2 for part in forward}
    total = {axis: value * (2 + again if axis in ("ep", "cp") else 1) for axis, value in messages.items()}
    return _StageCost(time, spent, passes * (2 + again + trained), total)


def _forward(layout: Layout, stage: int) -> Counter[str]:
    """Operations of a forward pass of one row through a stage, by part."""
    config = layout.job.config
    length = layout.length
    last = stage == layout.stages - 1
    total: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
    for layer in layout.layers(stage):
        total.update(layer_flops(config, config.ratio(layer), length))
    if last:
        whole = Counter(forward_flops(config, length, layout.job.mtp))
        for layer in range(config.num_hidden_layers):
            whole.subtract(layer_flops(config, config.ratio(layer), length))
        total.update(whole)
    return total


def _messages(layout: Layout, cluster: Cluster, stage: int, known: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a forward pass's messages of a micro-batch, by axis; of pp, both ways."""
    job = layout.job
    plan = layout.dims
    config = layout.job.config
    tokens = layout.rows_at_a_time * layout.length // plan.cp_size
    last = stage == layout.stages - 1
    layers = len(layout.layers(stage)) + int(last and job.mtp)
    pairs = tokens * config.num_experts_per_tok * config.hidden_size
    # tokens go out in the model's dtype, outputs come back in fp32
    ep = layers * 2 * _exchange(pairs * (job.itemsize + 4) / 2, plan.ep_size, cluster, known)
    compressing = [config.ratio(layer) for layer in layout.layers(stage) if config.ratio(layer) != SLIDING]
    entries = sum(layout.rows_at_a_time * layout.length // ratio for ratio in compressing) * config.head_dim
    before = layers * layout.rows_at_a_time * (config.sliding_window - 1) * config.head_dim
    cp = _exchange((entries + before) * job.itemsize, plan.cp_size, cluster, known)
    streams = tokens * (config.hc_mult + int(job.mtp)) * config.hidden_size * job.itemsize
    rate = cluster.between(plan.pp_size, plan.stage_size) * known["link"]
    pp = 0.0 if last or plan.pp_size == 1 else 2 * (streams / rate + known["latency_s"])
    return {"ep": ep, "cp": cp, "pp": pp}


def _exchange(size: float, processes: int, cluster: Cluster, known: Mapping[str, float]) -> float:
    """Seconds of an all-to-all or all-gather among neighbours, of which those of other nodes are behind the network."""
    if processes == 1:
        return 0.0
    near = min(processes, cluster.gpus_per_node)
    inside = (near - 1) / processes
    outside = (processes - near) / processes
    # both kinds of links work at the same time
    slower = max(inside / cluster.link, outside / cluster.network)
    return size * slower / known["link"] + known["latency_s"]


def _sharding(layout: Layout, cluster: Cluster, numbers: Numbers, known: Mapping[str, float]) -> tuple[float, float]:
    """Seconds of FSDP2's gathering and reducing in a step, and of the sum over replicas."""
    plan = layout.dims
    gathers = 1 if plan.pp_size > 1 else layout.micro_batches * (2 if layout.job.parallel.reshard else 1)
    dense = numbers["dense_sum"]
    experts = numbers["expert_sum"]
    learns = numbers["dense_learn_sum"], numbers["expert_learn_sum"]
    total = copies = 0.0
    for size, learning, pieces, apart, replicas in (
        (dense, learns[0], plan.fsdp_size, 1, plan.dp_replicate),
        (experts, learns[1], plan.expert_shard, plan.ep_size, plan.expert_replicate),
    ):
        if pieces > 1:
            rate = cluster.between(pieces, apart) * known["link"]
            total += (gathers * size + 4 * learning) * (pieces - 1) / pieces / rate
        if replicas > 1:
            rate = cluster.between(replicas, apart * pieces) * known["link"]
            copies += 2 * (replicas - 1) / replicas * 4 * learning / pieces / rate
    return total, copies


def _optimizer(numbers: Numbers, cluster: Cluster, known: Mapping[str, float]) -> float:
    """Gradients read twice, for the norm and the move; weights, moments and masters read and written."""
    touched = 2 * numbers["gradients"] + 2 * (numbers["moments"] + numbers["master"] + 2 * numbers["trained"])
    return touched / (cluster.memory_rate * known["memory"])
