"""What makes no sense is refused in a sentence, where it is passed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcbp as bp

W, BATCH = jnp.ones(3), jnp.ones((4, 3))


def loss(w, e):
    return jnp.sum((e @ w) ** 2)


def learned(**options):
    return bp.fit(loss, W, BATCH, optimizer=optax.sgd(0.1), **options)


REFUSED = {
    "a norm that is not positive": (lambda: bp.per_example.clipped_grad(loss, max_norm=-1.0), "positive, and was -1.0"),
    "a norm that is nan": (lambda: bp.per_example.clipped_grad(loss, max_norm=jnp.nan), "positive, and was nan"),
    "one of a tree of norms": (
        lambda: bp.per_example.clipped_grad(loss, max_norm={"a": 1.0, "b": 0.0}, per_leaf=True),
        "positive, and was 0.0",
    ),
    "a budget without a bound": (lambda: bp.Budget(bytes=np.inf), 'residuals="min_cut"'),
    "a budget above all": (lambda: bp.Budget(fraction=7), "at most 1, and was 7"),
    "a rule that is no function": (lambda: bp.rule("abc"), "bwd is a function, and was 'abc'"),
    "a rule of nothing": (lambda: bp.rule(None), "bwd is a function, and was None"),
    "a name that is no string": (lambda: bp.name(W, 3), "A name is a string, and was 3"),
    "epochs that are no number": (lambda: learned(epochs=np.nan), "epochs is at least 1, and was nan"),
    "a part of an epoch": (lambda: learned(epochs=1.5), "epochs is a whole number, and was 1.5"),
    "a part of an example": (lambda: learned(batch_size=1.5), "batch_size is a whole number, and was 1.5"),
    "the cotangent of an integer": (
        lambda: bp.vjp(jnp.argmax, W)[1]("anything"),
        r"output of type int64\[\] is an array of that shape, .*float0\), and is str 'anything'",
    ),
    "one of another shape": (lambda: bp.vjp(jnp.argmax, W)[1](np.ones(2)), r"that shape, .* and is float64\[2\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_a_sentence(what):
    call, message = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_what_makes_sense_is_taken():
    for ct in np.zeros((), jax.dtypes.float0), jnp.argmax(W), 1.0:
        np.testing.assert_array_equal(bp.vjp(jnp.argmax, W)[1](ct)[0], jnp.zeros(3))
    gradient, _ = jax.jit(lambda c: bp.per_example.clipped_grad(loss, max_norm=c)(W, BATCH))(np.inf)
    np.testing.assert_allclose(gradient, bp.grad(lambda w: jnp.mean(jax.vmap(loss, (None, 0))(w, BATCH)))(W))
