"""Products of a loop's constants that wait until the loop has ended."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.remat import sinking

from .programs import rng


def recurrent(w, xs):
    units = xs.shape[-1]
    step = lambda h, x: (jnp.tanh((jnp.concatenate([x, h], -1) @ w)[:, :units]), None)
    return lax.scan(step, xs[0], xs)[0].sum()


@pytest.mark.parametrize(
    ("batch", "units", "waits"), [(1, 128, True), (16, 128, False), (128, 128, False), (1, 32, False)]
)
def test_small_products_of_a_large_weight_wait(batch, units, waits):
    """The sizes of W6: for a batch of 1 after the loop; for 16 and 128 the stacks would take more than they save."""
    w, xs = jnp.ones((2 * units, 4 * units), jnp.float32), jnp.ones((3, batch, units), jnp.float32)
    *_, last = (e for e in jax.make_jaxpr(bp.grad(recurrent))(w, xs).eqns if e.primitive.name == "scan")
    assert sum(e.primitive.name == "dot_general" for e in jx.inner(last)) == (1 if waits else 2)


def test_waiting_changes_no_gradient(monkeypatch):
    w, xs = jnp.asarray(rng.normal(size=(8, 16))), jnp.asarray(rng.normal(size=(5, 2, 4)))
    monkeypatch.setattr(sinking, "SINK", sinking.Deferral(0.0, 0))

    def nested(w, xs):
        return lax.scan(lambda c, _: (c + recurrent(w * c, xs), None), 1.0, None, 2)[0]

    for f in (recurrent, nested):
        got = jax.jit(bp.grad(lambda w, xs, f=f: f(w, xs), (0, 1)))(w, xs)
        want = jax.jit(jax.grad(f, (0, 1)))(w, xs)
        jax.tree.map(lambda g, h: np.testing.assert_allclose(g, h, rtol=1e-11, atol=1e-12), got, want)
