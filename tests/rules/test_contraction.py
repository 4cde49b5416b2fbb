"""The order in which the contractions of the way back are written, and how much of them is."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx

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


def products(f, *args):
    """The products anywhere in a program."""
    return [o.eqn for o in jx.equations(jax.make_jaxpr(f)(*args)) if o.eqn.primitive.name == "dot_general"]


SMALL = {
    "4 x 4": ("bij,bjk->bik", (8, 4, 4), (8, 4, 4)),
    "of both transposed": ("bji,bkj->bik", (8, 4, 5), (8, 6, 4)),
    "batch last": ("ijb,jkb->bik", (4, 4, 9), (4, 4, 9)),
    "two batch axes": ("abij,ajbk->abik", (2, 4, 2, 7), (2, 7, 4, 5)),
    "of several rows": ("bijk,bkl->blij", (8, 2, 2, 4), (8, 4, 4)),
    "several summed": ("bjik,kbjl->bil", (8, 2, 4, 3), (3, 8, 2, 4)),
    "12 x 12, read across": ("bij,bjk->bik", (8, 12, 12), (8, 12, 12)),
}


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("name", SMALL)
def test_small_matrices_of_a_batch_are_multiplied_at_once(name, dtype):
    """XLA's CPU compiler calls a routine for each of them. A product is linear in each operand."""
    spec, *shapes = SMALL[name]
    draw = lambda shape: lax.complex(normal(*shape), normal(*shape)) if dtype is complex else normal(*shape)
    f, (x, y) = lambda x, y: jnp.einsum(spec, x, y), map(draw, shapes)
    ct = draw(f(x, y).shape)
    back = lambda ct: bp.vjp(f, x, y)[1](ct)
    for i, (got, step) in enumerate(zip(jax.jit(back)(ct), map(draw, shapes), strict=True)):
        want = (ct * f(*(step if j == i else a for j, a in enumerate((x, y))))).sum()
        np.testing.assert_allclose((got * step).sum(), want, rtol=1e-10)
    large = max(map(max, shapes)) > 9
    left = {float: 2 if large else 1, complex: 1 if name in ("4 x 4", "batch last", "of several rows") else 3}[dtype]
    assert len(products(back, ct)) == left  # the way forward's own, and what XLA's library is as fast at


ALONE = {
    "few of them": ("bij,bjk->bik", (7, 4, 4), (7, 4, 4), {}),
    "so small that they are written out": ("bij,bjk->bik", (64, 3, 3), (64, 3, 3), {}),
    "with vectors": ("bij,bj->bi", (64, 7, 7), (64, 7), {}),
    "outer ones": ("bi,bj->bij", (64, 8), (64, 8), {}),
    "larger ones": ("bij,bjk->bik", (64, 16, 16), (64, 16, 16), {}),
    "of one matrix": ("bij,jk->bik", (64, 4, 4), (4, 4), {}),
    "narrow ones": ("bij,bjk->bik", (64, 4, 4), (64, 4, 4), {"dtype": jnp.bfloat16}),
    "by an algorithm": (
        "bij,bjk->bik",
        (64, 4, 4),
        (64, 4, 4),
        {"precision": lax.DotAlgorithmPreset.F32_F32_F32},
    ),
    "into another dtype": ("bij,bjk->bik", (64, 4, 4), (64, 4, 4), {"preferred": jnp.float64}),
}


@pytest.mark.parametrize("name", ALONE)
def test_other_products_are_left_to_the_compiler(name):
    spec, *shapes, how = ALONE[name]
    x, y = (normal(*s).astype(how.get("dtype", jnp.float32)) for s in shapes)
    f = lambda x, y: jnp.einsum(spec, x, y, preferred_element_type=how.get("preferred"), precision=how.get("precision"))
    back = lambda ct: bp.vjp(f, x, y)[1](ct)
    ct = jnp.ones_like(f(x, y))
    assert len(products(back, ct)) == len(products(lambda ct: jax.vjp(f, x, y)[1](ct), ct))


def test_on_another_device_than_a_cpu_small_matrices_are_left_to_the_compiler(monkeypatch):
    x, ct = normal(8, 4, 4), normal(8, 4, 4)
    count = lambda: len(products(lambda ct: bp.vjp(lambda x: x @ x, x)[1](ct), ct))
    assert count() == 1
    monkeypatch.setattr("funcbp.rules.forms.device_here", lambda: SimpleNamespace(platform="gpu"))
    assert count() == 3


@pytest.mark.parametrize("where", ["loop", "jit", "vmap", "checkpoint", "outside_loops", "second order", "attach"])
def test_small_matrices_inside(where):
    """Against finite differences; in a loop the way forward has no product either."""
    w, x = 0.4 * normal(8, 4, 4), normal(8, 4, 4)
    step = lambda x, _: (jnp.sin(x @ w) @ x, None)
    wrap = {"jit": jax.jit, "checkpoint": jax.checkpoint, "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0]}
    if where == "loop":
        f = lambda x: (lax.scan(step, x, None, 3)[0] ** 2).sum()
    else:
        f = lambda x: (wrap.get(where, lambda f: f)(lambda x: step(x, None)[0])(x) ** 2).sum()
    backward = bp.Backward(outside_loops=where == "outside_loops")
    ours = jax.grad(backward.attach(f)) if where == "attach" else backward.grad(f)
    if where == "second order":
        first, along = f, normal(*x.shape)
        f = lambda x: jnp.vdot(along, backward.grad(first)(x))
        ours = backward.grad(f)
    got, v = jax.jit(ours)(x), normal(*x.shape)
    np.testing.assert_allclose(jnp.vdot(got, v), (f(x + 1e-5 * v) - f(x - 1e-5 * v)) / 2e-5, rtol=1e-7)
    if where == "loop":
        assert not products(ours, x)


def test_a_product_of_small_matrices_into_another_dtype_keeps_it_in_a_loop():
    """Each sum is 1 + 2**-30, which is 1 in float32."""
    x = jnp.ones((8, 4, 4), jnp.float32).at[:, :, 1:].set(2.0**-15 / 3**0.5)
    wide = lambda x: jnp.einsum("bij,bkj->bik", x, x, preferred_element_type=jnp.float64)
    f = lambda x: (lax.scan(lambda c, _: (c + wide(x), None), jnp.zeros((8, 4, 4)), None, 1)[0] - 1).sum()
    value, _ = jax.jit(bp.value_and_grad(f))(x)
    assert value == pytest.approx(128 * 2.0**-30, rel=1e-6)
