"""How to test derivatives of your own with funcbp: `python -m pytest examples/test_my_derivatives.py`.

The functions below stand for yours: one with a hand-written derivative, one that is a model, one with a kink.
"""

import jax
import jax.numpy as jnp

from funcbp.testing import assert_gradients, check


@jax.custom_vjp
def log1pexp(x):
    """log(1 + exp(x)), which does not overflow, with a derivative written by hand."""
    return jnp.logaddexp(x, 0.0)


log1pexp.defvjp(lambda x: (log1pexp(x), x), lambda x, ct: (ct * jax.nn.sigmoid(x),))


@jax.custom_vjp
def careless(x):
    """The same, with a derivative that is a thousandth too large."""
    return jnp.logaddexp(x, 0.0)


careless.defvjp(lambda x: (careless(x), x), lambda x, ct: (ct * jax.nn.sigmoid(x) * 1.001,))


def loss(params, x, y):
    hidden = jax.nn.relu(x @ params["kernel"] + params["bias"][None])
    return jnp.mean((hidden - y) ** 2)


def test_my_derivative():
    assert_gradients(log1pexp, jnp.array([-3.0, 0.0, 5.0]), vjp=jax.vjp)


def test_my_derivative_twice():
    assert_gradients(log1pexp, jnp.array([-3.0, 0.5, 5.0]), vjp=jax.vjp, order=2)


def test_my_loss():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"kernel": jax.random.normal(keys[0], (3, 4)), "bias": jnp.zeros(4)}
    report = assert_gradients(
        loss, params, jax.random.normal(keys[1], (5, 3)), jax.random.normal(keys[2], (5, 4)), argnums=0
    )
    assert [leaf.path for leaf in report.leaves] == ["bias", "kernel"]


def test_a_careless_derivative_is_found():
    report = check(careless, jnp.array([-3.0, 0.0, 5.0]), vjp=jax.vjp)
    assert not report.ok and "careless" in report.culprit


def test_a_kink_is_no_error():
    assert check(jax.nn.relu, jnp.array([-1.0, 0.0, 1.0])).worst.verdict == "kink"


if __name__ == "__main__":
    print(check(careless, jnp.array([-3.0, 0.0, 5.0]), vjp=jax.vjp))
