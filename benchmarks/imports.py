"""What `import funcbp` adds to `import jax`: time, paired within each new process, and modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection

import numpy as np

from .report import Cell, Row, Table, Target, spread

NAME = "W0 import"
TIME_TARGET, MODULES_TARGET = Target(0.25), Target(120)
PROGRAM = """
import json, sys, time
moments = [time.perf_counter()]
import jax
moments.append(time.perf_counter())
before = len(sys.modules)
import funcbp
moments.append(time.perf_counter())
print(json.dumps([*(b - a for a, b in zip(moments, moments[1:])), len(sys.modules) - before]))
"""


def new_process() -> list[float]:
    """The seconds of JAX's import, those of ours after it, and the modules that ours added."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # what is compiled stays compiled
    run = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, env=kept)
    return json.loads(run.stdout)


def run(pairs: int, only: Collection[str] = ()) -> Table:
    """Measure.

    Args:
        pairs: how many processes are begun, after one that is not counted: Python compiles what it had not.
        only: the numbers of the workloads to measure, all of them if empty.
    """
    rows: list[Row] = []
    if not only or NAME.split()[0] in only:
        new_process()
        theirs, ours, modules = np.array([new_process() for _ in range(pairs)]).T
        cells = {
            "time": spread(ours / theirs, TIME_TARGET),
            "modules": Cell(float(modules.max()), target=MODULES_TARGET),
        }
        rows.append(Row(NAME, cells))
    return Table("The import, funcbp : jax", ("time", "modules"), rows)
