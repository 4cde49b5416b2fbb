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
from .swap_reverse_mode import read_records

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
    name: str,
    version: str,
    root: Path,
    files: list[Path],
    module: str,
    minutes: float = 60,
    records: str = "",
    **options: Any,
) -> Row:
    """Run the tests with ours, and what failed on JAX's own: those count that call reverse mode and pass with either.

    What passes with ours is taken to pass with JAX's. The folder `records` keeps what became of each test, and a run
    that was ended goes on from there.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(records or temporary)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ours = pytest(root, files, folder / f"{name}-{module}.jsonl", module=module, minutes=minutes, **options)
        failed = [t for t, r in ours.items() if r["outcome"] == "failed"]
        on_jax = {}
        if failed:
            on_jax = pytest(root, files, folder / f"{name}-on-jax.jsonl", module="jax", only=failed, **options)
    counts = lambda record: record["outcome"] == "passed" and record["calls"] > 0
    passed = [t for t, r in ours.items() if counts(r)]
    failures = {t: ours[t]["error"] for t in failed if t in on_jax and counts(on_jax[t])}
    if not passed and not failures:
        return Row(name, version, note=f"of {len(ours)} tests none calls reverse mode and passes; {len(failed)} fail")
    calls = sum(ours[t]["calls"] for t in [*passed, *failures])
    return Row(name, version, len(passed) + len(failures), len(passed), calls, failures)


def pytest(root: Path, files: list[Path], records: Path, tests: str = "", **settings: Any) -> dict[str, dict[str, Any]]:
    """Run test files with the plugin; what it wrote down of each test, by the test's name.

    After a crash a new process runs what is left.
    """
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
    while True:
        result = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        last = json.loads(records.read_text().splitlines()[-1]) if records.exists() else {}
        if result.returncode in range(6) or last.get("outcome") != "running":  # pytest's own codes end at 5
            break
        error = f"Crashed: the process ended with {result.returncode}."
        with records.open("a") as file:
            file.write(json.dumps(last | {"outcome": "failed", "error": error}) + "\n")
    if not records.exists():
        raise RuntimeError(f"No test of {root} ran:\n{result.stdout.decode()[-3000:]}")
    return read_records(records)
