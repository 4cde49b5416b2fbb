"""Factors, inner products and cosines of the examples' gradients."""

import jax
import jax.numpy as jnp
import pytest

import funcbp as bp

from .problems import assert_close, flat, problem


@pytest.mark.slow
def test_factors_multiply_to_the_gradients():
    loss, params, batch, gradients = problem()
    found = jax.jit(bp.per_example.factors(loss))(params, batch)
    assert set(found) == {"dense_0/kernel", "dense_1/kernel"}
    for path, (x, deltas) in found.items():
        layer, name = path.split("/")
        assert_close(jnp.einsum("npi,npo->nio", x, deltas), gradients[layer][name])
    assert_close(found["dense_0/kernel"][0][:, 0], batch[0])


def test_gram_and_cosines():
    loss, params, batch, gradients = problem()
    rows = flat(gradients)
    assert_close(bp.per_example.gram(lambda params, x: jnp.sum(x))({}, batch[0]), jnp.zeros((5, 5)))
    assert_close(jax.jit(bp.per_example.gram(loss))(params, batch), rows @ rows.T)
    unit = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    assert_close(jax.jit(bp.per_example.cosines(loss))(params, batch), unit @ unit.T)
    of_nothing = bp.per_example.cosines(lambda w, x: w @ x)(jnp.zeros(2), jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    assert_close(of_nothing, jnp.array([[0.0, 0.0], [0.0, 1.0]]))  # a gradient of zero has no direction
    outputs = lambda params, x: bp.nets.mlp([3, 4, 2]).apply(params, x)
    jacobian = flat(
        jax.tree.map(lambda j: j.reshape(10, -1), jax.jit(jax.vmap(jax.jacrev(outputs), (None, 0)))(params, batch[0]))
    )
    assert_close(jax.jit(bp.per_example.gram(outputs))(params, batch[0]).reshape(10, 10), jacobian @ jacobian.T)
