"""The adapters of a model and the tensors that are theirs: the state dict with them, and without."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, nn

from seektune.lora.layers import AdaptedEmbedding, AdaptedLinear, AdaptedMatrix

Adapted: TypeAlias = AdaptedLinear | AdaptedMatrix | AdaptedEmbedding
TRAINED = "trained"
"""Name of the adapter that is being trained."""


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Every module with adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear | AdaptedMatrix | AdaptedEmbedding) and module.lora:
            yield name, module


@contextmanager
def adapters_off(models: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block the models compute what they computed without adapters."""
    modules = [module for model in models for _, module in adapted_modules(model)]
    for module in modules:
        module.adapted = False
    try:
        yield
    finally:
        for module in modules:
            module.adapted = True


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without adapters: what the checkpoint it came from holds."""
    return _split(model, lambda name, own: name not in own)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The part of the state dict that adapters add."""
    return _split(model, lambda name, own: name in own)


def _split(model: nn.Module, choose: Callable[[str, set[str]], bool]) -> dict[str, Tensor]:
    bases = {f"{name}.{part}" for name, _ in adapted_modules(model) for part in ("weight", "scale")}
    prefixes = tuple(f"{name}." for name, _ in adapted_modules(model))
    state = model.state_dict()
    own = {name for name in state if name.startswith(prefixes) and name not in bases} if prefixes else set()
    return {name: tensor for name, tensor in state.items() if choose(name, own)}
