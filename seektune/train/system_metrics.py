"""Load and memory of the machine and the GPU, for trackers."""

from importlib.util import find_spec

import psutil
import torch

GIGABYTE = 10**9


def system_metrics() -> dict[str, float]:
    """Current values, by name: CPU in percent since the last call, memory in 10^9 bytes, and this process's GPU."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_percent": memory.percent,
        "system/memory_gb": memory.used / GIGABYTE,
        "system/process_memory_gb": psutil.Process().memory_info().rss / GIGABYTE,
        **(_gpu() if torch.cuda.is_initialized() else {}),
    }


def _gpu() -> dict[str, float]:
    free, total = torch.cuda.mem_get_info()
    found = {"system/gpu_memory_gb": (total - free) / GIGABYTE}
    # torch reads the rest with NVIDIA's package, which the extras of trackers install
    if torch.version.cuda and find_spec("pynvml"):
        found["system/gpu_percent"] = float(torch.cuda.utilization())
        found["system/gpu_celsius"] = float(torch.cuda.temperature())
        found["system/gpu_watts"] = torch.cuda.power_draw() / 1000
    return found
