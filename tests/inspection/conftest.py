"""Lines are looked at here, and programs that newer JAX keeps of its own functions bear those of their first call."""

import jax
import pytest


@pytest.fixture(autouse=True)
def nothing_traced_before():
    jax.clear_caches()
