"""The benchmarks' tests run as a user's programs do; the measuring is quick and poor."""

import jax
import pytest

from benchmarks import measure


@pytest.fixture(scope="module", autouse=True)
def usual_jax():
    """JAX's default settings; what a file patches besides, for as long as its tests run, it patches by this."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(measure, "SAMPLE_SECONDS", 0)
        patch.setattr(measure.gc, "collect", lambda: 0)
        yield patch
