"""Names that recipes and command lines choose from; free of torch."""

from typing import Literal, TypeAlias

DtypeName: TypeAlias = Literal["bf16", "fp32"]
"""Precision of a model's weights; `seektune.model.device` has torch's dtypes by these names."""
NumericsName: TypeAlias = Literal["plain", "released"]
"""`released` imitates the rounding that serving applies to keys and the indexer."""
