"""Searches all layouts of a job on a cluster: which fit, which is fastest, and the fewest nodes that suffice."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import divisors
from seektune.planner.hardware import Cluster
from seektune.planner.job import Layout, OrderOf, TrainingJob, make_layout
from seektune.planner.memory import RankMemory, first_ranks, peak_rank
from seektune.planner.time import StepTime, step_time


@dataclass(frozen=True)
class SearchSpace:
    """Settings to try, in addition to the sizes of the mesh."""

    schedules: tuple[str, ...]
    recompute: tuple[str, ...]
    rows: tuple[int | None, ...]
    """Maximum rows of a micro-batch; None = the recipe's."""


ALL = SearchSpace(("1f1b", "interleaved1f1b", "zbv", "dualpipev"), ("none", "selective", "block"), (None, 1, 2, 4, 8))
MINIMAL = SearchSpace(("1f1b",), ("block",), (1,))
"""The settings that use the least memory, to find out whether anything fits."""
NODES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of nodes to try, in order."""


@dataclass(frozen=True)
class Candidate:
    """A layout with its peak memory and step time."""

    layout: Layout
    memory: RankMemory
    time: StepTime

    @property
    def parallel(self) -> ParallelConfig:
        """The `parallel` section of the layout."""
        return self.layout.job.parallel

    def fits(self, cluster: Cluster) -> bool:
        """Whether the upper bound fits a GPU."""
        return self.memory.spare(cluster.memory) >= 0


def search(job: TrainingJob, cluster: Cluster, order_of: OrderOf) -> list[Candidate]:
    """All layouts that fit, the fastest first.

    Sizes are divisors of the number of GPUs that the model allows; context parallelism is tried for long rows. Of
    layouts that differ in memory only, the one that recomputes less is faster and comes first.
    """
    candidates = []
    for layout in layouts(job, cluster, order_of):
        ranks = first_ranks(layout, cluster.factors)
        if all(rank.spare(cluster.memory) >= 0 for rank in ranks):
            candidates.append(Candidate(layout, peak_rank(ranks), step_time(layout, cluster, ranks)))
    return sorted(candidates, key=lambda each: each.time.seconds)


def nearest(job: TrainingJob, cluster: Cluster, order_of: OrderOf) -> Candidate | None:
    """The layout that fits and changes the fewest of the job's settings; the fastest of those."""
    candidates = search(job, cluster, order_of)
    return min(candidates, key=lambda each: (_changes(each.layout.job, job), each.time.seconds), default=None)


def fewest_nodes(job: TrainingJob, cluster: Cluster, order_of: OrderOf) -> tuple[int, Candidate] | None:
    """The fewest nodes on which the job fits, and the fastest layout there; None if none of `NODES` suffice.

    Streamed weights use one GPU.
    """
    for nodes in NODES[:1] if job.streamed else NODES:
        larger = replace(cluster, gpus=1 if job.streamed else nodes * cluster.gpus_per_node)
        if any(_fits(layout, larger) for layout in layouts(job, larger, order_of, MINIMAL)):
            return nodes, search(job, larger, order_of)[0]
    return None


def layouts(job: TrainingJob, cluster: Cluster, order_of: OrderOf, space: SearchSpace = ALL) -> Iterator[Layout]:
    """Every possible layout on the cluster, with weights sharded over a whole stage or within each of its nodes.

    Streamed weights allow only one process.
    """
    if job.streamed and cluster.gpus > 1:
        return
    for sizes in _sizes(job, cluster):
        schedules = space.schedules if sizes["pp_size"] > 1 else (job.parallel.pipeline.schedule,)
        for schedule in schedules:
            seen = set()
            for rows in space.rows:
                try:
                    layout = make_layout(_changed(job, sizes, schedule, rows), cluster.gpus, order_of)
                except ValueError:
                    continue
                if layout.rows_at_a_time in seen:
                    continue
                seen.add(layout.rows_at_a_time)
                for recompute in space.recompute:
                    yield replace(layout, job=layout.job.with_parallel({"recompute": recompute}))


def _changed(job: TrainingJob, sizes: Mapping[str, int], schedule: str, rows: int | None) -> TrainingJob:
    """The job with these sizes; `rows` is the pipeline's microbatch, or without a pipeline the batch's micro_size."""
    update: dict[str, object] = {"schedule": schedule, "layers_per_stage": None}
    if rows is not None and sizes["pp_size"] > 1:
        update["microbatch"] = rows
    elif rows is not None:
        job = replace(job, micro_size=rows)
    return job.with_parallel({**sizes, "dp_shard": None, "pipeline": job.parallel.pipeline.model_copy(update=update)})


def _fits(layout: Layout, cluster: Cluster) -> bool:
    return all(rank.spare(cluster.memory) >= 0 for rank in first_ranks(layout, cluster.factors))


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


def _changes(job: TrainingJob, requested: TrainingJob) -> int:
    """How many settings differ from the requested ones."""
    one = job.parallel
    other = requested.parallel
    pairs: list[tuple[object, object]] = [
        (one.pp_size, other.pp_size),
        (one.ep_size, other.ep_size),
        (one.cp_size, other.cp_size),
        (one.dp_replicate, other.dp_replicate),
        (one.recompute, other.recompute),
        (job.micro_size, requested.micro_size),
    ]
    if one.pp_size > 1 and other.pp_size > 1:
        pairs.append((one.pipeline.schedule, other.pipeline.schedule))
        pairs.append((one.pipeline.microbatch, other.pipeline.microbatch))
    return sum(a != b for a, b in pairs)
