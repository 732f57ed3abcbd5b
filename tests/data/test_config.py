import subprocess
import sys

import pytest
from pydantic import ValidationError

from seektune.data.config import BatchConfig


def test_defaults_leave_only_sizes_to_say():
    batch = BatchConfig(global_size=8, length=128)
    assert (batch.micro_size, batch.pack) == (1, False)


@pytest.mark.parametrize(
    "bad", [{"micro_size": 3}, {"global_size": 0}, {"length": -1}, {"micro_size": 16}, {"size": 1}, {"pack": "maybe"}]
)
def test_bad_batches_are_refused(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        BatchConfig(**({"global_size": 8, "length": 128} | bad))


@pytest.mark.slow
def test_sections_load_without_heavy_packages():
    heavy = {"torch", "numpy", "pyarrow"}
    code = f"import sys, seektune.data.config, seektune.evaluate.config; assert not {heavy} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
