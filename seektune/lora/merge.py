"""An adapter into the weights it was trained for, as a new checkpoint: a tensor at a time, and what rounding leaves.

Rounding a weight W + D to few bits gives mostly W again where D is small: the *share kept* is the part of D that the
stored weight S has moved along it, `<S - W, D> / <D, D>`, and the *error* is `|S - (W + D)| / |D|`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seektune.checkpoint.atomic_dir import complete_folder
from seektune.checkpoint.convert import copy_companions, read_config, resolve_destination
from seektune.checkpoint.export import ExportReport, ExportTarget
from seektune.checkpoint.formats import EXPERTS, LINEARS, format_named
from seektune.checkpoint.names import Shape
from seektune.checkpoint.save import write_checkpoint
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.stored import Stored, bands_of, encode_changed
from seektune.lora.delta import LoraDelta, check_weight
from seektune.lora.format import read_adapter, trained_for

MIXED = {"mixed-fp8": "fp8", "mixed-bf16": "bf16"}
"""Formats in which only what the adapter changes is stored anew, as that kind."""
LEAST_KEPT = 0.5
"""A merge that keeps less of the change is refused."""
SAMPLE = 4
"""Tensors of a kind of module that are looked at before anything is written."""
REPORT = "merge.json"

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(w[123])\.weight")


@dataclass(frozen=True)
class KeptChange:
    """What became of one tensor's change."""

    name: str
    kind: str
    """How it is stored now."""
    change: float
    """Norm of the change over the norm of the weight."""
    dot: float
    """`<S - W, D>`."""
    square: float
    """`<D, D>`."""
    miss: float
    """`|S - (W + D)|^2`."""

    @property
    def share(self) -> float:
        """The share kept; 1 where there was no change."""
        return self.dot / self.square if self.square else 1.0

    @property
    def error(self) -> float:
        """The error against the change."""
        return (self.miss / self.square) ** 0.5 if self.square else 0.0


@dataclass(frozen=True)
class Merge:
    """A finished merge."""

    folder: Path
    kept: list[KeptChange]
    copied: int
    """Tensors whose bytes are the base's."""
    converted: int
    """Others that the adapter does not change, encoded anew because the format is not the base's."""
    inexact: list[str]
    """Those of them whose values the format cannot hold exactly."""


class LossyMergeError(ValueError):
    """A merge would keep too little of the change."""


@dataclass(frozen=True)
class _Mixed:
    """The base's kinds, and another for the low-bit matrices that an adapter changes."""

    base: FolderSource
    touched: frozenset[str]
    own: str

    def kind(self, released: str) -> str:
        """Another for what is changed, if it is a matrix that may be low-bit."""
        if released in self.touched and re.search(f"{EXPERTS}|{LINEARS}", released):
            return self.own
        return self.base.kind(released)

    def config(self, source: dict[str, Any]) -> dict[str, Any]:
        """The base's; loaders are told which matrices are plain."""
        quantization = dict(source.get("quantization_config", {}))
        if self.own == "bf16" and quantization:
            quantization["modules_to_not_convert"] = sorted(name.removesuffix(".weight") for name in self.touched)
            return {**source, "quantization_config": quantization}
        return source


@dataclass
class _Merged:
    """The base with changed tensors in fp32; notes what their storing keeps."""

    base: FolderSource
    changes: Mapping[str, LoraDelta]
    weight: float
    kind: Callable[[str], str] = lambda name: "f32"
    kept: list[KeptChange] = field(default_factory=list)

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Those of the base."""
        return self.base.shapes()

    def stored(self, name: str) -> Stored:
        """The base's bytes, or the changed values as they will be stored."""
        found = change_of(self.changes, name)
        if found is None:
            return self.base.stored(name)
        values = self.base.values(name).float()
        merged = found[0].applied(values, found[1], self.weight)
        if not merged.isfinite().all():
            raise ValueError(f"{name} with its change is not finite: the adapter, or the weight it gets, is too large")
        stored = encode_changed(merged, self.kind(name))
        self.kept.append(measure(name, values, merged, stored))
        return stored


def merge(base: Path, adapter: Path, destination: Path, to: str, weight: float = 1.0, force: bool = False) -> Merge:
    """Write `base` with an adapter merged in; what it does not change keeps its bytes where the format is the base's.

    Args:
        base: the checkpoint folder that the adapter was trained on.
        adapter: a folder in PEFT's form.
        destination: a new or empty folder; also gets merge.json, the report by tensor.
        to: a format (`fp32` and `bf16` lose nothing or little), or `mixed-fp8` or `mixed-bf16`.
        weight: the change is multiplied by it.
        force: merge whatever is lost.

    Raises:
        LossyMergeError: the format would keep less than half of the change, and the adapter was not trained for it.
        ValueError: a file is missing or damaged, adapter, weight and base do not fit, or the destination is taken.
        OSError: writing failed; nothing is left behind.
    """
    changes, _ = read_adapter(adapter)
    check_weight(changes.values(), weight, adapter)
    source = FolderSource(base)
    final = resolve_destination(base, destination)
    touched = _touched(source, changes, adapter)
    target = _target(source, to, touched)
    merged = _Merged(source, changes, weight, target.kind)
    if not force and (weight != 1.0 or trained_for(adapter) not in (to, MIXED.get(to, to))):
        _refuse_useless(merged, touched, to)
    tally = ExportReport()
    config = target.config(read_config(base))
    with complete_folder(final) as scratch:
        write_checkpoint(scratch, config, merged, target, tally)
        copy_companions(base, scratch)
        _write_report(scratch / REPORT, merged.kept, to, weight)
    return Merge(destination, merged.kept, len(tally.copied) - len(merged.kept), len(tally.converted), tally.inexact)


def change_of(changes: Mapping[str, LoraDelta], released: str) -> tuple[LoraDelta, int | None] | None:
    """The change of a released tensor, and the expert whose part of it."""
    if found := _EXPERT.fullmatch(released):
        change = changes.get(f"{found[1]}.{found[3]}")
        return None if change is None else (change, int(found[2]))
    change = changes.get(released.removesuffix(".weight"))
    return None if change is None or not released.endswith(".weight") else (change, None)


@torch.no_grad()
def measure(name: str, before: Tensor, merged: Tensor, stored: Stored) -> KeptChange:
    """Compare what is stored with what was meant; all sums in fp64, a band of rows at a time."""
    size = square = dot = miss = 0.0
    for band in bands_of(tuple(before.shape)):
        weight = before[band].double()
        delta = merged[band].double() - weight
        moved = stored.part(band).values().double() - weight
        size += float(weight.square().sum())
        square += float(delta.square().sum())
        dot += float((moved * delta).sum())
        miss += float((moved - delta).square().sum())
    change = (square / size) ** 0.5 if size else 0.0
    return KeptChange(name, stored.kind, change, dot, square, miss)


def share_kept(kept: Sequence[KeptChange]) -> float:
    """The share over all tensors together."""
    square = sum(each.square for each in kept)
    return sum(each.dot for each in kept) / square if square else 1.0


def _touched(source: FolderSource, changes: Mapping[str, LoraDelta], adapter: Path) -> list[str]:
    touched = []
    used = Counter[str]()
    for name, shape in source.shapes():
        if (found := change_of(changes, name)) is None:
            continue
        change, expert = found
        used[_EXPERT.sub(r"\1.\3", name).removesuffix(".weight")] += 1
        if expert is not None and expert >= len(change.a):
            continue
        a, b = (change.a, change.b) if expert is None else (change.a[expert], change.b[expert])
        changed = (a.shape[1], b.shape[0]) if change.is_table else (b.shape[0], a.shape[1])
        if changed != tuple(shape):
            raise ValueError(f"{adapter} changes {name} as {list(changed)}, but it is {list(shape)}")
        touched.append(name)
    if missing := sorted(changes.keys() - used.keys()):
        raise ValueError(f"{adapter} changes {missing[0]}, which the base does not have")
    for name, change in changes.items():
        if change.a.dim() == 3 and len(change.a) != used[name]:
            raise ValueError(f"{adapter} changes {name} of {len(change.a)} experts, but the base has {used[name]}")
    return touched


def _target(source: FolderSource, to: str, touched: Sequence[str]) -> ExportTarget:
    if to in MIXED:
        return _Mixed(source, frozenset(touched), MIXED[to])
    try:
        return format_named(to)
    except ValueError as error:
        raise ValueError(f"{error}, {', '.join(MIXED)}") from None


def _refuse_useless(merged: _Merged, touched: Sequence[str], to: str) -> None:
    """Try a few tensors of each kind of module first: a large merge takes hours."""
    groups: dict[str, list[str]] = {}
    for name in touched:
        groups.setdefault(re.sub(r"\.\d+\.", ".N.", name), []).append(name)
    for names in groups.values():
        for name in names[:: max(len(names) // SAMPLE, 1)][:SAMPLE]:
            merged.stored(name)
    tried = list(merged.kept)
    merged.kept.clear()
    if (share := share_kept(tried)) < LEAST_KEPT:
        worst = min(tried, key=lambda each: each.share)
        raise LossyMergeError(
            f"stored as {to}, the weights would keep {share:.1%} of the adapter's change (least in {worst.name}: "
            f"{worst.share:.1%} of a change of {worst.change:.2%}). {_cure(to)}; --force merges all the same"
        )


def _cure(to: str) -> str:
    if to in ("bf16", "mixed-bf16", "fp32"):
        return "--to fp32 keeps all"
    gentler = "mixed-bf16, mixed-fp8 or bf16" if to == "released" else "mixed-bf16 or bf16"
    return f"Train with lora.merge_into={MIXED.get(to, to)}, or merge with --to {gentler}"


def _write_report(file: Path, kept: Sequence[KeptChange], to: str, weight: float) -> None:
    tensors = {each.name: {"share": each.share, "error": each.error, **asdict(each)} for each in kept}
    report = {"to": to, "weight": weight, "share": share_kept(kept), "tensors": tensors}
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
