"""The door: `seektune train | schema`, and `automodel`, the same door with the grammar of one verb.

Verbs import their workflow when they run, so that help and a mistake in a recipe do not wait for torch.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeAlias

import typer

from seektune import __version__
from seektune.train.interrupt import RESUME_ME, Interrupted

if TYPE_CHECKING:
    from seektune.recipe.load import LoadedRecipe
    from seektune.recipe.recipe import Recipe

USER_MISTAKE, FAILURE = 2, 1
LONGEST_MESSAGE = 500
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Words by which torch's allocators are known; they raise RuntimeError."""

WELCOME = """Train and fine-tune DeepSeek-V4.

\b
Fine-tune a small DeepSeek-V4 on HellaSwag with this machine's CPU:
  seektune train examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_hellaswag.yaml
The same with another learning rate and fewer steps:
  seektune train RECIPE --optimizer.lr=1e-3 --steps=50

A recipe is a YAML file that says what to train; `seektune train --help` tells how overrides work, and `seektune
schema` lists every key. Exit codes: 0 done, 1 something failed, 2 something was asked for that cannot be done,
75 stopped by a signal: the same command goes on from there.
"""

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

OPEN_ENDED = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
"""Overrides are options whose names only the recipe knows."""

Work: TypeAlias = Callable[[], None]
"""What a verb does once its words are understood."""

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

app = typer.Typer(
    help=WELCOME,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
seed_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> NoReturn:
    """Console script `seektune`."""
    _open(typer.main.get_command(app), "seektune")


def automodel() -> NoReturn:
    """Console script `automodel`."""
    _open(typer.main.get_command(seed_app), "automodel")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"seektune {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
]


@app.callback(invoke_without_command=True)
def _lobby(context: typer.Context, version: Version = False) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("train", help=TRAIN_HELP, short_help="Train as a recipe says.", context_settings=OPEN_ENDED)
def _train(words: Words = None, nproc_per_node: Processes = 1) -> Work:
    return partial(train_here, *split_words(words or []), nproc_per_node)


@seed_app.command(help=AUTOMODEL_HELP, context_settings=OPEN_ENDED)
def _automodel(words: Words = None, nproc_per_node: Processes = 1, version: Version = False) -> Work:
    return partial(train_here, *split_words(words or []), nproc_per_node)


@app.command("schema", help=SCHEMA_HELP, short_help="Print the JSON schema of recipes, for editors.")
def _schema() -> Work:
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
    from seektune.recipe.load import read_recipe

    loaded = read_recipe(path, overrides)
    refuse_many(loaded, processes)
    from seektune.data.hellaswag import default_cache_dir
    from seektune.workflows.train import train

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


def _open(command: Callable[..., object], name: str) -> NoReturn:
    """Parse a command line, do its work and leave with an exit code; mistakes and failures take one line."""
    try:
        # what a verb returns is run out here, because the parser has its own ideas about Ctrl-C and broken pipes
        answer = command(prog_name=name, standalone_mode=False)
        if callable(answer):
            answer()
        if sys.stdout is not None:  # None where the caller closed it
            sys.stdout.flush()
        code = answer if isinstance(answer, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("SEEKTUNE_TRACEBACK", "") not in ("", "0"):
            raise
        code, message = explain(error)
        _say(name, message)
        _stop_writing()
    sys.exit(code)


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of an error and its sentence: 2 for the user's mistakes, 1 for failures."""
    if isinstance(error, typer.TyperException):
        return USER_MISTAKE, error.format_message()
    if isinstance(error, ValueError):
        return USER_MISTAKE, str(error)
    if isinstance(error, BrokenPipeError):
        return FAILURE, ""
    if isinstance(error, Interrupted):
        return RESUME_ME, str(error)
    if isinstance(error, KeyboardInterrupt):
        return FAILURE, str(error) or "interrupted by Ctrl-C"
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
        return FAILURE, f"out of memory; lower batch.micro_size or batch.length ({str(error) or type(error).__name__})"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return FAILURE, f"{place}{error.strerror}" if error.strerror else str(error)
    if isinstance(error, ArithmeticError):
        return FAILURE, str(error)
    reason = f"{type(error).__name__}: {_one_line(error, 300)}".removesuffix(": ")
    return FAILURE, f"{reason} (SEEKTUNE_TRACEBACK=1 shows where)"


def _one_line(text: object, most: int = LONGEST_MESSAGE) -> str:
    line = " ".join(str(text).split())
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def _say(name: str, message: str) -> None:
    if message:
        with contextlib.suppress(OSError):
            print(f"{name}: {_one_line(message)}", file=sys.stderr, flush=True)


def _stop_writing() -> None:
    """Send what is still buffered nowhere: Python's own flush at the end would fail again, with a traceback."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
