import subprocess
import sys

import pytest
from pydantic import ValidationError

from seektune.data.config import BatchConfig, DataConfig


def test_defaults_leave_only_sizes_to_say():
    batch = BatchConfig(global_size=8, length=128)
    assert (batch.micro_size, batch.pack) == (1, False)
    data = DataConfig()
    assert (data.dataset, data.path, data.overlong) == ("hellaswag", None, "error")


@pytest.mark.parametrize(
    "bad", [{"micro_size": 3}, {"global_size": 0}, {"length": -1}, {"micro_size": 16}, {"size": 1}, {"pack": "maybe"}]
)
def test_bad_batches_are_refused(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        BatchConfig(**({"global_size": 8, "length": 128} | bad))


def test_unknown_dataset_is_refused():
    with pytest.raises(ValidationError, match="hellaswag"):
        DataConfig(dataset="squad")


def test_sections_load_without_torch():
    code = "import sys, seektune.data.config, seektune.evaluate.config; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
