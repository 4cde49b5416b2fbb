"""The order in which the contractions of the way back are written, and how much of them is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
X, CT = normal(2, 3, 4), normal(2, 3, 5)

READS = {
    "x W": ((4, 5), lambda w: X @ w, lambda: jnp.einsum("btd,btv->dv", X, CT)),
    "x E'": ((5, 4), lambda w: X @ w.T, lambda: jnp.einsum("btv,btd->vd", CT, X)),
    "x E by einsum": ((5, 4), lambda w: jnp.einsum("btd,vd->btv", X, w), lambda: jnp.einsum("btv,btd->vd", CT, X)),
    "W' x": ((4, 5), lambda w: jnp.einsum("dv,btd->btv", w, X), lambda: jnp.einsum("btd,btv->dv", X, CT)),
    "turned over twice": ((4, 5), lambda w: X @ w.T.T, lambda: jnp.einsum("btd,btv->dv", X, CT)),
    "heads": (
        (4, 5, 6),
        lambda w: jnp.einsum("btd,dhk->bthk", X, w).sum(-1),
        lambda: jnp.broadcast_to(jnp.einsum("btd,bth->dh", X, CT)[..., None], (4, 5, 6)),
    ),
}


def equations(f, *args):
    return [e for e in jax.make_jaxpr(f)(*args).eqns if e.primitive.name in ("dot_general", "transpose")]


@pytest.mark.parametrize("name", READS)
def test_no_transposition_follows_the_gradient_of_a_weight(name):
    """A transposed product of two contracted axes is three times as slow on a CPU."""
    shape, net, want = READS[name]
    loss = lambda w: (net(w) * CT).sum()
    w = normal(*shape)
    np.testing.assert_allclose(bp.grad(loss)(w), want(), rtol=1e-12, atol=1e-12)
    back = equations(bp.grad(loss), w)[len(equations(loss, w)) :]
    assert [e.primitive.name for e in back] == ["dot_general"]
    assert back[0].outvars[0].aval.shape == shape


def test_a_precision_of_each_factor_goes_with_it():
    """Whichever is first: the cotangent has that of the primal product's first factor, as in JAX."""
    pair = (lax.Precision.HIGHEST, lax.Precision.DEFAULT)
    loss = lambda x, w: jnp.matmul(x, w, precision=pair).sum()
    _, *back = equations(bp.grad(loss, (0, 1)), X[0], normal(4, 5))
    shapes = {e.outvars[0].aval.shape: e.params["precision"] for e in back}
    assert shapes == {(3, 4): pair, (4, 5): pair[::-1]}


PLACES = {
    "contracted, second": (lambda a, b, w: jnp.concatenate([a, b], 1) @ w, (3, 2), (3, 4), (6, 5), (3, 4)),
    "contracted, first": (lambda b, a, w: jnp.concatenate([a, b], 1) @ w, (3, 4), (3, 2), (6, 5), (3, 2)),
    "its own": (lambda a, b, w: jnp.concatenate([a, b]) @ w, (2, 6), (4, 6), (6, 5), (4, 6)),
    "second factor": (lambda a, b, w: w @ jnp.concatenate([a, b], 1), (6, 2), (6, 4), (5, 6), (6, 4)),
    "batch": (
        lambda a, b, w: jnp.einsum("bij,bjk->bik", jnp.concatenate([a, b]), w),
        (1, 3, 4),
        (2, 3, 4),
        (3, 4, 5),
        (2, 3, 4),
    ),
    "two products": (
        lambda a, b, w: (lambda x: jnp.tanh(x @ w) + 2 * x @ w)(jnp.concatenate([a, b], 1)),
        (3, 2),
        (3, 4),
        (6, 5),
        (3, 4),
    ),
    "a product and more": (
        lambda a, b, w: (lambda x: (x @ w).sum() + (x**2).sum())(jnp.concatenate([a, b], 1)),
        (3, 2),
        (3, 4),
        (6, 5),
        (3, 4),
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_of_what_is_joined_only_what_is_asked_for_is_computed(name):
    f, *shapes, part = PLACES[name]
    a, b, w = (normal(*s) for s in shapes)
    loss = lambda b: jnp.sin(f(a, b, w)).sum()
    got = bp.grad(loss)(b)
    step = 1e-6 * normal(*got.shape)
    np.testing.assert_allclose(jnp.vdot(got, step), (loss(b + step) - loss(b - step)) / 2, rtol=1e-6)
    _, *back = [e for e in equations(bp.grad(loss), b) if e.primitive.name == "dot_general"]
    assert [e.outvars[0].aval.shape for e in back[-1:]] == [part]


def test_of_several_that_are_joined_what_lies_between_is_computed():
    """In one product, not one for each."""
    a, b, c, w = normal(3, 2), normal(3, 4), normal(3, 1), normal(7, 5)
    loss = lambda b, c: jnp.sin(jnp.concatenate([a, b, c], 1) @ w).sum()
    got, want = (api.grad(loss, (0, 1))(b, c) for api in (bp, jax))
    jax.tree.map(lambda g, h: np.testing.assert_allclose(g, h, rtol=1e-12), got, want)
    _, *back = equations(bp.grad(loss, (0, 1)), b, c)
    assert [e.outvars[0].aval.shape for e in back] == [(3, 5)]


def test_of_a_weight_whose_own_axes_change_places_the_gradient_is_turned_back():
    """The axes of the output follow those of the weight as it is read."""
    heads = lambda v: lax.dot_general(X, v.transpose(2, 1, 0), (((2,), (0,)), ((), ())))
    ct = normal(2, 3, 5, 5)
    got = bp.grad(lambda v: (heads(v) * ct).sum())(normal(5, 5, 4))
    np.testing.assert_allclose(got, jnp.einsum("btd,bthk->khd", X, ct), rtol=1e-12)
