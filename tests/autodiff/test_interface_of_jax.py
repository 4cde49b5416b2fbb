"""What JAX's `vjp` and `grad` take, raise and return, and ours too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.autodiff.pullback import NotNeeded, NotSaveable

TWO = lambda a, b: a * b
X, Y = jnp.arange(3.0), jnp.ones(3)


def test_arguments_are_taken_as_jax_takes_them():
    assert bp.grad(fun=TWO, argnums=np.int64(1), reduce_axes=())(2.0, 3.0) == 2.0
    assert bp.value_and_grad(fun=TWO, argnums=tuple(np.arange(2)))(2.0, 3.0) == (6.0, (3.0, 2.0))
    assert bp.jacrev(fun=TWO, argnums=np.int8(-1))(2.0, 3.0) == bp.hessian(fun=lambda a: a**2)(7.0) == 2.0
    assert bp.grad(lambda a: [a * 2, a], has_aux=True)(5.0) == (2.0, 5.0)
    with pytest.raises(NotImplementedError, match="given up in JAX, too"):
        bp.grad(TWO, reduce_axes=("batch",))


MISTAKES = {
    "too few arguments": lambda M: M.grad(TWO, argnums=5)(1.0, 2.0),
    "too few arguments of a Jacobian": lambda M: M.jacrev(TWO, argnums=5)(1.0, 2.0),
    "an argument twice": lambda M: M.grad(TWO, argnums=(0, 0))(1.0, 2.0),
    "no number": lambda M: M.grad(TWO, argnums="a")(1.0, 2.0),
    "an integer": lambda M: M.grad(TWO)(1, 2.0),
    "no scalar": lambda M: M.grad(TWO)(X, Y),
    "no auxiliary data": lambda M: M.grad(TWO, has_aux=True)(1.0, 2.0),
    "two cotangents": lambda M: M.vjp(TWO, 1.0, 2.0)[1](1.0, 1.0),
    "another structure": lambda M: M.vjp(TWO, 1.0, 2.0)[1]((1.0,)),
    "another shape": lambda M: M.vjp(TWO, 1.0, 2.0)[1](X),
    "while": lambda M: M.grad(lambda a: lax.while_loop(lambda c: c < 9, lambda c: c * 2, a))(1.0),
    "a callback": lambda M: M.grad(lambda a: jax.pure_callback(np.sin, jax.typeof(a), a))(1.0),
    "schur": lambda M: M.grad(lambda a: lax.linalg.schur(a)[0].sum())(jnp.eye(2)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_catches_jaxs_error_catches_ours(mistake):
    with pytest.raises(Exception) as jaxs:
        MISTAKES[mistake](jax)
    with pytest.raises(type(jaxs.value)):
        MISTAKES[mistake](bp)


def test_a_pullback_shows_its_residuals():
    """Of Σ a exp(k) it keeps a and exp(k)."""
    f = lambda a, tree: (jnp.sum(a * lax.exp(tree["k"][0])), tree["i"])
    _, pullback = bp.vjp(f, X, {"k": (Y,), "i": 3})
    of_tree = pullback.args_res[1]
    assert pullback.args_res[0] is X and [type(of_tree["k"][0]), type(of_tree["i"])] == [NotNeeded, NotNeeded]
    np.testing.assert_allclose(pullback.opaque_residuals, [np.exp(Y)])
    assert pullback.structured_residuals == [] and pullback.out_nzs == (True, False)
    seed = jnp.ones(()), np.zeros((), jax.dtypes.float0)
    pullback.args_res[0] = 10 * X
    np.testing.assert_allclose(jax.jit(lambda p: p(seed))(pullback)[1]["k"][0], 10 * X * np.e)


def test_primals_may_be_left_out_and_put_back():
    _, pullback = bp.vjp(lambda a, tree: a * tree["k"], X, {"k": Y}, saveable_args=(False, (True,)))
    assert type(pullback.args_res[0]) is NotSaveable and pullback.args_res[1]["k"] is Y
    with pytest.raises(ValueError, match=r"lacks primals .* Put them back"):
        pullback(Y)
    pullback.args_res = [2 * X, pullback.args_res[1]]
    np.testing.assert_array_equal(pullback(Y)[1]["k"], 2 * X)
    with pytest.raises(ValueError, match="saveable_args is a bool, or a tree of bools"):
        bp.vjp(TWO, X, Y, saveable_args=(True,))


def test_primals_may_be_held():
    _, pullback = bp.vjp(lambda a, b: (a + b, jnp.sin(a), b), X, Y, in_nzs=(False, True))
    assert pullback.out_nzs == (True, False, True) and len(pullback.tape.entries) == 1
    np.testing.assert_array_equal(pullback((Y, Y, 2 * Y)), (0 * Y, 3 * Y))


WEAK = {
    "product": lambda x: x * 2.0,
    "matrix product": lambda x: jnp.sum(jnp.ones((2, 2)) @ jnp.full((2, 2), x)),
    "sum with an array": lambda x: jnp.sum(x * X),
    "power": lambda x: 2.0**x,
    "constant": lambda x: jnp.floor(x),
    "carry": lambda x: lax.scan(lambda c, _: (jnp.sin(c) * x, None), x, length=2)[0],
    "branch": lambda x: lax.cond(x > 1, jnp.sin, jnp.cos, x),
    "region": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
}


@pytest.mark.parametrize("case", WEAK)
@pytest.mark.parametrize("x", [0.5, np.float64(0.5)], ids=["weak", "strong"])
def test_gradients_are_weakly_typed_where_jaxs_are(case, x):
    assert bp.grad(WEAK[case])(x).weak_type == jax.grad(WEAK[case])(x).weak_type


def test_a_carry_that_is_only_multiplied_has_a_weak_gradient_too():
    """As one that also goes through a function has in JAX, where this one's is strongly typed: docs/beside_jax.md."""
    for f in (lambda c: c, jnp.sin):
        loop = lambda x, f=f: lax.scan(lambda c, a: (f(c) * a, None), x, X)[0]
        assert bp.grad(loop)(0.5).weak_type
    assert jax.grad(loop)(0.5).weak_type


def test_a_weak_matrix_has_the_gradient_of_the_product():
    w = jnp.full((3, 2), 0.1)
    assert w.weak_type and not bp.grad(lambda w: jnp.sum(jnp.tanh(Y @ w)))(w).weak_type


# --- logs -------------------------------------------------------------------------------------------------------------


def logging(name, slope):
    """A function x ↦ slope x whose backward rule logs its cotangent."""
    f = jax.custom_vjp(lambda x: slope * x)
    f.defvjp_with_logs(lambda x: (slope * x, None), lambda _, ct: ((slope * ct,), {name: ct}))
    return f


@pytest.mark.skipif(not hasattr(jax.custom_vjp, "defvjp_with_logs"), reason="this JAX has no logs")
def test_backward_rules_log():
    f, g = logging("f", 3.0), logging("g", 2.0)
    logs = lambda h: jax.tree.map(np.asarray, jax.jit(lambda x: bp.vjp(h, x)[1].with_logs(1.0)[1])(1.0))
    assert logs(lambda x: jax.jit(g)(jax.checkpoint(f)(x))) == {"f": 2.0, "g": 1.0}
    found = logs(lambda x: lax.scan(lambda c, _: (f(c), None), x, length=3)[0])
    np.testing.assert_array_equal(found["f"], [9, 3, 1])
    found = logs(lambda x: bp.scan(lambda c, _: (f(c), None), x, length=3, snapshots=2)[0])
    np.testing.assert_array_equal(found["f"], [9, 3, 1])
    found = logs(lambda x: lax.cond(x > 0, f, lambda x: g(g.fun(x)), x))
    assert found["f"].branches == [None, 1.0] and found["g"].branches == [0.0, None]
    y, pullback = bp.vjp(lambda x: f(f(x)), 1.0)
    with pytest.raises(ValueError, match="log by the same name: 'f'"):
        pullback(y)
    assert bp.vjp(f, 1.0)[1](1.0) == (3.0,)


NUMBERS = {
    "the argument": lambda x: x,
    "a Python number": lambda x: 2.0,
    "a tree with one": lambda x: {"a": x, "b": (3.0, x * x)},
    "a product": lambda x: x * np.float32(2),
}


@pytest.mark.parametrize("x", [1.0, np.float32(1)], ids=["weak", "strong"])
@pytest.mark.parametrize("output", NUMBERS)
def test_jacobians_of_python_numbers_have_the_types_that_jax_gives_them(output, x):
    types = lambda tree: jax.tree.map(jax.typeof, tree)
    for wrap in (lambda f: f, jax.jit):
        ours, theirs = (wrap(t.jacrev(NUMBERS[output]))(x) for t in (bp, jax))
        assert types(ours) == types(theirs) and ours == theirs
        ours, theirs = (wrap(t.hessian(NUMBERS[output]))(x) for t in (bp, jax))
        assert types(ours) == types(theirs) and ours == theirs


HANDED_ON = {
    "value": lambda t: t.value_and_grad(lambda x: x),
    "value of a jitted function": lambda t: t.value_and_grad(jax.jit(lambda x: x)),
    "value, jitted": lambda t: jax.jit(t.value_and_grad(lambda x: x)),
    "auxiliary": lambda t: t.value_and_grad(lambda x: (x * x, (x, lax.stop_gradient(x))), has_aux=True),
    "outputs of vjp": lambda t: lambda x: t.vjp(lambda x: (x, 2 * x), x)[0],
    "auxiliary of vjp": lambda t: lambda x: t.vjp(lambda x: (x * x, x), x, has_aux=True)[::2],
    "an argument that is not differentiated": lambda t: lambda x: t.vjp(lambda y: (x, 2 * y), 1.0)[0],
    "out of a loop": lambda t: t.value_and_grad(lambda x: lax.scan(lambda c, _: (c, None), x, length=2)[0]),
    "attached": lambda t: jax.value_and_grad(t.Backward().attach(lambda x: x) if t is bp else lambda x: x),
}


@pytest.mark.parametrize("x", [2.0, np.float32(2), jnp.float32(2), jnp.asarray(2.0)], ids=lambda x: repr(x))
@pytest.mark.parametrize("how", HANDED_ON)
def test_what_is_handed_on_has_the_types_of_jaxs(how, x):
    types = lambda t: jax.tree.map(lambda y: (jax.typeof(y).str_short(), jax.typeof(y).weak_type), HANDED_ON[how](t)(x))
    assert types(bp) == types(jax)
