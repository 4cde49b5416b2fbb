"""Three hundred random programs, and some that are compiled; `tests/random_programs.py` has the long run."""

from __future__ import annotations

import pytest

from .random_programs import CHEAP, check_chunk

CHUNKS = [(part, 75, CHEAP) for part in range(4)] + [(part, 5, ["eager", "compiled"]) for part in (4, 5)]


@pytest.mark.parametrize("number, size, ways", CHUNKS, ids=[f"seed {number}" for number, *_ in CHUNKS])
def test_equals_jax(number, size, ways):
    assert sum(check_chunk(number, size, ways).values()) >= size
