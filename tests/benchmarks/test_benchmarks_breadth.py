"""The table of programs of many kinds, on toys: that both sides are run, agree, and are counted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import architectures, breadth


def test_each_program_has_its_ratios_and_all_their_mean():
    names = ["GATED", "DROPOUT", "KALMAN"]
    *rows, mean = breadth.run(1, names, tiny=True).rows
    assert [row.name for row in rows] == [n for n in architectures.ARCHITECTURES if any(w in n.upper() for w in names)]
    for row in rows:
        assert tuple(row.cells) == breadth.COLUMNS
        assert all(cell.value > 0 for cell in row.cells.values())
    logs = [np.log(row.cells["temp bytes"].value) for row in rows]
    np.testing.assert_allclose(mean.cells["temp bytes"].value, np.exp(np.mean(logs)))
    assert breadth.run(1, ["NO SUCH PROGRAM"]).rows == []


def test_gradients_that_differ_are_no_row(monkeypatch):
    build = architectures.ARCHITECTURES["30 steps to a fixed point"]
    wrong = lambda f, *args, **kwargs: lambda *xs: jax.tree.map(lambda x: 1.1 * x, jax.value_and_grad(f)(*xs))
    monkeypatch.setattr(breadth.bp, "value_and_grad", wrong)
    with pytest.raises(AssertionError, match="a fixed point"):
        breadth.run(1, programs={"a fixed point": build}, tiny=True)


def test_operands_are_drawn_by_their_types():
    rng = np.random.default_rng(0)
    types = [jax.ShapeDtypeStruct((100,), t) for t in (jnp.float32, jnp.bfloat16, jnp.int32, jax.random.key(0).dtype)]
    numbers, narrow, whole, key = (breadth.drawn(rng, t) for t in types)
    assert 0.05 < numbers.std() < 0.2 and narrow.dtype == jnp.bfloat16
    assert set(whole.tolist()) == {0, 1} and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    assert breadth.drawn(rng, 3) == 3


def test_the_command_prints_it(capsys):
    assert command.main(["breadth", "--tiny", "--pairs", "1", "--only", "kalman"]) == 0
    assert "| geometric mean |" in capsys.readouterr().out
