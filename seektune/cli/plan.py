"""The verb `plan`: a recipe, a description of GPUs, and what is wanted of the answer."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from seektune.cli.options import Work
from seektune.cli.train import OVERRIDES_HELP, Words, split_words

PLAN_HELP = f"""Say what fits, where, how fast and at what price, before any GPU is asked for.

\b
The published job on 128 GPUs:
  seektune plan examples/llm_finetune/deepseek_v4/deepseek_v4_flash_hellaswag.yaml --gpus 128 --gpu h100-80gb
The layouts that fit 64 GPUs, the fastest first, and the fewest nodes for each way of training:
  seektune plan RECIPE --gpus 64 --gpu h200-141gb --search
A page with bars, a timeline and a what-if panel; days and cost of ten billion tokens:
  seektune plan RECIPE --cluster cluster.yaml --html plan.html --tokens 1e10 --price 2.5

A cluster file names `gpu` and `gpus`, and may say gpus_per_node, memory_gb, bf16_tflops, memory_gb_s, link and
network (docs/planning.md). Exit codes: 0 fits, 1 does not or may not, 2 a mistake.

{OVERRIDES_HELP}
"""


def plan(
    words: Words = None,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="GPUs in all.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="KIND", help="Their kind, such as h100-80gb.")] = None,
    cluster: Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file that describes them.")] = None,
    search: Annotated[bool, typer.Option("--search", help="Try all layouts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON: bytes, seconds.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of one file.")] = None,
    tokens: Annotated[
        float | None, typer.Option(min=1, max=1e18, metavar="N", help="Budget of tokens, such as 1e10.")
    ] = None,
    price: Annotated[float, typer.Option(min=0, max=1e9, metavar="X", help="Of a GPU's hour, in any currency.")] = 0.0,
) -> Work:
    """The verb `plan`."""
    if cluster is not None and (gpus is not None or gpu is not None):
        raise ValueError("--cluster says which GPUs and how many; leave --gpus and --gpu away")
    return partial(_plan, *split_words(words or []), (gpus, gpu, cluster), (search, as_json, html), (tokens, price))


def _plan(
    path: str,
    overrides: list[str],
    where: tuple[int | None, str | None, Path | None],
    asked: tuple[bool, bool, Path | None],
    money: tuple[float | None, float],
) -> int:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(path, overrides).recipe
    from seektune.planner.hardware import known_gpu, read_cluster

    gpus, gpu, file = where
    if file is not None:
        cluster = read_cluster(file)
    else:
        cluster = known_gpu(gpu or "h100-80gb", gpus or recipe.parallel.least_world())
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    from seektune.planner.report import Budget
    from seektune.workflows.plan import PlanOptions, plan

    tokens, price = money
    return 0 if plan(recipe, cluster, PlanOptions(*asked, None if tokens is None else Budget(tokens, price))) else 1


VALIDATE_HELP = f"""Check all that can be known of a recipe without a GPU: files, licence, rows, vocabulary, plan.

\b
  seektune validate examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_hellaswag.yaml
Also whether it fits 128 GPUs:
  seektune validate RECIPE --gpus 128 --gpu h100-80gb

What only the network knows is unknown, not wrong. Exit codes: 0 nothing is wrong, 1 something is, 2 a mistake.

{OVERRIDES_HELP}
"""

DOCTOR_HELP = """Say what this machine has and whether training will find what it needs: Python, torch, GPUs and their
links, shared memory, limits, disk, the Hub, and processes that meet under torchrun.

\b
  seektune doctor --run-dir runs --nproc-per-node 2

Exit codes: 0 nothing is wrong, 1 something is.
"""


def validate(
    words: Words = None,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="GPUs in all.")] = None,
    gpu: Annotated[str, typer.Option(metavar="KIND", help="Their kind.")] = "h100-80gb",
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> Work:
    """The verb `validate`."""
    return partial(_validate, *split_words(words or []), gpus, gpu, as_json)


def doctor(
    run_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where runs will be written.")] = Path("runs"),
    nproc_per_node: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that try to meet.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> Work:
    """The verb `doctor`."""
    return partial(_doctor, run_dir, nproc_per_node, as_json)


def _validate(path: str, overrides: list[str], gpus: int | None, gpu: str, as_json: bool) -> int:
    from seektune.recipe.load import read_recipe

    recipe = read_recipe(path, overrides).recipe
    from seektune.data.datasets.hellaswag import default_cache_dir
    from seektune.planner.hardware import known_gpu
    from seektune.workflows.validate import validate

    cluster = None if gpus is None else known_gpu(gpu, gpus)
    return 0 if validate(recipe, cluster, default_cache_dir(os.environ), as_json) else 1


def _doctor(folder: Path, processes: int, as_json: bool) -> int:
    from seektune.workflows.doctor import doctor

    return 0 if doctor(folder, processes, as_json) else 1
