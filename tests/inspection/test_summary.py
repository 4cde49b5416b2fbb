"""The summary: FLOPs against counts by hand."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import funcbp as bp

like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
BATCH, UNITS, STEPS = 16, 8, 5


def product(w, x):
    return x @ w


def in_scan(ws, x):
    return lax.scan(lambda h, w: (h @ w, None), x, ws)[0]


def test_a_product_costs_two_per_term_and_its_backward_pass_twice_that():
    s = bp.summary(lambda p: product(*p))((like(UNITS, UNITS), like(BATCH, UNITS)))
    one = 2 * BATCH * UNITS**2
    assert (s.forward, s.backward) == (one, 2 * one)
    assert s.parameters == UNITS**2 + BATCH * UNITS
    assert s.residuals == 4 * (UNITS**2 + BATCH * UNITS)
    assert s.output == f"float32[{BATCH}, {UNITS}]"


@pytest.mark.parametrize("how", ["scan", "remat"])
def test_a_loop_counts_as_often_as_it_runs(how):
    f = in_scan if how == "scan" else jax.checkpoint(in_scan)
    s = bp.summary(lambda p: f(*p))((like(STEPS, UNITS, UNITS), like(BATCH, UNITS)))
    one = 2 * BATCH * UNITS**2
    assert s.forward == STEPS * one
    dots = [o for o in s.operations if o.name == "dot_general"]
    again = STEPS * one if how == "remat" else 0  # computed again in the backward pass
    assert sum(o.backward for o in dots) == 2 * STEPS * one + again
    assert dots[0].times == STEPS
    assert "test_summary.py" in dots[0].line


def test_a_convolution():
    dims = ("NHWC", "HWIO", "NHWC")
    conv = lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims)
    s = bp.summary(conv)(like(3, 3, 2, 4), like(2, 8, 8, 2))
    assert s.forward == 2 * (2 * 8 * 8 * 4) * (3 * 3 * 2)
    (row,) = [o for o in s.operations if o.name == "conv_general_dilated"]
    assert row.shape == "float32[2, 8, 8, 4]"


def test_the_table_and_real_arrays():
    text = str(bp.summary(lambda w, x: jnp.tanh(x @ w))(jnp.ones((2, 3)), jnp.ones((4, 2))))
    assert text.splitlines()[0].split() == ["operation", "result", "times", "FLOPs", "forward", "backward", "line"]
    totals = (
        r"result float64\[4, 3\], 6 parameters, residuals with arguments: 160 bytes\nFLOPs: 60 forward and \d+ backward"
    )
    assert re.fullmatch(totals, "\n".join(text.splitlines()[-2:]))


def test_the_dearest_branch_counts():
    f = lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)
    assert bp.summary(f)(like(UNITS, UNITS), like(BATCH, UNITS)).forward == 2 * BATCH * UNITS**2


def test_what_a_function_returns_may_be_numbers_of_python():
    found = bp.summary(lambda w: {"loss": jnp.sum(w), "count": 3})(jnp.ones(4))
    assert found.parameters == 4 and bp.summary(lambda n: n + 1)(3).parameters == 0
