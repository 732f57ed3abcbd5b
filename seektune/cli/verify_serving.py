"""The command `verify-serving`: compares a running server with a checkpoint."""

from typing import Annotated

import typer

from seektune.cli.errors import explain_out_of_memory
from seektune.cli.options import Action, MakeLoadOptions, Model, load_options, with_groups
from seektune.io.http_url import check_http_url

VERIFY_SERVING_HELP = """Check whether the OpenAI-compatible server at URL computes MODEL, or MODEL with an adapter.

\b
  seektune verify-serving http://127.0.0.1:8000 deepseek-ai/DeepSeek-V4-Flash
An adapter that vLLM serves as `mine`:
  seektune verify-serving http://127.0.0.1:8000 BASE --adapter runs/mine/adapter --served-model-name mine

Compares log-probabilities of the most likely tokens after fixed prompts with those computed here, and a chat prompt.
Exit codes: 0 the server computes it, 1 it computes something else, 2 invalid arguments.
"""


def _verify_serving(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the server.")],
    model: Model,
    load: MakeLoadOptions,
    served_model_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model's name there.", show_default="the first that the server lists"),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="SEEKTUNE_API_KEY", metavar="KEY", help="The server's API key.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, metavar="NATS", help="Mean difference up to which two models are the same.")
    ] = 0.1,
) -> Action:
    """The command `verify-serving`."""

    def run() -> int:
        check_http_url(url)
        options = load()
        from seektune.evaluate.served_model import ServedModel
        from seektune.workflows.verify_serving import verify_serving

        with explain_out_of_memory("try --quantized"):
            served = ServedModel(url, served_model_name, api_key)
            return 0 if verify_serving(served, model, options, tolerance) else 1

    return run


verify_serving = with_groups(_verify_serving, load=load_options)
