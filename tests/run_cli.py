"""The console script as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.places import ROOT

CODE = "import sys; sys.argv[0] = 'seektune'; from seektune.cli import main; main()"


def seektune(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `seektune` with these words, without the network."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CODE, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd or ROOT, timeout=120)
