import pytest
import torch

from seektune.train.system_metrics import system_metrics


def test_cpu_and_memory_are_measured():
    system_metrics()
    found = system_metrics()
    assert found.keys() >= {"system/cpu_percent", "system/memory_percent", "system/memory_gb"}
    assert found["system/process_memory_gb"] > 0.01
    assert 0 < found["system/memory_percent"] <= 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_is_measured():
    x = torch.ones(10**6, device="cuda")
    assert system_metrics()["system/gpu_memory_gb"] > x.nbytes / 10**9
