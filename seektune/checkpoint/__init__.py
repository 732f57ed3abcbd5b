"""Checkpoint folders: names, shapes and bytes of the tensors on disk. Nothing here imports a model."""

from seektune.checkpoint.atomic_dir import clean_up_partial, complete_folder
from seektune.checkpoint.hub import locate
from seektune.checkpoint.load import load_weights
from seektune.checkpoint.lowbit import weight_shapes
from seektune.checkpoint.ranks import Ranks
from seektune.checkpoint.save import save_weights
from seektune.checkpoint.shard import Shard, as_shard
from seektune.checkpoint.train_state import (
    MANIFEST,
    check_train_state,
    read_facts,
    read_tensors,
    tensor_names,
    write_train_state,
)

__all__ = [
    "MANIFEST",
    "Ranks",
    "Shard",
    "as_shard",
    "check_train_state",
    "clean_up_partial",
    "complete_folder",
    "load_weights",
    "locate",
    "read_facts",
    "read_tensors",
    "save_weights",
    "tensor_names",
    "weight_shapes",
    "write_train_state",
]
