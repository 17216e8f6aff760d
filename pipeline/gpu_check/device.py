"""The device that a part computes on, and what machine that is."""

import sys
from typing import Any

import torch

from transloom.pipeline.gpu_check.outcome import Skipped


def use_device(name: str) -> torch.device:
    """The device "cuda", which is the first GPU, or "cpu".

    Raises:
        Skipped: there is no GPU.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Skipped("no GPU")
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def machine() -> dict[str, Any]:
    """The first GPU and the versions that count, as JSON values."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return found
