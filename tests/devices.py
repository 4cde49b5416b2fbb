"""Processes with CPU devices of their own, whose programs are compiled as cheaply as those of the tests."""

from __future__ import annotations

import os
from pathlib import Path


def environment(devices: int) -> dict[str, str]:
    """What a process is started with that is to have so many devices, and JAX's own settings."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return plain | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
