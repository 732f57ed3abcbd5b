"""Stands in for pydantic-core where it is not installed: names that annotations need."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Every name is a class that takes anything."""
    from pydantic import Anything

    if name.startswith("__"):
        raise AttributeError(name)
    return Anything
