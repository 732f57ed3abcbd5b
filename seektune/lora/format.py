"""Read and write adapter files in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`.

PEFT loads them into the transformers model. That model has no MTP block, so the MTP block's adapters are in a file of
their own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from seektune.checkpoint.header import read_header
from seektune.checkpoint.write import LazyTensors, write_shard
from seektune.io.atomic_dir import complete_folder
from seektune.io.json_file import MOST_CONFIG_BYTES, read_json, write_json
from seektune.io.run_files import RECIPE
from seektune.io.text import on_one_line
from seektune.lora.base_copies import BaseCopy, base_copies
from seektune.lora.delta import LoraDelta
from seektune.lora.peft import PeftModule, as_peft, as_released, config_of, tensors_of

WEIGHTS = "adapter_model.safetensors"
MTP_WEIGHTS = "adapter_mtp.safetensors"
CONFIG = "adapter_config.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OWN = "seektune.json"
"""Settings that PEFT has no key for: `merge_into`, the format whose rounding the adapter was trained through."""


class Adapter(NamedTuple):
    """What the files of an adapter hold."""

    changes: dict[str, LoraDelta]
    """By released module name."""
    config: dict[str, Any]
    """The content of adapter_config.json."""
    copies: list[BaseCopy]
    """Weights of the base that are stored too."""


def write_adapter(
    folder: Path,
    changes: Mapping[str, LoraDelta],
    facts: Mapping[str, Any],
    recipe: str = "",
    merge_into: str | None = None,
) -> None:
    """Write the files atomically.

    Args:
        folder: a new or empty folder, or that of an older adapter, which is replaced.
        changes: by released module name; `layers.N.ffn.experts.w1` is that matrix of all experts.
        facts: further keys of adapter_config.json, such as the base model and its revision.
        recipe: the training recipe, stored as recipe.yaml.
        merge_into: the format whose rounding the adapter was trained through.

    Raises:
        ValueError: the folder holds something else.
        OSError: writing failed.
    """
    main = {name: change for name, change in changes.items() if not name.startswith("mtp.")}
    mtp_changes = {name: change for name, change in changes.items() if name.startswith("mtp.")}
    _check_replaceable(folder)
    modules = [*as_peft(main)]
    with complete_folder(folder, replace=True) as scratch:
        _write(scratch / WEIGHTS, modules)
        if mtp_changes:
            mtp = [*as_peft(mtp_changes)]
            _write(scratch / MTP_WEIGHTS, mtp)
        config = config_of(modules + (mtp if mtp_changes else []), changes) | dict(facts)
        write_json(scratch / CONFIG, config)
        write_json(scratch / OWN, {"merge_into": merge_into})
        if recipe:
            (scratch / RECIPE).write_text(recipe, encoding="utf-8")


def read_adapter(folder: Path) -> Adapter:
    """Read the files of an adapter.

    Raises:
        ValueError: a file is missing or damaged, or it is not a LoRA adapter of this architecture.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder / WEIGHTS)
    if (folder / MTP_WEIGHTS).exists() or (folder / MTP_WEIGHTS).is_symlink():
        mtp = _read_tensors(folder / MTP_WEIGHTS)
        if twice := sorted(tensors.keys() & mtp.keys()):
            raise ValueError(f"{folder} holds {twice[0]} in both {WEIGHTS} and {MTP_WEIGHTS}")
        tensors |= mtp
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{folder} holds {name} as {tensor.dtype}; adapters must be floating-point with at least 16 bits"
            )
        if not tensor.float().isfinite().all():
            raise ValueError(f"{folder} holds values that are not finite: {name}")
    try:
        changes = as_released(tensors, config)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be used: {error}") from None
    if not changes:
        raise ValueError(f"{folder / WEIGHTS} holds no LoRA weights")
    return Adapter(changes, config, base_copies(tensors))


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        read_header(file)
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {on_one_line(str(error)[:300])}") from None


def trained_on(folder: Path) -> tuple[str | None, str | None]:
    """Folder or Hub id of an adapter's base, and its commit there.

    Raises:
        ValueError: adapter_config.json is missing or damaged.
    """
    config = _read_config(folder)
    base, revision = (_printable(config.get(key)) for key in ("base_model_name_or_path", "revision"))
    return base, revision


def _printable(name: object) -> str | None:
    """A name from an untrusted file, safe to print."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(name)[:300]) if name else None


def trained_for(folder: Path) -> str | None:
    """The format whose rounding an adapter was trained through, if any.

    Raises:
        ValueError: seektune.json is damaged.
    """
    file = folder / OWN
    if not file.is_file():
        return None
    try:
        found: str | None = read_json(file)["merge_into"]
    except KeyError:
        raise ValueError(f"{file} is damaged: it lacks merge_into") from None
    return found


def _write(file: Path, modules: list[PeftModule]) -> None:
    tensors = tensors_of(modules)
    write_shard(file, [LazyTensors({name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()}, lambda: tensors)])


def _check_replaceable(folder: Path) -> None:
    """Check that the folder is new, empty or an adapter's: it is replaced as a whole."""
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an adapter; choose another folder or remove it first")


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not an adapter: it has no {CONFIG}")
    config = read_json(folder / CONFIG, MOST_CONFIG_BYTES)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG} is not the config of a LoRA adapter (peft_type LORA)")
    return config
