"""Tests run in float64 where they do not say otherwise, with JAX's strictest promotion, and warnings are errors."""

import gc
import itertools
import os
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src.interpreters import mlir

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # most of a test's time is compilation
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # and of that of the commands that tests start

# Cheaper compiling for the CPU. JAX 0.10 spends most of that time in XLA's fusion emitters, which can be left out, and
# in a new MLIR context for each program; later JAX has no other emitters, and reuses a context ten times by itself.
flags = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    flags.append("--xla_cpu_use_fusion_emitters=false")
    new_context, _programs, _contexts = mlir.make_ir_context, itertools.count(), threading.local()

    def make_ir_context():
        if next(_programs) % 10 == 0 or not hasattr(_contexts, "last"):
            _contexts.last = new_context()
        return _contexts.last

    mlir.make_ir_context = make_ir_context
os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])

# What was compiled once is read from here, by the other tests and runs, and by the commands that tests start.
for option, value in {
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}.items():
    if option.upper() not in os.environ:
        jax.config.update(option, value)
        os.environ[option.upper()] = str(value)

gc.freeze()  # what the libraries made when they were imported stays
gc.disable()  # most of the time of a long run went into searching what JAX keeps for garbage, again and again
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def small_heap():
    """Now and then, what JAX has traced and compiled is dropped, and garbage collected."""
    yield
    if next(_tests) % 150 == 0:
        jax.clear_caches()
        gc.collect()


def pytest_make_parametrize_id(config, val, argname):
    """Name a parameter by what it is; the number that pytest would give it says nothing."""
    if isinstance(val, np.generic):
        return f"{val.dtype.name} {val}"
    if val is None or isinstance(val, str | bool | int | float | complex):
        return None
    if isinstance(val, np.ndarray | jax.Array):
        return f"{val.dtype.name}{list(val.shape)}"
    if isinstance(val, list | tuple | dict):
        return " ".join(str(x) for x in val if isinstance(x, str | int | float))
    name = getattr(val, "__name__", getattr(val, "name", ""))
    return "" if name == "<lambda>" else str(name)
