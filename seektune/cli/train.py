"""The verbs `train` and `schema`, and `automodel`: recipes and their overrides."""

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from seektune.cli.errors import told_of_memory
from seektune.cli.grammar import Work

if TYPE_CHECKING:
    from seektune.recipe.load import LoadedRecipe
    from seektune.recipe.recipe import Recipe

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
Try the published job at tiny size, on any machine, in a few minutes:
  seektune train examples/llm_finetune/deepseek_v4/deepseek_v4_flash_hellaswag.yaml \\
      --model.preset=tiny --parallel.pp_size=1 --parallel.ep_size=1 --steps=3
Fine-tune your own checkpoint:
  seektune train RECIPE --model.preset=null --model.weights=FOLDER --run_dir=runs/mine

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
  automodel --nproc-per-node=1 RECIPE --steps=20

{OVERRIDES_HELP}
"""

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE --SECTION.KEY=VALUE", show_default=False, help="A YAML file, overrides of its keys."
    ),
]
Processes = Annotated[
    int,
    typer.Option("--nproc-per-node", "--nproc_per_node", min=1, metavar="N", help="Processes; this version runs one."),
]


def train(words: Words = None, nproc_per_node: Processes = 1) -> Work:
    """The verb `train`."""
    return partial(train_here, *split_words(words or []), nproc_per_node)


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
    paths, overrides, waiting = [], [], list(words)
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


def train_here(path: str, overrides: list[str], processes: int) -> None:
    """Read the recipe first, so that no other complaint hides what is wrong with it; then train in this process.

    Raises:
        ValueError: a mistake in the recipe, or a job for several processes.
    """
    from seektune.train.interrupt import Interrupted, Interruption

    with Interruption() as interruption:
        try:
            # loading torch takes seconds, in which a signal must mean what it means later
            with interruption.deferred():
                from seektune.recipe.load import read_recipe

                loaded = read_recipe(path, overrides)
                refuse_many(loaded, processes)
                from seektune.data.hellaswag import default_cache_dir
                from seektune.workflows.train import train
        except Interrupted as signal:
            raise Interrupted(f"stopped by {signal} while starting; the same command starts again") from None
    with told_of_memory("lower batch.micro_size or batch.length"):
        train(loaded.recipe, loaded.name, loaded.notes, default_cache_dir(os.environ))


def refuse_many(loaded: "LoadedRecipe", processes: int) -> None:
    """Say what a job for several processes asks for and how to run it in one.

    Raises:
        ValueError: more than one process is asked for.
    """
    parallel = loaded.recipe.parallel
    sizes = {key: size for key, size in parallel.model_dump().items() if size > 1}
    if processes == 1 and not sizes:
        return
    asked = " x ".join(f"parallel.{key} {size}" for key, size in sizes.items())
    wanted = [f"{asked} (at least {parallel.least_world()} processes)"] if sizes else []
    wanted += [f"--nproc-per-node={processes}"] if processes > 1 else []
    cures = (["--nproc-per-node=1"] if processes > 1 else []) + [f"--parallel.{key}=1" for key in sizes]
    raise ValueError(
        f"this version trains in one process, but this job asks for {' and '.join(wanted)}; "
        f"to run it here: {' '.join(cures)}{_smaller(loaded.recipe)}"
    )


def _smaller(recipe: "Recipe") -> str:
    full_size = recipe.model.preset not in (None, "tiny")
    return f" (and --model.preset=tiny, as {recipe.model.preset} does not fit one device)" if full_size else ""
