"""Calls of jitted functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp


@jax.jit
def layer(w, x):
    for _ in range(3):
        x = x + 0.1 * jnp.tanh(x @ w)
    return bp.name(x / jnp.sqrt(jnp.sum(x**2) + 1.0), "out")


def loss(ws, x):
    for w in ws:
        x = layer(w, x)
    return x.sum()


def weights(n):
    return [jnp.asarray(np.random.default_rng(i).normal(size=(3, 3))) for i in range(n)]


X = np.linspace(-1.0, 1.0, 3)


def test_a_function_called_more_often_is_lowered_once():
    def functions(n):
        text = jax.jit(bp.grad(loss)).lower(weights(n), X).as_text()
        return text.count("func.func"), text.count("stablehlo.tanh")

    assert functions(3) == functions(6)


@pytest.mark.parametrize("order", [1, 2])
def test_both_passes_have_the_calls_of_the_program(order):
    def calls(grad):
        f = lambda ws: grad(loss)(ws, X)
        if order == 2:
            f = grad(lambda ws: sum(jnp.sum(g**2) for g in grad(loss)(ws, X)))
        return [eqn.primitive.name for eqn in jax.make_jaxpr(f)(weights(3)).eqns].count("jit")

    assert calls(bp.grad) == calls(jax.grad) == 6 * order


@pytest.mark.slow(once=[])
@pytest.mark.parametrize(
    "around",
    [
        lambda f: f,
        jax.jit,
        lambda f: lambda ws: jax.vmap(lambda s: f([s * w for w in ws]))(jnp.arange(1.0, 3.0)),
        lambda f: lambda ws: jax.lax.map(lambda s: f([s * w for w in ws]), jnp.arange(1.0, 3.0)),
    ],
    ids=["eager", "jit", "vmap", "scan"],
)
def test_gradients_are_right(around):
    want = around(lambda ws: jax.grad(loss)(ws, X))(weights(3))
    got = around(lambda ws: bp.grad(loss)(ws, X))(weights(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), got, want)


def test_second_order():
    twice = lambda grad: grad(lambda ws: sum(jnp.sum(g**2) for g in grad(loss)(ws, X)))
    got, want = (jax.jit(twice(grad))(weights(2)) for grad in (bp.grad, jax.grad))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, want)


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_edits_and_rules_reach_inside(run):
    # each layer's cotangent is replaced, so only the last replacement goes on: that of the first layer
    edit = bp.Backward(edits={"out": lambda ct, named: jnp.full_like(ct, 2.0)})
    got = run(edit.grad(loss))(weights(2), X)
    want = jax.vjp(layer, weights(2)[0], X)[1](jnp.full(3, 2.0))[0]
    np.testing.assert_allclose(got[0], want, rtol=1e-12)
    flat = bp.Backward(rules={jax.lax.tanh_p: bp.rule(lambda res, ct, perturbed, **_: [jnp.zeros_like(ct)])})
    w = weights(1)
    np.testing.assert_array_equal(run(flat.grad(loss))(w, X)[0], jnp.zeros((3, 3)))


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_what_is_found_inside_is_known_outside(run):
    edit = bp.Backward(edits={"in": lambda ct, named: 2 * named["out"]})
    got = run(edit.grad(lambda x: (layer(weights(1)[0], bp.name(x, "in")) * jnp.arange(3.0)).sum()))(X)
    np.testing.assert_allclose(got, [0.0, 2.0, 4.0])


def test_a_plan_looks_inside():
    """A loop of calls keeps as much as a loop of the same operations written out."""

    def sizes(f):
        run = lambda ws: jax.lax.scan(lambda x, w: (f(w, x), None), X, ws)[0].sum()
        pullback = bp.vjp(run, jnp.stack(weights(4)))[1]
        return sorted(x.size for x in pullback.saved)

    assert sizes(layer) == sizes(layer.__wrapped__)


def test_a_call_goes_back_from_the_outputs_that_have_a_cotangent_and_is_traced_for_no_others():
    def tanh_bwd(x, ct, perturbed, **_):
        traced.append(ct.shape)
        return (ct / jnp.cosh(x) ** 2,)

    @jax.jit
    def inner(x):
        return (y := jnp.tanh(x)), jnp.tanh(y)

    @jax.jit
    def outer(x):
        y, z = inner(x)
        return y, z, jnp.tanh(z)

    f = lambda x: outer(x)[0].sum()
    traced = []
    grad = jax.jit(bp.Backward(rules={jax.lax.tanh_p: bp.rule(tanh_bwd, save=lambda kept, *_: kept[0])}).grad(f))
    np.testing.assert_allclose(grad(X), 1 / np.cosh(X) ** 2, rtol=1e-12)
    assert traced == [X.shape]
    assert jax.jit(bp.grad(f)).lower(X).as_text().count("stablehlo.tanh") == 1  # what nothing reads is dropped
