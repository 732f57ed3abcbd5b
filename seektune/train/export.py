"""Exports the result of a run: a checkpoint folder with config and tokenizer, or the trained adapter's files."""

from contextlib import ExitStack
from pathlib import Path

from seektune.checkpoint.companions import carry_companions
from seektune.io.atomic import cannot_write
from seektune.io.atomic_dir import clean_up_partial, complete_folder
from seektune.io.console import say
from seektune.parallel.lora import save_adapter
from seektune.parallel.model import ParallelModel
from seektune.train.settings import Origin, Savable


def export_model(model: ParallelModel, tokenizer: Savable, folder: Path, origin: Origin, format: str = "bf16") -> None:
    """Write weights (released names), config.json, tokenizer and the base's small files, or only the adapters.

    The folder appears when complete. Every process calls it. In a low-bit format, weights that training did not change
    keep the base's bytes.

    Raises:
        OSError: writing failed; nothing new is left under the name.
    """
    folder = folder.resolve()
    try:
        if model.is_adapted():
            model.mesh.ranks.first(lambda: clean_up_partial(folder.parent, folder.name))
            save_adapter(model, folder, origin.base, origin.revision, origin.recipe)
        else:
            _export_weights(model, tokenizer, folder, origin.folder, format)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _export_weights(model: ParallelModel, tokenizer: Savable, folder: Path, base: Path | None, format: str) -> None:
    ranks = model.mesh.ranks
    with ExitStack() as stack:
        scratch = ranks.first(lambda: _open_folder(folder, stack))
        model.save_pretrained(scratch, format, None if format == "bf16" else base)
        ranks.first(lambda: tokenizer.save(scratch))
        if base is not None:
            ranks.first(lambda: _carry(base, scratch))
        ranks.first(stack.close)


def _carry(base: Path, folder: Path) -> None:
    """Copy the base's licence and the like; the weights are worth more than those."""
    try:
        carry_companions(base, folder)
    except OSError as error:
        say(f"note: files of {base} beside its weights could not be copied: {error}")


def _open_folder(folder: Path, stack: ExitStack) -> Path:
    clean_up_partial(folder.parent, folder.name)
    return stack.enter_context(complete_folder(folder, replace=True))
