"""The command `serve`: serves a checkpoint, and optionally an adapter, with OpenAI's API and a chat page."""

import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from seektune.data.tokenizer import load_tokenizer
from seektune.generate.cache_limit import CacheLimit
from seektune.generate.engine import DecodeEngine, Decodes
from seektune.generate.mesh import DecodeMesh
from seektune.generate.processes import ONE_PROCESS, DecodeProcesses
from seektune.generate.session import LoadOptions, choose_encoding, note_other_tokenizer
from seektune.io.console import say, size
from seektune.lora.build import share_weights
from seektune.lora.files import load_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.load import ModelPart
from seektune.serve.config import ServeConfig
from seektune.serve.hosts import allowed_hosts, in_url, is_loopback
from seektune.serve.limits import Limits

NEEDED = ("fastapi", "uvicorn")


def serve(model: str, reading: LoadOptions, service: ServeConfig, processes: DecodeProcesses = ONE_PROCESS) -> None:
    """Serve requests until SIGTERM or SIGINT; running requests then have `shutdown_timeout` seconds to finish.

    Each of `processes` calls it; rank 0 is the server.

    Raises:
        ValueError: the extra `serve` is not installed, or the model or adapter cannot be loaded.
        OSError: the address is in use, or a file of the model cannot be read.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"serving needs {' and '.join(missing)}: pip install 'seektune[serve]'")
    processes.check_static_steps(service.static_steps, service.speculative, reading.numerics)
    if not processes.is_main:
        meshes = _meshes(model, reading, service, processes)
        next(iter(meshes.values())).follow()
        return
    with _bound(service.host, service.port) as place:  # a port in use is reported before weights are loaded
        if processes.slot.world == 1:
            _serve_models(_models(model, reading, service), model, service, place)
            return
        meshes = _meshes(model, reading, service, processes)
        next(iter(meshes.values())).lead(lambda: _serve_models(meshes, model, service, place))


def _serve_models(models: Mapping[str, Decodes], model: str, service: ServeConfig, place: socket.socket) -> None:
    """Serve models, of which the first is that of the checkpoint `model`, on a bound socket."""
    from seektune.serve.app import Served, make_app
    from seektune.serve.server import run

    base = next(iter(models.values()))
    longest = min(service.limits.max_model_len, base.config.max_position_embeddings)
    base.config.check_length(service.max_model_len or longest, "--max-model-len")
    limits = replace(service.limits, max_model_len=service.max_model_len or longest)
    tokenizer = load_tokenizer(base.config.vocab_size)
    address = place.getsockname()[0]
    note_other_tokenizer(model, tokenizer)
    served = Served(
        models,
        tokenizer,
        limits,
        service.api_key,
        service.thinking,
        choose_encoding(model, service.encoding),
        service.speculative,
        service.static_steps,
        allowed_hosts(address, service.host, service.allowed_hosts),
        service.allowed_origins,
    )
    if not is_loopback(address) and service.api_key is None:
        print(
            f"note: anyone who can reach {service.host} can use this server; set --api-key to require a key",
            file=sys.stderr,
        )
    _say_caches(base, service, limits, len(models))
    before = {number: signal.signal(number, _nothing) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ready = partial(say, _welcome(place, list(models)))
        run(make_app(served), place, service.shutdown_timeout, limits.client_timeout, ready)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_caches(base: Decodes, service: ServeConfig, limits: Limits, engines: int) -> None:
    """Say how many tokens of context fit, and what becomes of the prefix cache."""
    kept = limits.prefix_cache
    engine = DecodeEngine(
        base,
        (),
        service.speculative,
        limits.max_model_len,
        prefix_bytes=kept,
        memory=CacheLimit(limits.gpu_memory_utilization, engines),
        static_steps=service.static_steps,
    )
    say(f"KV cache: {engine.room}")
    if 0 < engine.room.prefixes < kept:
        print(
            f"note: the prefix cache is limited to {size(engine.room.prefixes)}, a quarter of the memory for caches, "
            f"instead of {size(kept)} (--prefix-cache-gb)",
            file=sys.stderr,
        )
    pipeline = isinstance(base, DecodeMesh) and base.ranks.pp_size > 1
    if kept and (service.speculative or pipeline):
        flag = "--pp" if pipeline else "--speculative"
        print(f"note: with {flag} there is no prefix cache; every prompt is read in full", file=sys.stderr)


def _models(model: str, reading: LoadOptions, service: ServeConfig) -> dict[str, DeepseekV4ForCausalLM]:
    """The base, and with an adapter a second model on the same weights, by the names that clients choose."""
    name, adapter_name = _names(model, reading, service)
    reading.check()
    base = replace(reading, adapter=None).read(model, service.speculative)
    if reading.adapter is None:
        return {name: base}
    adapted = share_weights(base)
    load_adapter(adapted, reading.adapter)
    return {name: base, adapter_name: adapted}


def _meshes(
    model: str, reading: LoadOptions, service: ServeConfig, processes: DecodeProcesses
) -> dict[str, DecodeMesh]:
    """As `_models`, on several processes. Collective."""
    processes.refuse_with_pipeline(service.speculative, "--speculative")
    name, adapter_name = _names(model, reading, service)
    reading.check()
    base = replace(reading, adapter=None).read_part(model, processes, service.speculative)
    ranks = processes.ranks()
    meshes = {name: DecodeMesh(base.model, ranks)}
    if reading.adapter is not None:
        adapted = ModelPart(share_weights(base.model), base.experts)
        adapted.load_adapter(reading.adapter)
        meshes[adapter_name] = DecodeMesh(adapted.model, ranks)
    return meshes


def _names(model: str, reading: LoadOptions, service: ServeConfig) -> tuple[str, str]:
    """What clients call the base and the adapter."""
    name = service.served_model_name or public_name(model)
    adapter_name = "" if reading.adapter is None else public_name(str(reading.adapter))
    if adapter_name == name:
        raise ValueError(f"model and adapter would both be called {name}; give --served-model-name")
    return name, adapter_name


def public_name(model: str) -> str:
    """What clients call a model: a folder's last name, which tells nothing about this machine, or the Hub id."""
    folder = Path(model).expanduser()
    return Path(os.path.abspath(folder)).name or "model" if folder.exists() else model.strip("/")


def _bound(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    place = socket.socket(family, kind, protocol)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind(address)
    except OSError as error:
        place.close()
        raise OSError(error.errno, f"{error.strerror}: {host}:{port}; choose another --port") from None
    return place


def _welcome(place: socket.socket, names: list[str]) -> str:
    host, port = place.getsockname()[:2]
    return (
        f"serving {' and '.join(names)} at http://{in_url(host)}:{port} (a page there, the API under /v1); Ctrl-C stops"
    )


def _nothing(_number: int, _frame: object) -> None:
    """Ignore a signal: uvicorn handles it and then raises it again for the handler before its own."""
