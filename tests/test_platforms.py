"""The compiled update steps lower for CPU, CUDA and TPU, from any machine; on this one, what was exported runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcbp as bp
from benchmarks.workloads import transformer

PLATFORMS = ("cpu", "cuda", "tpu")
NET = bp.nets.mlp([64, 8, 10])
DIGITS = jnp.ones((4, 64), jnp.float32), jnp.arange(4)


def of_digits(params, batch):
    return bp.ops.softmax_cross_entropy_with_integer_labels(NET.apply(params, batch[0]), batch[1]).mean()


def descend(params, gradients):
    return jax.tree.map(lambda p, g: p - p.dtype.type(0.1) * g, params, gradients)


def digits():
    optimizer = optax.sgd(jnp.float32(0.1), momentum=0.9)
    params = NET.init(jax.random.key(0), DIGITS[0])

    def step(params, state, batch):
        gradient = bp.grad(of_digits)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step, (params, optimizer.init(params), DIGITS)


def gpt():
    program, args = transformer(d=16, time=8, batch=2, blocks=2, heads=2, vocabulary=32)
    gradient = program(bp)

    def step(params, tokens):
        loss, gradients = gradient(params, tokens)
        return loss, descend(params, gradients)

    return step, args


def per_example():
    loss = lambda params, example: of_digits(params, (example[0][None], example[1][None]))
    clipped = bp.per_example.clipped_grad(loss, max_norm=1.0)

    def step(params, batch):
        return descend(params, clipped(params, batch)[0])

    return step, (NET.init(jax.random.key(0), DIGITS[0]), DIGITS)


@pytest.fixture(autouse=True)
def usual_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("step", [digits, gpt, per_example], ids=lambda f: f.__name__)
def test_an_update_lowers_for_every_platform(step):
    update, args = step()
    exported = jax.export.export(jax.jit(update), platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS
    for got, wanted in zip(jax.tree.leaves(exported.call(*args)), jax.tree.leaves(jax.jit(update)(*args)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
