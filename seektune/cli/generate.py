"""The verbs `generate` and `chat`: what a checkpoint says."""

from pathlib import Path
from typing import Annotated

import typer

from seektune.cli.errors import told_of_memory
from seektune.cli.options import MakeSetting, Model, Most, Work, speaking, spread

GENERATE_HELP = """Let MODEL, a checkpoint folder in any of our formats or a Hub id, go on with a text.

\b
  seektune generate runs/mine/model --prompt "The man"
A question in the chat format, always the likeliest answer:
  seektune generate runs/mine/model --prompt "2+2?" --chat --temperature 0
Many prompts, four answers to each:
  seektune generate runs/mine/model --file prompts.jsonl --out answers.jsonl --samples 4

\b
A line of prompts.jsonl has prompt (a text) or messages (a conversation). docs/generation.md says more.
"""

CHAT_HELP = """Talk with MODEL, a checkpoint folder in any of our formats or a Hub id, in the terminal.

\b
  seektune chat runs/mine/model --thinking

/help lists what can be typed beside questions.
"""


def _generate(
    model: Model,
    speaking: MakeSetting,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What to go on with.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="PROMPTS", help="A .jsonl file of prompts.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="ANSWERS", help="The .jsonl file for the answers.")] = None,
    as_chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message.")] = False,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Answers to each prompt.")] = 1,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Write each token's log-probability.")] = False,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Answers that grow together.")] = 8,
    most: Most = 256,
) -> Work:
    """The verb `generate`."""

    def work() -> None:
        if (prompt is None) == (file is None) or (file is None) != (out is None):
            raise ValueError("give either --prompt TEXT, or --file PROMPTS and --out ANSWERS")
        if prompt is not None and logprobs:
            raise ValueError("--logprobs are written to --out; give --file and --out")
        setting = speaking(most)
        from seektune.workflows.generate import Output, generate_file, generate_one

        output = Output(samples, logprobs, rows)
        with told_of_memory("lower --rows or --max-new-tokens"):
            if prompt is not None:
                generate_one(model, prompt, as_chat or setting.thinking, setting, output)
            elif file is not None and out is not None:
                generate_file(model, file, out, setting, output)

    return work


def _chat(
    model: Model,
    speaking: MakeSetting,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Instruction before the conversation.")] = None,
    most: Most = 2048,
) -> Work:
    """The verb `chat`."""

    def work() -> None:
        setting = speaking(most)
        from seektune.workflows.chat import chat

        with told_of_memory("lower --max-new-tokens"):
            chat(model, system, setting)

    return work


generate = spread(_generate, speaking=speaking)
chat = spread(_chat, speaking=speaking)
