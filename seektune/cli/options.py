"""Options shared by several commands, each defined once; a command takes a group of options as one argument."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from seektune import __version__
from seektune.data.chat_format.choices import EncodingName
from seektune.generate.cache_limit import CacheLimit
from seektune.generate.limits import PREFIX_CACHE
from seektune.generate.sampling_params import Sampling
from seektune.io.json_file import read_json
from seektune.model.choices import DtypeName, NumericsName
from seektune.paths import expand_path

if TYPE_CHECKING:
    from seektune.generate.session import GenerateOptions, LoadOptions

Action: TypeAlias = Callable[[], int | None]
"""What a command does once its arguments are parsed; returns an exit code, None means 0."""

HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
ALLOW_OVERRIDES = {"ignore_unknown_options": True, **HELP_FLAGS}
"""Overrides are options whose names only the recipe knows."""


def path_flag(text: str | Path) -> Path:
    """A path of the command line, as `user_path` reads it.

    Raises:
        typer.BadParameter: it cannot be one.
    """
    return Path(checkpoint_flag(str(text)))


def checkpoint_flag(text: str) -> str:
    """A folder or Hub id of the command line, as `expand_path` reads it.

    Raises:
        typer.BadParameter: it cannot be one.
    """
    try:
        return expand_path(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seektune {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
]
Model: TypeAlias = Annotated[
    str, typer.Argument(metavar="MODEL", parser=checkpoint_flag, help="Checkpoint: a folder or a Hub id.")
]
MaxNewTokens: TypeAlias = Annotated[
    int, typer.Option("--max-new-tokens", min=1, metavar="N", help="Maximum number of tokens to generate.")
]
MaxNumSeqs: TypeAlias = Annotated[
    int, typer.Option(min=1, metavar="N", help="Maximum number of sequences decoded concurrently.")
]
GpuMemoryUtilization: TypeAlias = Annotated[
    float,
    typer.Option(
        max=1.0,
        metavar="SHARE",
        help="Share of a GPU's memory for weights and KV caches; without a GPU, of the host's free memory for caches.",
    ),
]
Speculative: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--speculative",
        help="Speculative decoding with the MTP block or the DSpark stages; the output distribution does not change.",
    ),
]
CudaGraphs: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs",
        help="Decode steps in static shapes, on a GPU as captured CUDA graphs; one process, not with --speculative.",
    ),
]
Thinking: TypeAlias = Annotated[bool, typer.Option("--thinking", help="Chat: generate reasoning first.")]
ReasoningEffort: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="EFFORT", help="Chat: effort of the reasoning, with --thinking.", show_default="the encoding's"
    ),
]
EncodingOption: TypeAlias = Annotated[
    EncodingName | None,
    typer.Option("--encoding", help="Chat: the format's variant.", show_default="that of the checkpoint"),
]
OptionGroup: TypeAlias = Callable[..., object]
MakeLoadOptions: TypeAlias = Callable[[], "LoadOptions"]
"""Called when the command runs, as importing the class takes seconds."""
MakeGenerateOptions: TypeAlias = Callable[[int], "GenerateOptions"]
"""The same, called with max_new_tokens, whose default differs by command."""


def load_options(
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", parser=path_flag, help="LoRA adapter to apply: a folder with PEFT's files."),
    ] = None,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="Data type of weights and activations.", show_default="bf16 on a GPU, fp32 on a CPU"),
    ] = None,
    quantized: Annotated[
        bool, typer.Option("--quantized", help="Keep FP4 and FP8 weights quantized: less memory, slower.")
    ] = False,
    numerics: Annotated[
        NumericsName,
        typer.Option(
            help="`released` simulates the rounding of keys and the indexer in DeepSeek's inference kernels; "
            "`serving`, with --quantized, also that of inputs of products."
        ),
    ] = "plain",
) -> MakeLoadOptions:
    """Options for loading a checkpoint."""

    def make() -> "LoadOptions":
        from seektune.generate.session import LoadOptions

        return LoadOptions(dtype, numerics, quantized, adapter)

    return make


JsonSchemaFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=path_flag,
        help="Generate JSON that is valid against the schema in this file, after any reasoning.",
    ),
]
Pattern = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="Generate text that matches this pattern as a whole.")
]


def _generate_options(
    load: MakeLoadOptions,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 is greedy decoding.")
    ] = Sampling.temperature,
    top_k: Annotated[int, typer.Option(help="Sample from the k most likely tokens; 0 is all.")] = Sampling.top_k,
    top_p: Annotated[
        float, typer.Option(help="Sample from the smallest set of tokens whose probabilities sum to p.")
    ] = Sampling.top_p,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens less likely than p times the most likely one; 0 keeps all.")
    ] = Sampling.min_p,
    repetition_penalty: Annotated[
        float, typer.Option(help="Penalty on tokens that already occur in prompt or completion; 1 is none.")
    ] = Sampling.repetition_penalty,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Stop string, not part of the completion; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the sampling.")] = 0,
    speculative: Speculative = False,
    cuda_graphs: CudaGraphs = False,
    thinking: Thinking = False,
    reasoning_effort: ReasoningEffort = None,
    encoding: EncodingOption = None,
    json_schema: JsonSchemaFile = None,
    regex: Pattern = None,
    gpu_memory_utilization: GpuMemoryUtilization = CacheLimit.gpu_memory_utilization,
) -> MakeGenerateOptions:
    """Options for loading a checkpoint and sampling from it."""

    def make(max_new_tokens: int) -> "GenerateOptions":
        from seektune.generate.session import GenerateOptions

        return GenerateOptions(
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
            stops=tuple(stop or ()),
            seed=seed,
            speculative=speculative,
            static_steps=cuda_graphs,
            thinking=thinking,
            reading=load(),
            reasoning_effort=_with_thinking(reasoning_effort, thinking),
            encoding=encoding,
            json_schema=None if json_schema is None else read_json(json_schema),
            regex=regex,
            memory=CacheLimit(gpu_memory_utilization),
        )

    return make


def _with_thinking(effort: str | None, thinking: bool) -> str | None:
    if effort is not None and not thinking:
        raise ValueError("--reasoning-effort has no effect without --thinking; give both, or leave it out")
    return effort


def prefix_options(
    enable_prefix_caching: Annotated[
        bool,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Continue from the caches of earlier texts that begin with the same tokens; not with --speculative.",
        ),
    ] = True,
    prefix_cache_gb: Annotated[
        float, typer.Option(min=0, max=1e6, metavar="GB", help="Memory of each process and model for these caches.")
    ] = PREFIX_CACHE / 1e9,
) -> int:
    """Bytes of the prefix cache; 0 = none."""
    return round(prefix_cache_gb * 1e9) if enable_prefix_caching else 0


def with_groups(function: Callable[..., Action], **groups: OptionGroup) -> Callable[..., Action]:
    """A command with the options of `function`, in which the options of a group replace the argument of that name.

    Typer reads a function's signature and has no groups, so the signature is assembled here.
    """
    return expand(function, groups)


def expand(function: Callable[..., Any], groups: dict[str, OptionGroup]) -> Callable[..., Any]:
    """As `with_groups`, of a function that is a group itself."""
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, own in inspect.signature(function).parameters.items()
        for parameter in (inspect.signature(groups[name]).parameters.values() if name in groups else [own])
    ]

    def command(**values: object) -> Any:
        made = {}
        for name, group in groups.items():
            made[name] = group(**{key: values.pop(key) for key in inspect.signature(group).parameters if key in values})
        return function(**made, **values)

    command.__doc__ = function.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__setattr__("__signature__", inspect.Signature(parameters))
    return command


generate_options: OptionGroup = expand(_generate_options, {"load": load_options})
"""The options of `load_options` and those of sampling."""
