"""The verbs `generate` and `chat`: what a checkpoint says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from seektune.cli.errors import told_of_memory
from seektune.cli.grammar import Work

if TYPE_CHECKING:
    from seektune.workflows.voice import Setting

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

Model: TypeAlias = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint: folder or Hub id.")]
Most: TypeAlias = Annotated[int, typer.Option("--max-new-tokens", min=1, metavar="N", help="Longest answer.")]
Temperature: TypeAlias = Annotated[float, typer.Option(help="0 takes the likeliest token always.")]
TopK: TypeAlias = Annotated[int, typer.Option("--top-k", help="Only the so many likeliest tokens; 0 = all.")]
TopP: TypeAlias = Annotated[
    float, typer.Option("--top-p", help="Only the likeliest tokens of this probability together.")
]
MinP: TypeAlias = Annotated[
    float, typer.Option("--min-p", help="Only tokens at least this many times as likely as the likeliest.")
]
Penalty: TypeAlias = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: tokens that stood before become less likely.")
]
Stop: TypeAlias = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; may be repeated.")
]
Seed: TypeAlias = Annotated[int, typer.Option(help="The same seed draws the same answer.")]
Speculative: TypeAlias = Annotated[
    bool, typer.Option("--speculative", help="Let the MTP block guess ahead; answers are distributed as without.")
]
Thinking: TypeAlias = Annotated[bool, typer.Option("--thinking", help="Conversations: reason before the answer.")]
Precision: TypeAlias = Annotated[
    Literal["fp32", "bf16"] | None, typer.Option("--dtype", help="Default: fp32 on a CPU, bf16 on a GPU.")
]
Rounding: TypeAlias = Annotated[
    Literal["plain", "released"], typer.Option("--numerics", help="released imitates the rounding of serving.")
]


def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What to go on with.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="PROMPTS", help="A .jsonl file of prompts.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="ANSWERS", help="The .jsonl file for the answers.")] = None,
    as_chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message.")] = False,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Answers to each prompt.")] = 1,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Write each token's log-probability.")] = False,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Answers that grow together.")] = 8,
    most: Most = 256,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    speculative: Speculative = False,
    thinking: Thinking = False,
    dtype: Precision = None,
    numerics: Rounding = "plain",
) -> Work:
    """The verb `generate`."""

    def work() -> None:
        if (prompt is None) == (file is None) or (file is None) != (out is None):
            raise ValueError("give either --prompt TEXT, or --file PROMPTS and --out ANSWERS")
        if prompt is not None and logprobs:
            raise ValueError("--logprobs are written to --out; give --file and --out")
        sampling = (temperature, top_k, top_p, min_p, penalty)
        setting = _setting(sampling, most, stop, seed, speculative, thinking, dtype, numerics)
        from seektune.workflows.generate import Output, generate_file, generate_one

        output = Output(samples, logprobs, rows)
        with told_of_memory("lower --rows or --max-new-tokens"):
            if prompt is not None:
                generate_one(model, prompt, as_chat or thinking, setting, output)
            elif file is not None and out is not None:
                generate_file(model, file, out, setting, output)

    return work


def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Instruction before the conversation.")] = None,
    most: Most = 2048,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    speculative: Speculative = False,
    thinking: Thinking = False,
    dtype: Precision = None,
    numerics: Rounding = "plain",
) -> Work:
    """The verb `chat`."""

    def work() -> None:
        sampling = (temperature, top_k, top_p, min_p, penalty)
        setting = _setting(sampling, most, stop, seed, speculative, thinking, dtype, numerics)
        from seektune.workflows.chat import chat

        with told_of_memory("lower --max-new-tokens"):
            chat(model, system, setting)

    return work


def _setting(
    sampling: tuple[float, int, float, float, float],
    most: int,
    stop: list[str] | None,
    seed: int,
    speculative: bool,
    thinking: bool,
    dtype: str | None,
    numerics: str,
) -> "Setting":
    from seektune.generate.sample import Sampling
    from seektune.workflows.voice import Setting

    return Setting(most, Sampling(*sampling), tuple(stop or ()), seed, speculative, thinking, dtype, numerics)
