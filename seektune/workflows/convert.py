"""The command `convert`: converts a checkpoint to another format, and reports how its tensors were stored."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from seektune.checkpoint import locate
from seektune.checkpoint.companions import code_notes
from seektune.checkpoint.convert import Conversion, convert
from seektune.checkpoint.drafter import drafter_notes, takes_drafter, with_drafter_keys
from seektune.checkpoint.formats import format_named
from seektune.checkpoint.resumable_dir import RECORD
from seektune.checkpoint.scan import FolderScan, scan
from seektune.checkpoint.source import FolderSource
from seektune.io.config_json import DRAFTER
from seektune.io.console import byte_bar, listed, say
from seektune.model.config import DeepseekV4Config
from seektune.run.model_card import converted_card, put_card
from seektune.workflows.inspect import fit, tokenizer_notes


def convert_checkpoint(source: str, destination: Path, to: str, original: str | None = None) -> Conversion:
    """Convert with a progress bar, and print which values were kept and how.

    Args:
        source: a folder or Hub id.
        destination: a new or empty folder, or one that an interrupted call with the same arguments left unfinished.
        to: `released`, `fp8`, `base`, `bf16` or `fp32`.
        original: folder or Hub id of the checkpoint whose bytes unchanged tensors get back.

    Raises:
        ValueError: the source is incomplete, the format unknown or unsuitable, or the destination is not empty.
        OSError: the disk is full, or reading, writing or downloading failed; complete shards stay for the next call.
    """
    format_named(to)
    folder = locate(source)
    before = None if original is None else locate(original)
    refuse_incomplete(folder, before)
    for note in (*code_notes(folder), *tokenizer_notes(folder), *_drafter_notes(folder, before)):
        say(note)
    try:
        with byte_bar(f"converting to {to}") as progress:
            done = convert(folder, destination, to, before, progress, checking=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted by Ctrl-C; complete shards stay, and the same command resumes") from None
    if (text := converted_card(folder, to)) is not None:
        put_card(done.folder, text)
    _tell(done, to)
    return done


def refuse_incomplete(folder: Path, original: Path | None = None) -> None:
    """A copy of an incomplete checkpoint would be found out only when it is loaded.

    Args:
        folder: the checkpoint.
        original: the checkpoint whose `mtp.*` tensors the copy gets if `folder` has none.

    Raises:
        ValueError: a file, a tensor or config.json is missing or damaged, or they do not fit together.
    """
    config = DeepseekV4Config.from_pretrained(folder)
    found = scan(folder)
    subject = str(folder)
    if original is not None and takes_drafter(found.tensors, scan(original).tensors):
        config, found = _completed(config, found, original)
        subject = f"{folder} with the mtp.* tensors of {original}"
    if found.problems:
        raise ValueError(found.problems[0])
    odd = fit(config, found)
    faults = [
        *(f"lacks {name}, which its config.json promises" for name in odd.missing),
        *(f"holds {name}, which the model of its config.json does not have" for name in odd.extra),
        *(f"does not fit its config.json: {sentence}" for sentence in odd.wrong),
    ]
    if faults:
        more = f" ({len(faults) - 1:,} more faults)" if len(faults) > 1 else ""
        drafter = all(name.startswith(DRAFTER) for name in odd.missing) and len(odd.missing) == len(faults)
        cure = "; --original RELEASE takes the mtp.* tensors from the release" if drafter else ""
        raise ValueError(f"{subject} {faults[0]}{more}{cure}; seektune inspect {folder} lists all")


def _completed(config: DeepseekV4Config, found: FolderScan, original: Path) -> tuple[DeepseekV4Config, FolderScan]:
    """Config and tensors with the original's blocks after the backbone."""
    theirs = DeepseekV4Config.from_pretrained(original)
    drafter = scan(original)
    tensors = {name: entry for name, entry in drafter.tensors.items() if name.startswith(DRAFTER)}
    whole = DeepseekV4Config.from_dict(with_drafter_keys(config.to_dict(), theirs.to_dict()), str(original))
    return whole, replace(found, tensors=found.tensors | tensors, problems=found.problems + drafter.problems)


def _drafter_notes(folder: Path, original: Path | None) -> Iterator[str]:
    if original is None:
        yield from drafter_notes(folder)
    elif takes_drafter(FolderSource(folder).files.names(), FolderSource(original).files.names()):
        yield f"note: {folder} has no mtp.* tensors; those of {original} are taken"


def _tell(done: Conversion, to: str) -> None:
    if done.resumed:
        say(f"{done.resumed} of {done.shards} shards were complete from an earlier call")
    exact = done.converted - len(done.inexact)
    say(f"tensors: {done.copied:,} copied byte for byte, {exact:,} re-encoded exactly, {len(done.inexact):,} rounded")
    if done.inexact:
        say(f"{to} cannot hold all values of {listed(done.inexact)}")
        say(f"all their names: {done.folder / RECORD} (inexact)")
    say(f"checkpoint: {done.folder}")
