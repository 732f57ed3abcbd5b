"""The verbs `train` and `schema`, and `automodel`: recipes and their overrides."""

import json
from functools import partial
from typing import Annotated

import typer

from seektune.cli.options import Version, Work
from seektune.cli.start import DryFlags, Flags, start

OVERRIDES_HELP = """\b
Overrides set any key of the recipe by its dotted name, and win over the file:
  --optimizer.lr=1e-4        a number
  --optimizer.lr 1e-4        the same
  --model.preset=tiny        a word or a path
  --optimizer.betas=[0.9,0.95]
  --model.weights=null       null clears a setting
`seektune schema` lists every key; a misspelt one is answered with the nearest."""

TRAIN_HELP = f"""Train as RECIPE says, a YAML file; leaves weights, metrics and report.html in the run's folder.

\b
Try a large job at tiny size, on any machine, in a few minutes (examples/ has recipes):
  seektune train RECIPE --model.preset=tiny --parallel.pp_size=1 --parallel.ep_size=1 --steps=3
Fine-tune your own checkpoint:
  seektune train RECIPE --model.preset=null --model.weights=FOLDER --run_dir=runs/mine
On eight GPUs of this machine, started again up to three times if a process fails:
  seektune train RECIPE --nproc-per-node=8 --max-restarts=3 --run_dir=runs/mine
On two machines; the same words on the other, with --node-rank=1:
  seektune train RECIPE --nproc-per-node=8 --nnodes=2 --node-rank=0 --rdzv-endpoint=HOST:29500 --run_dir=SHARED/mine
What each process of a job on 128 GPUs would hold and send, found out here in a minute:
  seektune train RECIPE --dry-run --world-size=128

{OVERRIDES_HELP}
"""

SCHEMA_HELP = """Print the JSON schema of recipes: every key with its type, default and meaning.

\b
Editors complete and check YAML with it:
  seektune schema > recipe.schema.json
and as the recipe's first line:
  # yaml-language-server: $schema=recipe.schema.json
"""

AUTOMODEL_HELP = f"""Train as RECIPE says: `automodel RECIPE` is `seektune train RECIPE`.

\b
  automodel --nproc-per-node=8 RECIPE --steps=20

{OVERRIDES_HELP}
"""

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE --SECTION.KEY=VALUE", show_default=False, help="A YAML file, overrides of its keys."
    ),
]
Processes = Annotated[
    str,
    typer.Option(
        "--nproc-per-node", "--nproc_per_node", metavar="N", help="Processes on this node; `gpu`: one for each GPU."
    ),
]
Nodes = Annotated[int, typer.Option("--nnodes", min=1, metavar="M", help="Nodes; the command is started on each.")]
NodeRank = Annotated[
    int, typer.Option("--node-rank", "--node_rank", min=0, metavar="R", help="Number of this node, from 0.")
]
Endpoint = Annotated[
    str | None,
    typer.Option("--rdzv-endpoint", "--rdzv_endpoint", metavar="HOST:PORT", help="Node 0, and a free port there."),
]
Restarts = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        "--max_restarts",
        min=0,
        metavar="K",
        help="Times that all processes start again, from the last checkpoint, after one failed.",
    ),
]
Grace = Annotated[
    float,
    typer.Option(
        "--shutdown-timeout",
        "--shutdown_timeout",
        min=0,
        metavar="S",
        help="Seconds that processes have for saving when a signal asks them to stop.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "--dry_run", help="Start nothing; print what processes of the job would hold and send."),
]
WorldSize = Annotated[
    int | None,
    typer.Option("--world-size", "--world_size", min=1, metavar="N", help="Processes of a dry run's job, any number."),
]
DryRanks = Annotated[
    str,
    typer.Option(
        "--ranks", metavar="0,5,127", help="Processes that a dry run looks at.", show_default="the first of each stage"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a dry run's answer as JSON, sizes in bytes.")]


def train(
    words: Words = None,
    nproc_per_node: Processes = Flags.processes,
    nnodes: Nodes = Flags.nodes,
    node_rank: NodeRank = Flags.node_rank,
    rdzv_endpoint: Endpoint = Flags.endpoint,
    max_restarts: Restarts = Flags.max_restarts,
    shutdown_timeout: Grace = Flags.grace,
    dry_run: DryRun = DryFlags.asked,
    world_size: WorldSize = DryFlags.world,
    ranks: DryRanks = DryFlags.ranks,
    as_json: AsJson = DryFlags.as_json,
    version: Version = False,
) -> Work:
    """The verb `train`, and all of `automodel`."""
    flags = Flags(nproc_per_node, nnodes, node_rank, rdzv_endpoint, max_restarts, shutdown_timeout)
    return partial(start, *split_words(words or []), flags, DryFlags(dry_run, world_size, ranks, as_json))


def schema() -> Work:
    """The verb `schema`."""
    return print_schema


def print_schema() -> None:
    """Write the JSON schema of recipes to standard output."""
    from seektune.recipe.load import schema

    typer.echo(json.dumps(schema(), indent=2))


def split_words(words: list[str]) -> tuple[str, list[str]]:
    """The recipe's path and the overrides, in whichever order they were typed.

    Raises:
        ValueError: no recipe, or two.
    """
    paths = []
    overrides = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-"):
            paths.append(word)
            continue
        overrides.append(word)
        if "=" not in word and waiting and not waiting[0].startswith("--"):
            overrides.append(waiting.pop(0))
    if not paths:
        raise ValueError("no recipe given: name a YAML file, such as examples/llm_finetune/deepseek_v4/*.yaml")
    if len(paths) > 1:
        raise ValueError(f"one recipe at a time, not {' and '.join(paths)}; overrides are written --section.key=value")
    return paths[0], overrides
