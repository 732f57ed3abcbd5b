"""Weights at rest: names, shapes and bytes of checkpoint folders. It knows tensors by name and never a module."""

from seektune.checkpoint.load import load_weights
from seektune.checkpoint.locate import locate
from seektune.checkpoint.publish import complete_folder
from seektune.checkpoint.save import save_weights

__all__ = ["complete_folder", "load_weights", "locate", "save_weights"]
