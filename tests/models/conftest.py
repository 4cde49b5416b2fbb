"""The precision of a test, and the promotion rules that a library's own layers count on."""

import contextlib

import jax
import pytest


@pytest.fixture
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
