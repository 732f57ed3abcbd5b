"""Adapters at rest: `adapter_model.safetensors` and `adapter_config.json` in PEFT's form and names, both ways.

PEFT reads them on the transformers model. That model has no MTP block, so its adapters stand in a file beside.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seektune.checkpoint.change import Change
from seektune.checkpoint.peft import as_peft, as_released, config_of, tensors_of
from seektune.checkpoint.publish import complete_folder

WEIGHTS, MTP_WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_mtp.safetensors", "adapter_config.json"
OWN = "seektune.json"
"""What PEFT has no key for: `merge_into`, the format whose rounding the adapter was trained through."""


def write_adapter(
    folder: Path,
    changes: Mapping[str, Change],
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
        OSError: writing failed.
    """
    main = {name: change for name, change in changes.items() if not name.startswith("mtp.")}
    ahead = {name: change for name, change in changes.items() if name.startswith("mtp.")}
    modules = [*as_peft(main)]
    with complete_folder(folder, replace=True) as scratch:
        save_file(tensors_of(modules), scratch / WEIGHTS, {"format": "pt"})
        if ahead:
            mtp = [*as_peft(ahead)]
            save_file(tensors_of(mtp), scratch / MTP_WEIGHTS, {"format": "pt"})
        config = config_of(modules + (mtp if ahead else []), changes) | dict(facts)
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (scratch / OWN).write_text(json.dumps({"merge_into": merge_into}) + "\n", encoding="utf-8")
        if recipe:
            (scratch / "recipe.yaml").write_text(recipe, encoding="utf-8")


def read_adapter(folder: Path) -> tuple[dict[str, Change], dict[str, Any]]:
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
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{folder} holds numbers that are not finite: {broken[0]}")
    try:
        changes = as_released(tensors, config)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from None
    if not changes:
        raise ValueError(f"{folder / WEIGHTS} holds no LoRA weights")
    return changes, config


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
