"""Examples that interact are refused; a loss over a batch is one of its examples."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import funcbp as bp

from .problems import W, assert_close, normal


def test_examples_that_interact_are_refused():
    """Whether what is averaged are the data, or depends on the parameters."""
    for normalised in (lambda w, x: (x - lax.pmean(x, "batch")) * w, lambda w, x: x * w - lax.pmean(x * w, "batch")):
        with pytest.raises(ValueError, match=r"average over a named axis of examples .* running averages"):
            bp.per_example.norms(lambda w, x, f=normalised: jnp.sum(f(w, x)))(jnp.ones(3), jnp.ones((2, 3)))

    def batch_norm(w, x):
        x = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
        return jnp.mean(jnp.tanh(x @ w))

    with pytest.raises(ValueError, match="The examples interact: the loss of the batch is"):
        bp.per_example.of_batch(batch_norm, W, normal(15, 5, 4))


def test_the_tolerance_is_of_the_loss_and_not_of_the_batch():
    interact = lambda w, x: jnp.mean(x * w) + 5e-4 * jnp.sum(x * w)  # of five alike: 2e-3 more than the mean
    with pytest.raises(ValueError, match="The examples interact"):
        bp.per_example.of_batch(interact, jnp.ones(()), jnp.ones(5))
    bp.per_example.of_batch(interact, jnp.ones(()), jnp.ones(5), tolerance=3e-3)


@pytest.mark.parametrize("reduce", [jnp.mean, jnp.sum])
def test_a_loss_written_for_a_batch(reduce):
    batch_loss = lambda w, x: reduce(jnp.sum(jnp.tanh(x @ w), -1))
    x = normal(15, 5, 4)
    loss = bp.per_example.of_batch(batch_loss, W, x)
    single = lambda w, x: jnp.sum(jnp.tanh(x @ w))
    assert_close(bp.per_example.grads(loss)(W, x), jax.vmap(jax.grad(single), (None, 0))(W, x))
