"""Calls and marks that JAX differentiates and that are ours by a line each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax._src import compute_on
from jax._src.core import MemorySpace as Space
from jax.experimental import checkify, multihost_utils, xla_metadata
from jax.experimental.fused import fused
from jax.experimental.xla_metadata import set_xla_metadata

import funcbp as bp

X = jnp.array([0.3, 0.7])


def twice_by_call(x):
    """x ↦ 2x, whose author says that it goes back as x̄ = 5 z̄."""
    return jax.custom_derivatives.linear_call(lambda r, t: r * t, lambda r, t: 2.5 * r * t, 2.0, x)


WRAPS = {"eager": lambda f: f, "jit": jax.jit, "in a loop": lambda f: lambda x: lax.map(f, x)}


@pytest.mark.parametrize("how", WRAPS)
def test_a_linear_call_goes_back_by_its_authors_transpose(how):
    f = WRAPS[how](twice_by_call)
    np.testing.assert_allclose(bp.grad(lambda x: jnp.sum(jnp.sin(f(x))))(X), 5 * jnp.cos(2 * X))
    np.testing.assert_allclose(
        bp.grad(lambda x: jnp.sum(bp.grad(lambda x: jnp.sum(f(x) ** 2))(x)))(X), [2 * 5 * 2, 2 * 5 * 2]
    )


def test_a_linear_call_has_no_derivative_with_respect_to_the_rest():
    f = lambda r: jax.custom_derivatives.linear_call(lambda r, t: r * t, lambda r, t: r * t, r, 3.0)
    with pytest.raises(bp.MissingRuleError, match=r"linear_call at .*test_other_calls.* residual_args"):
        bp.grad(f)(2.0)


def test_what_is_said_to_the_compiler_is_the_identity():
    f = lambda x: jnp.sum(jnp.sin(set_xla_metadata(x, a="b")))
    np.testing.assert_allclose(jax.jit(bp.grad(f))(X), jnp.cos(X))
    shard_alike = pytest.importorskip("jax.experimental.shard_alike").shard_alike
    f = lambda x: jnp.sum(jnp.sin(shard_alike(x, 2 * x)[1]) + shard_alike(x, x)[0])
    np.testing.assert_allclose(jax.jit(bp.grad(f))(X), 2 * jnp.cos(2 * X) + 1)


@pytest.mark.parametrize("how", WRAPS)
def test_what_is_computed_on_the_host_goes_back_there(how):
    on_host = getattr(compute_on, "compute_on2", compute_on.compute_on)  # two names for it
    f = on_host(lambda x, y: jnp.sin(x) * y, compute_type="device_host", out_memory_spaces=Space.Device)
    g = lambda x: jnp.sum(WRAPS[how](lambda x: f(x, x))(x))
    np.testing.assert_allclose(bp.grad(g)(X), np.cos(X) * X + np.sin(X))
    np.testing.assert_allclose(bp.grad(lambda x: jnp.sum(bp.grad(g)(x)))(X), 2 * np.cos(X) - np.sin(X) * X)
    passes = [
        eqn.params["compute_type"] for eqn in jax.make_jaxpr(bp.grad(lambda x: jnp.sum(f(x, x))))(X).eqns
        if eqn.primitive.name == "compute_on"
    ]  # fmt: skip
    assert passes == ["device_host"] * 2


@pytest.mark.parametrize("how", WRAPS)
def test_a_call_with_metadata_stays_one_with_that_of_its_way_back(how):
    if not hasattr(xla_metadata, "xla_metadata_call2"):
        pytest.skip("newer JAX")
    f = xla_metadata.xla_metadata_call2(lambda x: jnp.sin(x) * x, {"a": "1"}, ad_metadata={"b": "2"})
    g = lambda x: jnp.sum(WRAPS[how](f)(x))
    np.testing.assert_allclose(bp.grad(g)(X), np.cos(X) * X + np.sin(X))
    np.testing.assert_allclose(bp.grad(lambda x: jnp.sum(bp.grad(g)(x)))(X), 2 * np.cos(X) - np.sin(X) * X)
    eqns = jax.make_jaxpr(bp.grad(lambda x: jnp.sum(f(x))))(X).eqns
    calls = [eqn.params["xla_metadata"] for eqn in eqns if eqn.primitive.name == "xla_metadata_call"]
    assert [dict(call) for call in calls] == [{"a": "1"}, {"b": "2"}]


@pytest.mark.parametrize("residuals", ["min_cut", "needed", "inputs"])
def test_loops_of_a_symbolic_length_and_width_are_exported(residuals):
    args = X, jnp.eye(2), jnp.ones((3, 2))

    def f(w, m, v):
        step = lambda c, r: (jnp.tanh(m @ jnp.where(c * w > 0, jnp.sin(c) * w + r, c)), c)
        return jnp.sum(lax.scan(step, w * 0 + 1, v)[1])

    grad = bp.Backward(residuals=residuals).grad(f)
    exported = export.export(jax.jit(grad))(*export.symbolic_args_specs(args, ["n", "n, n", "b, n"]))
    np.testing.assert_allclose(exported.call(*args), grad(*args), rtol=1e-12)


def test_a_budget_for_sizes_that_are_left_open_is_refused():
    grad = bp.Backward(residuals=bp.Budget(fraction=0.5)).grad(lambda x: jnp.sum(jnp.sin(x) * x))
    with pytest.raises(ValueError, match=r"in bytes.* exported for sizes that are left open"):
        export.export(jax.jit(grad))(*export.symbolic_args_specs((X,), ["n"]))


def test_checked_functions_keep_their_own_backward_rules():
    """In JAX, the residual of a checked function is one of its errors where it should be its argument."""
    sin = jax.custom_vjp(jnp.sin)
    sin.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (10 * jnp.cos(x) * ct,))

    def checked(x):
        checkify.check(x > 0, "negative")
        return sin(x)

    f = lambda x: checkify.checkify(checked)(x)[1]
    for grad in (bp.grad(f), jax.jit(bp.grad(f))):
        np.testing.assert_allclose(grad(0.7), 10 * np.cos(0.7))


def test_what_is_donated_is_taken_and_its_gradient_is_right():
    f = jax.jit(lambda x: jnp.sin(x) * x, donate_argnums=0)
    x, copy = jnp.arange(8.0), np.arange(8.0)
    y, pullback = bp.vjp(f, x)
    assert x.is_deleted()
    np.testing.assert_allclose(y, np.sin(copy) * copy)
    np.testing.assert_allclose(pullback(jnp.ones(8))[0], np.cos(copy) * copy + np.sin(copy))


def test_a_checkpointed_function_may_say_which_operands_wait_at_the_barrier():
    """As many arrays wait as in JAX's gradient: the others may be found already computed."""
    x = jnp.full((2, 2), 0.3)

    def gradient(grad, prevent_cse):
        region = jax.checkpoint(lambda b, x, y: b + jnp.sin(jnp.sin(x) @ y) @ y, prevent_cse=prevent_cse)
        return jax.jit(grad(lambda x, y: jnp.sum(region(x, x, y)), (0, 1)))

    waiting = lambda f: [line.count("tensor<") for line in f.lower(x, x).as_text().split("\n") if "_barrier" in line]
    want = gradient(jax.grad, False)(x, x)
    for prevent_cse, count in (((False, True, False), 2), ((True, False, True), 2), ((False, True, True), 3)):
        ours, theirs = (gradient(grad, prevent_cse) for grad in (bp.grad, jax.grad))
        assert waiting(ours) == waiting(theirs) == [count]  # the way back does not read the first operand
        np.testing.assert_allclose(ours(x, x), want, rtol=1e-12)


@pytest.mark.parametrize("how", WRAPS)
def test_arrays_of_several_hosts(how):
    """On one host, the whole is the part."""
    where = jax.sharding.Mesh(jax.devices()[:1], ("host",)), jax.P("host")
    whole = lambda x: multihost_utils.host_local_array_to_global_array(x, *where)
    part = lambda x: multihost_utils.global_array_to_host_local_array(x, *where)
    f = lambda x: jnp.sum(part(jnp.sin(whole(x))) ** 2)
    np.testing.assert_allclose(WRAPS[how](bp.grad(f))(X[None])[0], np.sin(2 * X))


@fused(out_spaces=(Space.Host, Space.Device))
def sums_and_products(x, y):
    return jnp.sin(x) + y, jnp.tanh(x) ** 3 * jnp.exp(y)


def test_a_fused_kernel_goes_back_as_one():
    """JAX compiles it for one kind of GPU alone, so that here its program is evaluated."""
    x, y = jnp.array([0.3, -0.7, 1.1]), jnp.array([0.5, 0.2, -0.4])
    want = 3 * jnp.tanh(x) ** 2 / jnp.cosh(x) ** 2 * jnp.exp(y), jnp.tanh(x) ** 3 * jnp.exp(y)
    on_host = jax.device_put(x, Space.Host)
    for i, expected in enumerate([(jnp.cos(x), jnp.ones(3)), want]):
        f = lambda x, y, i=i: jnp.sum(sums_and_products(x, y)[i])
        program = jax.make_jaxpr(bp.grad(f, (0, 1)))(on_host, y)
        assert [v.aval.memory_space for v in program.jaxpr.outvars] == [Space.Host, Space.Device]
        _, back = (eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "fused_call")
        got = jax.core.eval_jaxpr(back.params["jaxpr"].jaxpr, (), x, y, jnp.ones(3))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
