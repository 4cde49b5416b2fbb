"""`bp.scan` and `bp.while_loop` as the user calls them: what they return, and what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp


def newton(a):
    return bp.while_loop(lambda x: jnp.abs(x * x - a) > 1e-10, lambda x: (x + a / x) / 2, a, max_steps=50, snapshots=3)


def test_a_loop_whose_length_depends_on_the_data():
    squares = jnp.array([4.0, 1e4, 1.0])  # the last one takes no step at all
    want = 0.5 * squares**-0.5
    np.testing.assert_allclose(jax.vmap(bp.grad(newton))(squares)[:2], want[:2], rtol=1e-9)
    for api in (bp, jax):
        np.testing.assert_allclose(jax.jit(api.grad(newton))(4.0), want[0], rtol=1e-9)
        np.testing.assert_allclose(api.grad(lambda a: jax.vmap(newton)(a).sum())(squares)[:2], want[:2], rtol=1e-9)
    assert bp.grad(newton)(1.0) == 1.0  # the loop returned its argument
    np.testing.assert_allclose(bp.hvp(newton, (4.0,), (1.0,)), -0.25 * 4.0**-1.5, rtol=1e-6)


def test_where_nothing_is_compiled_its_derivative_is_the_same():
    """Under `jax.disable_jit` too: x grows by one half until it is 50, which 3 does in seven steps, and 40 in one."""
    last = lambda x: bp.while_loop(lambda c: c < 50, lambda c: c * 1.5, x, max_steps=20)
    with jax.disable_jit():
        np.testing.assert_allclose(bp.grad(last)(3.0), 1.5**7)
        np.testing.assert_allclose(jax.vmap(bp.grad(last))(jnp.array([3.0, 40.0])), [1.5**7, 1.5])


def test_without_snapshots_it_is_jax():
    step = lambda c, x: (c * x, c)
    xs = jnp.arange(1.0, 4.0)
    jax.tree.map(np.testing.assert_array_equal, bp.scan(step, 1.0, xs), lax.scan(step, 1.0, xs))


def keyed(c, x):
    return (c[0] * 2, c[1] + 1, jax.random.fold_in(c[2], 1)), (c[0].sum() * x, c[1])


@pytest.mark.parametrize("length", [0, 4])
@pytest.mark.parametrize(
    ("step", "init"),
    [
        (lambda c, x: (2 * c, c * x), 1.0),  # weakly typed
        (lambda c, x: (c, c.astype(float) * x), np.float32(1)),  # unchanged
        (keyed, (np.ones(2), 3, jax.random.key(0))),
    ],
    ids=["weak", "unchanged", "keys"],
)
def test_values_and_types_are_those_of_jax(step, init, length):
    xs = jnp.arange(float(length))
    for run in (lambda f: f, jax.jit):
        got = run(lambda: bp.scan(step, init, xs, snapshots=2))()
        want = run(lambda: lax.scan(step, init, xs))()
        assert jax.tree.map(jax.typeof, got) == jax.tree.map(jax.typeof, want)
        jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(numbers, t) for t in (got, want)))


def numbers(x):
    return jax.random.key_data(x) if jnp.issubdtype(jax.typeof(x).dtype, jax.dtypes.prng_key) else x


def test_a_scan_of_no_steps_has_the_derivative_of_the_identity():
    assert bp.grad(lambda x: bp.scan(lambda c, x: (c * x, None), x, jnp.zeros(0), snapshots=2)[0])(3.0) == 1


# --- loops that do not end --------------------------------------------------------------------------------------------


def power(x, max_steps, **how):
    """x¹⁰, if there are ten steps for it; beside it a counter."""
    step = lambda c: (c[0] + 1, c[1] * x)
    return bp.while_loop(lambda c: c[0] < 10, step, (0, 1.0), max_steps=max_steps, **how)


def test_a_loop_that_ends_with_its_last_step_has_ended():
    for run in (lambda f: f, jax.jit):
        assert run(bp.value_and_grad(lambda x: power(x, 10)[1]))(2.0) == (1024, 5120)


def test_a_loop_that_has_not_ended_is_an_error():
    message = r"funcbp\.while_loop at .*test_loops\.py.* has not ended after max_steps=4 steps.*truncate=True"
    for f in (
        power,
        lambda x, n: bp.grad(lambda x: power(x, n)[1])(x),
        lambda x, n: jax.grad(lambda x: power(x, n)[1])(x),
    ):
        with pytest.raises(RuntimeError, match=message):
            f(2.0, 4)


def test_where_it_is_not_known_it_returns_nan_and_so_does_its_derivative():
    count, value = jax.jit(lambda x: power(x, 4))(2.0)
    assert (count, jnp.isnan(value)) == (4, True)
    f = lambda x: power(x, 4)[1]
    for api in (bp, jax):
        assert jnp.isnan(jax.jit(api.grad(f))(2.0))
    assert np.isnan(jax.jit(lambda x: jax.jvp(f, (x,), (1.0,)))(2.0)).all()
    found = bp.find_nan(f)(2.0)
    assert (found.primitive, found.backward, found.trap) == ("unfinished_loop", False, "max_steps reached")
    assert "test_loops.py" in found.line and "max_steps" in found.remedy


def test_of_mapped_loops_only_those_that_have_not_ended_are_nan():
    halvings = lambda x: bp.while_loop(lambda c: c[0] > 1, lambda c: (c[0] / 2, c[1] + c[0]), (x, x), max_steps=3)
    x = jnp.array([7.0, 9.0, 1.0])  # 3.5, 1.75, 0.875; four steps; none
    np.testing.assert_array_equal(jax.vmap(halvings)(x)[0], [0.875, np.nan, 1])
    slopes = jax.vmap(bp.grad(lambda x: halvings(x)[1]))(x)  # x + x + x/2 + x/4
    np.testing.assert_array_equal(slopes, [2.75, np.nan, 1])


def test_a_loop_that_is_to_be_cut_short_is():
    for run in (lambda f: f, jax.jit):
        assert run(bp.value_and_grad(lambda x: power(x, 4, truncate=True)[1]))(2.0) == (16, 32)
    endless = lambda x: bp.while_loop(lambda c: True, lambda c: 2 * c, x, max_steps=5, truncate=True)
    assert bp.value_and_grad(endless)(1.5) == (48, 32)


def test_errors():
    with pytest.raises(ValueError, match="snapshots is a positive integer, and was 0"):
        bp.scan(lambda c, x: (c, None), 1.0, length=3, snapshots=0)
    with pytest.raises(ValueError, match=r"max_steps is a positive integer, and was 2\.5"):
        bp.while_loop(lambda c: True, lambda c: c, 1.0, max_steps=2.5)
    with pytest.raises(TypeError, match="carry"):
        bp.scan(lambda c, x: ((c, c), None), 1.0, length=3, snapshots=2)
    with pytest.raises(TypeError, match="the corresponding component of the carry output"):
        bp.while_loop(lambda c: True, lambda c: (c, c), 1.0, max_steps=3)
