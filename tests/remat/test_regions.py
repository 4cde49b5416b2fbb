"""The plan outside loops: repeated stretches are one region, the barrier holds, and the gradients stay the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.remat.regions import regions_of

rng = np.random.default_rng(0)
LAYERS = [{k: jnp.asarray(rng.normal(size=s) * 0.1) for k, s in (("up", (8, 32)), ("down", (32, 8)))} for _ in range(5)]
X = jnp.asarray(rng.normal(size=(64, 8)))


def layer(x, w):
    return x + jax.nn.relu(jax.nn.silu(x @ w["up"])) @ w["down"]


def network(layers, x):
    for w in layers:
        x = layer(x, w)
    return jnp.mean(x**2)


def program_of(f, *args):
    leaves, tree = jax.tree.flatten(args)
    return jx.trace(lambda *xs: [f(*jax.tree.unflatten(tree, xs))], [jax.typeof(x) for x in leaves])


def test_equal_layers_are_one_region():
    regions = regions_of(program_of(network, LAYERS, X))
    copies = [r for r in regions if r.planned]
    assert len(copies) == 5
    assert len({id(r.program) for r in copies}) == 1
    assert [len(r.outputs) for r in copies] == [1] * 5  # cut where one value crosses
    assert not regions[-1].planned


def test_layers_that_differ_are_not_taken_for_equal():
    def mixed(layers, x):
        for i, w in enumerate(layers):
            x = x + (jax.nn.relu if i % 2 else jnp.tanh)(x @ w["up"]) @ w["down"]
        return jnp.mean(x**2)

    @jax.custom_jvp
    def odd(x):
        return x * 2

    odd.defjvp(lambda p, t: (odd(*p), 3 * t[0]))

    @jax.custom_jvp
    def even(x):
        return x * 2

    even.defjvp(lambda p, t: (even(*p), 2 * t[0]))

    def alternate(layers, x):  # equal values, another derivative
        for i, w in enumerate(layers):
            x = (even if i % 2 else odd)(x @ w["up"]) @ w["down"]
        return jnp.mean(x)

    for f in (mixed, alternate):
        programs = [r.program for r in regions_of(program_of(f, LAYERS[:4], X)) if r.planned]
        shared = [p for p in programs if sum(p is q for q in programs) > 1]
        assert len(shared) == 2
        assert all(sum(e.primitive.name == "dot_general" for e in p.eqns) == 4 for p in shared)  # two layers each


@pytest.mark.parametrize("residuals", ["min_cut_cheap", bp.Budget(fraction=0.35)], ids=["min_cut_cheap", "Budget"])
def test_gradients_stay_and_memory_falls(residuals):
    """Measured on the compiled program: a barrier that XLA saw through would leave the bytes where they were."""
    plain = jax.jit(bp.grad(network)).lower(LAYERS, X).compile()
    planned = bp.Backward(residuals=residuals, outside_loops=True)
    ours = jax.jit(planned.grad(network)).lower(LAYERS, X).compile()
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-14), ours(LAYERS, X), plain(LAYERS, X)
    )
    temp = [c.memory_analysis().temp_size_in_bytes for c in (ours, plain)]
    assert temp[0] < 0.75 * temp[1]
    contractions = [count(jax.make_jaxpr(g.grad(network))(LAYERS, X).eqns) for g in (planned, bp.Backward())]
    if residuals == "min_cut_cheap":
        assert contractions[0] == contractions[1]


def count(eqns):
    """Contractions, of branches the longest."""
    of = lambda e: max((count(j.eqns) for j in jx.cond_branches(e.params)), default=0)
    return sum(
        (e.primitive.name == "dot_general") + (of(e) if e.primitive.name == "cond" else count(jx.inner(e)))
        for e in eqns
    )


@pytest.mark.slow
def test_compiled_calls_are_looked_into_and_auxiliary_data_come_out():
    f = jax.jit(lambda layers, x: (network(layers, x), {"mean": x.mean()}))
    backward = bp.Backward(outside_loops=True)
    (value, aux), grads = backward.value_and_grad(f, has_aux=True)(LAYERS[:2], X)
    want, expected = jax.value_and_grad(network)(LAYERS[:2], X)
    np.testing.assert_allclose([value, aux["mean"]], [want, X.mean()], rtol=1e-12)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-14), grads, expected)
    regions = [e for e in jax.make_jaxpr(lambda w: backward.vjp(lambda w: f(w, X)[0], w)[0])(LAYERS[:2]).eqns]
    assert sum(e.primitive.name == "remat2" for e in regions) == 2
    second = bp.hvp(lambda t: backward.grad(lambda s: jnp.sin(jnp.exp(s)))(t), (0.5,), (1.0,))
    third = jax.grad(jax.grad(jax.grad(lambda s: jnp.sin(jnp.exp(s)))))(0.5)
    np.testing.assert_allclose(second, third, rtol=1e-10)


@pytest.mark.parametrize(
    "join", [lambda i, h, x: h - x if i % 2 else x - h, lambda i, h, x: x + h ** (2 + i % 2)], ids=["wiring", "power"]
)
def test_layers_that_differ_in_wiring_or_in_a_number_keep_their_gradients(join):
    def f(layers, x):
        for i, w in enumerate(layers):
            x = join(i, x @ w["up"] @ w["down"], x)
        return jnp.mean(jnp.exp(x))

    got = bp.Backward(outside_loops=True).grad(f)(LAYERS[:3], X)
    want = jax.jit(jax.grad(f))(LAYERS[:3], X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15), got, want)


@pytest.mark.parametrize("residuals", ["min_cut", "inputs", bp.Budget(1.0)], ids=str)
def test_numbers_that_are_no_arrays_come_back_as_they_are(residuals):
    table = np.ones(2)
    backward = bp.Backward(residuals=residuals, outside_loops=True)
    for out, aux in [((2.0, True, table), 3), ((np.float32(2),), (1j, "text"))]:
        f = lambda x, out=out: (jnp.sin(x), *out)
        found, pullback = backward.vjp(f, 1.5)
        assert [*map(type, found[1:])] == [*map(type, jax.vjp(f, 1.5)[0][1:])] and found[1:] == out
        np.testing.assert_allclose(pullback(jax.tree.map(np.ones_like, found))[0], np.cos(1.5), rtol=1e-6)
        (_, found), gradient = backward.value_and_grad(lambda x, aux=aux: (jnp.sin(x), aux), has_aux=True)(1.5)
        assert jax.tree.map(type, found) == jax.tree.map(type, aux) and found == aux
        np.testing.assert_allclose(gradient, np.cos(1.5), rtol=1e-6)
