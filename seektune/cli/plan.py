"""The commands `plan`, `validate` and `doctor`: checks before a job is started."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from seektune.cli.options import Action, path_flag, with_groups
from seektune.cli.plan_options import (
    GPU,
    GpuFlags,
    ServingPlanFlags,
    TrainingPlanFlags,
    gpu_options,
    serving_plan_options,
    training_plan_options,
)
from seektune.cli.train import OVERRIDES_HELP, RecipeArgs, split_args
from seektune.generate.cache_limit import CacheLimit
from seektune.io.cache_dir import cache_dir

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


def _plan(
    *,
    args: RecipeArgs = None,
    gpu: GpuFlags,
    training: TrainingPlanFlags,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes, times in seconds.")] = False,
    serving: ServingPlanFlags,
) -> Action:
    """The command `plan`."""
    if serving.model is None:
        return partial(_plan_training, split_args(args or []), gpu, training, as_json)
    if args or training != TrainingPlanFlags():
        raise ValueError(
            "--serve plans no training; leave out the recipe, its overrides, and --search, --html, --tokens, --price"
        )
    return partial(_plan_serving, serving.model, gpu, serving, as_json)


def _plan_training(
    recipe_args: tuple[str, list[str]], gpu: GpuFlags, training: TrainingPlanFlags, as_json: bool
) -> int:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(*recipe_args).recipe
    cluster = gpu.cluster(recipe.parallel.least_world())
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    from seektune.planner.report import Budget
    from seektune.workflows.plan import PlanOptions, plan

    budget = None if training.tokens is None else Budget(training.tokens, training.price)
    return 0 if plan(recipe, cluster, PlanOptions(training.search, as_json, training.html, budget)) else 1


def _plan_serving(model: str, gpu: GpuFlags, serving: ServingPlanFlags, as_json: bool) -> int:
    from seektune.workflows.plan_serving import ServingOptions, plan_serving

    asked = ServingOptions(
        quantized=serving.quantized,
        ep_size=serving.ep,
        pp_size=serving.pp or 1,
        max_model_len=serving.max_model_len,
        gpu_memory_utilization=serving.gpu_memory_utilization or CacheLimit.gpu_memory_utilization,
        static_steps=serving.cuda_graphs,
        as_json=as_json,
    )
    return 0 if plan_serving(model, gpu.cluster(serving.pp or 1), asked) else 1


plan = with_groups(_plan, gpu=gpu_options, training=training_plan_options, serving=serving_plan_options)


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
    gpu: Annotated[str, typer.Option(metavar="KIND", help="GPU model.")] = GPU,
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
