"""The base class of recipe sections: typed, immutable, and strict about unknown keys."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A number above zero."""


class Section(BaseModel):
    """Base of every recipe section; each is defined in the package that uses it, and `recipe` composes them."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)
