"""Parts of `bench/gpu_all.py`: what is measured on one GPU, and how parts are run, written and compared.

A machine with torch may lack pydantic, which reads recipes and configs; a small stand-in then takes its place.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("pydantic") is None:
    sys.path.append(str(Path(__file__).parent / "stand_in"))
