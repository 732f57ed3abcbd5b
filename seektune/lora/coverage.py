"""Whether an adapter's file changes every module that its config names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seektune.checkpoint.transformers_names import FUSED, transformers_name
from seektune.io.patterns import matched
from seektune.lora.delta import LoraDelta
from seektune.lora.peft_config import is_named

ALL_LINEAR = "all-linear"
"""PEFT's word for all linear layers; it writes their names when it saves."""
_LAYER = re.compile(r"layers\.(\d+)\.")
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
    found = list(modules)
    try:
        wanted = _without_excluded(_narrowed(_targeted(found, config), config), config)
    except ValueError:  # a regular expression that looks around: PEFT can read it, RE2 cannot
        return
    missing = [
        name
        for name in found
        if name in wanted and not name.startswith("mtp.") and ".indexer." not in name and not _is_changed(name, changes)
    ]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{folder} is incomplete: its config names {transformers_name(missing[0])}, "
            f"but it holds no change of {missing[0]}{more}"
        )


def _targeted(modules: Sequence[str], config: Mapping[str, Any]) -> set[str]:
    """The modules that `target_modules` and `target_parameters` name, by PEFT's rules."""
    parameters = _names(config.get("target_parameters"))
    of_modules = _named(modules, config.get("target_modules"))
    return of_modules | {name for name in modules if any(is_named(_parameter(name), each) for each in parameters)}


def _narrowed(wanted: set[str], config: Mapping[str, Any]) -> set[str]:
    """Those in the layers of `layers_to_transform`, if it is set; other names of layers match nothing."""
    layers = config.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [layers]
    if config.get("layers_pattern") not in (None, "", [], "layers", ["layers"]):
        return set()
    if numbers in ([None], []):
        return wanted
    return {name for name in wanted if (match := _LAYER.match(name)) and int(match[1]) in numbers}


def _without_excluded(wanted: set[str], config: Mapping[str, Any]) -> set[str]:
    return wanted - _named(sorted(wanted), config.get("exclude_modules"))


def _named(modules: Sequence[str], value: object) -> set[str]:
    """The modules that a list of names or a regular expression of PEFT's selects; routed experts are not modules.

    Raises:
        ValueError: the expression is invalid or too complicated.
    """
    theirs = {transformers_name(name): name for name in modules if ".experts." not in name}
    if isinstance(value, str) and value != ALL_LINEAR:
        return {theirs[name] for name in matched(list(theirs), f"^(?:{value})$")}
    names = _names(value)
    return {name for their, name in theirs.items() if any(is_named(their, each) for each in names)}


def _names(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _parameter(name: str) -> str:
    """The name of a module's weight in transformers."""
    parent, _, leaf = name.rpartition(".")
    if parent.endswith(".experts"):
        return f"{transformers_name(f'{parent}.')}{PARAMETER[leaf]}"
    return f"{transformers_name(name)}.weight"


def _is_changed(name: str, changes: Mapping[str, LoraDelta]) -> bool:
    parent, _, leaf = name.rpartition(".")
    return name in changes or (parent.endswith(".experts") and f"{parent}.{OTHER_HALF.get(leaf, leaf)}" in changes)
