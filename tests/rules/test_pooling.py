"""Pooling over windows: the way back compares, and scatters nothing; over windows side by side it sums nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

rng = np.random.default_rng(0)
KINDS = {"max": (-jnp.inf, lax.max), "min": (jnp.inf, lax.min), "sum": (0.0, lax.add)}


def pooled(x, kind, window=(2, 2), strides=None, padding="VALID"):
    start, join = KINDS[kind]
    return lax.reduce_window(x, start, join, (1, *window, 1), (1, *(strides or window), 1), padding)


def by_hand(x, ct, kind, window):
    """Window by window: z̄ to its first winner, or to all."""
    found = np.zeros_like(x)
    for n, i, j, c in np.ndindex(*ct.shape):
        part = np.s_[n, i * window[0] : (i + 1) * window[0], j * window[1] : (j + 1) * window[1], c]
        if kind == "sum":
            found[part] += ct[n, i, j, c]
        else:
            best = {"max": np.argmax, "min": np.argmin}[kind](x[part])
            found[part][np.unravel_index(best, window)] += ct[n, i, j, c]
    return found


def primitives_of(f, *args):
    return {e.primitive.name for e in jax.make_jaxpr(f)(*args).eqns}


@pytest.mark.parametrize("window", [(2, 2), (3, 1), (1, 2), (4, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_side_by_side(kind, window):
    """With ties, and with rows and columns that are in no window."""
    x = np.round(rng.normal(size=(2, 9, 7, 3)), 0)
    ct = rng.normal(size=pooled(jnp.asarray(x), kind, window).shape)
    loss = lambda x: (pooled(x, kind, window) * ct).sum()
    assert not primitives_of(bp.grad(loss), x) & {"select_and_scatter_add", "reduce_window_sum"} - {
        f"reduce_window_{kind}"
    }
    for grad in (bp.grad(loss), jax.jit(bp.grad(loss))):
        np.testing.assert_array_equal(grad(x), by_hand(x, ct, kind, window))


@pytest.mark.parametrize("kind", ["max", "min"])
def test_nan_and_second_order(kind):
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 3)))
    nan = x.at[0, 0, 0, 0].set(jnp.nan).at[1, 3, 2, 1].set(jnp.nan)
    bent = lambda x: jnp.sin(pooled(x, kind)).sum()
    ours, theirs = (jax.jit(api.grad(bent)) for api in (bp, jax))
    np.testing.assert_array_equal(ours(nan), theirs(nan))
    step = 1e-6 * jnp.asarray(rng.normal(size=x.shape))
    got = bp.grad(lambda x: (bp.grad(bent)(x) * x).sum())(x)
    along = lambda x: (theirs(x) * x).sum()
    np.testing.assert_allclose(jnp.vdot(got, step), (along(x + step) - along(x - step)) / 2, rtol=1e-5)


PLACED = [(w, s, p) for w in ((2, 2), (3, 3), (1, 3)) for s in ((1, 1), (2, 2), (3, 1)) for p in ("VALID", "SAME")]
PLACED.append(((3, 2), (2, 1), ((0, 0), (1, 2), (2, 0), (0, 0))))


@pytest.mark.parametrize("kind", ["max", "min"])
def test_windows_that_overlap_or_are_padded(kind):
    """The winners are those that JAX scatters to, with ties, with nan and where all is as low as the padding."""
    x = jnp.asarray(np.round(rng.normal(size=(2, 7, 6, 3)), 0))
    nan = x.at[0, 0, 0, 0].set(jnp.nan).at[1, 3, 2, 1].set(jnp.nan)
    for window, strides, padding in PLACED:
        ct = rng.normal(size=pooled(x, kind, window, strides, padding).shape)
        loss = lambda x, args=(window, strides, padding), ct=ct: (pooled(x, kind, *args) * ct).sum()
        assert "select_and_scatter_add" not in primitives_of(bp.grad(loss), x)
        for z in (x, nan, jnp.full_like(x, KINDS[kind][0])):
            np.testing.assert_allclose(bp.grad(loss)(z), jax.grad(loss)(z), rtol=1e-12, atol=1e-14)


def test_large_windows_go_another_way():
    """Twenty-five places are not compared one by one."""
    x = jnp.asarray(rng.normal(size=(2, 9, 7, 3)))
    loss = lambda x: jnp.sin(pooled(x, "max", (5, 5))).sum()
    assert "select_and_scatter_add" in primitives_of(bp.grad(loss), x)
    np.testing.assert_allclose(bp.grad(loss)(x), jax.grad(loss)(x), rtol=1e-12)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 5, 2), (0, 4, 4, 2), (2, 4, 4, 0)])
def test_windows_that_fit_nowhere_have_no_cotangent(shape, strides):
    x = jnp.ones(shape)
    for kind in KINDS:
        got = bp.grad(lambda x, kind=kind: jnp.sin(pooled(x, kind, strides=strides)).sum())(x)
        np.testing.assert_array_equal(
            got, jax.grad(lambda x, kind=kind: jnp.sin(pooled(x, kind, strides=strides)).sum())(x)
        )
