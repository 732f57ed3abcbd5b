"""Activations that the planner foretells against tensors of real steps on the CPU: one process, and four.

Writes plan.json beside this file; `--quick` does the small ones. Measured is the peak of bytes of tensors that forward
and backward of a second step make (`live.py`): not the process's memory, which has holes and libraries in it, and
without weights, gradients that stay, and what FSDP2 makes for itself. Foretold is the lower bound: even routing.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from live import Live
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from seektune.data.step_data import Share, StepData
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.planner.memory import rank_memory
from seektune.recipe.load import load_recipe
from seektune.recipe.recipe import Recipe
from seektune.run.build import build_model
from seektune.sequence import Batch
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.step import make_step_loss
from seektune.workflows.planning import job_of, layout_of

HERE = Path(__file__).parent
RESULT = HERE / "plan.json"
RECIPE = HERE.parent / "examples" / "llm_finetune" / "deepseek_v4" / "deepseek_v4_tiny_hellaswag.yaml"
MODELS = {
    "tiny": [],
    "wide": ["--model.preset=null", f"--model.config={HERE / 'wide.json'}", "--loss.mtp_weight=0"],
}
ALONE = [
    (model, dtype, rows, length, recompute)
    for model, sizes in (("tiny", ((1, 512), (2, 1024))), ("wide", ((1, 512), (1, 1024))))
    for dtype in ("fp32", "bf16")
    for rows, length in sizes
    for recompute in ("none", "block", "selective")
]
FOUR = [
    ("tiny", ["ep_size=4"]),
    ("tiny", ["pp_size=2", "ep_size=2"]),
    ("tiny", ["cp_size=2", "ep_size=2", "recompute=block"]),
    ("wide", ["dp_shard=4"]),
    ("wide", ["ep_size=4"]),
    ("wide", ["pp_size=2", "ep_size=2"]),
    ("wide", ["pp_size=2", "pipeline.schedule=interleaved1f1b"]),
    ("wide", ["pp_size=2", "pipeline.schedule=zbv", "recompute=block"]),
]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models only")
    parser.add_argument("--four", action="store_true", help="four processes only; the rest stays as it is in the file")
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(1)
    found: dict[str, Any] = {"what": __doc__, "device": "CPU", "alone": [], "four": []}
    if options.four:
        found["alone"] = json.loads(RESULT.read_text(encoding="utf-8"))["alone"]
    for model, dtype, rows, length, recompute in [] if options.four else ALONE:
        if quick and model != "tiny":
            continue
        asked = recipe(model, dtype, rows, rows, length, [f"recompute={recompute}"])
        name = {"model": model, "dtype": dtype, "rows": rows, "length": length, "recompute": recompute}
        found["alone"].append(name | compared(asked, 1, [measured(asked)]))
        print(found["alone"][-1], flush=True)
    for model, words in FOUR:
        if quick and model != "tiny":
            continue
        name = {"model": model, "dtype": "bf16", "rows": 1, "length": 512, "parallel": words}
        asked = recipe(model, "bf16", 16, 1, 512, words)
        found["four"].append(name | compared(asked, 4, in_four(asked)))
        print(found["four"][-1], flush=True)
    ratios = [each["ratio"] for kind in ("alone", "four") for each in found[kind]]
    found["worst"] = max(ratios, key=lambda ratio: abs(ratio - 1))
    print(f"foretold over measured: {min(ratios):.3f} to {max(ratios):.3f}")
    if not quick:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def recipe(model: str, dtype: str, step: int, rows: int, length: int, words: list[str]) -> Recipe:
    """A recipe whose rows are all full."""
    batch = [f"--batch.global_size={step}", f"--batch.micro_size={rows}", f"--batch.length={length}"]
    return load_recipe(RECIPE, [*MODELS[model], f"--model.dtype={dtype}", *batch, *(f"--parallel.{w}" for w in words)])


def compared(asked: Recipe, world: int, peaks: list[int]) -> dict[str, Any]:
    """The fullest process, measured and foretold, in bytes; the ratio of all processes that is farthest from 1."""
    config = asked.model.architecture()
    assert config is not None
    layout = layout_of(job_of(asked, config), world)
    numbers = [rank_memory(layout, rank).lower for rank in range(world)]
    foretold = [round(each["activations"] + each["logits"]) for each in numbers]
    # a process is judged by what counts, the fullest one
    most = max(range(world), key=lambda rank: peaks[rank])
    ratio = foretold[most] / peaks[most]
    return {"measured": peaks, "foretold": foretold, "ratio": round(ratio, 3)}


def measured(asked: Recipe) -> int:
    """The peak of the second step in this process."""
    config = asked.model.architecture()
    assert config is not None
    world = dist.get_world_size() if dist.is_initialized() else 1
    layout = layout_of(job_of(asked, config), world)
    mesh = Mesh.of(layout.dims, torch.device("cpu"))
    torch.manual_seed(0)
    model = build_model(asked, config, mesh, with_weights=True)
    accumulate_in_fp32(model.parameters())
    dice = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, config.vocab_size, (layout.rows_at_a_time, layout.length), generator=dice)
    batch = Batch(tokens, tokens, torch.ones_like(tokens))
    share = Share(0, layout.dims.data_size)
    data = StepData.of([batch] * (layout.micro_batches * share.size), share)
    loss = make_step_loss(data, asked.loss, config.num_nextn_predict_layers > 0)
    model.train(data.batches, loss, lambda phase: None)
    live = Live([*held(model), *batch.tensors()])
    with live, live.without_engine():
        model.train(data.batches, loss, lambda phase: None)
    return live.peak


def held(model: ParallelModel) -> Iterator[Tensor]:
    """Weights, gradients and buffers that are there before a step, and the whole weights that FSDP2 fills again."""
    for stage in model.stages.values():
        yield from stage.buffers()
        for parameter in stage.parameters():
            grads = [] if parameter.grad is None else [parameter.grad]
            yield from (x._local_tensor if hasattr(x, "_local_tensor") else x for x in (parameter, *grads))
        for module in stage.modules():
            if isinstance(module, FSDPModule):
                groups = module._get_fsdp_state()._fsdp_param_groups
                for each in (parameter for group in groups for parameter in group.fsdp_params):
                    yield from each.all_gather_outputs
                    yield from (x for x in (each._unsharded_param,) if not hasattr(x, "_local_tensor"))


def in_four(asked: Recipe) -> list[int]:
    """`measured` in four processes, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_work, (asked, folder), nprocs=4)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(4)]


def _work(rank: int, asked: Recipe, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(measured(asked)))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
