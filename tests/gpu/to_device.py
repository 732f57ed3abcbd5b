"""Arguments of kernels on another device."""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def to_device(x: Any, device: str) -> Any:
    """Tensors, dataclasses of tensors and tuples of both; leaves stay leaves."""
    if isinstance(x, Tensor):
        return x.detach().to(device).requires_grad_(x.requires_grad)
    if isinstance(x, tuple):
        return tuple(to_device(part, device) for part in x)
    if is_dataclass(x) and not isinstance(x, type):
        return type(x)(**{field.name: to_device(getattr(x, field.name), device) for field in fields(x)})
    return x
