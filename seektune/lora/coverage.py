"""Whether an adapter's file changes every module that its config names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seektune.checkpoint.transformers_names import FUSED, transformers_name
from seektune.lora.delta import LoraDelta
from seektune.lora.peft_config import is_named

NARROWED = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Keys of a config that leave out some of the modules that its targets match."""
PARAMETER = {matrix: parameter for parameter, matrices in FUSED.items() for matrix in matrices}
"""transformers' parameters of routed experts, by released matrix."""
OTHER_HALF = {"w1": "w3", "w3": "w1"}
"""The matrix that shares a parameter: PEFT stores one change for both, of which one may be nothing."""


def check_coverage(
    changes: Mapping[str, LoraDelta], config: Mapping[str, Any], modules: Iterable[str], folder: Path
) -> None:
    """Check that an adapter is whole.

    Args:
        changes: what its file holds, by released module name.
        config: its adapter_config.json.
        modules: released names of what can be adapted in the base.
        folder: the adapter, for messages.

    Raises:
        ValueError: its config names a module of the base that the file does not change.
    """
    if any(config.get(key) not in (None, [], "") for key in NARROWED):  # layer 0 may be the only one
        return
    targets = _names(config.get("target_modules"))
    parameters = _names(config.get("target_parameters"))
    missing = [
        name
        for name in modules
        if not name.startswith("mtp.")
        and ".indexer." not in name
        and _is_target(name, targets, parameters)
        and not _is_changed(name, changes)
    ]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{folder} is incomplete: its config names {transformers_name(missing[0])}, "
            f"but it holds no change of {missing[0]}{more}"
        )


def _names(value: object) -> list[str]:
    """The names of a list of targets; a single text is a pattern, which is not interpreted."""
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _is_target(name: str, targets: list[str], parameters: list[str]) -> bool:
    parent, _, leaf = name.rpartition(".")
    if parent.endswith(".experts"):
        theirs = f"{transformers_name(f'{parent}.')}{PARAMETER[leaf]}"
        return any(is_named(theirs, each) for each in parameters)
    theirs = transformers_name(name)
    return any(is_named(theirs, each) for each in targets) or any(
        is_named(f"{theirs}.weight", each) for each in parameters
    )


def _is_changed(name: str, changes: Mapping[str, LoraDelta]) -> bool:
    parent, _, leaf = name.rpartition(".")
    return name in changes or (parent.endswith(".experts") and f"{parent}.{OTHER_HALF.get(leaf, leaf)}" in changes)
