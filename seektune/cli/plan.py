"""The commands `plan`, `validate` and `doctor`: checks before a job is started."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seektune.cli.options import Action, checkpoint_flag, path_flag
from seektune.cli.train import OVERRIDES_HELP, RecipeArgs, split_args
from seektune.generate.cache_limit import CacheLimit
from seektune.io.cache_dir import cache_dir

if TYPE_CHECKING:
    from seektune.planner.hardware import Cluster

PLAN_HELP = f"""Estimate memory per GPU, step time and cost of a training job; runs on any machine, without GPUs.

\b
Does the recipe fit on 128 GPUs, and how fast does it train?
  seektune plan RECIPE --gpus 128 --gpu h100-80gb
All parallel layouts that fit on 64 GPUs, fastest first, and the fewest nodes for each way of training:
  seektune plan RECIPE --gpus 64 --gpu h200-141gb --search
An HTML report with a timeline and a what-if panel; days and cost of ten billion tokens:
  seektune plan RECIPE --cluster cluster.yaml --html plan.html --tokens 1e10 --price 2.5

Which sequences fit beside the weights of a served model, a folder or a preset, and bounds of its tokens per second:
  seektune plan --serve flash --quantized --gpus 8 --gpu h100-80gb

A cluster file sets `gpu` and `gpus`, and optionally gpus_per_node, memory_gb, bf16_tflops, memory_gb_s, link and
network (docs/planning.md). Exit codes: 0 fits, 1 does not fit or may not, 2 invalid arguments or recipe.

{OVERRIDES_HELP}
"""


def plan(
    args: RecipeArgs = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Total number of GPUs.", show_default="fewest for the layout")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="KIND", help="GPU model.", show_default="h100-80gb")] = None,
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=path_flag, help="YAML file that describes the GPUs.")
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=path_flag, help="Result of bench/gpu_all.py, whose rates replace the assumed ones."
        ),
    ] = None,
    search: Annotated[bool, typer.Option("--search", help="Search all parallel layouts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes, times in seconds.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", parser=path_flag, help="Write an HTML report.")] = None,
    tokens: Annotated[
        float | None,
        typer.Option(min=1, max=1e18, metavar="N", help="Tokens to train on, such as 1e10: adds days and cost."),
    ] = None,
    price: Annotated[
        float, typer.Option(min=0, max=1e9, metavar="X", help="Price of a GPU hour, in any currency.")
    ] = 0.0,
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
) -> Action:
    """The command `plan`."""
    if cluster is not None and (gpus is not None or gpu is not None):
        raise ValueError("--cluster already describes the GPUs; remove --gpus and --gpu")
    of_serving = {
        "--quantized": quantized,
        "--ep": ep,
        "--pp": pp,
        "--max-model-len": max_model_len,
        "--gpu-memory-utilization": gpu_memory_utilization,
    }
    if serve is not None:
        of_training = {"--search": search, "--html": html, "--tokens": tokens, "--price": price}
        if args or any(of_training.values()):
            raise ValueError(
                "--serve plans no training; leave out the recipe, its overrides, and " + ", ".join(of_training)
            )
        asked = partial(_plan_serving, serve, _hardware(cluster, gpu, gpus, pp or 1, measured), quantized, ep, pp)
        return partial(asked, max_model_len, gpu_memory_utilization or CacheLimit.gpu_memory_utilization, as_json)
    if any(of_serving.values()):
        raise ValueError(f"{', '.join(of_serving)} have no effect on the plan of a recipe; they need --serve")
    recipe_args = split_args(args or [])

    def run() -> int:
        from seektune.recipe.load import read_recipe

        recipe = read_recipe(*recipe_args).recipe
        hardware = _hardware(cluster, gpu, gpus, recipe.parallel.least_world(), measured)()
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
        from seektune.planner.report import Budget
        from seektune.workflows.plan import PlanOptions, plan

        money = None if tokens is None else Budget(tokens, price)
        return 0 if plan(recipe, hardware, PlanOptions(search, as_json, html, money)) else 1

    return run


def _hardware(
    file: Path | None, gpu: str | None, gpus: int | None, fewest: int, measured: Path | None
) -> Callable[[], "Cluster"]:
    """The cluster of a file, or that many GPUs, with measured rates if there are some."""

    def read() -> "Cluster":
        from seektune.planner.hardware import known_gpu, read_cluster

        cluster = known_gpu(gpu or "h100-80gb", gpus or fewest) if file is None else read_cluster(file)
        if measured is None:
            return cluster
        from seektune.planner.measured import with_measured

        return with_measured(cluster, measured)

    return read


def _plan_serving(
    model: str,
    hardware: Callable[[], "Cluster"],
    quantized: bool,
    ep: int | None,
    pp: int | None,
    max_model_len: int | None,
    gpu_memory_utilization: float,
    as_json: bool,
) -> int:
    from seektune.workflows.plan_serving import ServingOptions, plan_serving

    asked = ServingOptions(quantized, ep, pp or 1, max_model_len, gpu_memory_utilization, as_json)
    return 0 if plan_serving(model, hardware(), asked) else 1


VALIDATE_HELP = f"""Check a recipe without a GPU: weights, licence, tokenizer, data and parallel layout.

\b
  seektune validate RECIPE
Check also that it fits on 128 GPUs:
  seektune validate RECIPE --gpus 128 --gpu h100-80gb

What needs the network is reported as unknown where there is none. Exit codes: 0 no errors, 1 errors found, 2 invalid
arguments or recipe.

{OVERRIDES_HELP}
"""

DOCTOR_HELP = """Check this machine: Python, torch, GPUs and their links, shared memory, limits, disk, the Hub, and a
process group under torchrun.

\b
  seektune doctor --run-dir runs --nproc-per-node 2

Exit codes: 0 no errors, 1 errors found.
"""


def validate(
    args: RecipeArgs = None,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="Total number of GPUs.")] = None,
    gpu: Annotated[str, typer.Option(metavar="KIND", help="GPU model.")] = "h100-80gb",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Action:
    """The command `validate`."""
    return partial(_validate, *split_args(args or []), gpus, gpu, as_json)


def doctor(
    run_dir: Annotated[Path, typer.Option(metavar="DIR", parser=path_flag, help="Folder for runs.")] = Path("runs"),
    nproc_per_node: Annotated[int, typer.Option(min=1, metavar="N", help="Processes of the process-group check.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Action:
    """The command `doctor`."""
    return partial(_doctor, run_dir, nproc_per_node, as_json)


def _validate(path: str, overrides: list[str], gpus: int | None, gpu: str, as_json: bool) -> int:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(path, overrides).recipe
    from seektune.planner.hardware import known_gpu
    from seektune.workflows.validate import validate

    cluster = None if gpus is None else known_gpu(gpu, gpus)
    return 0 if validate(recipe, cluster, cache_dir(os.environ), as_json) else 1


def _doctor(folder: Path, processes: int, as_json: bool) -> int:
    from seektune.workflows.doctor import doctor

    return 0 if doctor(folder, processes, as_json) else 1
