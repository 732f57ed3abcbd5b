"""The verb `eval`: exams of a checkpoint."""

import os
from pathlib import Path
from typing import Annotated

import typer

from seektune.cli.options import MakeReading, Model, Work, reading, spread
from seektune.io.cache_dir import cache_dir

EVAL_HELP = """Measure MODEL, a checkpoint folder in any of our formats or a Hub id, with 95 % intervals.

\b
HellaSwag as lm-evaluation-harness scores it (rows are fetched, or read from --data):
  seektune eval runs/mine/model --task hellaswag --limit 1000
Did training help? Both models on the same questions, with a p-value:
  seektune eval runs/mine/model --task hellaswag --against FOLDER
Did an adapter help? With it and without:
  seektune eval FOLDER --adapter runs/mine/adapter --against FOLDER --task hellaswag
Perplexity of your own text, .txt or .jsonl with the key text:
  seektune eval runs/mine/model --task perplexity --data notes.txt --json

\b
--limit takes questions at even distances over the split, and the first documents.
docs/evaluation.md says how windows, intervals and p-values are made.
"""


def _evaluate(
    model: Model,
    reading: MakeReading,
    task: Annotated[str, typer.Option(metavar="TASK", help="hellaswag or perplexity.")],
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="A file or folder with what is asked.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Most questions or documents.")] = None,
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="Compare with this checkpoint.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    batch_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Most tokens of one forward.")] = 8192,
    length: Annotated[int, typer.Option(min=1, metavar="N", help="Perplexity: most tokens a window reads.")] = 2048,
    stride: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Perplexity: tokens between windows; default --length.")
    ] = None,
) -> Work:
    """The verb `eval`."""

    def work() -> None:
        from seektune.workflows.evaluate import EvalOptions, evaluate

        setting = EvalOptions(reading(), batch_tokens, limit, length, stride)
        evaluate(model, task, data, cache_dir(os.environ), setting, against, as_json)

    return work


evaluate = spread(_evaluate, reading=reading)
