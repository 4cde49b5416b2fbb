"""A program to plan for."""

import jax
import jax.numpy as jnp
import pytest

from funcbp import jaxpr as jx


def body(x, w):
    a = x @ w  # wide, dear
    b = jnp.sin(a)
    c = jnp.sum(b, 1)  # narrow, cheap
    d = jnp.exp(jnp.broadcast_to(c[:, None], (4, 6)))
    e = d @ w.T  # dear
    f = jnp.tanh(e) * b[:, :3]
    return [f, b, d, e]


@pytest.fixture(scope="module")
def program():
    return jx.trace(lambda x, w: body(x, w), [jax.typeof(jnp.ones((4, 3))), jax.typeof(jnp.ones((3, 6)))])
