"""Names of dtypes and numerics in recipes and on the command line; does not import torch."""

from typing import Literal, TypeAlias

DtypeName: TypeAlias = Literal["bf16", "fp32"]
"""Precision of a model's weights; `seektune.model.device` has torch's dtypes by these names."""
NumericsName: TypeAlias = Literal["plain", "released", "serving"]
"""`released` simulates the rounding that serving applies to keys and the indexer, `serving` also that of the inputs of
products with quantized weights."""
IndexerStage: TypeAlias = Literal["frozen", "warmup", "sparse"]
"""Whether indexers are trained; with `warmup` they alone, on attention to all entries."""
