"""What the server of `tests/forks.py` imports once: torch, silent in C++ as for the command line, and the package."""

import importlib
import os

# both are read when torch is imported
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
os.environ["OMP_NUM_THREADS"] = "1"

for name in ("torch.distributed.checkpoint", "seektune.workflows.train", "tests.train.runs"):
    importlib.import_module(name)
