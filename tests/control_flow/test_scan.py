"""Loops: what no output depends on is not gone back through, and what one depends on is, however it gets there."""

from __future__ import annotations

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp


def diagnosed(x):
    """x doubled three times; beside it a norm whose derivative is infinite where it begins, and that nothing reads."""
    return lax.scan(lambda c, _: ((2 * c[0], jnp.sqrt(0 * c[0] + 0 * c[1])), None), (x, 0 * x), None, 3)[0][0]


def in_fori(x):
    return lax.fori_loop(0, 3, lambda i, c: (2 * c[0], jnp.nan * c[0]), (x, x))[0]


def nested(x):
    """The carry that nothing reads is the inner loop's and the outer loop's."""
    inner = lambda c: lax.scan(lambda c, _: ((2 * c[0], jnp.sqrt(0 * c[1])), None), c, None, 1)[0]
    return lax.scan(lambda c, _: (inner(c), None), (x, 0 * x), None, 3)[0][0]


def through_a_chain(x):
    """What is read after two steps is read: b feeds a, c feeds b; d feeds nobody."""

    def step(s, _):
        a, b, c, d = s
        return (a + b, b + c, c, jnp.sqrt(0 * d)), None

    return lax.scan(step, (x, x, x, 0 * x), None, 3)[0][0]


def set_anew(x):
    """No step reads the carry, and the last one's is the output."""
    return lax.scan(lambda c, _: (x * x, None), 0 * x, None, 3)[0]


def in_one_branch(x):
    """b reaches the output by one branch of the two, in one step of the three."""

    def step(c, i):
        a, b = c
        return (lax.cond(i == 1, lambda a, b: a + b, lambda a, b: a, a, b), b / 2), None

    return lax.scan(step, (0 * x, x), jnp.arange(3))[0][0]


def as_auxiliary(x):
    y, z = lax.scan(lambda c, _: ((2 * c[0], jnp.sqrt(0 * c[1])), None), (x, 0 * x), None, 3)[0]
    return y, z


CASES = {"scan": (diagnosed, 8), "fori": (in_fori, 8), "nested": (nested, 8), "chain": (through_a_chain, 1 + 3 + 3)}
CASES |= {"anew": (set_anew, 2 * 1.5), "branch": (in_one_branch, 0.5)}


@pytest.mark.slow(once=["name", "how"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", ["eager", "jit", "vmap", "remat"])
def test_the_slope_is_that_of_what_the_output_depends_on(name, how):
    f, slope = CASES[name]
    grad = {
        "eager": bp.grad(f),
        "jit": jax.jit(bp.grad(f)),
        "vmap": lambda x: jax.vmap(bp.grad(f))(x[None])[0],
        "remat": bp.grad(jax.checkpoint(f)),
    }[how]
    assert grad(jnp.array(1.5)) == slope


def test_neither_does_what_is_only_auxiliary():
    grad, aux = bp.grad(as_auxiliary, has_aux=True)(jnp.array(1.5))
    assert (grad, aux) == (8, 0)


def test_nor_in_the_second_derivative():
    def f(x):
        return lax.scan(lambda c, _: ((c[0] * x, jnp.sqrt(0 * c[1])), None), (x, 0 * x), None, 2)[0][0]

    x = jnp.array(1.5)
    np.testing.assert_allclose(bp.grad(bp.grad(f))(x), 6 * x)
    np.testing.assert_allclose(bp.hvp(f, (x,), (jnp.ones(()),)), 6 * x)


def contractions(program):
    inside = (contractions(j) for e in program.eqns for j in jex.jaxprs_in_params(e.params))
    return sum(e.primitive.name == "dot_general" for e in program.eqns) + sum(inside)


def test_no_contraction_is_done_for_it():
    """Of two matrices squared side by side only one is read: its backward pass has two contractions, as alone."""

    def squared(a, b, both):
        step = lambda c, _: ((c[0] @ c[0], c[1] @ c[1] if both else c[1]), None)
        return lax.scan(step, (a, b), None, 3)[0][0].sum()

    a = jnp.eye(3)
    back = [
        contractions(jax.make_jaxpr(bp.vjp(lambda a, b, k=k: squared(a, b, k), a, a)[1])(1.0).jaxpr)
        for k in (True, False)
    ]
    assert back == [2, 2]
