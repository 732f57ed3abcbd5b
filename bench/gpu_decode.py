"""Decode steps of a model on one GPU, with plain and packed weights, as they are and as captured CUDA graphs.

`python bench/gpu_decode.py [--out FILE]` writes the part of its card in gpu_decode.json, case by case.
Weights are random, in bf16; a step includes sampling.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from seektune.checkpoint.formats import FORMATS
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.quantized import quantize_modules

HERE = Path(__file__).parent
BATCHES = (1, 8, 32)
PROMPT = 128
WARM_UP = 8
STEPS = 64


def milliseconds(model: DeepseekV4ForCausalLM, sequences: int, static: bool) -> float:
    """Of a step."""
    prompts = torch.randint(2, model.config.vocab_size, (sequences, PROMPT)).tolist()
    requests = [Request(prompt, WARM_UP + STEPS + 2, GREEDY) for prompt in prompts]
    engine = DecodeEngine(model, requests, static_steps=static)
    for _ in range(WARM_UP):
        engine.step()
    torch.cuda.synchronize()
    began = perf_counter()
    for _ in range(STEPS):
        engine.step()
    torch.cuda.synchronize()
    return round((perf_counter() - began) / STEPS * 1000, 3)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    out = parser.parse_args().out
    results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    found = results.setdefault(torch.cuda.get_device_name(), {"torch": torch.__version__})
    torch.manual_seed(0)
    for name in ("model", "wide"):
        config = DeepseekV4Config.from_pretrained(HERE / f"{name}.json")
        model = DeepseekV4ForCausalLM(config, "cuda", torch.bfloat16)
        for label in (name, f"{name}, packed"):
            if label != name:
                quantize_modules(model, FORMATS["released"].kind)
            for sequences in BATCHES:
                case = {kind: milliseconds(model, sequences, kind == "graph_ms") for kind in ("step_ms", "graph_ms")}
                found[f"{label} {sequences}"] = case
                print(label, sequences, json.dumps(case), flush=True)
                out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
