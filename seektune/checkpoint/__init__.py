"""Weights at rest: names, shapes and bytes of checkpoint folders. It knows tensors by name and never a module."""

from seektune.checkpoint.load import load_weights
from seektune.checkpoint.locate import locate
from seektune.checkpoint.packed import weight_shapes
from seektune.checkpoint.publish import complete_folder, sweep
from seektune.checkpoint.ranks import Ranks
from seektune.checkpoint.run_state import (
    MANIFEST,
    check_run_state,
    read_facts,
    read_tensors,
    tensor_names,
    write_run_state,
)
from seektune.checkpoint.save import save_weights
from seektune.checkpoint.shard import Shard, as_shard

__all__ = [
    "MANIFEST",
    "Ranks",
    "Shard",
    "as_shard",
    "check_run_state",
    "complete_folder",
    "load_weights",
    "locate",
    "read_facts",
    "read_tensors",
    "save_weights",
    "sweep",
    "tensor_names",
    "weight_shapes",
    "write_run_state",
]
