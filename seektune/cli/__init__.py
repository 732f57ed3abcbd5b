"""The door: `seektune train | convert | ...`, and `automodel`, the same door with the grammar of one verb.

Verbs import their workflow when they run, so that help and a mistake in a recipe do not wait for torch.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from seektune.cli import checkpoints, evaluate, generate, init, launch, plan, serve, train
from seektune.cli.data import data_app
from seektune.cli.errors import complain, explain, stop_writing
from seektune.cli.options import HELP, OPEN_ENDED, Version
from seektune.launch.job import JobEnded

WELCOME = """Train and fine-tune DeepSeek-V4.

\b
Fine-tune a small DeepSeek-V4 on HellaSwag with this machine's CPU:
  seektune train examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_hellaswag.yaml
The same with another learning rate and fewer steps:
  seektune train RECIPE --optimizer.lr=1e-3 --steps=50
Know what fits 128 GPUs, and how fast it will be:
  seektune plan RECIPE --gpus 128 --gpu h100-80gb
Write the job for a cluster:
  seektune launch slurm RECIPE --nodes 16
Look at a checkpoint, and write it in another format:
  seektune inspect FOLDER
  seektune convert FOLDER NEW_FOLDER --to bf16
Measure it:
  seektune eval FOLDER --task hellaswag
Hear it:
  seektune generate FOLDER --prompt "The man"
  seektune chat FOLDER
  seektune serve FOLDER

A recipe is a YAML file that says what to train; `seektune train --help` tells how overrides work, and `seektune
schema` lists every key. Exit codes: 0 done, 1 something failed, 2 something was asked for that cannot be done,
75 stopped by a signal: the same command goes on from there.
"""

PARSER_WAS_INTERRUPTED = 130
"""What the parser returns where Ctrl-C met it."""

app = typer.Typer(help=WELCOME, add_completion=False, rich_markup_mode=None, context_settings=HELP)
seed_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> NoReturn:
    """Console script `seektune`."""
    _open(typer.main.get_command(app), "seektune")


def automodel() -> NoReturn:
    """Console script `automodel`."""
    _open(typer.main.get_command(seed_app), "automodel")


@app.callback(invoke_without_command=True)
def _lobby(context: typer.Context, version: Version = False) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("init", help=init.INIT_HELP, short_help="Copy a shipped recipe into a folder, or list them.")(init.init)
app.command("train", help=train.TRAIN_HELP, short_help="Train as a recipe says.", context_settings=OPEN_ENDED)(
    train.train
)
app.command("schema", help=train.SCHEMA_HELP, short_help="Print the JSON schema of recipes, for editors.")(train.schema)
app.command(
    "plan", help=plan.PLAN_HELP, short_help="Say what fits, how fast, at what price.", context_settings=OPEN_ENDED
)(plan.plan)
app.command(
    "validate", help=plan.VALIDATE_HELP, short_help="Check a recipe without a GPU.", context_settings=OPEN_ENDED
)(plan.validate)
app.command("doctor", help=plan.DOCTOR_HELP, short_help="Check this machine.")(plan.doctor)
app.command("convert", help=checkpoints.CONVERT_HELP, short_help="Write a checkpoint in another format.")(
    checkpoints.convert
)
app.command("verify", help=checkpoints.VERIFY_HELP, short_help="Compare two checkpoints tensor by tensor.")(
    checkpoints.verify
)
app.command("merge", help=checkpoints.MERGE_HELP, short_help="Merge a trained adapter into its base.")(
    checkpoints.merge
)
app.command("inspect", help=checkpoints.INSPECT_HELP, short_help="Print what a checkpoint is and what it lacks.")(
    checkpoints.inspect
)

app.command("eval", help=evaluate.EVAL_HELP, short_help="Measure a checkpoint, or compare two.")(evaluate.evaluate)
app.command("generate", help=generate.GENERATE_HELP, short_help="Let a checkpoint go on with texts.")(generate.generate)
app.command("chat", help=generate.CHAT_HELP, short_help="Talk with a checkpoint.")(generate.chat)
app.command("serve", help=serve.SERVE_HELP, short_help="Put a checkpoint behind OpenAI's API and a page.")(serve.serve)
app.add_typer(launch.app, name="launch", short_help="Write a job for Slurm, Kubernetes or SkyPilot.")
app.add_typer(data_app, name="data", short_help="Look at what training reads.")


seed_app.command(help=train.AUTOMODEL_HELP, context_settings=OPEN_ENDED)(train.train)


def _open(command: Callable[..., object], name: str) -> NoReturn:
    """Parse a command line, do its work and leave with an exit code; mistakes and failures take one line."""
    try:
        # what a verb returns is run out here, because the parser has its own ideas about Ctrl-C and broken pipes
        answer = command(prog_name=name, standalone_mode=False)
        if answer == PARSER_WAS_INTERRUPTED:
            raise KeyboardInterrupt
        code = answer if isinstance(answer, int) else 0
        if callable(answer):
            code = answer() or 0
        if sys.stdout is not None:  # None where the caller closed it
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        wants_trace = os.environ.get("SEEKTUNE_TRACEBACK", "") not in ("", "0")
        if wants_trace and not isinstance(error, JobEnded):  # a worker has shown its own
            raise
        code, message = explain(error)
        complain(name, message)
        stop_writing()
    sys.exit(code)
