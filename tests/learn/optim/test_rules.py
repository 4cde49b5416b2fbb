"""One row per learning rule, and every row goes through the same tests: a new rule adds a row here."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcbp as bp
from funcbp import optim

# a rule as a function of its learning rate, a good rate, and how near the minimum of the bowl 100 updates must come
ROWS = {
    "inertia": (lambda rate: optim.inertia(rate, 0.5), 0.5, 1e-6),
    "quickprop": (optim.quickprop, 0.1, 1e-6),
    "quickprop, bare": (lambda rate: optim.quickprop(rate, decay=0.0, split_epsilon=False), 0.1, 1e-12),
    "rprop_plus": (optim.rprop_plus, 0.1, 1e-6),
    "rprop_minus": (optim.rprop_minus, 0.1, 1e-6),
    "irprop_plus": (optim.irprop_plus, 0.1, 1e-6),
    "irprop_minus": (optim.irprop_minus, 0.1, 1e-6),
    "delta_bar_delta": (optim.delta_bar_delta, 0.05, 1e-6),
    "delta_bar_delta, hybrid": (lambda rate: optim.delta_bar_delta(rate, momentum=0.5), 0.05, 1e-6),
    "super_sab": (lambda rate: optim.super_sab(rate, momentum=0.2), 0.05, 1e-6),
    "silva_almeida": (optim.silva_almeida, 0.05, 1e-6),
    "silva_almeida, momentum": (lambda rate: optim.silva_almeida(rate, momentum=0.3), 0.05, 1e-6),
    "bold_driver": (optim.bold_driver, 0.05, 1e-4),
    "vogl": (optim.vogl, 0.05, 1e-4),
    "salomon": (optim.salomon, 0.05, 1e-3),
    "salomon, normalized": (lambda rate: optim.salomon(rate, normalize=True), 0.05, 1e-3),
    "by_path": (lambda rate: optim.by_path({"*/bias": optax.sgd(rate), "*": optim.irprop_minus(rate)}), 0.1, 1e-4),
}
rows = pytest.mark.parametrize(("make", "rate", "near"), ROWS.values(), ids=ROWS)
START = {"dense_0": {"kernel": jnp.array([[2.0], [-1.5]]), "bias": jnp.array([0.7])}}
CURVATURES = {"dense_0": {"kernel": jnp.array([[3.0], [0.5]]), "bias": jnp.array([1.0])}}


def bowl(params):
    """½ Σ λ (w - 0.1)², λ from ½ to 3."""
    squares = jax.tree.map(lambda c, w: jnp.sum(c.astype(w.dtype) * (w - 0.1) ** 2), CURVATURES, params)
    return 0.5 * sum(jax.tree.leaves(squares))


def step(optimizer, carry):
    params, state = carry
    value, gradient = bp.value_and_grad(bowl)(params)
    optimizer = optax.with_extra_args_support(optimizer)
    updates, state = optimizer.update(gradient, state, params, value=value, value_fn=bowl)
    return optax.apply_updates(params, updates), state


def run(optimizer, carry, count):
    return jax.lax.scan(lambda carry, _: (step(optimizer, carry), None), carry, length=count)[0]


def begin(optimizer, params=START):
    return params, optimizer.init(params)


def types(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), tree)


def assert_same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@rows
def test_learns_and_resumes(make, rate, near):
    """In a compiled loop it finds the minimum; stopped, stored and resumed it goes the same way to the last bit."""
    optimizer = make(rate)
    half = jax.jit(lambda carry: run(optimizer, carry, 50))
    middle = half(begin(optimizer))
    assert 0 < bowl(half(middle)[0]) < near * bowl(START) or bowl(half(middle)[0]) == 0
    leaves, tree = jax.tree.flatten(middle)
    file = io.BytesIO()
    np.savez(file, *leaves)
    stored = np.load(io.BytesIO(file.getvalue()))
    resumed = jax.tree.unflatten(tree, [jnp.asarray(stored[f"arr_{i}"]) for i in range(len(leaves))])
    assert_same(half(middle), half(resumed), rtol=0, atol=0)
    np.testing.assert_array_equal(*(half(c)[0]["dense_0"]["kernel"] for c in (middle, resumed)))


@pytest.mark.slow
@rows
def test_plain_calls_and_many_at_once(make, rate, near):
    """Called step by step, and for several rates at once under vmap, it goes the same way as in the loop."""
    rates = jnp.array([rate, rate / 2])

    def learn(rate):
        return run(make(rate), begin(make(rate)), 6)

    together = jax.jit(jax.vmap(learn))(rates)
    for i in (0, 1):
        carry = begin(make(rates[i]))
        for _ in range(6):
            carry = step(make(rates[i]), carry)
        assert_same(jax.tree.map(lambda a, i=i: a[i], together), carry, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@rows
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_types_stay(make, rate, near, dtype):
    optimizer = make(rate)
    params = jax.tree.map(lambda p: p.astype(dtype), START)
    before = begin(optimizer, params)
    after = jax.eval_shape(lambda carry: step(optimizer, carry), before)
    assert types(before) == jax.tree.map(lambda s: (s.shape, s.dtype), after)


@pytest.mark.slow
@rows
def test_chains(make, rate, near):
    """What it hands out can be processed further, and what it gets can come from another transformation."""
    plain, doubled = (make(rate), optax.chain(optax.identity(), make(rate), optax.scale(2.0)))
    moved = jax.tree.map(jnp.subtract, step(plain, begin(plain))[0], START)
    twice = jax.tree.map(jnp.subtract, step(doubled, begin(doubled))[0], START)
    assert_same(twice, jax.tree.map(lambda m: 2 * m, moved), rtol=1e-12)


@pytest.mark.slow(once=[])
@rows
def test_nothing_to_learn(make, rate, near):
    """Where the gradient is zero, the weight stays, and no state becomes nan."""
    optimizer = make(rate)
    carry = begin(optimizer, jax.tree.map(lambda p: jnp.full_like(p, 0.1), START))
    for _ in range(2):
        carry = step(optimizer, carry)
    assert all(np.all(~np.isnan(leaf)) for leaf in jax.tree.leaves(carry))
    if make is not optim.quickprop:  # its decay pulls at the weights
        assert_same(carry[0], jax.tree.map(lambda p: jnp.full_like(p, 0.1), START), rtol=0)
