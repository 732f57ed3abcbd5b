"""Save, load and unload a model's adapters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seektune.checkpoint import as_shard
from seektune.lora.base_copies import check_copies
from seektune.lora.coverage import check_coverage
from seektune.lora.delta import ExpertRange, LoraDelta, check_weight
from seektune.lora.dora import DoraLinear
from seektune.lora.format import read_adapter, write_adapter
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.layers import (
    AdaptedEmbedding,
    AdaptedHead,
    AdaptedLinear,
    AdaptedMatrix,
    RoundedLinear,
    RoundedMatrix,
)
from seektune.lora.state import TRAINED, Adapted, adapted_modules, adapter_state, base_state
from seektune.lora.targets import adaptable
from seektune.model.quantized import QuantizedExperts, QuantizedLinear, QuantizedMatrix, replace


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    base: str | None = None,
    revision: str | None = None,
    recipe: str = "",
    adapter: str = TRAINED,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter in PEFT's format; an older one in that folder is replaced once the new one is complete.

    Args:
        model: a model with the adapter.
        folder: receives adapter_model.safetensors and adapter_config.json.
        base: folder or Hub id of the frozen weights, for the config.
        revision: their commit on the Hub, or another identifier.
        recipe: the training recipe, stored as recipe.yaml.
        adapter: the adapter's name.
        tensors: the tensors of `adapter_state`, if the model is on the meta device.

    Raises:
        ValueError: the model has no such adapter.
        OSError: writing failed.
    """
    changes = changes_of(model, adapter, tensors)
    if not changes:
        raise ValueError(f"the model has no adapter named {adapter}")
    facts: Mapping[str, Any] = {"base_model_name_or_path": base, "revision": revision}
    write_adapter(Path(folder), changes, facts, recipe, merge_format(model, adapter))


@torch.no_grad()
def load_adapter(
    model: nn.Module,
    folder: str | Path,
    weight: float = 1.0,
    adapter: str = "loaded",
    experts: ExpertRange | None = None,
    whole: nn.Module | None = None,
) -> list[str]:
    """Load an adapter from a folder, in addition to those that the model has; returns the modules it changes.

    Args:
        model: a plain or quantized model, or one with adapters. All its parameters are frozen.
        folder: an adapter in PEFT's format.
        weight: scales its change; 1 is as trained.
        adapter: a name for it.
        experts: the routed experts of this process, if others hold the rest.
        whole: the model of which `model` has some of the layers, on any device; changes of the others are left out.

    Raises:
        ValueError: the files are damaged, the model has no such module or shape, or the name is taken. The model is
            unchanged then.
    """
    read, config, copies = read_adapter(Path(folder))
    check_weight(read.values(), weight, Path(folder))
    known = adaptable(model if whole is None else whole)
    if missing := sorted(name for name in read.keys() - set(known) if not read[name].is_nothing):
        raise ValueError(f"{folder} changes {missing[0]}, which this model does not have")
    changes = {name: change for name, change in read.items() if name in set(known)}
    check_coverage(changes, config, known, Path(folder))
    here = set(adaptable(model))
    changes = {name: change for name, change in changes.items() if name in here}
    base = base_state(model)
    check_copies(copies, lambda name: as_shard(base[name]) if name in base else None, Path(folder))
    if experts is not None:
        changes = {name: change.of_experts(experts) for name, change in changes.items()}
    done: list[str] = []
    try:
        for name, change in changes.items():
            dora = change.magnitude is not None
            adapt(model, [name], AdapterShape(change.rank, change.scaling * weight * change.rank, dora=dora), adapter)
            done.append(name)
            _fill(name, dict(adapted_modules(model))[name], change, adapter, Path(folder))
    except ValueError:
        _remove(model, done, adapter)
        raise
    model.requires_grad_(False)
    return list(changes)


def unload_adapter(model: nn.Module, adapter: str) -> None:
    """Remove an adapter; a module without adapters is restored to its plain form.

    Raises:
        ValueError: the model has no such adapter.
    """
    found = [name for name, module in adapted_modules(model) if adapter in module.lora]
    if not found:
        raise ValueError(f"the model has no adapter named {adapter}")
    _remove(model, found, adapter)


def changes_of(
    model: nn.Module, adapter: str = TRAINED, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, LoraDelta]:
    """An adapter's changes by released module name; `tensors` holds their values if the model is on the meta device."""
    changes = {}
    state = adapter_state(model) if tensors is None else tensors
    for name, module in adapted_modules(model):
        if adapter in module.lora:
            magnitude = state[f"{name}.magnitude"] if isinstance(module, DoraLinear) else None
            a, b = (state[f"{name}.lora.{adapter}.{part}"] for part in ("A", "B"))
            if isinstance(module, AdaptedMatrix):
                a = a.expand(len(b), -1, -1)
            changes[name] = LoraDelta(
                a, b, scaling_of(module, adapter), magnitude, isinstance(module, AdaptedEmbedding)
            )
    return changes


def merge_format(model: nn.Module, adapter: str = TRAINED) -> str | None:
    """The format whose rounding an adapter is trained through, if any."""
    formats = {
        module.format
        for _, module in adapted_modules(model)
        if adapter in module.lora and isinstance(module, RoundedLinear | RoundedMatrix)
    }
    assert len(formats) <= 1, "one adapter is trained for one format"
    return formats.pop() if formats else None


def scaling_of(module: Adapted, adapter: str) -> float:
    """The scaling of an adapter's B A."""
    names = list(module.lora)
    return module.adapters()[names.index(adapter)].scaling


def _fill(name: str, module: Adapted, change: LoraDelta, adapter: str, folder: Path) -> None:
    found = module.lora[adapter]
    for part, values in (("A", change.a), ("B", change.b)):
        target = found.get_parameter(part)
        if target.shape != values.shape:
            raise ValueError(
                f"{folder} has shape {list(values.shape)} for {part} of {name}, the model needs {list(target.shape)}"
            )
        target.copy_(values)
    if isinstance(module, DoraLinear) and change.magnitude is not None:
        module.init_magnitude()
        module.magnitude.copy_(change.magnitude)


def _remove(model: nn.Module, names: Sequence[str], adapter: str) -> None:
    here = dict(adapted_modules(model))
    for name in names:
        del here[name].lora[adapter]
        if not here[name].lora:
            _restore(model, name, here[name])


def _restore(model: nn.Module, name: str, module: Adapted) -> None:
    # embedding and head keep their class, which behaves like the plain one without adapters
    if isinstance(module, AdaptedEmbedding | AdaptedHead):
        return
    scale = None if module.scale is None else module.scale.detach()
    if isinstance(module, AdaptedLinear):
        plain = QuantizedLinear(module.weight.detach(), scale, module.groups, module.wide, module.parts)
        plain.fp8_inputs = module.fp8_inputs
        replace(model, name, plain)
        return
    parent, _, matrix = name.rpartition(".")
    experts = model.get_submodule(parent)
    assert isinstance(experts, QuantizedExperts)
    restored = QuantizedMatrix(module.weight.detach(), scale, module.parts)
    restored.fp8_inputs = module.fp8_inputs
    experts.register_module(matrix, restored)
