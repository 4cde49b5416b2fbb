"""`check_rule`: right rules keep every promise, and each broken promise is named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.cotangents import Zero
from funcbp.rules import INPUTS, OUTPUT
from funcbp.testing import check_rule

X, Y = jnp.array([[0.3, -1.2, 2.0]]), jnp.array([[1.5, 0.4, -0.7]])


@pytest.mark.slow(once=[])
@pytest.mark.parametrize(
    "op, args, params",
    [
        (lax.tanh_p, (X,), {"accuracy": None}),
        (lax.sin, (X,), {}),
        (lax.mul, (X, Y), {}),
        (lax.div_p, (X, Y), {}),
        (lax.max, (X, Y), {}),
        (jnp.matmul, (X, Y.T), {}),
        (lax.reduce_window, (X,), None),
        (lax.sort, (X,), {}),
        (lambda x, y: lax.concatenate([x, y], 0), (X, Y), {}),
        (lax.top_k, (X,), {"k": 2}),
        (jax.nn.relu, (X,), {}),
        (lax.abs, (lax.complex(X, Y),), {}),
        (lax.sin, (X.astype(np.float32),), {}),
    ],
    ids=[
        *["tanh", "sin", "mul", "div", "max", "matmul", "reduce_window", "sort", "concatenate", "top_k", "relu"],
        *["complex abs", "float32"],
    ],
)
def test_right_rules(op, args, params):
    if params is None:
        op = lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), "VALID")
    claims = check_rule(op, *args, **(params or {}))
    assert len(claims) == 12 and sum(c.holds is True for c in claims) >= 8
    assert not any(c.holds and (" not " in c.seen or "differs" in c.seen) for c in claims)


def broken(bwd, primitive=lax.tanh_p, **options):
    return bp.Backward(rules={primitive: bp.rule(bwd, **options)})


def tanh_bwd(y, ct, perturbed, **_):
    return (ct * (1 - y * y),)


BROKEN = {
    "one cotangent per primal": broken(lambda y, ct, p, **_: (ct, ct), save=OUTPUT),
    "of its shape and dtype": broken(lambda y, ct, p, **_: (jnp.sum(ct),), save=OUTPUT),
    "linear in the cotangent": broken(lambda y, ct, p, **_: (ct * ct * (1 - y * y),), save=OUTPUT),
    "what is kept is what is read": broken(
        lambda res, ct, p, **_: (ct * (1 - res[0] ** 2),), save=lambda primals, y, p, params: (y, primals[0])
    ),
    "the transpose of jvp": broken(lambda y, ct, p, **_: (1.001 * ct * (1 - y * y),), save=OUTPUT),
    "order 1 is right": broken(lambda y, ct, p, **_: (1.001 * ct * (1 - y * y),), save=OUTPUT),
    "order 2 is right": broken(lambda y, ct, p, **_: (ct * (1 - y * _frozen(y)),), save=OUTPUT),
    "special values": broken(lambda y, ct, p, **_: (ct * jnp.where(y == 0, 0.5, 1 - y * y),), save=OUTPUT),
    "the primal is unchanged": bp.Backward(
        rules={lax.tanh_p: bp.rule(tanh_bwd, lambda x, **_: (jnp.tanh(x) * 2, jnp.tanh(x)))}
    ),
}


@jax.custom_jvp
def _frozen(y):
    return y


_frozen.defjvp(lambda primals, tangents: (primals[0], jnp.zeros_like(tangents[0])))


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_promise_is_named(promise):
    with pytest.raises(AssertionError, match="breaks") as caught:
        check_rule(lax.tanh, X, backward=BROKEN[promise])
    assert promise in str(caught.value)


def test_an_unperturbed_input_that_costs_something():
    def wasteful(res, ct, perturbed, **_):
        x, y = res
        return [ct * y, ct * x]

    with pytest.raises(AssertionError, match="unperturbed inputs cost nothing: operand 0 alone takes"):
        check_rule(lax.mul, X, Y, backward=broken(wasteful, lax.mul_p, save=INPUTS))


def test_a_rule_with_several_outputs_must_take_zero():
    def forgetful(res, ct, perturbed, **params):
        return (jnp.concatenate([jnp.ones((1, 1)) if c is Zero else c for c in ct], 1),)

    with pytest.raises(AssertionError, match="Zero and zeros for the outputs"):
        check_rule(
            lambda x: lax.split(x, (1, 1, 1), 1),
            X,
            backward=broken(forgetful, next(p for p in bp.rules.TABLE if p.name == "split")),
        )


def test_neither_a_primitive_nor_a_function():
    with pytest.raises(TypeError, match="needs a primitive or a function, and got 3"):
        check_rule(3, X)
