"""How far log-probabilities of decoding are from those of the training forward, with and without batch invariance.

Run with `python bench/logprob_mismatch.py SUMS MODEL` in a folder after `make demo-grpo`: the folder of the sums and
the model before its reward training, by default those of the demo. Writes bench/logprob_mismatch.json, case by case.
The first cases decode and score in this process, also with other numerics in training than in decoding; the others are
steps of `seektune train` on 1, 2 and 4 processes, of a random model, whose answers are as long as they may be.
"""

import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import torch

from seektune.data.rollouts import Rollout, collate_rollouts
from seektune.data.tokenizer import load_tokenizer
from seektune.generate.engine import DecodeEngine
from seektune.generate.request import Request
from seektune.generate.sampling_params import DEFAULT
from seektune.io.jsonl import read_records
from seektune.kernels import batch_invariant_kernels
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.model import ParallelModel
from seektune.run.logprob_mismatch import mismatch

HERE = Path(__file__).parent
RESULT = Path(__file__).with_suffix(".json")
RECIPE = HERE.parent / "examples/llm_finetune/deepseek_v4/deepseek_v4_tiny_grpo.yaml"
ANSWERS = 12
TOKENS = 120
NUMERICS = (("released", "released"), ("plain", "plain"), ("released", "plain"))
"""In decoding and in training."""
LAYOUTS: dict[int, tuple[str, ...]] = {
    1: (),
    2: ("--parallel.ep_size=2", "--parallel.dp_replicate=2", "--parallel.dp_shard=1"),
    4: ("--parallel.pp_size=2", "--parallel.ep_size=2", "--parallel.dp_replicate=2", "--parallel.dp_shard=1"),
}


def load(folder: Path, dtype: str, numerics: str) -> DeepseekV4ForCausalLM:
    """The model with the numerics of decoding or training."""
    return DeepseekV4ForCausalLM.from_pretrained(folder, getattr(torch, dtype), numerics)


def sampled(model: DeepseekV4ForCausalLM, prompts: list[list[int]]) -> list[Rollout]:
    """Answers of one length, and the log-probabilities that they were sampled with."""
    requests = [Request(prompt, TOKENS, DEFAULT, seed=number) for number, prompt in enumerate(prompts)]
    engine = DecodeEngine(model, requests, longest=max(each.longest for each in requests), cpu_kernels=False)
    ids: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    for token in engine.tokens():
        ids[token.request].append(token.id)
        logprobs[token.request].append(token.logprob)
    return [Rollout(*each, 0.0) for each in zip(prompts, ids, logprobs, strict=True)]


def alone(folder: Path, prompts: list[list[int]], dtype: str, numerics: tuple[str, str], invariant: bool) -> Any:
    """The mismatch of a case in this process, and its CPU seconds."""
    began = process_time()
    with batch_invariant_kernels(invariant), torch.no_grad():
        rollouts = sampled(load(folder, dtype, numerics[0]), prompts)
        sampling = process_time() - began
        batch = collate_rollouts([[each] for each in rollouts], 0)
        found = mismatch(ParallelModel.alone(load(folder, dtype, numerics[1])), [batch], 1.0)
    return rounded(found) | {"sampling_s": round(sampling, 1)}


def in_training(sums: Path, processes: int, invariant: bool) -> dict[str, float]:
    """The mismatch of a step of the recipe."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "model.weights": "null",
            "model.preset": "tiny",
            "model.batch_invariant": str(invariant).lower(),
            "data.path": sums,
            "objective.max_new_tokens": TOKENS,
            "objective.resample": 0,
            "batch.global_size": 16,
            "objective.group_size": 4,
            "batch.micro_size": 8,
            "batch.length": TOKENS + 16,
            "evaluate.before": "false",
            "evaluate.after": "false",
            "evaluate.limit": 2,
            "schedule.warmup_steps": 0,
            "steps": 1,
            "run_dir": Path(scratch) / "run",
        }
        words = [f"--{key}={value}" for key, value in settings.items()] + list(LAYOUTS[processes])
        command = [sys.executable, "-m", "seektune", "train", str(RECIPE), *words]
        spread = [f"--nproc-per-node={processes}"] if processes > 1 else []
        subprocess.run([*command, *spread], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        (line,) = read_records(Path(scratch) / "run" / "metrics.jsonl")
    return rounded({key: value for key, value in line.items() if key.startswith("mismatch")})


def rounded(found: dict[str, float]) -> dict[str, float]:
    """Three digits."""
    return {key: float(f"{value:.3g}") for key, value in found.items()}


def main(sums: Path, folder: Path) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in (sums / "validation.jsonl").read_text().splitlines()[:ANSWERS]]
    tokenizer = load_tokenizer(4096)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(row["prompt"])] for row in rows]
    found: dict[str, Any] = {"answers": ANSWERS, "tokens": TOKENS}

    def add(name: str, case: dict[str, float]) -> None:
        found[name] = case
        print(name, json.dumps(case), flush=True)
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for dtype, numerics, invariant in product(("float32", "bfloat16"), NUMERICS, (False, True)):
        name = f"{dtype}, {numerics[0]} and {numerics[1]}" + ", batch-invariant" * invariant
        add(name, alone(folder, prompts, dtype, numerics, invariant))
    for processes, invariant in product(LAYOUTS, (False, True)):
        name = f"a step on {processes} process{'es' * (processes > 1)}" + ", batch-invariant" * invariant
        add(name, in_training(sums, processes, invariant))


if __name__ == "__main__":
    paths = [Path(word) for word in sys.argv[1:]] or [Path("sums"), Path("runs/half-right/model")]
    main(*paths)
