"""The commands `train`, `schema` and `automodel`; recipe arguments and overrides."""

import json
from functools import partial
from typing import Annotated

import typer

from seektune.cli.launch_flags import DryRunFlags, LaunchFlags
from seektune.cli.options import Action, Version
from seektune.cli.start import start
from seektune.exit_codes import RESUME_ME

OVERRIDES_HELP = """\b
RECIPE is a YAML file; `seektune init` copies a shipped one. Overrides set any of its keys by dotted name:
  --optimizer.lr=1e-4             or --optimizer.lr 1e-4
  --model.preset=tiny             a string
  --optimizer.betas=[0.9,0.95]    a list
  --model.weights=null            null unsets a key
`seektune schema` lists all keys."""

TRAIN_HELP = f"""Train the model of RECIPE; writes checkpoints, metrics, weights and report.html to the run folder.

\b
Try a large job at tiny size, on any machine, in a few minutes:
  seektune train RECIPE --model.preset=tiny --parallel.pp_size=1 --parallel.ep_size=1 --steps=3
Fine-tune your own checkpoint:
  seektune train RECIPE --model.preset=null --model.weights=FOLDER --run_dir=runs/mine
Eight GPUs on this node, with up to three restarts after a failure:
  seektune train RECIPE --nproc-per-node=8 --max-restarts=3 --run_dir=runs/mine
Two nodes; on the second one the same command with --node-rank=1:
  seektune train RECIPE --nproc-per-node=8 --nnodes=2 --node-rank=0 --rdzv-endpoint=HOST:29500 --run_dir=SHARED/mine
Memory and communication of each rank of a job on 128 GPUs, computed here in a minute:
  seektune train RECIPE --dry-run --world-size=128

After a signal (Ctrl-C, SIGTERM, SIGUSR1) training finishes the step, saves and exits with code {RESUME_ME}; the same
command with the same --run_dir resumes.

{OVERRIDES_HELP}
"""

SCHEMA_HELP = """Print the JSON schema of recipes: every key with its type, default and description.

\b
Editors use it to complete and check recipes:
  seektune schema > recipe.schema.json
with this as the recipe's first line:
  # yaml-language-server: $schema=recipe.schema.json
"""

AUTOMODEL_HELP = f"""Train the model of RECIPE; `automodel RECIPE` is short for `seektune train RECIPE`.

\b
  automodel --nproc-per-node=8 RECIPE --steps=20

{OVERRIDES_HELP}
"""

RecipeArgs = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE --KEY=VALUE", show_default=False, help="Recipe file, and overrides of its keys."),
]
ProcessesPerNode = Annotated[
    str,
    typer.Option(
        "--nproc-per-node",
        "--nproc_per_node",
        metavar="N",
        help="Processes on this node: a number, or `gpu` for one per GPU.",
    ),
]
Nodes = Annotated[int, typer.Option("--nnodes", min=1, metavar="N", help="Number of nodes; run the command on each.")]
NodeRank = Annotated[
    int, typer.Option("--node-rank", "--node_rank", min=0, metavar="N", help="Rank of this node, from 0.")
]
RendezvousEndpoint = Annotated[
    str | None,
    typer.Option(
        "--rdzv-endpoint", "--rdzv_endpoint", metavar="HOST:PORT", help="Host name of node 0 and a free port on it."
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        "--max_restarts",
        min=0,
        metavar="N",
        help="Restarts of all processes, from the last checkpoint, after one fails.",
    ),
]
ShutdownTimeout = Annotated[
    float,
    typer.Option(
        "--shutdown-timeout",
        "--shutdown_timeout",
        min=0,
        metavar="SECONDS",
        help="Time for processes to save after a signal, before they are killed.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "--dry_run", help="Print the memory and communication of the job's ranks; do not train."),
]
WorldSize = Annotated[
    int | None,
    typer.Option("--world-size", "--world_size", min=1, metavar="N", help="Dry run: number of processes in the job."),
]
DryRanks = Annotated[
    str,
    typer.Option(
        "--ranks", metavar="0,5,127", help="Dry run: ranks to print.", show_default="first of each pipeline stage"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Dry run: print JSON, sizes in bytes.")]


def train(
    args: RecipeArgs = None,
    nproc_per_node: ProcessesPerNode = LaunchFlags.processes,
    nnodes: Nodes = LaunchFlags.nodes,
    node_rank: NodeRank = LaunchFlags.node_rank,
    rdzv_endpoint: RendezvousEndpoint = LaunchFlags.endpoint,
    max_restarts: MaxRestarts = LaunchFlags.max_restarts,
    shutdown_timeout: ShutdownTimeout = LaunchFlags.shutdown_timeout,
    dry_run: DryRun = DryRunFlags.enabled,
    world_size: WorldSize = DryRunFlags.world,
    ranks: DryRanks = DryRunFlags.ranks,
    as_json: AsJson = DryRunFlags.as_json,
    version: Version = False,
) -> Action:
    """The commands `train` and `automodel`."""
    flags = LaunchFlags(nproc_per_node, nnodes, node_rank, rdzv_endpoint, max_restarts, shutdown_timeout)
    return partial(start, *split_args(args or []), flags, DryRunFlags(dry_run, world_size, ranks, as_json))


def schema() -> Action:
    """The command `schema`."""
    return print_schema


def print_schema() -> None:
    """Write the JSON schema of recipes to standard output."""
    from seektune.recipe.load import schema

    typer.echo(json.dumps(schema(), indent=2))


def split_args(args: list[str]) -> tuple[str, list[str]]:
    """The recipe's path and the overrides, which may be typed in any order.

    Raises:
        ValueError: no recipe, or two.
    """
    paths = []
    overrides = []
    taken = {}
    waiting = list(args)
    while waiting:
        arg = waiting.pop(0)
        if not arg.startswith("-"):
            paths.append(arg)
            continue
        overrides.append(arg)
        if "=" not in arg and waiting and not waiting[0].startswith("--"):
            overrides.append(waiting.pop(0))
            taken[overrides[-1]] = arg
    swallowed = next((word for word in taken if word.endswith((".yaml", ".yml"))), None)
    if not paths and swallowed is not None:
        flag = taken[swallowed]
        raise ValueError(
            f"no recipe given: {flag} took {swallowed} as its value; write {flag}=VALUE, such as {flag}=true"
        )
    if not paths:
        raise ValueError("no recipe given: name a YAML file; `seektune init` lists and copies shipped ones")
    if len(paths) > 1:
        from seektune.recipe.override import meant_by

        bare = next((path for path in paths if "=" in path), "")
        raise ValueError(f"one recipe at a time, not {' and '.join(paths)}; write overrides as {meant_by(bare)}")
    return paths[0], overrides
