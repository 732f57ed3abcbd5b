"""What the server of `tests/forks.py` imports once: torch, silent in C++ as for the command line, and the package."""

import importlib
import os

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # read when torch is imported

for name in ("torch.distributed.checkpoint", "seektune.workflows.train", "tests.train.runs"):
    importlib.import_module(name)
