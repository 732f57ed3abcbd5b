"""What the server of `tests/forks.py` imports once: torch, silent in C++ as for the command line, the package, and what
its commands import where they need it.
"""

import atexit
import gc
import importlib
import os
import pkgutil

# both are read when torch is imported
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
os.environ["OMP_NUM_THREADS"] = "1"

for name in ("seektune.cli", "seektune.workflows"):
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__, f"{name}."):
        importlib.import_module(module.name)
# pyarrow imports pandas where that is installed
for name in ("seektune.checkpoint.dcp", "matplotlib.figure", "matplotlib.backends.backend_agg", "pandas", "fastapi"):
    importlib.import_module(name)
# what datasets imports when it reads a file
for name in ("datasets.io.generator", "scipy.io"):
    importlib.import_module(name)
tokenizer = importlib.import_module("seektune.data.tokenizer")
for size in (512, 4096):
    tokenizer.load_tokenizer(size)  # whose text is kept
for name in ("pytest", "tests.train.runs", "tests.run_cli", "tests.distributed.runs", "tests.distributed.lora_law"):
    importlib.import_module(name)
# a process that is forked need not look at what was imported before, nor copy its pages
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # extension modules report objects that are alive at the interpreter's end
