"""What is known of a field."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class FieldInfo:
    """A field's default; `...` for none."""

    default: Any = ...
    default_factory: Callable[[], Any] | None = None

    def get_default(self) -> Any:
        """The default, made anew by a factory."""
        return self.default if self.default_factory is None else self.default_factory()
