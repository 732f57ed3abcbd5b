"""All layouts of a job on a cluster: which fit, which of them is fastest, and how few nodes would do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import divisors
from seektune.planner.hardware import Cluster
from seektune.planner.job import Layout, OrderOf, TrainingJob, lay_out
from seektune.planner.memory import RankMemory, first_ranks, fullest
from seektune.planner.time import StepTime, step_time


@dataclass(frozen=True)
class SearchSpace:
    """What is tried beside the sizes of the mesh."""

    schedules: tuple[str, ...]
    recompute: tuple[str, ...]
    rows: tuple[int | None, ...]
    """Most rows of a micro-batch; None for what the recipe says."""


ALL = SearchSpace(("1f1b", "interleaved1f1b", "zbv", "dualpipev"), ("none", "selective", "block"), (None, 1, 2, 4, 8))
LEANEST = SearchSpace(("1f1b",), ("block",), (1,))
"""What holds least: whether anything fits is asked of these."""
NODES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of nodes that are tried, in order."""


@dataclass(frozen=True)
class Candidate:
    """A layout, what its fullest process holds, and how fast it is."""

    layout: Layout
    memory: RankMemory
    time: StepTime

    @property
    def parallel(self) -> ParallelConfig:
        """As a recipe says it."""
        return self.layout.job.parallel

    def fits(self, cluster: Cluster) -> bool:
        """Whether the upper bound fits a GPU."""
        return self.memory.spare(cluster.memory) >= 0


def search(job: TrainingJob, cluster: Cluster, order_of: OrderOf) -> list[Candidate]:
    """All layouts that fit, the fastest first.

    Sizes are divisors of the number of GPUs that the model allows; the context axis is tried where rows are long. Of
    layouts that differ in memory only, the one that recomputes less is the faster and so stands first.
    """
    found = []
    for layout in layouts(job, cluster, order_of):
        ranks = first_ranks(layout)
        if (most := fullest(ranks)).spare(cluster.memory) >= 0:
            found.append(Candidate(layout, most, step_time(layout, cluster, ranks)))
    return sorted(found, key=lambda each: each.time.seconds)


def nearest(job: TrainingJob, cluster: Cluster, order_of: OrderOf) -> Candidate | None:
    """The layout that fits and changes least of what was asked for; the fastest of those."""
    found = search(job, cluster, order_of)
    return min(found, key=lambda each: (_changes(each.layout.job, job), each.time.seconds), default=None)


def fewest_nodes(job: TrainingJob, cluster: Cluster, order_of: OrderOf) -> tuple[int, Candidate] | None:
    """The fewest nodes of the cluster's kind on which the job fits, and the fastest layout there; None if none of
    `NODES` do. Of streamed weights it is one GPU or none.
    """
    for nodes in NODES[:1] if job.streamed else NODES:
        larger = replace(cluster, gpus=1 if job.streamed else nodes * cluster.gpus_per_node)
        if any(_fits(layout, larger) for layout in layouts(job, larger, order_of, LEANEST)):
            return nodes, search(job, larger, order_of)[0]
    return None


def layouts(job: TrainingJob, cluster: Cluster, order_of: OrderOf, choices: SearchSpace = ALL) -> Iterator[Layout]:
    """Every layout that is possible on so many processes; weights cut over all of a stage, or within its nodes.

    Streamed weights have one process.
    """
    if job.streamed and cluster.gpus > 1:
        return
    for sizes in _sizes(job, cluster):
        schedules = choices.schedules if sizes["pp_size"] > 1 else (job.parallel.pipeline.schedule,)
        for schedule in schedules:
            seen = set()
            for rows in choices.rows:
                try:
                    layout = lay_out(_changed(job, sizes, schedule, rows), cluster.gpus, order_of)
                except ValueError:
                    continue
                if layout.rows_at_a_time in seen:
                    continue
                seen.add(layout.rows_at_a_time)
                for recompute in choices.recompute:
                    yield replace(layout, job=layout.job.with_parallel({"recompute": recompute}))


def _changed(job: TrainingJob, sizes: Mapping[str, int], schedule: str, rows: int | None) -> TrainingJob:
    """The job with these sizes; rows of a micro-batch are a setting of the pipeline, or without one of the batch."""
    update: dict[str, object] = {"schedule": schedule, "layers_per_stage": None}
    if rows is not None and sizes["pp_size"] > 1:
        update["microbatch"] = rows
    elif rows is not None:
        job = replace(job, micro_size=rows)
    return job.with_parallel({**sizes, "dp_shard": None, "pipeline": job.parallel.pipeline.model_copy(update=update)})


def _fits(layout: Layout, cluster: Cluster) -> bool:
    return fullest(first_ranks(layout)).spare(cluster.memory) >= 0


def _sizes(job: TrainingJob, cluster: Cluster) -> Iterator[dict[str, int]]:
    experts = job.config.n_routed_experts
    gpus = cluster.gpus
    contexts = [size for size in (1, 2, 4, 8) if size == 1 or job.length // size >= 4096]
    for pp in divisors(gpus):
        for cp in contexts:
            if gpus % (pp * cp):
                continue
            rest = gpus // (pp * cp)
            nodes = rest * cp // cluster.gpus_per_node
            for copies in {1, nodes} if nodes > 1 and rest % nodes == 0 else {1}:
                for ep in divisors(gpus // pp):
                    if experts % ep == 0 and pp <= job.config.num_hidden_layers:
                        yield {"pp_size": pp, "ep_size": ep, "cp_size": cp, "dp_replicate": copies}


def _changes(job: TrainingJob, asked: TrainingJob) -> int:
    """How many settings differ from what was asked for."""
    one = job.parallel
    other = asked.parallel
    pairs: list[tuple[object, object]] = [
        (one.pp_size, other.pp_size),
        (one.ep_size, other.ep_size),
        (one.cp_size, other.cp_size),
        (one.dp_replicate, other.dp_replicate),
        (one.recompute, other.recompute),
        (job.micro_size, asked.micro_size),
    ]
    if one.pp_size > 1 and other.pp_size > 1:
        pairs.append((one.pipeline.schedule, other.pipeline.schedule))
        pairs.append((one.pipeline.microbatch, other.pipeline.microbatch))
    return sum(a != b for a, b in pairs)
