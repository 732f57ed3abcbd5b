"""The groups of options of `plan`: GPUs, the plan of a training job, and the plan of a server."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seektune.cli.options import checkpoint_flag, path_flag

if TYPE_CHECKING:
    from seektune.planner.hardware import Cluster

GPU = "h100-80gb"


@dataclass(frozen=True)
class GpuFlags:
    """The flags about the GPUs of a plan."""

    gpus: int | None = None
    gpu: str | None = None
    file: Path | None = None
    measured: Path | None = None

    def cluster(self, fewest: int) -> "Cluster":
        """The cluster of the file, or `gpus` GPUs (`fewest` if None), with measured rates if there are some.

        Raises:
            ValueError: the GPU model is unknown, or a file is invalid.
        """
        from seektune.planner.hardware import known_gpu, read_cluster

        cluster = known_gpu(self.gpu or GPU, self.gpus or fewest) if self.file is None else read_cluster(self.file)
        if self.measured is None:
            return cluster
        from seektune.planner.measured import with_measured

        return with_measured(cluster, self.measured)


@dataclass(frozen=True)
class TrainingPlanFlags:
    """The flags that only the plan of a training job has."""

    search: bool = False
    html: Path | None = None
    tokens: float | None = None
    price: float = 0.0


@dataclass(frozen=True)
class ServingPlanFlags:
    """The flags about the plan of a server."""

    model: str | None = None
    """None = plan a training job."""
    quantized: bool = False
    ep: int | None = None
    pp: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    cuda_graphs: bool = False


def gpu_options(
    gpus: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Total number of GPUs.", show_default="fewest for the layout")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="KIND", help="GPU model.", show_default=GPU)] = None,
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=path_flag, help="YAML file that describes the GPUs.")
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=path_flag, help="Result of bench/gpu_all.py, whose rates replace the assumed ones."
        ),
    ] = None,
) -> GpuFlags:
    """Options about the GPUs.

    Raises:
        ValueError: they contradict each other.
    """
    if cluster is not None and (gpus is not None or gpu is not None):
        raise ValueError("--cluster already describes the GPUs; remove --gpus and --gpu")
    return GpuFlags(gpus, gpu, cluster, measured)


def training_plan_options(
    search: Annotated[bool, typer.Option("--search", help="Search all parallel layouts.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", parser=path_flag, help="Write an HTML report.")] = None,
    tokens: Annotated[
        float | None,
        typer.Option(min=1, max=1e18, metavar="N", help="Tokens to train on, such as 1e10: adds days and cost."),
    ] = None,
    price: Annotated[
        float, typer.Option(min=0, max=1e9, metavar="X", help="Price of a GPU hour, in any currency.")
    ] = 0.0,
) -> TrainingPlanFlags:
    """Options of the plan of a training job."""
    return TrainingPlanFlags(search, html, tokens, price)


def serving_plan_options(
    serve: Annotated[
        str | None,
        typer.Option(metavar="MODEL", parser=checkpoint_flag, help="Plan serving this folder or preset, not a recipe."),
    ] = None,
    quantized: Annotated[
        bool, typer.Option("--quantized", help="With --serve: FP4 and FP8 weights stay quantized.")
    ] = False,
    ep: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --serve: processes over which the routed experts are spread."),
    ] = None,
    pp: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --serve: pipeline stages over which the layers are spread."),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="With --serve: maximum length of prompt and completion in tokens."),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, metavar="X", help="With --serve: share of a GPU's memory for weights and KV caches."
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="With --serve: decode steps have copies of the caches; on one GPU.")
    ] = False,
) -> ServingPlanFlags:
    """Options of the plan of a server.

    Raises:
        ValueError: they have no effect.
    """
    flags = ServingPlanFlags(serve, quantized, ep, pp, max_model_len, gpu_memory_utilization, cuda_graphs)
    if serve is None and flags != ServingPlanFlags():
        raise ValueError(
            "--quantized, --ep, --pp, --max-model-len, --gpu-memory-utilization, --cuda-graphs have no effect on the "
            "plan of a recipe; they need --serve"
        )
    return flags
