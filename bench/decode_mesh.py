"""How many tokens per second the tiny model decodes on one and several processes that share its experts.

Run with `make bench-decode-mesh`; writes bench/decode_mesh.json, case by case, and `python docs/render.py` puts it into
docs/generation.md. With fewer cores than processes, wall time measures
the cores; the CPU time of rank 0 says what its part of a step costs.
"""

import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from time import perf_counter, process_time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from seektune.generate.engine import DecodeEngine, Decodes
from seektune.generate.processes import DecodeProcesses
from seektune.generate.request import Request
from seektune.generate.sampling_params import GREEDY
from seektune.generate.session import LoadOptions
from seektune.io.atomic import write_atomically
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.process_group import ProcessSlot

RESULT = Path(__file__).with_suffix(".json")
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
    """One process; rank 0 measures."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store-{world}", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(minutes=10))
    model = LoadOptions("fp32").read_spread(f"{folder}/model", DecodeProcesses(ProcessSlot(world, rank, worker=True)))
    if rank > 0:
        model.follow()
    else:
        model.lead(lambda: measure(model, world))
    dist.destroy_process_group()


def measure(model: Decodes, world: int) -> None:
    """Measure every number of sequences, and write each case when it is there."""
    for sequences in BATCHES:
        case = decode(model, sequences)
        found = json.loads(RESULT.read_text(encoding="utf-8"))
        found.setdefault(str(world), {})[str(sequences)] = case
        write_atomically(RESULT, json.dumps(found, indent=1) + "\n")
        print(f"processes {world}, sequences {sequences}", json.dumps(case), flush=True)


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    write_atomically(RESULT, json.dumps({"cores": os.cpu_count(), "prompt": PROMPT, "steps": STEPS}) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        model = DeepseekV4ForCausalLM(DeepseekV4Config.preset("tiny"))
        model.save_pretrained(Path(folder) / "model", "fp32")
        measure(model, 1)
        for world in WORLDS[1:]:
            mp.spawn(on_rank, (world, folder), nprocs=world)


if __name__ == "__main__":
    main()
