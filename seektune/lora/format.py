"""Adapters at rest: `adapter_model.safetensors` and `adapter_config.json` in PEFT's form and names, both ways.

PEFT reads them on the transformers model. That model has no MTP block, so its adapters stand in a file beside.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from seektune.checkpoint.atomic_dir import complete_folder
from seektune.checkpoint.write import LazyTensors, write_shard
from seektune.lora.delta import LoraDelta
from seektune.lora.peft import PeftModule, as_peft, as_released, config_of, tensors_of

WEIGHTS = "adapter_model.safetensors"
MTP_WEIGHTS = "adapter_mtp.safetensors"
CONFIG = "adapter_config.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OWN = "seektune.json"
"""What PEFT has no key for: `merge_into`, the format whose rounding the adapter was trained through."""


def write_adapter(
    folder: Path,
    changes: Mapping[str, LoraDelta],
    facts: Mapping[str, Any],
    recipe: str = "",
    merge_into: str | None = None,
) -> None:
    """Write the files; the folder appears when it is complete.

    Args:
        folder: a new or empty folder, or an older adapter's.
        changes: by released module name; `layers.N.ffn.experts.w1` is that matrix of all experts.
        facts: further keys of adapter_config.json, such as the base model and its revision.
        recipe: the training recipe, kept beside as recipe.yaml.
        merge_into: the format whose rounding it was trained through.

    Raises:
        ValueError: the folder holds something else.
        OSError: writing failed.
    """
    main = {name: change for name, change in changes.items() if not name.startswith("mtp.")}
    ahead = {name: change for name, change in changes.items() if name.startswith("mtp.")}
    _refuse_other(folder)
    modules = [*as_peft(main)]
    with complete_folder(folder, replace=True) as scratch:
        _write(scratch / WEIGHTS, modules)
        if ahead:
            mtp = [*as_peft(ahead)]
            _write(scratch / MTP_WEIGHTS, mtp)
        config = config_of(modules + (mtp if ahead else []), changes) | dict(facts)
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (scratch / OWN).write_text(json.dumps({"merge_into": merge_into}) + "\n", encoding="utf-8")
        if recipe:
            (scratch / "recipe.yaml").write_text(recipe, encoding="utf-8")


def read_adapter(folder: Path) -> tuple[dict[str, LoraDelta], dict[str, Any]]:
    """Changes by released module name, and adapter_config.json.

    Raises:
        ValueError: a file is missing or damaged, or it is no LoRA of this architecture.
    """
    config = _read_config(folder)
    tensors: dict[str, Tensor] = {}
    for file in (folder / WEIGHTS, folder / MTP_WEIGHTS):
        if file.name == MTP_WEIGHTS and not file.exists():
            continue
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{folder} holds {name} as {tensor.dtype}; adapters are floating-point numbers of 16 bits or more"
            )
        if not tensor.float().isfinite().all():
            raise ValueError(f"{folder} holds numbers that are not finite: {name}")
    try:
        changes = as_released(tensors, config)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be used: {error}") from None
    if not changes:
        raise ValueError(f"{folder / WEIGHTS} holds no LoRA weights")
    return changes, config


def trained_on(folder: Path) -> tuple[str | None, str | None]:
    """Folder or Hub id of the base that an adapter names, and its commit there.

    Raises:
        ValueError: adapter_config.json is missing or damaged.
    """
    config = _read_config(folder)
    base, revision = (_printable(config.get(key)) for key in ("base_model_name_or_path", "revision"))
    return base, revision


def _printable(name: object) -> str | None:
    """A name from a file that others wrote, fit for a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(name)[:300]) if name else None


def trained_for(folder: Path) -> str | None:
    """The format whose rounding an adapter was trained through, if any.

    Raises:
        ValueError: the file that says so is damaged.
    """
    file = folder / OWN
    if not file.is_file():
        return None
    try:
        found: str | None = json.loads(file.read_text(encoding="utf-8"))["merge_into"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged") from None
    return found


def _write(file: Path, modules: list[PeftModule]) -> None:
    tensors = tensors_of(modules)
    write_shard(file, [LazyTensors({name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()}, lambda: tensors)])


def _refuse_other(folder: Path) -> None:
    """What takes an older adapter's place removes all of it."""
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something else than an adapter; choose another folder or remove it first")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} is no adapter: it has no {CONFIG}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{folder / CONFIG} is damaged: it is not JSON") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG} is not of a LoRA adapter (peft_type LORA)")
    return config
