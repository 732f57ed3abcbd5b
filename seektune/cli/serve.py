"""The verb `serve`: a checkpoint behind OpenAI's API."""

from typing import Annotated

import typer

from seektune.cli.errors import told_of_memory
from seektune.cli.options import MakeReading, Model, Speculative, Thinking, Work, reading, spread
from seektune.serve.config import ServeConfig
from seektune.serve.limits import Limits

SERVE_HELP = f"""Serve MODEL, a checkpoint folder in any of our formats or a Hub id, to try it out.

\b
A page to chat on at http://{ServeConfig.host}:{ServeConfig.port}, and OpenAI's API under /v1:
  seektune serve runs/mine/model
The base and an adapter beside it, as two models of the API:
  seektune serve FOLDER --adapter runs/mine/adapter

docs/serving.md says more, and how to serve in production with vLLM or SGLang. Needs the extra `serve`.
"""


def _serve(
    model: Model,
    reading: MakeReading,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = ServeConfig.host,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = ServeConfig.port,
    api_key: Annotated[
        str | None, typer.Option(envvar="SEEKTUNE_API_KEY", help="Clients of /v1 must send it as a bearer token.")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="What clients call the model; default: MODEL.")] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help=f"Most tokens of prompt and answer; default at most {Limits.max_model_len}.",
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Answers that grow at a time.")
    ] = Limits.max_num_seqs,
    max_queued_requests: Annotated[
        int, typer.Option(min=1, metavar="N", help="Requests that may wait.")
    ] = Limits.max_queued_requests,
    request_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Most seconds of a request.")
    ] = Limits.request_timeout,
    shutdown_timeout: Annotated[
        float, typer.Option(min=0, metavar="S", help="Seconds for answers to end after a signal.")
    ] = ServeConfig.shutdown_timeout,
    thinking: Thinking = False,
    speculative: Speculative = False,
) -> Work:
    """The verb `serve`."""

    def work() -> None:
        from seektune.workflows.serve import serve

        service = ServeConfig(
            host=host,
            port=port,
            api_key=api_key or None,
            served_model_name=served_model_name,
            max_model_len=max_model_len,
            limits=Limits(
                max_num_seqs=max_num_seqs, max_queued_requests=max_queued_requests, request_timeout=request_timeout
            ),
            shutdown_timeout=shutdown_timeout,
            thinking=thinking,
            speculative=speculative,
        )
        with told_of_memory("lower --max-model-len or --max-num-seqs, or try --quantized"):
            serve(model, reading(), service)

    return work


serve = spread(_serve, reading=reading)
