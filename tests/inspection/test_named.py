"""Cotangents by name, against JAX's gradient with respect to a value added there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

DRAW = np.random.default_rng(0)
W, X = jnp.asarray(DRAW.standard_normal((3, 4, 4))), jnp.asarray(DRAW.standard_normal((5, 4)))
norm = lambda ct: jnp.sqrt(jnp.sum(ct**2))


def layer(h, w, probe):
    return bp.name(jnp.tanh(h @ w) + probe, "h")


def network(how):
    """A loss with a probe added to each layer's output: its gradient is what should be found."""
    zeros = jnp.zeros((3, 5, 4))

    def python(w, x, probes=zeros):
        for i in range(3):
            x = layer(x, w[i], probes[i])
        return jnp.sum(x**2)

    def scan(w, x, probes=zeros):
        step = lambda h, wp: (layer(h, *wp), None)
        step = jax.checkpoint(step) if how == "remat in scan" else step
        return jnp.sum(lax.scan(step, x, (w, probes))[0] ** 2)

    def cond(w, x, probes=zeros):
        for i in range(3):
            x = lax.cond(i == 1, layer, lambda h, w, p: 2 * layer(h, w, p), x, w[i], probes[i])
        return jnp.sum(x**2)

    return {"python": python, "cond": cond}.get(how, scan)


@pytest.mark.parametrize("how", ["python", "scan", "remat in scan", "cond"])
def test_what_is_found_is_the_gradient_of_a_probe(how):
    loss = network(how)
    value, grads, found = bp.cotangents(loss)(W, X)
    want_value, (want, probes) = jax.value_and_grad(loss, (0, 2))(W, X, jnp.zeros((3, 5, 4)))
    np.testing.assert_allclose(value, want_value)
    np.testing.assert_allclose(grads, want, rtol=1e-11)
    np.testing.assert_allclose(jnp.stack(found["h"]), probes, rtol=1e-11)


@pytest.mark.parametrize("how", ["python", "scan"])
def test_reduced_and_compiled(how):
    loss = network(how)
    _, probes = jax.value_and_grad(loss, 2)(W, X, jnp.zeros((3, 5, 4)))
    found = jax.jit(bp.cotangents(loss, names=["h"], reduce=norm))(W, X)[2]
    np.testing.assert_allclose(jnp.stack(found["h"]), [norm(p) for p in probes])


def test_aux_argnums_and_selected_names():
    def loss(w, x):
        a, b = bp.name(w @ x, "a"), bp.name(w * 2, "b")
        return jnp.sum(a) + jnp.sum(b**2), a

    (value, aux), grads, found = bp.cotangents(loss, names=["a"], has_aux=True, argnums=(0, 1))(W[0], X.T)
    np.testing.assert_allclose(aux, W[0] @ X.T)
    assert value.shape == () and [g.shape for g in grads] == [(4, 4), (4, 5)]
    assert set(found) == {"a"}
    np.testing.assert_array_equal(found["a"], np.ones((4, 5)))


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match="has the names 'x', 'y', and the names there are: 'h'"):
        jax.jit(bp.cotangents(network("scan"), names=["x", "y"]))(W, X)
