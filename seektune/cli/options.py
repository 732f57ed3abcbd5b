"""Options that several verbs have, each said once; a verb takes a whole group of them as one argument."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from seektune import __version__
from seektune.generate.sampling_params import Sampling
from seektune.model.choices import DtypeName, NumericsName

Work: TypeAlias = Callable[[], int | None]
"""What a verb does once its words are understood; a number is its exit code, None means 0."""


HELP = {"help_option_names": ["-h", "--help"]}


OPEN_ENDED = {"ignore_unknown_options": True, **HELP}
"""Overrides are options whose names only the recipe knows."""


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"seektune {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
]


if TYPE_CHECKING:
    from seektune.generate.session import GenerateOptions, LoadOptions

Model: TypeAlias = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint: folder or Hub id.")]
Most: TypeAlias = Annotated[int, typer.Option("--max-new-tokens", min=1, metavar="N", help="Longest answer.")]
Speculative: TypeAlias = Annotated[
    bool, typer.Option("--speculative", help="Let the MTP block guess ahead; answers are distributed as without.")
]
Thinking: TypeAlias = Annotated[bool, typer.Option("--thinking", help="Conversations: reason before the answer.")]
Groups: TypeAlias = Callable[..., object]
MakeReading: TypeAlias = Callable[[], "LoadOptions"]
"""Makes the section once the verb works: it lies beyond imports that take seconds."""
MakeSetting: TypeAlias = Callable[[int], "GenerateOptions"]
"""The same, given the most tokens of an answer, whose default is each verb's own."""


def reading(
    adapter: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="An adapter on top of it: adapter_model.safetensors' folder.")
    ] = None,
    dtype: Annotated[DtypeName | None, typer.Option(help="Default: fp32 on a CPU, bf16 on a GPU.")] = None,
    quantized: Annotated[
        bool,
        typer.Option("--quantized", help="Keep FP4 and FP8 weights in their bytes: a fraction of the memory, slower."),
    ] = False,
    numerics: Annotated[NumericsName, typer.Option(help="released imitates the rounding of serving.")] = "plain",
) -> MakeReading:
    """How a checkpoint is read."""

    def make() -> "LoadOptions":
        from seektune.generate.session import LoadOptions

        return LoadOptions(dtype, numerics, quantized, adapter)

    return make


def _speaking(
    reading: MakeReading,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token always.")] = Sampling.temperature,
    top_k: Annotated[int, typer.Option(help="Only the so many likeliest tokens; 0 = all.")] = Sampling.top_k,
    top_p: Annotated[
        float, typer.Option(help="Only the likeliest tokens of this probability together.")
    ] = Sampling.top_p,
    min_p: Annotated[
        float, typer.Option(help="Only tokens at least this many times as likely as the likeliest.")
    ] = Sampling.min_p,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that stood before become less likely.")
    ] = Sampling.repetition_penalty,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same answer.")] = 0,
    speculative: Speculative = False,
    thinking: Thinking = False,
) -> MakeSetting:
    """How a model is read and speaks."""

    def make(most: int) -> "GenerateOptions":
        from seektune.generate.session import GenerateOptions

        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        return GenerateOptions(most, sampling, tuple(stop or ()), seed, speculative, thinking, reading())

    return make


def spread(verb: Callable[..., Work], **groups: Groups) -> Callable[..., Work]:
    """A command whose options are those of the verb, with those of a group in place of the argument of that name.

    Typer reads a function's signature and knows no groups, so one is written for it.
    """
    return _spread(verb, groups)


def _spread(verb: Callable[..., Any], groups: dict[str, Groups]) -> Callable[..., Any]:
    shown = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, own in inspect.signature(verb).parameters.items()
        for parameter in (inspect.signature(groups[name]).parameters.values() if name in groups else [own])
    ]

    def command(**words: object) -> Any:
        made = {}
        for name, group in groups.items():
            made[name] = group(**{key: words.pop(key) for key in inspect.signature(group).parameters})
        return verb(**made, **words)

    command.__doc__ = verb.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    command.__setattr__("__signature__", inspect.Signature(shown))
    return command


speaking: Groups = _spread(_speaking, {"reading": reading})
"""All that `reading` has, and how tokens are drawn."""
