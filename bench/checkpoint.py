"""Converting a checkpoint against this disk's plain copying, in one run; writes checkpoint.json beside this file.

A made checkpoint with the widths of V4-Flash (FP4 experts, FP8 matrices) is copied and converted in turns. Both are
flushed to disk, and the source is dropped from the page cache first. Speeds are bytes read and written per second.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.compare import compare
from seektune.checkpoint.convert import convert
from seektune.checkpoint.formats import FORMATS, PLAIN, QUANTIZED
from seektune.checkpoint.names import Slot, scale_name, slots
from seektune.checkpoint.write import LazyTensors, write_shard
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config

ROUNDS = 3
TARGET = 0.5
"""Share of the copy speed that a byte-for-byte conversion must reach."""
RESULT = Path(__file__).with_suffix(".json")


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=None, help="on the disk to measure; a temporary one if not given"
    )
    parser.add_argument("--layers", type=int, default=3, help="0.35 GB each")
    parser.add_argument("--experts", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the verbs do
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        result = measure(Path(scratch), options.layers, options.experts)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {RESULT}")


def measure(scratch: Path, layers: int, experts: int) -> dict[str, object]:
    """All speeds in MB/s; what is judged is measured in turns with the copying."""
    source = made_checkpoint(scratch / "source", layers, experts)
    print(f"a made checkpoint of {size(source) / 1e9:.2f} GB, {torch.get_num_threads()} threads")
    copied, identical = [], []
    for _ in range(ROUNDS):
        copied.append(speed("plain copy", source, scratch / "out", lambda: copy(source, scratch / "out")))
        identical.append(
            speed("released to released", source, scratch / "out", lambda: convert(source, scratch / "out", "released"))
        )
    others = {
        f"released to {to}": speed(
            f"released to {to}", source, scratch / to, lambda to=to: convert(source, scratch / to, to)
        )
        for to in ("bf16", "fp8", "base")
    }
    plain = scratch / "bf16"
    others["bf16 to released, original given"] = speed(
        "bf16 to released, original given",
        plain,
        scratch / "out",
        lambda: convert(plain, scratch / "out", "released", source),
    )
    others["bf16 to released, quantized"] = speed(
        "bf16 to released, quantized", plain, scratch / "out", lambda: convert(plain, scratch / "out", "released")
    )
    others["verify released against bf16"] = speed(
        "verify released against bf16", source, plain, lambda: list(compare(source, plain)), keep=True
    )
    share = statistics.median(identical) / statistics.median(copied)
    print(f"converting byte for byte runs at {share:.2f} of the copy speed; the target is {TARGET}")
    return {
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "source_bytes": size(source),
        "unit": "MB/s, bytes read and written, flushed to disk",
        "plain copy": copied,
        "released to released": identical,
        **others,
        "byte for byte against copy": round(share, 3),
        "target": TARGET,
    }


def speed(name: str, source: Path, result: Path, work: Callable[[], object], keep: bool = False) -> float:
    """MB/s of one piece of work that reads a folder and writes another (or, if it is kept, reads that too)."""
    if not keep:
        shutil.rmtree(result, ignore_errors=True)
    forget(source)
    begin = time.perf_counter()
    work()
    elapsed = time.perf_counter() - begin
    found = round((size(source) + size(result)) / 1e6 / elapsed, 1)
    print(f"  {name:<34}{found:>9.1f} MB/s", flush=True)
    return found


def copy(source: Path, destination: Path) -> None:
    """What `cp` does, flushed."""
    destination.mkdir()
    for file in sorted(source.iterdir()):
        shutil.copyfile(file, destination / file.name)
        with opened(destination / file.name) as descriptor:
            os.fsync(descriptor)


def forget(folder: Path) -> None:
    """Drop files from the page cache, so that reading means the disk."""
    for file in folder.iterdir():
        with opened(file) as descriptor:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def opened(file: Path) -> Iterator[int]:
    """A descriptor for reading."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def size(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def made_checkpoint(folder: Path, layers: int, experts: int) -> Path:
    """A released checkpoint with Flash's widths and random bytes, made a tensor at a time."""
    folder.mkdir()
    ratios = [(0, 4, 128)[layer % 3] for layer in range(layers)]
    config = DeepseekV4Config.preset("flash").replace(
        num_hidden_layers=layers,
        num_hash_layers=1,
        compress_ratios=[*ratios, 0],
        n_routed_experts=experts,
        vocab_size=16384,
    )
    config.save(folder)
    state = DeepseekV4ForCausalLM(config, device="meta").state_dict()
    torch.manual_seed(0)
    made = [make_tensors(slot) for slot in slots({name: tuple(tensor.shape) for name, tensor in state.items()})]
    write_shard(folder / "model.safetensors", made)
    return folder


def make_tensors(slot: Slot) -> LazyTensors:
    """One tensor of the released format: any bytes but NaN, and scales near each other."""
    name, kind = slot.released, FORMATS["released"].kind(slot.released)
    if kind in PLAIN:
        return LazyTensors({name: (PLAIN[kind], slot.shape)}, lambda: {name: plain_tensor(slot, PLAIN[kind])})
    quantized = QUANTIZED[kind]
    weight, scale = quantized.shapes(slot.shape)

    def load() -> dict[str, Tensor]:
        codes = torch.randint(0, 256, weight, dtype=torch.uint8)
        if kind != "fp4":
            codes = torch.where((codes & 127) == 127, 0, codes)
        exponents = torch.randint(115, 125, scale, dtype=torch.uint8)
        return {name: codes.view(quantized.dtype), scale_name(name): exponents.view(quantized.scale_dtype)}

    return LazyTensors({name: (quantized.dtype, weight), scale_name(name): (quantized.scale_dtype, scale)}, load)


def plain_tensor(slot: Slot, dtype: torch.dtype) -> Tensor:
    """Small random numbers, or experts' ids."""
    if not dtype.is_floating_point:
        return torch.randint(0, 6, slot.shape)
    return (torch.randn(slot.shape) * 0.02).to(dtype)


if __name__ == "__main__":
    main()
