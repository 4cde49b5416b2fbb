"""Losses of one example, and all that a leaf can be asked."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp.per_example import examples
from funcbp.per_example import leaf as leaves

TOLERANCE = 1e-10
N = 3


def key(i):
    return jax.random.key(i)


def normal(i, *shape):
    return jax.random.normal(key(i), shape)


def assert_close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = jax.tree.map(np.asarray, (ours, theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert np.max(np.abs(a - b), initial=0) <= tolerance * max(np.max(np.abs(b), initial=0), 1e-3)


def flat(gradients):
    """J: one row per example."""
    leaves = jax.tree.leaves(gradients)
    return jnp.concatenate([g.reshape(g.shape[0], g.size // g.shape[0]) for g in leaves], 1)


@contextlib.contextmanager
def preferring(method):
    """Choose one of the methods, whatever it costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaves, "cheapest", lambda *_: method)
        patch.setattr(leaves, "cost_between", lambda *_: 0 if method == "factors" else np.inf)
        yield


def everything(loss, params, batch, by=("factors", "products")):
    """All that a leaf can be asked, by each method; and the same from `vmap(jax.grad)`."""
    c = jnp.arange(1.0, examples.batch_size(batch) + 1)

    def asked(leaf, method):
        with preferring(method):
            again = leaves.Leaf(leaf.path, leaf.aval, leaf.ct, leaf.n)
            first = again.inner_products(again), again.weighted_sum(c), again.squared_norms()
            return *first, again.weighted_sum(c), again.sum_of_squares(), again.arrays()

    def ours(params, batch):
        found = examples.backpropagate(loss, params, batch, backward=bp.Backward())
        return [[asked(leaf, method) for leaf in found.leaves] for method in by]

    def theirs(params, batch):
        out = []
        for g in jax.tree.leaves(jax.vmap(jax.grad(loss), (None, 0))(params, batch)):
            rows = g.reshape(g.shape[0], g.size // g.shape[0])
            weighted = jnp.tensordot(c, g, 1)
            out.append((rows @ rows.T, weighted, jnp.sum(rows**2, 1), weighted, jnp.sum(g**2, 0), g))
        return [out] * len(by)

    return jax.jit(lambda *args: (ours(*args), theirs(*args)))(params, batch)


W = normal(10, 4, 4)


def transposed(w, x):
    return jnp.sum(jnp.tanh(jnp.einsum("ij,pj->ip", w, x)) ** 2)


@functools.cache
def problem():
    net = bp.nets.mlp([3, 4, 2])
    params = net.init(key(0), jnp.zeros(3))
    loss = lambda params, example: bp.ops.squared_error(net.apply(params, example[0]), example[1])
    batch = normal(1, 5, 3), normal(2, 5, 2)
    return loss, params, batch, jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, batch)
