"""Which layers each pipeline stage holds and where each stage lives; plain arithmetic, shared with the planner."""

from seektune.parallel.config import PipelineConfig

Action = tuple[str, int, int]
"""Work of a pipeline: F forward, B backward, I backward to the input or W to the weights; stage; micro-batch."""
V_SCHEDULES = ("zbv", "dualpipev")
"""Two stages per process, placed as a V: the first process holds the first stage and the last."""


def count_stages(config: PipelineConfig, pp_size: int, layers: int, mtp: int) -> int:
    """The number of stages in all.

    Raises:
        ValueError: `layers_per_stage` gives a number that the schedule cannot place on `pp_size` processes.
    """
    units = layers + mtp
    schedule = config.schedule
    per_process = 1 if config.schedule == "1f1b" else 2
    stages = wanted = pp_size * per_process
    if config.layers_per_stage is not None:
        stages = -(-units // config.layers_per_stage)
        interleaved = schedule == "interleaved1f1b" and stages % pp_size == 0 and stages > pp_size
        if stages != wanted and not interleaved:
            more = " or a larger multiple of pp_size" if schedule == "interleaved1f1b" else ""
            raise ValueError(
                f"parallel.pipeline.layers_per_stage {config.layers_per_stage} cuts {units} layers into {stages} "
                f"stages, but {schedule} on pp_size {pp_size} needs {wanted}{more}; {-(-units // wanted)} would do"
            )
    if stages > layers:
        raise ValueError(f"parallel.pp_size {pp_size} makes {stages} stages of {layers} layers; lower it")
    return stages


def split_layers(layers: int, mtp: int, stages: int, layers_per_stage: int | None = None) -> list[range]:
    """The layers of each stage, as even as possible; the MTP block counts as a layer of the last one.

    Earlier stages are the longer ones, because the last has the head as well.
    """
    units = layers + mtp
    short, longer = divmod(units, stages)
    sizes = [short + (stage < longer) for stage in range(stages)]
    if layers_per_stage is not None:
        sizes = [layers_per_stage] * (stages - 1) + [units - layers_per_stage * (stages - 1)]
    begins = [sum(sizes[:stage]) for stage in range(stages)]
    return [range(begin, min(begin + size, layers)) for begin, size in zip(begins, sizes, strict=True)]


def stages_of(process: int, pp_size: int, stages: int, schedule: str) -> list[int]:
    """The stages of one process of the pipeline, in order."""
    if schedule in V_SCHEDULES:
        return [process, stages - 1 - process]
    return list(range(process, stages, pp_size))


def schedule_problem(schedule: str, count: int, pp_size: int, stages: int) -> str | None:
    """Why a schedule cannot run that many micro-batches; None if it can."""
    if schedule in ("1f1b", "dualpipev") and count < stages:
        return f"{schedule} needs at least as many micro-batches as stages, {stages}, not {count}"
    if schedule == "interleaved1f1b" and count % max(1, count // pp_size):
        return f"interleaved1f1b needs a multiple of pp_size {pp_size} micro-batches, not {count}"
    return None


def bubble(schedule: str, pp_size: int, stages: int, count: int) -> float:
    """The idle share of a step on each process, if a stage's backward takes twice as long as its forward.

    Leading terms of the schedules' papers (1F1B; interleaved: Narayanan et al. 2021; ZB-V: Qi et al. 2023; DualPipeV:
    DeepSeek 2025): warm-up and cool-down over warm-up, cool-down and work.
    """
    chunks = stages / pp_size
    idle = {
        "1f1b": (pp_size - 1) * 3.0,
        "interleaved1f1b": (pp_size - 1) * 3.0 / chunks,
        "zbv": (pp_size - 1) * 1.0 / 2,
        "dualpipev": (pp_size - 1) * 1.0 / 2,
    }[schedule]
    return idle / (idle + 3.0 * count)
