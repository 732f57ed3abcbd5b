"""The command `convert`: converts a checkpoint to another format, and reports how its tensors were stored."""

from pathlib import Path

from seektune.checkpoint import locate
from seektune.checkpoint.companions import code_notes
from seektune.checkpoint.convert import Conversion, convert
from seektune.checkpoint.formats import format_named
from seektune.checkpoint.resumable_dir import RECORD
from seektune.checkpoint.scan import scan
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
    refuse_incomplete(folder)
    before = None if original is None else locate(original)
    for note in (*code_notes(folder), *tokenizer_notes(folder)):
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


def refuse_incomplete(folder: Path) -> None:
    """A copy of an incomplete checkpoint would be found out only when it is loaded.

    Raises:
        ValueError: a file, a tensor or config.json is missing or damaged, or they do not fit together.
    """
    config = DeepseekV4Config.from_pretrained(folder)
    found = scan(folder)
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
        raise ValueError(f"{folder} {faults[0]}{more}; seektune inspect {folder} lists all")


def _tell(done: Conversion, to: str) -> None:
    if done.resumed:
        say(f"{done.resumed} of {done.shards} shards were complete from an earlier call")
    exact = done.converted - len(done.inexact)
    say(f"tensors: {done.copied:,} copied byte for byte, {exact:,} re-encoded exactly, {len(done.inexact):,} rounded")
    if done.inexact:
        say(f"{to} cannot hold all values of {listed(done.inexact)}")
        say(f"all their names: {done.folder / RECORD} (inexact)")
    say(f"checkpoint: {done.folder}")
