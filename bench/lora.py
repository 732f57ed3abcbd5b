"""Adapters on a slice of V4-Flash at its true width, in released bytes: memory, speed, and time spent dequantizing.

The slice has random weights in the released format: widths, heads, experts and vocabulary of V4-Flash, layers of
ratios 0, 4, 128 in turn. `--stream` leaves the weights in the files, for slices larger than memory, and also measures
what reading a block ahead saves. Each measurement is a process of its own, so that peaks are its own.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.formats import FORMATS, PLAIN, QUANTIZED
from seektune.checkpoint.names import Slot, scale_name, slots
from seektune.checkpoint.write import LazyTensors, shard_limit, shard_names, split, write_index, write_shard
from seektune.data.step_data import StepData
from seektune.lora.build import add_adapters
from seektune.lora.config import LoraConfig
from seektune.lora.frozen_digest import frozen_digest
from seektune.lora.state import base_state
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.parallel.model import ParallelModel
from seektune.sequence import Batch
from seektune.train.config import LossConfig
from seektune.train.gradient import accumulate_in_fp32
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.config import AdamWConfig
from seektune.train.step import train_step

TARGETS = ("attn", "ffn.experts")
LIMITS = {"memory": 17.0, "stream": 12.0}
"""Targets of peak memory in GB: 3 layers in memory, 8 layers streamed."""
_ANY_OF_FP8 = int.from_bytes(bytes([0xBF] * 8), "little", signed=True)
RESULT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Make the slice, measure in a process of its own, remove the slice, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="where the slice is made; a temporary folder if not")
    parser.add_argument(
        "--keep", action="store_true", help="leave the slice in the folder, or use the one that is there"
    )
    parser.add_argument("--layers", type=int, default=3, help="3.6 GB each")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--ahead-only", action="store_true", help="do not also measure streaming without reading ahead")
    parser.add_argument("--measure", choices=["memory", "ahead", "at need"], default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.folder, options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        place = options.folder if options.keep else Path(scratch)
        slice_folder = made_slice(place / f"slice-{options.layers}", options.layers)
        ways = (("ahead", "at need")[: 1 if options.ahead_only else 2]) if options.stream else ("memory",)
        found = {way: measured(way, slice_folder, options) for way in ways}
    name = f"{options.layers} layers, {'streamed' if options.stream else 'in memory'}"
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    result[name] = {"limit of memory, GB": LIMITS["stream" if options.stream else "memory"], **found}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result[name], indent=1))


def measured(way: str, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """The result of a process that does nothing else."""
    numbers = {"--tokens": options.tokens, "--steps": options.steps, "--rank": options.rank}
    words = [str(word) for pair in numbers.items() for word in pair]
    command = [sys.executable, __file__, *words, "--folder", str(folder), "--measure", way]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, object] = json.loads(answer.splitlines()[-1])
    return found


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Train a few steps; the first is not counted."""
    forget(folder)
    anonymous = watched_memory()
    released = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    begin = time.perf_counter()
    streamed = options.measure != "memory"
    if options.measure == "at need":
        from seektune.checkpoint import mmap

        mmap.PagePrefetcher.prefetch = lambda self, regions: None  # type: ignore[method-assign]
    model = DeepseekV4ForCausalLM.from_pretrained(folder, torch.bfloat16, quantized=True, streamed=streamed)
    loaded = time.perf_counter() - begin
    held = sum(tensor.nbytes for tensor in model.state_dict().values() if not tensor.is_meta)
    add_adapters(model, LoraConfig(targets=TARGETS, rank=options.rank), mtp=False, seed=0)
    before = None if streamed else frozen_digest(base_state(model))
    accumulate_in_fp32(model.parameters())
    alone = ParallelModel.alone(model)
    optimizer, loss = build_optimizer(model, AdamWConfig(lr=1e-3), seed=0), LossConfig(mtp_weight=0.0)
    spent = timed_multiplying()
    seconds, work, losses = [], [], []
    for step in range(1, options.steps + 1):
        if step == 2:
            spent["seconds"] = 0.0
        begin, worked = time.perf_counter(), time.process_time()
        data = StepData.of([batch(model, options.tokens)])
        losses.append(train_step(alone, optimizer, data, step, 1e-3, loss, 1.0).loss)
        seconds.append(time.perf_counter() - begin)
        work.append(time.process_time() - worked)
    counted = seconds[1:]
    return {
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "released bytes": released,
        "resident weights / released bytes": round(held / released, 4),
        "adapter parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds of loading": round(loaded, 1),
        "peak memory, GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "peak without pages of files, GB": round(anonymous["peak"] / 1e9, 2),
        "tokens": options.tokens,
        "seconds of a step": [round(each, 1) for each in seconds],
        "processor seconds of a step": [round(each, 1) for each in work],
        "tokens per second": round(options.tokens * len(counted) / sum(counted), 2),
        "tokens per processor second": round(options.tokens * len(counted) / sum(work[1:]), 2),
        "share of processor time dequantizing": round(spent["seconds"] / sum(work[1:]), 3),
        "losses": [round(each, 4) for each in losses],
        "frozen bytes unmoved": before is None or frozen_digest(base_state(model)) == before,
    }


def watched_memory() -> dict[str, float]:
    """The process's peak of memory that is no page of a file, bytes, looked up ten times a second from now on."""
    found = {"peak": 0.0}

    def look() -> None:
        while True:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            now = next(1024 * float(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            found["peak"] = max(found["peak"], now)
            time.sleep(0.1)

    threading.Thread(target=look, daemon=True).start()
    return found


def timed_multiplying() -> dict[str, float]:
    """Put a clock around `dequantize` where products call it."""
    kernel = importlib.import_module("seektune.kernels.reference.lowbit_linear")
    spent, plain = {"seconds": 0.0}, kernel.dequantize

    def timed(*arguments: object) -> Tensor:
        begin = time.process_time()
        try:
            found: Tensor = plain(*arguments)
            return found
        finally:
            spent["seconds"] += time.process_time() - begin

    setattr(kernel, "dequantize", timed)  # noqa: B010 - a module's function is replaced on purpose
    return spent


def batch(model: DeepseekV4ForCausalLM, tokens: int) -> Batch:
    """One row, the same in every step."""
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(2, model.config.vocab_size, (1, tokens), generator=dice)
    return Batch(ids, ids, torch.ones_like(ids))


def made_slice(folder: Path, layers: int) -> Path:
    """A checkpoint in the released format, made a tensor at a time."""
    if folder.exists():
        return folder
    folder.mkdir()
    config = DeepseekV4Config.preset("flash").replace(
        num_hidden_layers=layers,
        num_hash_layers=1,
        num_nextn_predict_layers=0,
        compress_ratios=[(0, 4, 128)[layer % 3] for layer in range(layers)],
    )
    config.save(folder)
    state = DeepseekV4ForCausalLM(config, device="meta").state_dict()
    torch.manual_seed(0)
    pieces = [make_tensors(slot) for slot in slots({name: tuple(tensor.shape) for name, tensor in state.items()})]
    needed = sum(piece.size for piece in pieces)
    if shutil.disk_usage(folder).free < needed + 5e9:
        raise SystemExit(f"{folder} needs {needed / 1e9:.1f} GB and 5 GB more free")
    shards = split(pieces, shard_limit(pieces))
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        write_shard(folder / name, shard)
    write_index(folder, shards)
    print(f"made {needed / 1e9:.1f} GB in {len(shards)} files", flush=True)
    return folder


def make_tensors(slot: Slot) -> LazyTensors:
    """One tensor of the released format with values of about 0.02."""
    name, kind = slot.released, FORMATS["released"].kind(slot.released)
    if kind in PLAIN:
        return LazyTensors({name: (PLAIN[kind], slot.shape)}, lambda: {name: plain_tensor(slot, PLAIN[kind])})
    quantized = QUANTIZED[kind]
    weight, scale = quantized.shapes(slot.shape)

    def load() -> dict[str, Tensor]:
        words = torch.randint(-(2**63), 2**63 - 1, (weight[0] * weight[1] // 8,))
        if kind == "fp8":
            words &= _ANY_OF_FP8  # exponents up to 7: numbers up to 2
        exponents = torch.full(scale, 120 if kind == "fp4" else 121, dtype=torch.uint8)
        return {
            name: words.view(quantized.dtype).view(weight),
            scale_name(name): exponents.view(quantized.scale_dtype),
        }

    return LazyTensors({name: (quantized.dtype, weight), scale_name(name): (quantized.scale_dtype, scale)}, load)


def plain_tensor(slot: Slot, dtype: torch.dtype) -> Tensor:
    """Small random numbers, norm weights of one, or experts' ids."""
    if not dtype.is_floating_point:
        return torch.randint(0, 256, slot.shape)
    if "norm.weight" in slot.released:
        return torch.ones(slot.shape, dtype=dtype)
    return (torch.randn(slot.shape) * 0.02).to(dtype)


def forget(folder: Path) -> None:
    """Drop the slice from the page cache, so that reading means the disk."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    main()
