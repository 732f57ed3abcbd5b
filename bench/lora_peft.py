"""Adapters here against transformers with PEFT: the same weights, rows, adapters and optimizer, a process each.

Speed is in tokens per second of processor time of one thread, as others may be busy; memory is the process's peak above
what it held before its first step.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import psutil
import torch
from torch import Tensor

from seektune.cli.start import CPU_CACHE_LIMITS
from seektune.lora.build import add_adapters
from seektune.lora.config import LoraConfig
from seektune.lora.files import load_adapter, save_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.recompute import recompute_blocks

TARGETS = ("attn", "ffn.shared_experts")
MODEL, RESULT = Path(__file__).with_name("model.json"), Path(__file__).with_suffix(".json")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20), **CPU_CACHE_LIMITS}
"""Of both sides, so that peaks are of what is held: freed tensors go back to the system, as in `step.py`, and few
compiled bf16 products are kept, as `seektune train` has it."""
INDEX_HEADS = 16
"""With the model's four, one index score in sixteen is exactly zero (no head's product is positive), and which of the
entries with equal scores are chosen is nobody's rule: in fp32, too, the two sides attend to other entries then. With
16 heads that is rare, with the 64 of V4-Flash it does not happen."""
LIMITS = {"largest difference of losses": 1e-3, "speed, ours over theirs": 2.0, "memory, ours over theirs": 0.5}


def main() -> None:
    """Make the weights and the adapter, run both, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--lr", type=float, default=1e-4, help="that of the recipes for V4-Flash if not given")
    parser.add_argument("--recompute", choices=["none", "selective", "block"], default="none", help="ours only")
    parser.add_argument("--side", choices=["ours", "theirs"], default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side is not None:
        print(json.dumps(run(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        found = {side: apart(side, Path(scratch), options) for side in ("ours", "theirs")}
    ours, theirs = found["ours"], found["theirs"]
    gaps = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    result = {
        "largest difference of losses": max(gaps),
        "speed, ours over theirs": round(ours["tokens per second"] / theirs["tokens per second"], 2),
        "memory, ours over theirs": round(ours["memory, GB"] / theirs["memory, GB"], 3),
        "limits": LIMITS,
        "tokens, steps, lr, index heads": [options.tokens, options.steps, options.lr, INDEX_HEADS],
        **found,
    }
    every = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**every, options.dtype: result}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key not in found}, indent=1))


def prepare(folder: Path) -> None:
    """The same base and fresh adapter for both."""
    torch.manual_seed(0)
    config = DeepseekV4Config.from_pretrained(MODEL).replace(num_nextn_predict_layers=0, index_n_heads=INDEX_HEADS)
    model = DeepseekV4ForCausalLM(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "base", format="bf16")
    add_adapters(model, LoraConfig(targets=TARGETS, rank=8, alpha=16), mtp=False, seed=0)
    save_adapter(model, folder / "adapter")


def apart(side: str, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """One side's result."""
    numbers = ["--tokens", str(options.tokens), "--steps", str(options.steps), "--dtype", options.dtype]
    numbers += ["--lr", str(options.lr)]
    command = [sys.executable, __file__, *numbers, "--side", side, "--folder", str(folder)]
    command += ["--recompute", options.recompute]
    answer = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, object] = json.loads(answer.splitlines()[-1])
    return found


def run(options: argparse.Namespace) -> dict[str, object]:
    """Train one side's adapter on rows of random tokens."""
    build = ours if options.side == "ours" else theirs
    model, loss_of = build(options.folder, DTYPES[options.dtype])
    if options.side == "ours":
        recompute_blocks(cast(DeepseekV4ForCausalLM, model), options.recompute)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0)
    before, losses, dice = psutil.Process().memory_info().rss, [], torch.Generator().manual_seed(0)
    vocabulary = json.loads(MODEL.read_text(encoding="utf-8"))["vocab_size"]
    begin = time.process_time()
    for _ in range(options.steps):
        ids = torch.randint(2, vocabulary // 8, (1, options.tokens), generator=dice)
        loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "trained parameters": sum(parameter.numel() for parameter in trained),
        "tokens per second": round(options.tokens * options.steps / (time.process_time() - begin), 1),
        "memory, GB": round((peak - before) / 1e9, 3),
        "losses": [round(each, 5) for each in losses],
    }


def ours(folder: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """Our model with the adapter, trainable, and its loss."""
    model = DeepseekV4ForCausalLM.from_pretrained(folder / "base", dtype)
    names = load_adapter(model, folder / "adapter")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora." in name)
    assert names
    return model, lambda ids: model(ids, labels=ids, with_logits=False).loss


def theirs(folder: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """transformers' model with the adapter by PEFT, trainable, and its loss."""
    import peft
    import transformers

    plain = transformers.DeepseekV4ForCausalLM.from_pretrained(
        folder / "base", dtype=dtype, attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(plain, folder / "adapter", is_trainable=True)
    return model, lambda ids: model(ids, labels=ids, use_cache=False).loss


if __name__ == "__main__":
    main()
