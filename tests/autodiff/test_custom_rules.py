"""Functions with a derivative of their own, as people write them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

HOW = pytest.mark.parametrize("how", ["eager", "jit", "vmap", "scan"])


def grad_of(f, how, **options):
    """The gradient of a function of one number, run in one of these ways."""
    in_loop = lambda x: lax.scan(lambda c, _: (c + f(x), None), jnp.zeros(()), None, 1)[0]
    return {
        "eager": bp.grad(f),
        "jit": jax.jit(bp.grad(f)),
        "vmap": lambda x: jax.vmap(bp.grad(f))(x[None])[0],
        "scan": bp.grad(in_loop),
    }[how]


@HOW
def test_a_tangent_rule_may_call_the_function_itself(how):
    """Linear functions are written so: the tangent of f is f of the tangent."""

    @jax.custom_jvp
    def double(x):
        return 2 * x

    double.defjvp(lambda primals, tangents: (double(*primals), double(*tangents)))
    assert grad_of(lambda x: double(x) ** 2, how)(jnp.array(3.0)) == 2 * 6 * 2


@HOW
@pytest.mark.parametrize("number", [True, 2, 1.5])
def test_a_python_number_may_stand_beside_the_result(how, number):
    @jax.custom_vjp
    def doubled(x):
        return 2 * x, number

    doubled.defvjp(lambda x: ((2 * x, number), None), lambda res, ct: (2 * ct[0],))
    assert grad_of(lambda x: doubled(x)[0], how)(jnp.array(3.0)) == 2


@HOW
@pytest.mark.parametrize("number", [0, 0.0, 2.5, np.float64(2.5), False])
def test_a_cotangent_may_be_a_python_number(how, number):
    @jax.custom_vjp
    def product(a, b):
        return a * b

    product.defvjp(lambda a, b: (a * b, b), lambda b, ct: (ct * b, number))
    assert grad_of(lambda x: product(x, x + 1), how)(jnp.array(3.0)) == 4 + float(number)


@HOW
def test_a_residual_that_is_a_python_number_stays_one(how):
    """A rule may decide by it, as Equinox's do, also where its function is called in a compiled one."""

    @jax.custom_vjp
    def powers(x):
        return x**3

    def bwd(res, ct):
        doubles, n, x = res
        return ((2 if doubles else 1) * n * x ** len(range(n - 1)) * ct,)

    powers.defvjp(lambda x: (x**3, (True, 3, x)), bwd)
    assert grad_of(jax.jit(powers), how)(jnp.array(2.0)) == 2 * 3 * 4


@HOW
def test_a_residual_that_is_a_constant_is_an_array(how):
    """A rule that indexes it by a traced number, as odeint's does, needs one of JAX's."""

    @jax.custom_vjp
    def weighed(x, t):
        return x * jnp.sum(t)

    def bwd(res, ct):
        _, t = res
        return ct * lax.fori_loop(0, 2, lambda i, s: s + t[i], jnp.zeros(())), None

    weighed.defvjp(lambda x, t: (x * jnp.sum(t), (x, t)), bwd)
    inner = jax.jit(lambda x: weighed(x, np.array([1.0, 2.0])))
    assert grad_of(inner, how)(jnp.array(2.0)) == 3


@HOW
def test_a_closed_over_value_is_known_for_differentiated(how):
    """`jax.closure_convert` hoists what is being differentiated: here a weight that the function closes over."""

    def f(w):
        scaled, constants = jax.closure_convert(lambda v: w * v, jnp.ones(()))

        @jax.custom_vjp
        def apply(v, *constants):
            return scaled(v, *constants)

        apply.defvjp(
            lambda v, *constants: (scaled(v, *constants), (v, constants)),
            lambda res, ct: (ct * res[1][0], ct * res[0]),
        )
        return apply(jnp.array(5.0), *constants)

    assert grad_of(f, how)(jnp.array(2.0)) == 5


def test_a_tangent_rule_that_raises_leaves_the_next_one_alone():
    """A function that catches the error goes on: what follows is differentiated by its own rule, not by its body."""

    @jax.custom_jvp
    def raising(x):
        return x

    @raising.defjvp
    def raising_jvp(primals, tangents):
        raise ArithmeticError("on purpose")

    @jax.custom_jvp
    def tripled(x):
        return x

    tripled.defjvp(lambda primals, tangents: (primals[0], 3 * tangents[0]))

    def f(x):
        with pytest.raises(ArithmeticError):
            raising(x)
        return tripled(x)

    assert bp.grad(f)(jnp.array(2.0)) == 3
