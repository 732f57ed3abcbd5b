"""The command `merge`: merges an adapter into its base, and reports how much of its change the stored weights keep."""

import re
from collections.abc import Iterator
from pathlib import Path

from seektune.checkpoint import locate
from seektune.checkpoint.companions import code_notes
from seektune.checkpoint.drafter import drafter_notes
from seektune.io.atomic_dir import CARD
from seektune.io.console import say
from seektune.lora.format import trained_on
from seektune.lora.merge import Merge, merge
from seektune.lora.merge_report import REPORT, KeptChange, share_kept
from seektune.run.model_card import merged_card, put_card
from seektune.workflows.convert import refuse_incomplete


def merge_adapter(base: str, adapter: Path, destination: Path, to: str, weight: float, force: bool) -> Merge:
    """Merge and print, by type of module, what was kept; the report by tensor is written next to the weights.

    Args:
        base: folder or Hub id of the weights that the adapter was trained on.
        adapter: its folder.
        destination: a new or empty folder.
        to: a format, or `mixed-fp8` or `mixed-bf16`.
        weight: the change is multiplied by it.
        force: merge even if most of the change is lost.

    Raises:
        ValueError: the adapter does not fit the base, or too little would be kept.
        OSError: reading, writing or downloading failed; nothing is left behind.
    """
    place = locate(base)
    refuse_incomplete(place)
    for line in (*doubts(base, place, adapter), *code_notes(place), *drafter_notes(place)):
        say(line)
    done = merge(place, adapter, destination, to, weight, force)
    # the base's model card was copied too, but does not describe these weights
    (destination / CARD).unlink(missing_ok=True)
    put_card(destination, merged_card(base, adapter, destination.resolve().name, to, share_kept(done.kept)))
    exact = done.converted - len(done.inexact)
    others = f"{done.copied:,} copied byte for byte, {exact:,} re-encoded exactly, {len(done.inexact):,} rounded"
    say(f"tensors: {len(done.kept):,} changed, {others}")
    for line in (*retention(done.kept), *done.notes):
        say(line)
    say(f"of the whole change {share_kept(done.kept):.1%} is kept; by tensor: {destination / REPORT}")
    say(f"checkpoint: {destination}")
    return done


def doubts(base: str, place: Path, adapter: Path) -> Iterator[str]:
    """Notes if the adapter's config names another base than `base`, whose files are in `place`.

    Not an error: the same weights may be in another folder or format.
    """
    named, revision = trained_on(adapter)
    if named is None or Path(named).resolve() == place.resolve():
        return
    if named != base:
        yield f"note: the adapter was trained on {named}; merged into other weights it is meaningless"
    elif revision is not None and revision != place.name:
        yield f"note: the adapter was trained on commit {revision} of {named}, this is {place.name}"


def retention(kept: list[KeptChange]) -> list[str]:
    """A line per type of module: how it is stored, the size of its change, the share that was kept, and the error."""
    groups: dict[str, list[KeptChange]] = {}
    for each in kept:
        groups.setdefault(re.sub(r"(layers|mtp|experts)\.\d+\.", r"\1.N.", each.name), []).append(each)
    width = max((len(name) for name in groups), default=0)
    kinds = max((len(each.kind) for each in kept), default=0) + 1
    lines = [f"{'':<{width}}  {'stored':<{max(kinds, 7)}}  change    kept  lowest   error"] if groups else []
    for name, members in groups.items():
        share = share_kept(members)
        lowest = min(each.share for each in members)
        square = sum(each.square for each in members)
        error = (sum(each.miss for each in members) / square) ** 0.5 if square else 0.0
        change = max(each.change for each in members)
        lines.append(
            f"{name:<{width}}  {members[0].kind:<{max(kinds, 7)}}{change:>8.2%}{share:>8.1%}{lowest:>8.1%}{error:>8.3f}"
        )
    return lines
