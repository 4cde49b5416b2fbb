"""The check of a gradient: right ones pass, planted wrong ones do not, leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import nets, ops, train
from funcbp.testing import compare_gradients, without_rules
from funcbp.testing.gradients import extrapolate

X = jax.random.normal(jax.random.key(0), (12, 3), jnp.float32)
LABELS = jnp.arange(12) % 2


def setting(activation=ops.tanh):
    net = nets.mlp([3, 5, 2], activation)
    params = jax.tree.map(lambda p: p + 0.05, net.init(jax.random.key(1), X))
    return train.classification(net).loss, params


@pytest.mark.parametrize("activation", [ops.tanh, ops.relu, ops.gelu, ops.elu], ids=lambda f: f.__name__)
def test_right_gradients_pass(activation):
    loss, params = setting(activation)
    checks = compare_gradients(loss, params, X, LABELS)
    assert [c.path for c in checks] == ["dense_0/bias", "dense_0/kernel", "dense_1/bias", "dense_1/kernel"]
    assert [c.shape for c in checks] == [(5,), (3, 5), (2,), (5, 2)]
    for check in checks:
        assert check.ok and check.against_jax < 1e-14 and check.against_differences < 1e-8


def spoil(leaf, change):
    """A gradient that is wrong in one leaf."""

    def value_and_grad(loss):
        def wrong(params, *args):
            value, grads = bp.value_and_grad(loss)(params, *args)
            layer, name = leaf.split("/")
            return value, {**grads, layer: {**grads[layer], name: change(grads[layer][name])}}

        return wrong

    return value_and_grad


@pytest.mark.slow(once=["leaf", "change"])
@pytest.mark.parametrize("leaf", ["dense_0/bias", "dense_0/kernel", "dense_1/bias", "dense_1/kernel"])
@pytest.mark.parametrize(
    "change",
    [
        lambda g: 1.00001 * g,
        lambda g: -g,
        lambda g: 0 * g,
        lambda g: g[::-1],
        lambda g: g.at[(0,) * g.ndim].add(1e-4),
        lambda g: g + jnp.nan,
    ],
    ids=["factor", "sign", "zero", "order", "element", "nan"],
)
def test_a_wrong_leaf_is_found_by_both_witnesses(leaf, change):
    loss, params = setting()
    for check in compare_gradients(loss, params, X, LABELS, value_and_grad=spoil(leaf, change)):
        assert check.ok == (check.path != leaf)
        if not check.ok:
            assert not check.against_jax <= 1e-10
            assert not check.against_differences <= 1e-6


def test_a_wrong_rule_is_found_although_jax_uses_it_too():
    @jax.custom_vjp
    def swapped(x):
        return jnp.tanh(x)

    swapped.defvjp(lambda x: (jnp.tanh(x), x), lambda x, ct: (ct * (1 - x * x),))
    loss, params = setting(swapped)
    verdicts = {c.path: c.ok for c in compare_gradients(loss, params, X, LABELS)}
    assert verdicts == {"dense_0/bias": False, "dense_0/kernel": False, "dense_1/bias": True, "dense_1/kernel": True}


def test_leaves_without_influence_and_of_size_zero():
    params = {"used": jnp.array([0.5]), "unused": jnp.array([1.0, 2.0]), "empty": jnp.zeros((0, 3))}
    checks = compare_gradients(lambda p: jnp.sum(jnp.sin(p["used"])) + jnp.sum(p["empty"]), params)
    assert all(c.ok for c in checks) and len(checks) == 3


def test_without_rules_is_the_same_function_with_jaxs_derivative():
    @jax.custom_vjp
    def halved(x):
        return jnp.sin(x)

    halved.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (0.5 * ct * jnp.cos(x),))
    x = jnp.array([0.3, 0.4])
    f = lambda x: jnp.sum(jax.jit(halved)(x) * jax.nn.relu(x) + jax.nn.logsumexp(x))
    np.testing.assert_allclose(without_rules(f)(x), f(x), rtol=1e-14)
    plain = jax.grad(lambda x: jnp.sum(jnp.sin(x) * x + jax.nn.logsumexp(x)))(x)
    np.testing.assert_allclose(jax.grad(without_rules(f))(x), plain, rtol=1e-13)
    assert not np.allclose(jax.grad(f)(x), plain)


def test_extrapolation_beats_every_step():
    steps = 0.2 / 2.0 ** np.arange(6)
    estimates = (np.exp(1 + steps) - np.exp(1 - steps)) / (2 * steps)
    assert abs(extrapolate(estimates, 2.0) - np.e) < 1e-12 < 1e-4 < np.min(np.abs(estimates - np.e)) * 1e2
