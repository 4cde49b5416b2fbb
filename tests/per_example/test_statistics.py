"""Gradients of examples, their moments and the noise scale, against those of every example."""

import jax
import jax.numpy as jnp

import funcbp as bp

from .problems import assert_close, flat, problem


def test_grads_in_chunks():
    loss, params, batch, gradients = problem()
    one = sum(p.size for p in jax.tree.leaves(params)) * 8
    assert_close(jax.jit(bp.per_example.grads(loss, max_bytes=2 * 3 * one))(params, batch), gradients)
    assert_close(jax.jit(bp.per_example.grads(loss, max_bytes=1))(params, batch), gradients)


def test_moments_and_noise_scale():
    loss, params, batch, gradients = problem()
    found = jax.jit(bp.per_example.moments(loss))(params, batch)
    mean, variance = (
        jax.tree.map(lambda g, f=f: f(g), gradients) for f in (lambda g: g.mean(0), lambda g: g.var(0, ddof=1))
    )
    snr = jax.tree.map(lambda m, v: jnp.abs(m) / jnp.sqrt(v), mean, variance)
    assert_close(tuple(found), (mean, variance, snr))
    scale = jax.jit(bp.per_example.noise_scale(loss))(params, batch)
    rows = flat(gradients)
    trace = jnp.trace(jnp.cov(rows.T))
    squared_norm = jnp.sum(rows.mean(0) ** 2) - trace / 5
    assert_close(tuple(scale), (trace / squared_norm, trace, squared_norm))
