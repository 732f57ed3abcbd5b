"""Merging an adapter into the weights that it was trained for: a new checkpoint, written a tensor at a time."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seektune.checkpoint.carried import Carrying
from seektune.checkpoint.check_values import check_values
from seektune.checkpoint.companions import copy_companions
from seektune.checkpoint.convert import resolve_destination
from seektune.checkpoint.export import ExportReport, ExportTarget
from seektune.checkpoint.formats import format_named
from seektune.checkpoint.names import Shape
from seektune.checkpoint.nvfp4 import NVFP4, WAY_OUT
from seektune.checkpoint.save import write_checkpoint
from seektune.checkpoint.shard import as_shard
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.stored import Stored, all_finite, encode_changed
from seektune.io.atomic_dir import complete_folder
from seektune.io.config_json import read_config
from seektune.lora.base_copies import check_copies
from seektune.lora.coverage import check_coverage
from seektune.lora.delta import LoraDelta, check_weight
from seektune.lora.format import read_adapter, trained_for
from seektune.lora.merge_report import KeptChange, measure, share_kept, write_report
from seektune.lora.mixed import MIXED, Mixed

LEAST_KEPT = 0.5
"""A merge that keeps a smaller share of the change is rejected."""
SAMPLE = 4
"""Tensors of a kind of module that are looked at before anything is written."""

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(w[123])\.weight")


@dataclass(frozen=True)
class Merge:
    """A finished merge."""

    folder: Path
    kept: list[KeptChange]
    copied: int
    """Tensors whose bytes were copied from the base."""
    converted: int
    """Unchanged tensors that were encoded again because the format is not the base's, or for engines' fused layers."""
    inexact: list[str]
    """Those of `converted` whose values the format cannot represent exactly."""
    notes: list[str]
    """What engines cannot load of a mixed result."""


class LossyMergeError(ValueError):
    """A merge would keep too little of the change."""


@dataclass
class _Merged:
    """The base with merged tensors in their target kind; records how much of each change is kept."""

    base: FolderSource
    changes: Mapping[str, LoraDelta]
    weight: float
    kind: Callable[[str], str] = lambda name: "f32"
    kept: list[KeptChange] = field(default_factory=list)

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """The shapes of the base."""
        return self.base.shapes()

    def stored(self, name: str) -> Stored:
        """The base's bytes, or the merged values as they will be stored."""
        found = change_of(self.changes, name)
        if found is None:
            return self.base.stored(name)
        values = self.base.values(name).float()
        merged = found[0].applied(values, found[1], self.weight)
        if not all_finite(merged):
            raise ValueError(f"{name} is not finite after the merge: the adapter or its weight is too large")
        stored = encode_changed(merged, self.kind(name))
        self.kept.append(measure(name, values, merged, stored))
        return stored


def merge(base: Path, adapter: Path, destination: Path, to: str, weight: float = 1.0, force: bool = False) -> Merge:
    """Write `base` with an adapter merged in; unchanged tensors keep their bytes if the format is the base's.

    Args:
        base: the checkpoint folder that the adapter was trained on.
        adapter: an adapter folder in PEFT's format.
        destination: a new or empty folder; also receives merge.json, the report by tensor.
        to: a format (`fp32` and `bf16` lose nothing or little), or `mixed-fp8` or `mixed-bf16`.
        weight: scales the change.
        force: merge even if most of the change is lost.

    Raises:
        LossyMergeError: the format would keep less than half of the change, and the adapter was not trained for it.
        ValueError: a file is missing or damaged, adapter and base do not match, the weight is invalid, or the
            destination exists.
        OSError: writing failed; nothing is left behind.
    """
    changes, own, copies = read_adapter(adapter)
    check_weight(changes.values(), weight, adapter)
    source = FolderSource(base)
    check_coverage(changes, own, dict.fromkeys(_module(name) for name, _ in source.shapes()), adapter)
    check_copies(copies, lambda name: as_shard(source.values(name)), adapter)
    final = resolve_destination(base, destination)
    if any(source.kind(name) == NVFP4 for name, _ in source.shapes()):
        raise ValueError(f"{base} is NVFP4, {WAY_OUT}")
    touched = _touched(source, changes, adapter)
    target = _target(source, to, touched)
    merged = _Merged(source, changes, weight, target.kind)
    check_values(source)
    if not force and (weight != 1.0 or trained_for(adapter) not in (to, MIXED.get(to, to))):
        _refuse_useless(merged, touched, to)
    tally = ExportReport()
    with complete_folder(final) as scratch:
        write_checkpoint(scratch, target.config(read_config(base)), merged, target, tally)
        copy_companions(base, scratch)
        write_report(scratch, merged.kept, to, weight)
    copied = len(tally.copied) - len(merged.kept)
    notes = list(target.notes()) if isinstance(target, Mixed) else []
    return Merge(destination, merged.kept, copied, len(tally.converted), tally.inexact, notes)


def change_of(changes: Mapping[str, LoraDelta], released: str) -> tuple[LoraDelta, int | None] | None:
    """The change of a released tensor, and the expert's index if it is a slice of a stacked change."""
    if found := _EXPERT.fullmatch(released):
        change = changes.get(f"{found[1]}.{found[3]}")
        return None if change is None else (change, int(found[2]))
    change = changes.get(released.removesuffix(".weight"))
    return None if change is None or not released.endswith(".weight") else (change, None)


def _module(released: str) -> str:
    """The module of a released tensor; `layers.N.ffn.experts.w1` is that matrix of all experts."""
    return _EXPERT.sub(r"\1.\3", released).removesuffix(".weight")


def _touched(source: FolderSource, changes: Mapping[str, LoraDelta], adapter: Path) -> list[str]:
    touched = []
    used = Counter[str]()
    stages = Carrying.of(source).names
    for name, shape in source.shapes():
        if (found := change_of(changes, name)) is None:
            continue
        if name in stages:
            raise ValueError(f"{adapter} changes {name}, but the base has DSpark stages there, not an MTP block")
        change, expert = found
        used[_module(name)] += 1
        if expert is not None and expert >= len(change.a):
            continue
        a, b = (change.a, change.b) if expert is None else (change.a[expert], change.b[expert])
        changed = (a.shape[1], b.shape[0]) if change.is_table else (b.shape[0], a.shape[1])
        if changed != tuple(shape):
            raise ValueError(f"{adapter} changes {name} with shape {list(changed)}, but the base has {list(shape)}")
        touched.append(name)
    if missing := sorted(name for name in changes.keys() - used.keys() if not changes[name].is_nothing):
        raise ValueError(f"{adapter} changes {missing[0]}, which the base does not have")
    for name, change in changes.items():
        if change.a.dim() == 3 and name in used and len(change.a) != used[name]:
            raise ValueError(f"{adapter} changes {name} of {len(change.a)} experts, but the base has {used[name]}")
    return touched


def _target(source: FolderSource, to: str, touched: Sequence[str]) -> ExportTarget:
    if to in MIXED:
        return Mixed.of(source, touched, to)
    try:
        return Carrying.of(source).target(format_named(to))
    except ValueError as error:
        raise ValueError(f"{error}, {', '.join(MIXED)}") from None


def _refuse_useless(merged: _Merged, touched: Sequence[str], to: str) -> None:
    """Try a few tensors of each type of module first, because a large merge takes hours."""
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
            f"{worst.share:.1%} of a change of {worst.change:.2%}). {_cure(to)}; --force merges anyway"
        )


def _cure(to: str) -> str:
    if to in ("bf16", "mixed-bf16", "fp32"):
        return "--to fp32 keeps everything"
    gentler = "mixed-bf16, mixed-fp8 or bf16" if to == "released" else "mixed-bf16 or bf16"
    return f"Train with lora.merge_into={MIXED.get(to, to)}, or merge with --to {gentler}"
