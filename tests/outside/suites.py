"""Test suites that nobody here wrote: where they come from, and what becomes of them, first on JAX and then on ours."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .report import Row
from .swap_reverse_mode import REVERSE_MODE

HERE = Path(__file__).parent
JAX_FILES = (  # of the folder tests of JAX's repository
    "lax_autodiff_test.py",
    "lax_control_flow_test.py",
    "custom_api_test.py",
    "custom_linear_solve_test.py",
    "custom_root_test.py",
    "mutable_array_test.py",
    "state_test.py",
    "shard_map_test.py",
    "sparse_bcoo_bcsr_test.py",
    "sparsify_test.py",
    "nn_test.py",
    "ode_test.py",
)


def packages(names: list[str], module: str, **options: Any) -> Iterator[Row]:
    """Run the tests of packages, `NAME` from its source distribution, `NAME=DIR` from a copy of its repository."""
    for name, _, folder in (n.partition("=") for n in names):
        version = importlib.metadata.version(name)
        with tempfile.TemporaryDirectory() as temporary:
            try:
                root = Path(folder).resolve() if folder else source_distribution(name, version, Path(temporary))
            except subprocess.CalledProcessError:
                yield Row(name, version, note="NOT RUN: its source distribution could not be downloaded")
                continue
            files = [p for p in sorted(root.rglob("*.py")) if re.fullmatch(r"test_.*\.py|.*_test\.py", p.name)]
            if files:
                yield suite(name, version, root, files, module, **options)
            else:
                yield Row(name, version, note="its source distribution carries no tests")


def source_distribution(name: str, version: str, folder: Path) -> Path:
    """Download and unpack a package's source distribution."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, f"{name}=={version}"]
    subprocess.run(command, cwd=folder, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (root,) = (p for p in folder.iterdir() if p.is_dir())
    return root


def jax_files(repo: str, files: list[str], module: str, **options: Any) -> Iterator[Row]:
    """Run files of the tests in a copy of JAX's repository, each in a process of its own, as JAX does."""
    root = Path(repo).resolve()
    for name in files or JAX_FILES:
        yield suite(
            name, importlib.metadata.version("jax"), root, [root / "tests" / name], module, source=str(root), **options
        )


def suite(
    name: str, version: str, root: Path, files: list[Path], module: str, minutes: float = 60, **options: Any
) -> Row:
    """Run those of these files that mention reverse mode; with ours, the tests that pass on JAX and call it.

    With ours they have three times as long, so that what is slower is not what failed.
    """
    chosen = [p for p in files if REVERSE_MODE.search(p.read_text())]
    if not chosen:
        return Row(name, version, note="its tests do not call reverse mode")
    on_jax = pytest(root, chosen, module="jax", minutes=minutes, **options)
    tests = [t for t, r in on_jax.items() if r["outcome"] == "passed" and r["calls"]]
    if not tests:
        failed = sum(r["outcome"] == "failed" for r in on_jax.values())
        return Row(name, version, note=f"of {len(on_jax)} tests none calls reverse mode and passes; {failed} fail")
    ours = pytest(root, chosen, module=module, only=tests, minutes=3 * minutes, **options)
    passed = [t for t in tests if ours.get(t, {}).get("outcome") == "passed"]
    failures = {t: ours[t]["error"] if t in ours else "Not run" for t in tests if t not in passed}
    return Row(name, version, len(tests), len(passed), sum(r["calls"] for r in ours.values()), failures)


def pytest(root: Path, files: list[Path], tests: str = "", **settings: Any) -> dict[str, dict[str, Any]]:
    """Run test files with the plugin; what it wrote down of each test, by the test's name."""
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder, "records.jsonl")
        path = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "SWAP": json.dumps({"records": str(records), **settings}),
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        }
        if settings.get("source") is not None:
            environment["PYTHONSAFEPATH"] = "1"  # the JAX that is installed, not the one in the copy
        options = ["-q", "-p", "swap_reverse_mode", "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", str(root)]
        options += ["-k", tests, "--continue-on-collection-errors"]
        command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
        result = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if not records.exists():
            raise RuntimeError(f"No test of {root} ran:\n{result.stdout.decode()[-3000:]}")
        return {r["test"]: r for r in map(json.loads, records.read_text().splitlines())}
