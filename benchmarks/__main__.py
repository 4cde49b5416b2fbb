"""`python -m benchmarks [TABLE ...]`: measure, and print Markdown."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from . import (
    accelerator,
    accuracy,
    breadth,
    curvature,
    fused,
    imports,
    learning,
    memory,
    openbox,
    peaks,
    per_example,
    products,
    report,
    step,
    text,
)

TABLES = {
    "imports": imports.run,
    "step": step.run,
    "accelerator": accelerator.run,
    "program": step.programs,
    "accuracy": accuracy.run,
    "openbox": openbox.run,
    "breadth": breadth.run,
    "memory": memory.run,
    "peaks": peaks.run,
    "per_example": per_example.run,
    "products": products.run,
    "curvature": curvature.run,
    "fused": fused.run,
    "learning": learning.run,
    "text": text.run,
}
PICTURES = {"memory": memory.draw}


def surroundings() -> dict[str, Any]:
    """What the numbers depend on."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": device.device_kind if device.platform != "cpu" else f"CPU, {os.cpu_count()} cores",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tables named in `argv`, print them, and say with the exit code whether all results agreed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="funcbp against JAX's reverse mode.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"which tables: {', '.join(TABLES)}; default: all")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of runs for each time ratio (default 20)")
    parser.add_argument(
        "--only", default="", help="numbers of workloads, separated by commas: W1,W4; breadth, peaks: parts of names"
    )
    parser.add_argument("--tiny", action="store_true", help="accelerator, breadth, peaks: the same models as toys")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also draw what can be drawn, into DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    options = parser.parse_args(argv)
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"there is no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    if options.pairs < 1:
        parser.error("--pairs must be at least 1")
    only = [name.strip().upper() for name in options.only.split(",") if name.strip()]
    around = surroundings()
    names = options.tables or list(TABLES)
    run = TABLES | {
        name: functools.partial(TABLES[name], tiny=options.tiny) for name in ("accelerator", "breadth", "peaks")
    }
    tables = [run[name](options.pairs, only) for name in names]
    if not any(table.rows for table in tables):
        parser.error(f"there is no workload {', '.join(only)} in these tables")
    print(
        ", ".join(f"{k} {v}" for k, v in around.items()) + f", {options.pairs} pairs; a ratio below 1 is in our favour"
    )
    for table in tables:
        print("\n" + report.markdown(table))
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        for name, table in zip(names, tables, strict=True):
            if name in PICTURES:
                PICTURES[name](table).savefig(options.plots / f"{name}.png", dpi=120)
    if options.json:
        content = {**around, "pairs": options.pairs, "tables": [report.as_json(t) for t in tables]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if any(row.refused for table in tables for row in table.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
