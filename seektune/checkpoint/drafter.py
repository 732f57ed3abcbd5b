"""The blocks after the backbone, the MTP block or DSpark stages: taken from the original if a checkpoint has none."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from seektune.checkpoint.carried import Carrying
from seektune.checkpoint.source import FolderSource, Source
from seektune.io.config_json import DRAFTER, lost_drafter, read_config
from seektune.io.transformers_config import DRAFTER_KEYS


def takes_drafter(names: Iterable[str], original: Iterable[str]) -> bool:
    """Whether an export takes the `mtp.*` tensors of its original: it has none itself, and the original has."""
    return not any(name.startswith(DRAFTER) for name in names) and any(name.startswith(DRAFTER) for name in original)


def with_drafter_keys(config: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
    """A config without blocks after the backbone, with the original's keys for them.

    Raises:
        ValueError: one of both does not say how many layers it has.
    """
    taken = {key: value for key, value in original.items() if key.startswith(DRAFTER_KEYS)}
    try:
        backbone = config["compress_ratios"][: config["num_hidden_layers"]]
        blocks = original["compress_ratios"][original["num_hidden_layers"] :]
        return {**config, **taken, "compress_ratios": [*backbone, *blocks]}
    except (KeyError, TypeError):
        raise ValueError("num_hidden_layers or compress_ratios is missing or damaged in config.json") from None


def with_drafter(
    source: FolderSource, config: dict[str, Any], original: FolderSource | None
) -> tuple[Source, dict[str, Any]]:
    """What an export writes: the source and its config, with the drafter of its original if it takes that.

    A folder whose config names no layers is a part of a checkpoint, and stays one.

    Raises:
        ValueError: a config.json is missing or damaged.
    """
    if original is None or "compress_ratios" not in config:
        return source, config
    if not takes_drafter(source.files.names(), original.files.names()):
        return source, config
    blocks = frozenset(name for name, _ in original.shapes() if name.startswith(DRAFTER))
    return Carrying(original, blocks).source(source), with_drafter_keys(config, read_config(original.folder))


def drafter_notes(folder: Path) -> Iterator[str]:
    """A note about a checkpoint that transformers wrote without the blocks after the backbone."""
    if lost_drafter(folder):
        yield (
            f"note: {folder} was written by transformers, which leaves out the mtp.* tensors; "
            f"seektune convert {folder} OUT --to released --original RELEASE takes them from the release"
        )
