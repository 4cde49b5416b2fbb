"""Three hundred random programs, and some that are compiled; `tests/random_programs.py` has the long run."""

from __future__ import annotations

import pytest

from .random_programs import CHEAP, check_chunk

CHUNKS = [pytest.param(seed, 75, CHEAP, marks=pytest.mark.slow, id=f"seed {seed}") for seed in range(4)]
CHUNKS += [pytest.param(4, 2, ["eager", "compiled"], id="seed 4")]
CHUNKS += [pytest.param(5, 8, ["eager", "compiled"], marks=pytest.mark.slow, id="seed 5")]


@pytest.mark.parametrize("number, size, ways", CHUNKS)
def test_equals_jax(number, size, ways):
    assert sum(check_chunk(number, size, ways).values()) >= size
