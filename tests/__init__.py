"""The tests, which see nothing of a machine's own settings, and never ask the Hub.

Before anything else is imported, as some of it reads them then.
"""

import os

for name in [*os.environ]:
    if name.startswith(("SEEKTUNE_", "SLURM_", "TORCHELASTIC_")):
        del os.environ[name]
for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
    os.environ.pop(name, None)
os.environ["HF_HUB_OFFLINE"] = "1"
