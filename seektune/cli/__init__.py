"""The command line: `seektune COMMAND ...`, and `automodel ...`, which is `seektune train ...`.

Commands import their workflow when they run, so that help and errors in a recipe do not wait for torch.
"""

import os
import sys
from collections.abc import Callable
from signal import SIGINT
from typing import NoReturn

import typer

from seektune.cli import checkpoints, evaluate, generate, init, launch, plan, report, serve, train, verify_serving
from seektune.cli.adapter import adapter_app
from seektune.cli.data import data_app
from seektune.cli.errors import discard_stdout, explain, print_error
from seektune.cli.options import ALLOW_OVERRIDES, HELP_FLAGS, Version
from seektune.exit_codes import BY_SIGNAL, DONE, FAILURE, RESUME_ME, USER_MISTAKE
from seektune.launch.job import JobEnded
from seektune.signals import ignore_stop_signals

MAIN_HELP = f"""Train, fine-tune and serve DeepSeek-V4.

\b
List the shipped recipes, and copy one that trains on a CPU in a few minutes:
  seektune init
  seektune init recipes
Train, with any key of the recipe overridden:
  seektune train RECIPE --optimizer.lr=1e-3 --steps=50
Estimate memory, speed and cost on 128 GPUs:
  seektune plan RECIPE --gpus 128 --gpu h100-80gb
Write a job script for a cluster:
  seektune launch slurm RECIPE --nodes 16
Inspect a checkpoint, and convert it to another format:
  seektune inspect FOLDER
  seektune convert FOLDER NEW_FOLDER --to bf16
Evaluate, and compare runs:
  seektune eval FOLDER --task TASK
  seektune report RUN OTHER_RUN
Generate:
  seektune generate FOLDER --prompt "The man"
  seektune chat FOLDER
  seektune serve FOLDER

`seektune COMMAND --help` explains a command. Exit codes: {DONE} success, {FAILURE} failure, {USER_MISTAKE} invalid
arguments, recipe or data, {RESUME_ME} stopped by a signal (the same command resumes).
"""

PARSER_WAS_INTERRUPTED = BY_SIGNAL + SIGINT
"""What the parser returns after Ctrl-C."""

app = typer.Typer(help=MAIN_HELP, add_completion=False, rich_markup_mode=None, context_settings=HELP_FLAGS)
automodel_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main() -> NoReturn:
    """Console script `seektune`."""
    _run(typer.main.get_command(app), "seektune")


def automodel() -> NoReturn:
    """Console script `automodel`."""
    _run(typer.main.get_command(automodel_app), "automodel")


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: Version = False) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("init", help=init.INIT_HELP, short_help="List the shipped recipes, or copy one.")(init.init)
app.command("train", help=train.TRAIN_HELP, short_help="Train or fine-tune a model.", context_settings=ALLOW_OVERRIDES)(
    train.train
)
app.command("schema", help=train.SCHEMA_HELP, short_help="Print the JSON schema of recipes.")(train.schema)
app.command(
    "plan",
    help=plan.PLAN_HELP,
    short_help="Estimate memory, speed and cost on given GPUs.",
    context_settings=ALLOW_OVERRIDES,
)(plan.plan)
app.command("validate", help=plan.VALIDATE_HELP, short_help="Check a recipe.", context_settings=ALLOW_OVERRIDES)(
    plan.validate
)
app.command("doctor", help=plan.DOCTOR_HELP, short_help="Check this machine.")(plan.doctor)
app.command("convert", help=checkpoints.CONVERT_HELP, short_help="Convert a checkpoint to another format.")(
    checkpoints.convert
)
app.command("verify", help=checkpoints.VERIFY_HELP, short_help="Compare two checkpoints tensor by tensor.")(
    checkpoints.verify
)
app.command("merge", help=checkpoints.MERGE_HELP, short_help="Merge a LoRA adapter into its base checkpoint.")(
    checkpoints.merge
)
app.command("inspect", help=checkpoints.INSPECT_HELP, short_help="Describe a checkpoint and list its errors.")(
    checkpoints.inspect
)

app.command("report", help=report.REPORT_HELP, short_help="Write a run's report, compare runs, or show one live.")(
    report.report
)
app.command("eval", help=evaluate.EVAL_HELP, short_help="Evaluate a checkpoint, or compare two.")(evaluate.evaluate)
app.command("generate", help=generate.GENERATE_HELP, short_help="Generate text from a checkpoint.")(generate.generate)
app.command("chat", help=generate.CHAT_HELP, short_help="Chat with a checkpoint in the terminal.")(generate.chat)
app.command("serve", help=serve.SERVE_HELP, short_help="Serve a checkpoint with an OpenAI-compatible API.")(serve.serve)
app.command(
    "verify-serving",
    help=verify_serving.VERIFY_SERVING_HELP,
    short_help="Check what a running server computes.",
)(verify_serving.verify_serving)
app.add_typer(launch.app, name="launch", short_help="Write a job script for Slurm, Kubernetes or SkyPilot.")
app.add_typer(data_app, name="data", short_help="Inspect training data.")
app.add_typer(adapter_app, name="adapter", short_help="Export adapters for inference engines.")


automodel_app.command(help=train.AUTOMODEL_HELP, context_settings=ALLOW_OVERRIDES)(train.train)


def _run(command: Callable[..., object], name: str) -> NoReturn:
    """Parse the command line, run the command and exit with its code; an error is printed as one line."""
    try:
        # a command's action runs here and not in the parser, which has its own handling of Ctrl-C and broken pipes
        parsed = command(prog_name=name, standalone_mode=False)
        if parsed == PARSER_WAS_INTERRUPTED:
            raise KeyboardInterrupt
        code = parsed if isinstance(parsed, int) else 0
        if callable(parsed):
            code = parsed() or 0
        if sys.stdout is not None:  # None where the caller closed it
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        wants_trace = os.environ.get("SEEKTUNE_TRACEBACK", "") not in ("", "0")
        if wants_trace and not isinstance(error, JobEnded):  # the worker has printed its own
            raise
        if isinstance(error, KeyboardInterrupt | JobEnded):
            ignore_stop_signals()
        code, message = explain(error)
        print_error(name, message)
        discard_stdout()
    sys.exit(code)
