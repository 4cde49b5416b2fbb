"""The precision of a test, and the promotion rules that a library's own layers count on."""

import contextlib

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation():
    """Small programs spend their time in the compiler; it does not have to optimise them."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(params=["float64", "float32"])
def precision(request):
    """JAX's default float for the time of the test, model and data included."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def promotion(family):
    """JAX's usual promotion for libraries, whose layers rely on it; plain models obey the strict one."""
    with contextlib.ExitStack() as stack:
        if family != "plain":
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield
