"""The command `serve`: an OpenAI-compatible API server for a checkpoint."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from seektune.cli.dry_run_decode import DecodeDryRun, dry_run_flags
from seektune.cli.errors import explain_out_of_memory
from seektune.cli.options import (
    Action,
    CudaGraphs,
    EncodingOption,
    GpuMemoryUtilization,
    MakeLoadOptions,
    MaxNumSeqs,
    Model,
    OptionGroup,
    Speculative,
    Thinking,
    expand,
    load_options,
    prefix_options,
    with_groups,
)
from seektune.cli.processes import GRACE, DecodeFlags, decode_flags, on_processes
from seektune.generate.cache_limit import CacheLimit, CacheUse
from seektune.serve.config import ServeConfig
from seektune.serve.limits import Limits

if TYPE_CHECKING:
    from seektune.generate.processes import DecodeProcesses
    from seektune.generate.session import LoadOptions

SERVE_HELP = f"""Serve MODEL, a checkpoint folder in any format or a Hub id, with OpenAI's and Anthropic's APIs.

\b
A chat page at http://{ServeConfig.host}:{ServeConfig.port}, and the API under /v1:
  seektune serve runs/mine/model
The base model and a LoRA adapter as two models of the API:
  seektune serve FOLDER --adapter runs/mine/adapter
A model that does not fit one GPU, on the eight of this node:
  seektune serve FOLDER --adapter runs/mine/adapter --nproc-per-node=8 --quantized

Made for trying a model out; docs/serving.md shows production serving with vLLM and SGLang. Needs the extra `serve`.
"""

Host: TypeAlias = Annotated[
    str, typer.Option(metavar="HOST", help="Host to listen on; 0.0.0.0 is reachable from other machines.")
]
Port: TypeAlias = Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port; 0 picks a free one.")]
ApiKey: TypeAlias = Annotated[
    str | None,
    typer.Option(
        envvar="SEEKTUNE_API_KEY", metavar="KEY", help="Clients of /v1 must send this as a bearer token or x-api-key."
    ),
]
ServedModelName: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Model name in the API.", show_default="MODEL's last folder")
]
AllowedHosts: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Further name under which clients reach the server (Host header); repeatable. * is any name.",
        show_default="any; on a loopback address its own names",
    ),
]
AllowedOrigins: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Origin of other web pages that may use the API (CORS); repeatable. * is any."),
]
MaxModelLen: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="N",
        help="Maximum length of prompt and completion in tokens.",
        show_default=f"the model's, at most {Limits.max_model_len}",
    ),
]
MaxQueuedRequests: TypeAlias = Annotated[
    int, typer.Option(min=1, metavar="N", help="Maximum number of waiting requests; more are refused.")
]
RequestTimeout: TypeAlias = Annotated[
    float, typer.Option(min=0.1, metavar="SECONDS", help="Maximum duration of a request, waiting included.")
]
ShutdownTimeout: TypeAlias = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="Time for running requests to finish after a signal.")
]


def _limit_options(
    prefix_bytes: int,
    max_num_seqs: MaxNumSeqs = Limits.max_num_seqs,
    gpu_memory_utilization: GpuMemoryUtilization = Limits.gpu_memory_utilization,
    max_queued_requests: MaxQueuedRequests = Limits.max_queued_requests,
    request_timeout: RequestTimeout = Limits.request_timeout,
) -> Limits:
    """Options about the limits of the server, except the maximum length, which may be the model's."""
    return Limits(
        max_num_seqs=max_num_seqs,
        gpu_memory_utilization=gpu_memory_utilization,
        prefix_cache=prefix_bytes,
        max_queued_requests=max_queued_requests,
        request_timeout=request_timeout,
    )


def _serve(
    model: Model,
    load: MakeLoadOptions,
    processes: DecodeFlags,
    dry_run: DecodeDryRun,
    *,
    host: Host = ServeConfig.host,
    port: Port = ServeConfig.port,
    api_key: ApiKey = None,
    allowed_hosts: AllowedHosts = None,
    allowed_origins: AllowedOrigins = None,
    served_model_name: ServedModelName = None,
    max_model_len: MaxModelLen = None,
    limits: Limits,
    shutdown_timeout: ShutdownTimeout = ServeConfig.shutdown_timeout,
    thinking: Thinking = False,
    encoding: EncodingOption = None,
    speculative: Speculative = False,
    cuda_graphs: CudaGraphs = False,
) -> Action:
    """The command `serve`."""

    def run(here: "DecodeProcesses") -> None:
        from seektune.workflows.serve import serve

        service = ServeConfig(
            host=host,
            port=port,
            api_key=api_key or None,
            served_model_name=served_model_name,
            max_model_len=max_model_len,
            limits=limits,
            shutdown_timeout=shutdown_timeout,
            thinking=thinking,
            encoding=encoding,
            speculative=speculative,
            static_steps=cuda_graphs,
            allowed_hosts=tuple(allowed_hosts or ()),
            allowed_origins=tuple(allowed_origins or ()),
        )
        loading = load()
        quantize = "" if loading.quantized else ", or try --quantized"
        with explain_out_of_memory(f"lower --max-model-len or --max-num-seqs{quantize}"):
            serve(model, loading, service, here)

    if dry_run.enabled:
        caches = CacheUse(limits.prefix_cache, max_model_len, speculative, cuda_graphs)

        def read() -> tuple["LoadOptions", CacheLimit, CacheUse]:
            loading = load()
            return loading, CacheLimit(limits.gpu_memory_utilization, 1 if loading.adapter is None else 2), caches

        return lambda: dry_run.run(model, read, processes)
    return lambda: on_processes(processes, run, grace=shutdown_timeout + GRACE)


limit_options: OptionGroup = expand(_limit_options, {"prefix_bytes": prefix_options})
"""The options of the limits of a server, with those of its prefix caches."""
serve = with_groups(_serve, load=load_options, processes=decode_flags, dry_run=dry_run_flags, limits=limit_options)
