"""Levenberg-Marquardt and Gauss-Newton against the formulas with dense Jacobians, and on a problem of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import funcbp as bp
from funcbp import optim

NET = bp.nets.mlp([1, 5, 1], activation=bp.ops.tanh)
X = jnp.linspace(-1.0, 1.0, 21)[:, None]
Y = 0.5 + 0.25 * jnp.sin(3 * jnp.pi * X)
PARAMS = NET.init(jax.random.key(1), X)


def residual(params, example):
    return NET.apply(params, example[0]) - example[1]


def expected_step(params, batch, mu):
    w, unravel = ravel_pytree(params)
    e = lambda w: jax.vmap(residual, (None, 0))(unravel(w), batch).reshape(-1)
    jacobian = jax.jacrev(e)(w)
    return unravel(-jnp.linalg.solve(jacobian.T @ jacobian + mu * jnp.eye(w.size), jacobian.T @ e(w)))


@pytest.mark.slow(once=[])
@pytest.mark.parametrize(("method", "n"), [("primal", 21), ("dual", 21), ("auto", 21), ("auto", 7)])
def test_one_step(method, n):
    batch = X[:n], Y[:n]
    optimizer = optim.levenberg_marquardt(residual, mu=0.1, method=method)
    step, state = jax.jit(lambda p, batch: optimizer.update(None, optimizer.init(p), p, batch=batch))(PARAMS, batch)
    assert state.tries == 1
    np.testing.assert_allclose(state.mu, 0.01)
    expected = jax.jit(expected_step)(PARAMS, batch, 0.1)
    for ours, theirs in zip(*map(jax.tree.leaves, (step, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["primal", "dual"])
def test_bfloat16_is_solved_in_float32(method):
    w, x = jnp.ones(2, jnp.bfloat16), jnp.array([[1.0, 0.0], [1.0, 2.0], [0.0, 1.0]], jnp.bfloat16)
    optimizer = optim.levenberg_marquardt(lambda w, x: jnp.vdot(w, x), mu=0.5, method=method, batch=x)
    step, _ = optimizer.update(None, optimizer.init(w), w)
    rows = np.asarray(x, np.float64)
    expected = -np.linalg.solve(rows.T @ rows + 0.5 * np.eye(2), rows.T @ rows @ np.ones(2))
    assert step.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(step, np.float64), expected, rtol=2**-6)


def test_damping_grows_until_the_error_falls():
    """From a poor start an undamped step overshoots: the same Jacobian is used again with more damping."""
    residual = lambda w, x: jnp.arctan(w * x)
    batch, w = jnp.ones(1), jnp.array(3.0)
    optimizer = optim.levenberg_marquardt(residual, mu=1e-6, batch=batch)
    step, state = optimizer.update(None, optimizer.init(w), w)
    mu = 1e-6 * 10.0 ** (int(state.tries) - 1)
    slope, e = 1 / (1 + 9.0), np.arctan(3.0)
    assert state.tries > 1
    np.testing.assert_allclose(step, -slope * e / (slope**2 + mu), rtol=1e-9)
    assert abs(np.arctan(3.0 + float(step))) < e
    np.testing.assert_allclose(state.mu, mu / 10)
    np.testing.assert_allclose(state.value, np.arctan(3.0 + float(step)) ** 2)


def test_where_nothing_helps_the_parameters_stay():
    optimizer = optim.levenberg_marquardt(lambda w, x: w * 0 + x, mu=1.0, max_tries=3, batch=jnp.ones(2))
    step, state = optimizer.update(None, optimizer.init(jnp.array(1.0)), jnp.array(1.0))
    assert (step, state.tries, state.value, state.mu) == (0, 3, 2, 1)  # μ begins anew: more of it changes nothing


@pytest.mark.slow
def test_the_sine_is_learned():
    """Hagan and Menhaj's first problem, a 1-15-1 network, to below their error of 0.02, in few updates.

    Seventy-five times as many updates of gradient descent do not get there. The start is a favourable one: of six
    that were tried, two get below 1e-3 in 20 updates, and all in 40.
    """
    net = bp.nets.mlp([1, 15, 1], activation=bp.ops.tanh)
    batch = tuple(jnp.asarray(a, jnp.float64) for a in bp.data.sine(40, periods=3, amplitude=0.25, offset=0.5))
    start = net.init(jax.random.key(0), batch[0])
    spread = jax.random.uniform(jax.random.key(50), (15,), minval=-5.0, maxval=5.0)
    start["dense_0"] = {"kernel": 5 * start["dense_0"]["kernel"], "bias": spread}
    residual = lambda params, example: net.apply(params, example[0]) - example[1]
    mean_square = lambda params: jnp.mean(jax.vmap(residual, (None, 0))(params, batch) ** 2)

    def train(optimizer, updates):
        def step(carry, _):
            params, state = carry
            update, state = optimizer.update(bp.grad(mean_square)(params), state, params)
            return (optax.apply_updates(params, update), state), None

        (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=updates)
        return mean_square(params)

    marquardt = jax.jit(lambda: train(optim.levenberg_marquardt(residual, batch=batch), 20))()
    descent = jax.jit(lambda: train(optax.sgd(0.05), 1500))()
    assert marquardt < 1e-3 < 0.02 < descent


def test_gauss_newton_step():
    """The solution of (G + λ I) s = -ḡ, with the matrix dense."""
    optimizer = optim.gauss_newton(NET.apply, bp.ops.squared_error, learning_rate=0.5, damping=0.1, batch=(X, Y))
    step, _ = jax.jit(lambda p: optimizer.update(None, optimizer.init(p), p))(PARAMS)
    w = len(X) * 0.1  # the same step, for sums instead of means over the examples
    expected = jax.tree.map(lambda s: 0.5 * s, jax.jit(expected_step)(PARAMS, (X, Y), w))
    for ours, theirs in zip(*map(jax.tree.leaves, (step, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match="method is"):
        optim.levenberg_marquardt(residual, method="both")
    with pytest.raises(ValueError, match=r"computes the residuals itself: call update\("):
        optim.levenberg_marquardt(residual).update(None, None, PARAMS)
    with pytest.raises(ValueError, match="runs the model itself"):
        optim.gauss_newton(NET.apply, bp.ops.squared_error).update(None, None, PARAMS)


LINE = lambda w, e: w["s"] * e[0] + w["o"] - e[1]


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("max_tries", [3, 15])
def test_at_a_minimum_the_damping_waits_for_new_data(max_tries):
    optimizer, x = optim.levenberg_marquardt(LINE, max_tries=max_tries), jnp.array([0.0, 1.0, 2.0])
    w = {"s": jnp.array(0.0), "o": jnp.array(0.0)}
    update = jax.jit(lambda w, state, y: optimizer.update(None, state, w, batch=(x, y)))
    state = optimizer.init(w)
    for y in (2 * x + 1, -3 * x + 5):  # of two lines
        for _ in range(40):
            step, state = update(w, state, y)
            w = optax.apply_updates(w, step)
            assert 0 < state.mu < 1e30
    np.testing.assert_allclose((w["s"], w["o"]), (-3, 5), atol=1e-6)


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("method", ["primal", "dual"])
def test_parameters_narrower_than_the_residuals(method):
    x, w = jnp.array([0.0, 1.0, 2.0], jnp.float32), {"s": jnp.zeros((), jnp.bfloat16), "o": jnp.zeros((), jnp.bfloat16)}
    optimizer = optim.levenberg_marquardt(lambda w, e: LINE(jax.tree.map(jnp.float32, w), e), method=method)
    state = optimizer.init(w)
    for _ in range(4):
        step, state = optimizer.update(None, state, w, batch=(x, 2 * x + 1))
        assert step["s"].dtype == jnp.bfloat16 and state.value.dtype == jnp.float32
        w = optax.apply_updates(w, step)
    np.testing.assert_allclose((float(w["s"]), float(w["o"])), (2, 1), atol=2**-6)
