"""Export an adapter to the layout that vLLM loads: released names, and one A and one B for each routed expert.

Shapes: R rank, I inputs, O outputs, E experts.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seektune.checkpoint.write import LazyTensors, write_shard
from seektune.io.atomic_dir import complete_folder
from seektune.io.console import listed
from seektune.io.json_file import write_json
from seektune.lora.delta import LoraDelta
from seektune.lora.format import CONFIG, WEIGHTS, Adapter, read_adapter
from seektune.lora.peft_names import PREFIX

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM 0.33 accepts for `--max-lora-rank`; the default is 16."""
UNSERVED = (
    (r"\.attn\.wo_a$", "vLLM 0.33 computes there with the base's weight, without an error"),
    (r"\.compressor\.(wkv|wgate)$", "vLLM 0.33 computes there with the base's weight, without an error"),
    (r"^(embed|head)$", "vLLM 0.33 takes no adapter there"),
)
"""Modules whose adapters would have no effect, or that are rejected, each with the reason."""
_EXPERTS = re.compile(r"(.*\.experts)\.(w[123])")
_KEPT = ("base_model_name_or_path", "revision")
"""Keys of adapter_config.json that are copied."""


@dataclass(frozen=True)
class VllmExport:
    """A finished export."""

    folder: Path
    modules: int
    """Pairs of A and B; each matrix of each expert counts."""
    max_lora_rank: int
    """The smallest `--max-lora-rank` with which vLLM loads it."""
    skipped: list[str]
    """Changed modules of the MTP block, which vLLM computes without adapters."""


@dataclass(frozen=True)
class _Part:
    """A change of a linear layer or of one matrix of all experts, in the order of the file."""

    name: str
    """Released name; `layers.N.ffn.experts.w1` is that matrix of all experts."""
    change: LoraDelta

    @property
    def pattern(self) -> str:
        """The key of rank_pattern and alpha_pattern."""
        return _EXPERTS.sub(r"\1.\\d+.\2", self.name)

    @property
    def alpha(self) -> float:
        """alpha / R is the scaling."""
        return self.change.scaling * self.change.rank

    def layers(self) -> Iterator[LazyTensors]:
        """The pairs of A and B."""
        if (found := _EXPERTS.fullmatch(self.name)) is None:
            yield _pair(self.name, self.change.a, self.change.b)
            return
        a_ERI = self.change.a.expand(len(self.change.b), -1, -1)
        for expert, (a, b) in enumerate(zip(a_ERI, self.change.b, strict=True)):
            yield _pair(f"{found[1]}.{expert}.{found[2]}", a, b)


def export_for_vllm(adapter: Path, destination: Path) -> VllmExport:
    """Write an adapter, ours or PEFT's, for `vllm serve --enable-lora`.

    Args:
        adapter: an adapter folder in PEFT's format.
        destination: a new or empty folder.

    Raises:
        ValueError: the adapter is damaged, it changes what vLLM does not apply adapters to, its rank is too large, or
            the destination holds something.
        OSError: writing failed; nothing is left behind.
    """
    read = read_adapter(adapter)
    changes = {name: change for name, change in read.changes.items() if not change.is_nothing}
    main = {name: change for name, change in changes.items() if not name.startswith("mtp.")}
    _check_served(main, read, adapter)
    parts = list(_parts(main))
    rank = max(part.change.rank for part in parts)
    if rank > RANKS[-1]:
        raise ValueError(f"{adapter} has rank {rank}, and vLLM takes {RANKS[-1]} at most; {_way_out(adapter)}")
    layers = [layer for part in parts for layer in part.layers()]
    with complete_folder(destination) as scratch:
        write_shard(scratch / WEIGHTS, layers)
        write_json(scratch / CONFIG, _config(parts) | {key: read.config.get(key) for key in _KEPT})
    enough = next(each for each in RANKS if each >= rank)
    return VllmExport(destination, len(layers), enough, [name for name in changes if name not in main])


def _check_served(changes: Mapping[str, LoraDelta], read: Adapter, adapter: Path) -> None:
    if not changes:
        raise ValueError(f"{adapter} changes nothing that vLLM applies adapters to; {_way_out(adapter)}")
    if any(change.magnitude is not None for change in changes.values()):
        raise ValueError(f"{adapter} is a DoRA adapter, which vLLM does not load; {_way_out(adapter)}")
    for pattern, why in UNSERVED:
        if names := [name for name in changes if re.search(pattern, name)]:
            raise ValueError(f"{adapter} changes {listed(names, 3)}: {why}; {_way_out(adapter)}")


def _way_out(adapter: Path) -> str:
    return f"merge it instead: seektune merge BASE {adapter} OUT --to mixed-bf16"


def _parts(changes: Mapping[str, LoraDelta]) -> Iterator[_Part]:
    """The changes, with zeros for matrices of experts that have none: vLLM needs all three of every expert."""
    experts: dict[str, dict[str, LoraDelta]] = {}
    for name, change in changes.items():
        if found := _EXPERTS.fullmatch(name):
            experts.setdefault(found[1], {})[found[2]] = change
        else:
            yield _Part(name, change)
    for parent, matrices in experts.items():
        for matrix in ("w1", "w2", "w3"):
            yield _Part(f"{parent}.{matrix}", matrices.get(matrix) or _zeros(matrix, matrices))


def _zeros(matrix: str, others: Mapping[str, LoraDelta]) -> LoraDelta:
    """No change of a matrix, in the shape that follows from those of others: w2 is the transpose of w1 and w3."""
    name, known = next(iter(others.items()))
    same_way = (name == "w2") == (matrix == "w2")
    outputs = known.b.shape[1] if same_way else known.a.shape[2]
    inputs = known.a.shape[2] if same_way else known.b.shape[1]
    experts = len(known.b)
    a = torch.zeros(experts, known.rank, inputs, dtype=known.a.dtype)
    return LoraDelta(a, torch.zeros(experts, outputs, known.rank, dtype=known.b.dtype), known.scaling)


def _pair(name: str, a: Tensor, b: Tensor) -> LazyTensors:
    tensors = {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    return LazyTensors({key: (x.dtype, tuple(x.shape)) for key, x in tensors.items()}, lambda: tensors)


def _config(parts: list[_Part]) -> dict[str, Any]:
    """The keys of adapter_config.json that vLLM reads; patterns only where ranks or scalings differ."""
    rank = Counter(part.change.rank for part in parts).most_common(1)[0][0]
    alpha = Counter(part.alpha for part in parts).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {part.pattern: part.change.rank for part in parts if part.change.rank != rank},
        "alpha_pattern": {part.pattern: part.alpha for part in parts if part.alpha != alpha},
        "target_modules": sorted({part.name.rpartition(".")[2] for part in parts}),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
