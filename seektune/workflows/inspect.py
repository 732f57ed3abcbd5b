"""The command `inspect`: describes a checkpoint folder from its headers, and lists all errors."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seektune.checkpoint.drafter import drafter_notes
from seektune.checkpoint.formats import FORMATS, READABLE
from seektune.checkpoint.nvfp4 import NVFP4, WAY_OUT
from seektune.checkpoint.scan import FolderScan, Mismatch, format_of, mismatch, scan
from seektune.data.other_tokenizer import FILE, tokenizer_note
from seektune.data.tokenizer import load_tokenizer
from seektune.io.console import counted, listed, many, say, size
from seektune.io.text import on_one_line
from seektune.model.causal_lm import checkpoint_shapes
from seektune.model.config import ATTENTION_NAMES, DeepseekV4Config
from seektune.model.count import count_parameters
from seektune.model.variants import describe_variant, variant_name

MIXED = "mixed"
MISREAD = "vLLM 0.33 misreads E8M0 scales of FP8 experts without an error; seektune convert --to fp8 stores them as F32"
"""About `fp8-e8m0`, the one format that is read and not written."""


@dataclass(frozen=True)
class ArchitectureFacts:
    """The architecture that config.json describes."""

    variant: str
    """Its name, `pro-base`, or `other`."""
    layers: dict[str, int]
    """Blocks of the main model by type of attention."""
    gates: dict[str, int]
    mtp_blocks: int
    dspark_stages: int
    parameters: dict[str, int]
    """`main`, `mtp` (the MTP block's or the DSpark stages') and `active`."""


@dataclass(frozen=True)
class CheckpointCard:
    """Facts about a checkpoint folder."""

    folder: str
    format: str
    """One of `READABLE`, or `mixed`."""
    architecture: ArchitectureFacts | None
    """None if config.json cannot be read."""
    tensors: int
    dtypes: dict[str, dict[str, int]]
    """Tensors and bytes by dtype on disk."""
    files: dict[str, int]
    """Bytes of each weight file."""
    problems: list[str]
    """Files and config.json."""
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Oddities with which the checkpoint can still be loaded."""

    @property
    def complete(self) -> bool:
        """Whether the checkpoint has every tensor that config.json requires, and no other."""
        return not (self.problems or self.missing or self.extra or self.wrong)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "complete": self.complete}


def read_card(folder: Path) -> CheckpointCard:
    """Describe a folder in any state.

    Raises:
        ValueError: it is not a folder.
    """
    found = scan(folder)
    form = format_of(found) or MIXED
    problems = list(found.problems)
    notes = [_stray(name) for name in found.strays]
    architecture = None
    odd = Mismatch()
    try:
        config = DeepseekV4Config.from_pretrained(folder)
    except ValueError as error:
        problems += [said for said in [str(error)] if said not in problems]
    else:
        architecture = _architecture(config, form)
        odd = fit(config, found)
        notes += _disagreements(config, form)
        notes += [MISREAD] if form not in (*FORMATS, MIXED, NVFP4) else []
        notes += [note.removeprefix("note: ") for note in drafter_notes(folder)]
        try:
            notes += [note.removeprefix("note: ") for note in tokenizer_notes(folder)]
        except ValueError as error:
            problems.append(str(error))
    return CheckpointCard(
        folder=str(folder),
        format=form,
        architecture=architecture,
        tensors=len(found.tensors),
        dtypes=_dtypes(found),
        files=found.files,
        problems=problems,
        missing=odd.missing,
        extra=odd.extra,
        wrong=odd.wrong,
        notes=notes,
    )


def fit(config: DeepseekV4Config, found: FolderScan) -> Mismatch:
    """The missing, extra and wrong tensors of a folder for a model of this architecture; nothing is allocated."""
    return mismatch(found, checkpoint_shapes(config))


def tokenizer_notes(folder: Path) -> list[str]:
    """A note if the folder's tokenizer.json is not the tokenizer that is used with its vocabulary size.

    Raises:
        ValueError: that file gives ids outside of the vocabulary.
    """
    if not (folder / FILE).is_file():
        return []
    try:
        tokenizer = load_tokenizer(DeepseekV4Config.from_pretrained(folder).vocab_size)
    except (ValueError, OSError):  # there is no such vocabulary, so nothing to compare with
        return []
    note = tokenizer_note(folder, tokenizer)
    return [] if note is None else [note]


def _architecture(config: DeepseekV4Config, form: str) -> ArchitectureFacts:
    ratios = config.compress_ratios[: config.num_hidden_layers]
    count = count_parameters(config)
    return ArchitectureFacts(
        variant=variant_name(config, form),
        layers={name: ratios.count(ratio) for ratio, name in ATTENTION_NAMES.items() if ratio in ratios},
        gates={"hash": config.num_hash_layers, "top-k": config.num_hidden_layers - config.num_hash_layers},
        mtp_blocks=config.mtp_layers,
        dspark_stages=config.dspark_stages,
        parameters={"main": count.main, "mtp": count.mtp, "active": count.active},
    )


def _dtypes(found: FolderScan) -> dict[str, dict[str, int]]:
    tensors = Counter[str]()
    sizes = Counter[str]()
    for entry in found.tensors.values():
        tensors[entry.dtype] += 1
        sizes[entry.dtype] += entry.size
    return {dtype: {"tensors": tensors[dtype], "bytes": size} for dtype, size in sizes.most_common()}


def _stray(file: str) -> str:
    return f"{file} is no part of the checkpoint: its index names no tensor there"


def _disagreements(config: DeepseekV4Config, form: str) -> list[str]:
    """Keys of config.json that contradict the format of the files; we follow the files, other libraries may not."""
    if form == NVFP4:
        return [f"its weights are NVFP4, {WAY_OUT}"]
    if form == MIXED:
        return []
    given = config.to_dict()
    right = READABLE[form].config(given)
    return [
        f"config.json has {key} {given.get(key)!r:.200}, but the tensors are {form}: other libraries may misread them"
        for key in ("quantization_config", "expert_dtype")
        if given.get(key) != right.get(key)
    ]


def inspect(folder: Path, as_json: bool = False) -> bool:
    """Print the description of a checkpoint; returns whether it is complete.

    Raises:
        ValueError: it is not a folder.
    """
    card = read_card(folder)
    if as_json:
        say(json.dumps(card.to_dict(), indent=2))
        return card.complete
    for name, value in _lines(card):
        say(f"{f'{name}:':<13}{on_one_line(value)}" if name else on_one_line(value))
    return card.complete


def _lines(card: CheckpointCard) -> Iterator[tuple[str, str]]:
    yield "checkpoint", card.folder
    if card.architecture is not None:
        yield from _promised(card.architecture)
    yield "format", card.format
    total = sum(amount["bytes"] for amount in card.dtypes.values())
    yield "on disk", f"{counted(card.tensors, 'tensor')} in {counted(len(card.files), 'file')}, {size(total)}"
    for dtype, amount in card.dtypes.items():
        yield "", f"  {dtype:<11}{counted(amount['tensors'], 'tensor'):<16}{size(amount['bytes']):>12}"
    yield from (("note", note) for note in card.notes)
    yield from (("problem", problem) for problem in card.problems)
    for what, names in (("missing", card.missing), ("extra", card.extra), ("wrong", card.wrong)):
        yield from _counted(what, names)
    if card.complete:
        yield "complete", "every tensor that config.json promises is here in its shape, and no other"


def _promised(architecture: ArchitectureFacts) -> Iterator[tuple[str, str]]:
    count = architecture.parameters
    yield "variant", describe_variant(architecture.variant)
    yield "layers", f"{sum(architecture.layers.values())}: {_numbers(architecture.layers)}"
    yield "gates", _numbers(architecture.gates)
    drafter = "DSpark" if architecture.dspark_stages else "MTP"
    yield (
        drafter,
        counted(architecture.dspark_stages, "stage")
        if architecture.dspark_stages
        else counted(architecture.mtp_blocks, "block"),
    )
    yield (
        "parameters",
        f"{many(count['main'])} main, {many(count['mtp'])} {drafter}; {many(count['active'])} active per token",
    )


def _numbers(parts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in parts.items())


def _counted(what: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    if names:
        yield what, f"{counted(len(names), 'tensor')}: {listed(names)}"
