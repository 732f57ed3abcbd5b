"""How many tokens per second the tiny model decodes on one and several processes that share its experts.

Run with `make bench-decode-mesh`; writes bench/decode_mesh.json. With fewer cores than processes, wall time measures
the cores; the CPU time of rank 0 says what its part of a step costs.
"""

import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from seektune.generate.engine import DecodeEngine, Decodes
from seektune.generate.processes import DecodeProcesses
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.generate.session import LoadOptions
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.process_group import ProcessSlot

WORLDS = (1, 2, 4)
BATCHES = (1, 8, 32)
PROMPT = 64
STEPS = 40
WARM_UP = 5


def decode(model: Decodes, sequences: int) -> dict[str, float]:
    """Wall seconds of the steps, without the prefill and the first ones."""
    vocab = model.config.vocab_size
    prompts = torch.randint(vocab, (sequences, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    engine = DecodeEngine(model, [Request(ids, WARM_UP + STEPS + 1, GREEDY) for ids in prompts], cpu_kernels=False)
    for _ in range(WARM_UP + 1):
        engine.step()
    start = perf_counter()
    cpu = process_time()
    for _ in range(STEPS):
        engine.step()
    seconds = perf_counter() - start
    return {
        "tokens_per_s": round(sequences * STEPS / seconds, 1),
        "step_ms": round(1000 * seconds / STEPS, 2),
        "rank_0_cpu_ms": round(1000 * (process_time() - cpu) / STEPS, 2),
    }


def on_rank(rank: int, world: int, folder: str) -> None:
    """One process; rank 0 writes what it found into the folder."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store-{world}", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(minutes=10))
    model = LoadOptions("fp32").read_spread(f"{folder}/model", DecodeProcesses(ProcessSlot(world, rank, worker=True)))
    if rank > 0:
        model.follow()
    else:
        found = model.lead(lambda: measured(model))
        Path(folder, f"found-{world}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measured(model: Decodes) -> dict[str, dict[str, float]]:
    """By number of sequences."""
    return {str(sequences): decode(model, sequences) for sequences in BATCHES}


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"cores": os.cpu_count(), "prompt": PROMPT, "steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"))
        model.save_pretrained(Path(folder) / "model", "fp32")
        found["1"] = measured(model)
        for world in WORLDS[1:]:
            mp.spawn(on_rank, (world, folder), nprocs=world)
            found[str(world)] = json.loads(Path(folder, f"found-{world}.json").read_text())
    text = json.dumps(found, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
