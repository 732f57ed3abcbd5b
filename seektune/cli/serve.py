"""The verb `serve`: an OpenAI-compatible API server for a checkpoint."""

from typing import Annotated

import typer

from seektune.cli.errors import explain_out_of_memory
from seektune.cli.options import Action, MakeLoadOptions, Model, Speculative, Thinking, load_options, with_groups

SERVE_HELP = """Serve MODEL, a checkpoint folder in any supported format or a Hub id, with an OpenAI-compatible API.

\b
A chat page at http://127.0.0.1:8000, and the API under /v1:
  seektune serve runs/mine/model
The base model and a LoRA adapter as two models of the API:
  seektune serve FOLDER --adapter runs/mine/adapter

Made for trying a model out; docs/serving.md shows production serving with vLLM and SGLang. Needs the extra `serve`.
"""


def _serve(
    model: Model,
    load: MakeLoadOptions,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Host to listen on; 0.0.0.0 is reachable from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port; 0 picks a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SEEKTUNE_API_KEY", metavar="KEY", help="Clients of /v1 must send this as a bearer token."),
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model name in the API.", show_default="MODEL")
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Maximum length of prompt and answer in tokens.",
            show_default="the model's, at most 32768",
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of sequences decoded concurrently.")
    ] = 32,
    max_queued_requests: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of waiting requests; more are refused.")
    ] = 256,
    request_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Maximum duration of a request, waiting included.")
    ] = 600.0,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for running requests to finish after a signal.")
    ] = 30.0,
    thinking: Thinking = False,
    speculative: Speculative = False,
) -> Action:
    """The verb `serve`."""

    def run() -> None:
        from seektune.workflows.serve import Service, serve

        service = Service(
            host,
            port,
            api_key or None,
            served_model_name,
            max_model_len,
            max_num_seqs,
            max_queued_requests,
            request_timeout,
            shutdown_timeout,
            thinking,
            speculative,
        )
        with explain_out_of_memory("lower --max-model-len or --max-num-seqs, or try --quantized"):
            serve(model, load(), service)

    return run


serve = with_groups(_serve, load=load_options)
