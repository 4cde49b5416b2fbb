"""Norms, clipped and weighted gradients, against those of every example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp

from .problems import assert_close, flat, key, problem


def test_norms():
    loss, params, batch, gradients = problem()
    expected = jnp.linalg.norm(flat(gradients), axis=1)
    norms, mean = jax.jit(bp.per_example.norms(loss, with_grad=True))(params, batch)
    assert_close((norms, mean), (expected, jax.tree.map(lambda g: g.mean(0), gradients)))
    assert_close(jax.jit(bp.per_example.norms(loss, squared=True))(params, batch), expected**2)
    per_leaf = jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g.reshape(5, -1) ** 2, 1)), gradients)
    assert_close(jax.jit(bp.per_example.norms(loss, per_leaf=True))(params, batch), per_leaf)


@pytest.mark.parametrize("masked", [False, True])
def test_clipping(masked):
    loss, params, batch, gradients = problem()
    n = jnp.linalg.norm(flat(gradients), axis=1)
    bound = float(jnp.sort(n)[2]) * 1.001  # two of five are above
    mask = jnp.array([1.0, 1, 0, 1, 1]) if masked else jnp.ones(5)
    c = jnp.minimum(1, bound / n)
    args = (mask,) if masked else ()
    ours, found = jax.jit(bp.per_example.clipped_grad(loss, bound, divide_by=4))(params, batch, *args)
    assert_close(ours, jax.tree.map(lambda g: jnp.tensordot(c * mask / 4, g, 1), gradients))
    assert_close(found.losses, jax.vmap(loss, (None, 0))(params, batch))
    assert_close((found.norms, found.scales), (n, c))
    assert_close(found.clipped, jnp.sum(jnp.where(c < 1, mask, 0)) / jnp.sum(mask))


@pytest.mark.parametrize("bounds", ["one", "a tree"])
def test_clipping_by_leaf(bounds):
    loss, params, batch, gradients = problem()
    bound = 0.1 if bounds == "one" else jax.tree.map(lambda p: 0.01 * p.size, params)
    ours, found = bp.per_example.clipped_grad(loss, bound, per_leaf=True)(params, batch)
    tree = bound if bounds == "a tree" else jax.tree.map(lambda p: bound, params)

    def clipped(g, bound):
        n = jnp.sqrt(jnp.sum(g.reshape(5, -1) ** 2, 1))
        return jnp.tensordot(jnp.minimum(1, bound / n) / 5, g, 1)

    assert_close(ours, jax.tree.map(clipped, gradients, tree))
    assert jax.tree.structure(found.norms) == jax.tree.structure(params)
    mask = np.array([1, 1, 0, 1, 0])
    _, found = bp.per_example.clipped_grad(loss, bound, per_leaf=True)(params, batch, mask)
    beyond = [n[mask == 1] > b for n, b in zip(*map(jax.tree.leaves, (found.norms, tree)), strict=True)]
    assert_close(found.clipped, jnp.mean(jnp.stack(beyond).astype(float)))


def test_a_gradient_of_zero_is_not_divided_by_its_norm():
    gradient, found = bp.per_example.clipped_grad(lambda w, x: w * x, 1.0)(jnp.array(1.0), jnp.array([0.0, 3.0]))
    assert_close((gradient, found.scales), (jnp.array(0.5), jnp.array([1.0, 1 / 3])))


def test_clipping_costs_about_one_gradient():
    """In operations, whatever the number of examples."""
    net = bp.nets.mlp([64, 64, 64, 8], activation=bp.ops.relu)
    params = net.init(key(0), jnp.zeros(64))
    loss = lambda params, example: bp.ops.squared_error(net.apply(params, example[0]), example[1])
    batch = jnp.ones((128, 64)), jnp.ones((128, 8))
    if jax.jit(jnp.sin).lower(1.0).cost_analysis() is None:
        pytest.skip("where this runs, XLA counts no operations of what it has not compiled")
    flops = lambda f: jax.jit(f).lower(params, batch).cost_analysis()["flops"]
    plain = flops(jax.grad(lambda params, batch: jnp.mean(jax.vmap(loss, (None, 0))(params, batch))))
    assert flops(bp.per_example.clipped_grad(loss, 1.0)) < 1.1 * plain
    assert flops(bp.per_example.norms(loss)) < 0.8 * plain  # weight gradients are not made at all
