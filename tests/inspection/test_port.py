"""A port from PyTorch, compared with its model: the example's own, which forgets which GELU PyTorch's is."""

from pathlib import Path

import jax
import pytest

pytest.importorskip("torch", reason="the port is compared with PyTorch, which is not installed", exc_type=ImportError)
EXAMPLE = Path(__file__).parents[2] / "examples" / "find_the_difference.py"


def test_a_port_parts_where_it_is_another_function():
    cells = EXAMPLE.read_text().split("# %%\n")[1:]
    names = {}
    for cell in (cells[0], next(c for c in cells if "def compare_with_pytorch" in c)):
        exec(compile(cell, str(EXAMPLE), "exec"), names)  # the imports, and the port
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found, repaired = (names["compare_with_pytorch"](approximate) for approximate in (True, False))
    assert found.value.a.name == "act" and found.cotangent.a.name == "down"
    assert not repaired and len(repaired.matches) == 10
