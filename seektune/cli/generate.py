"""The commands `generate` and `chat`: text from a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seektune.cli.dry_run_decode import DecodeDryRun, dry_run_flags
from seektune.cli.errors import explain_out_of_memory
from seektune.cli.options import (
    Action,
    MakeGenerateOptions,
    MaxNewTokens,
    MaxNumSeqs,
    Model,
    generate_options,
    path_flag,
    prefix_options,
    with_groups,
)
from seektune.cli.processes import DecodeFlags, decode_flags, on_processes
from seektune.generate.cache_limit import CacheLimit, CacheUse

if TYPE_CHECKING:
    from seektune.generate.processes import DecodeProcesses
    from seektune.generate.session import LoadOptions

GENERATE_HELP = """Generate text from MODEL, a checkpoint folder in any supported format or a Hub id.

\b
Complete a prompt:
  seektune generate runs/mine/model --prompt "The man"
Ask a question in the chat format, with greedy decoding:
  seektune generate runs/mine/model --prompt "2+2?" --chat --temperature 0
Many prompts, four samples each:
  seektune generate runs/mine/model --file prompts.jsonl --out answers.jsonl --samples 4
A model that does not fit one GPU, on the eight of this node, each with an eighth of the routed experts:
  seektune generate runs/mine/model --nproc-per-node=8 --quantized --prompt "The man"
What each of 16 GPUs would hold, and how many tokens of context fit beside it:
  seektune generate flash --dry-run --world-size=16 --pp=2 --quantized --gpu h100-80gb

Each line of prompts.jsonl has either `prompt` (a string) or `messages` (a conversation). See docs/generation.md.
"""

CHAT_HELP = """Chat with MODEL in the terminal; MODEL is a checkpoint folder in any supported format or a Hub id.

\b
  seektune chat runs/mine/model --thinking
  seektune chat runs/mine/model --nproc-per-node=8 --quantized

Type /help for the commands.
"""


def _generate(
    model: Model,
    generation: MakeGenerateOptions,
    processes: DecodeFlags,
    dry_run: DecodeDryRun,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Prompt.")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="PROMPTS", parser=path_flag, help="File of prompts, .jsonl.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="ANSWERS", parser=path_flag, help="File for the answers, .jsonl.")
    ] = None,
    as_chat: Annotated[
        bool, typer.Option("--chat", help="Send --prompt as a user message in the chat format.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Completions per prompt.")] = 1,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Write the log-probability of each token.")] = False,
    max_num_seqs: MaxNumSeqs = 8,
    max_new_tokens: MaxNewTokens = 256,
) -> Action:
    """The command `generate`."""

    def read() -> tuple["LoadOptions", CacheLimit, CacheUse]:
        options = generation(max_new_tokens)
        caches = CacheUse(speculative=options.speculative, static_steps=options.static_steps)
        return options.reading, options.memory, caches

    def run() -> None:
        if dry_run.enabled:
            dry_run.run(model, read, processes)
            return
        if (prompt is None) == (file is None) or (file is None) != (out is None):
            raise ValueError("give either --prompt TEXT, or --file PROMPTS and --out ANSWERS")
        if prompt is not None and logprobs:
            raise ValueError("--logprobs are written to --out; give --file and --out")
        on_processes(processes, decode)

    def decode(here: "DecodeProcesses") -> None:
        options = generation(max_new_tokens)
        from seektune.workflows.generate import Output, generate_file, generate_one

        output = Output(samples, logprobs, max_num_seqs)
        with explain_out_of_memory("lower --max-num-seqs or --max-new-tokens"):
            if prompt is not None:
                generate_one(model, prompt, as_chat or options.thinking, options, output, here)
            elif file is not None and out is not None:
                generate_file(model, file, out, options, output, here)

    return run


def _chat(
    model: Model,
    generation: MakeGenerateOptions,
    processes: DecodeFlags,
    prefix_bytes: int,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    max_new_tokens: MaxNewTokens = 2048,
) -> Action:
    """The command `chat`."""

    def decode(here: "DecodeProcesses") -> None:
        options = generation(max_new_tokens)
        from seektune.workflows.chat import chat

        with explain_out_of_memory("lower --max-new-tokens"):
            chat(model, system, options, here, prefix_bytes)

    return lambda: on_processes(processes, decode, interactive=True)


generate = with_groups(_generate, generation=generate_options, processes=decode_flags, dry_run=dry_run_flags)
chat = with_groups(_chat, generation=generate_options, processes=decode_flags, prefix_bytes=prefix_options)
