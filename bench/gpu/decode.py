"""Decoding three layers of V4-Flash in released bytes: tokens per second, and the rate at which a step reads them."""

from time import perf_counter

import torch

from bench.gpu.part import Bench, Found
from bench.gpu.slice import packed_slice
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.model.causal_lm import DeepseekV4ForCausalLM

SEQUENCES = (1, 8, 32)
STEPS, WARM_UP = 24, 4


def decode_slice(bench: Bench) -> Found:
    """Sequences decoded together, each after 128 tokens."""
    model = packed_slice(bench)
    found: Found = {}
    for sequences in SEQUENCES:
        if bench.is_late:
            break
        spent = step_seconds(bench, model, sequences)
        size = bytes_read(model, sequences)
        found[str(sequences)] = {
            "tokens_per_s": round(sequences / spent, 1),
            "step_ms": round(spent * 1e3, 3),
            "read_gb": round(size / 1e9, 4),
            "share_of_copy": bench.share(size / spent / 1e9, bench.copied),
        }
    return found


def step_seconds(bench: Bench, model: DeepseekV4ForCausalLM, sequences: int) -> float:
    """Seconds of a step, all of them after the first ones together."""
    steps = 2 if bench.tiny else STEPS
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, model.config.vocab_size, (sequences, 128), generator=generator).tolist()
    requests = [Request(ids, WARM_UP + steps + 1, GREEDY) for ids in prompts]
    engine = DecodeEngine(model, requests, cpu_kernels=False)
    for _ in range(WARM_UP):
        engine.step()
    # a step returns tokens on the host, so it has ended
    begin = perf_counter()
    for _ in range(steps):
        engine.step()
    return (perf_counter() - begin) / steps


def bytes_read(model: DeepseekV4ForCausalLM, sequences: int) -> float:
    """Bytes of weights that a step needs: of the experts, the share that some token chooses if routing is even."""
    config = model.config
    chosen = 1 - (1 - 1 / config.n_routed_experts) ** (sequences * config.num_experts_per_tok)
    return sum(
        parameter.nbytes * (chosen if ".experts." in name else 1)
        for name, parameter in model.named_parameters()
        if not name.startswith("embed.")
    )
