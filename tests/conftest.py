"""Tests run in float64 where they do not say otherwise, with JAX's strictest promotion, and warnings are errors."""

import gc

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # most of a test's time is compilation


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """What JAX traced and compiled for a file is dropped after it: searching a large heap for garbage takes longer."""
    yield
    jax.clear_caches()
    gc.collect()


gc.freeze()  # what the libraries made when they were imported stays
