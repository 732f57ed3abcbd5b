"""The command `eval`: evaluation of a checkpoint on a task."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seektune.cli.options import Action, MakeLoadOptions, Model, checkpoint_flag, load_options, path_flag, with_groups
from seektune.cli.processes import DecodeFlags, decode_flags, on_processes
from seektune.io.cache_dir import cache_dir

if TYPE_CHECKING:
    from seektune.generate.processes import DecodeProcesses

EVAL_HELP = """Evaluate MODEL, a checkpoint folder in any supported format or a Hub id, with 95 % confidence intervals.

\b
Accuracy on a task, scored as lm-evaluation-harness does (data is downloaded, or read from --data):
  seektune eval runs/mine/model --task TASK --limit 1000
Did training help? Compare two models on the same examples, with a p-value:
  seektune eval runs/mine/model --task TASK --against FOLDER
Did an adapter help? The same model with and without it:
  seektune eval FOLDER --adapter runs/mine/adapter --against FOLDER --task TASK
Tasks of lm-evaluation-harness by name, group or .yaml file (pip install 'seektune[eval]'); a broken-off evaluation
continues with its finished answers:
  seektune eval runs/mine/model --task arc_easy,gsm8k --apply-chat-template --output-path results
Perplexity of your own text, .txt or .jsonl with the key `text`:
  seektune eval runs/mine/model --task perplexity --data notes.txt --json
How many drafts of the MTP block or the DSpark stages are accepted, before and after a tune (as generate --file reads):
  seektune eval runs/mine/model --task drafter --data prompts.jsonl --against FOLDER
A model that does not fit one GPU, on the eight of this node:
  seektune eval runs/mine/model --nproc-per-node=8 --quantized --task TASK

--limit takes examples evenly spaced over the split; for perplexity and drafter, the first ones. docs/evaluation.md
lists the tasks and defines windows, intervals and p-values.
"""


def _evaluate(
    model: Model,
    load: MakeLoadOptions,
    processes: DecodeFlags,
    task: Annotated[
        str, typer.Option("--task", "--tasks", metavar="TASK,...", help="Tasks; an unknown name prints the list.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", parser=path_flag, help="File or folder with the data, in place of a download."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Maximum number of examples.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", parser=checkpoint_flag, help="Second checkpoint to compare with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    batch_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum tokens per forward pass, padding included.")
    ] = 8192,
    length: Annotated[int, typer.Option(min=1, metavar="N", help="Perplexity: window length in tokens.")] = 2048,
    stride: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Perplexity: tokens between windows.", show_default="--length"),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Harness: solved examples before each question.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Harness: prompts are conversations in the chat format.")
    ] = False,
    output_path: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=path_flag, help="Harness: folder for results in its own JSON."),
    ] = None,
) -> Action:
    """The command `eval`."""

    def run(here: "DecodeProcesses") -> None:
        from seektune.evaluate.harness_run import HarnessOptions
        from seektune.workflows.evaluate import EvalOptions, evaluate

        harness = HarnessOptions(None, num_fewshot, apply_chat_template, output_path=output_path)
        options = EvalOptions(load(), batch_tokens, limit, length, stride, harness)
        evaluate(model, task.split(","), data, cache_dir(os.environ), options, against, as_json, here)

    return lambda: on_processes(processes, run)


evaluate = with_groups(_evaluate, load=load_options, processes=decode_flags)
