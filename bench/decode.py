"""How fast the model speaks beside transformers with the same weights, in batches, and how long texts slow it down.

Run with `make bench-decode`; writes bench/decode.json. Times are CPU seconds of this process where wall time would
count what else the machine does; both models take turns.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

from seektune.generate.decodable import DecodableModel
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import Sampling
from seektune.kernels import cpu_decode_kernels
from seektune.kernels.cpu.library import library
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.kv_cache.cache import KVCache

PROMPT, STEPS = 1024, 24
"""Tokens before decoding begins, and decoded ones of each round."""
PREFILL = 4096
ROUNDS = 3
BATCHES = (1, 8, 32)
"""Texts that a server decodes together, each after `SHORT` tokens."""
SHORT = 128
LONG = (1_000, 100_000)
"""Tokens of context that decoding is compared at."""

Turn = Callable[[], Any]


def ours(model: DecodableModel, prompt: Tensor, cpu_kernels: bool) -> Turn:
    """A turn decodes one token greedily, as `generate` and `serve` do."""
    request = Request(prompt[0].tolist(), STEPS * ROUNDS + 1, Sampling(temperature=0))
    engine = DecodeEngine(model, [request], cpu_kernels=cpu_kernels)
    engine.step()
    return engine.step


def theirs(model: Any, prompt: Tensor) -> Turn:
    """The same with transformers."""
    out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    token, cache = out.logits.argmax(-1), out.past_key_values

    def turn() -> None:
        nonlocal token
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits.argmax(-1)

    return turn


def seconds(turns: dict[str, Turn], rounds: int, each: int) -> dict[str, dict[str, float]]:
    """Median wall and CPU seconds of one call of each, which take turns of `each` calls."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            for _ in range(each):
                wall, cpu = perf_counter(), process_time()
                turn()
                spent[name].append((perf_counter() - wall, process_time() - cpu))
    return {
        name: {"wall_s": round(median(w for w, _ in times), 5), "cpu_s": round(median(c for _, c in times), 5)}
        for name, times in spent.items()
    }


def compared(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """With the ratio of CPU seconds: how many times faster ours is."""
    return {**found, "ratio": round(found["theirs"]["cpu_s"] / found["ours"]["cpu_s"], 2)}


def in_transformers(model: DeepseekV4ForCausalLM) -> Any:
    """The same weights in transformers, fp32."""
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(Path(scratch) / "model", format="fp32")
        return transformers.DeepseekV4ForCausalLM.from_pretrained(
            Path(scratch) / "model", dtype=torch.float32, attn_implementation="eager"
        ).eval()


def beside_transformers() -> Iterator[tuple[str, Any]]:
    """Decoding and prefill of both models."""
    torch.manual_seed(0)
    config = DeepseekV4Config.from_pretrained(Path(__file__).with_name("model.json"))
    model = DeepseekV4ForCausalLM(config)
    other = in_transformers(model)
    prompt = torch.randint(config.vocab_size, (1, PROMPT))
    turns = {
        "ours": ours(model, prompt, cpu_kernels=True),
        "ours_without_cpu_kernels": ours(model, prompt, cpu_kernels=False),
        "theirs": theirs(other, prompt),
    }
    yield "decode_after_1024", compared(seconds(turns, ROUNDS, STEPS))
    text = torch.randint(config.vocab_size, (1, PREFILL))

    def our_prefill() -> None:
        streams = model.advance(text, model.new_cache(1, PREFILL + 64))
        model.logits(model.hidden(streams[:, -1:]))

    def their_prefill() -> None:
        other(input_ids=text, use_cache=True, logits_to_keep=1)

    # minutes where the machine is busy: once each
    yield "prefill_4096", compared(seconds({"ours": our_prefill, "theirs": their_prefill}, 1, 1))


def standing_at(model: DeepseekV4ForCausalLM, length: int) -> KVCache:
    """A cache that holds `length` tokens of nothing in particular: what a step costs depends on their number alone."""
    cache = model.new_cache(1, length + STEPS * ROUNDS)
    for layer in cache.layers.values():
        for tail in layer.tails():
            tail.values.normal_()
        for compressed in layer.compressors():
            compressed.entries.normal_()
    cache.lengths = [length]
    return cache


def decoded(model: DeepseekV4ForCausalLM, token: Tensor, cache: KVCache) -> None:
    """One token, as the engine decodes it."""
    with cpu_decode_kernels():
        model(token, cache=cache)


def long_texts() -> Iterator[tuple[str, Any]]:
    """Decoding at both lengths, toy size."""
    model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"))
    token = torch.ones(1, 1, dtype=torch.int64)
    caches = {str(length): standing_at(model, length) for length in LONG}
    turns: dict[str, Turn] = {
        name: lambda cache=cache: decoded(model, token, cache)  # type: ignore[misc]
        for name, cache in caches.items()
    }
    found = seconds(turns, STEPS, ROUNDS)
    short, long = (found[str(length)]["cpu_s"] for length in LONG)
    yield "decode_by_context", {**found, "slowdown": round(long / short, 2)}


def batches() -> Iterator[tuple[str, Any]]:
    """Tokens per CPU second of all texts together, as the server decodes them."""
    torch.manual_seed(0)
    config = DeepseekV4Config.from_pretrained(Path(__file__).with_name("model.json"))
    model = DeepseekV4ForCausalLM(config)
    found = {}
    for rows in BATCHES:
        prompts = torch.randint(2, config.vocab_size, (rows, SHORT)).tolist()
        greedy = [Request(prompt, STEPS * ROUNDS + 1, Sampling(temperature=0)) for prompt in prompts]
        decoding = DecodeEngine(model, greedy, longest=SHORT + STEPS * ROUNDS + 1)
        decoding.step()
        began, tokens = process_time(), sum(len(decoding.step()) for _ in range(STEPS * ROUNDS))
        found[str(rows)] = round(tokens / (process_time() - began), 1)
    yield "batched_tokens_per_s", found


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"threads": 1, "compiler": library() is not None}
    with torch.inference_mode():
        for part in (long_texts(), batches(), beside_transformers()):
            for name, values in part:
                found[name] = values
                print(name, json.dumps(values), flush=True)
    found["load_at_end"] = round(os.getloadavg()[0], 1)
    (Path(__file__).parent / "decode.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
