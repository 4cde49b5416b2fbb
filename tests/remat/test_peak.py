"""The predicted peak of programs in which XLA does one thing each, beside what was compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import funcbp as bp


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def lends(w, x):
    """Layers whose weights are wider than what they make: that waits in the buffers of the weights' gradients."""
    for p in w:
        x = jax.nn.relu(x @ p)
    return jnp.sum(x**2)


def normed(w, x):
    """A choice that several sums read is stored once, and what is made of it reads it."""
    for p in w:
        c = x - x.mean(-1, keepdims=True)
        x = jax.nn.relu(c * lax.rsqrt((c**2).mean(-1, keepdims=True) + 1e-5) @ p)
    return jnp.sum(x**2)


def convolved(w, x):
    """Convolutions in a branch: their operands are not turned over, and they run in the order of its arguments."""
    for k in w:
        x = jax.nn.silu(lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return jnp.sum(x**2)


def read_out(w, x):
    """Wide logits: a copy that is turned over is written over nothing, and a mask is made where it is read."""
    logits = x @ w[0]
    return -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(jnp.arange(len(x)), logits.shape[1], dtype=x.dtype))


def gated(w, x):
    """A product of two that is read again on the way back, beyond other products, is stored."""
    for a, b, c in w:
        x = x + (jax.nn.silu(x @ a) * (x @ b)) @ c
    return jnp.sum(x**2)


def stacked(w, xs):
    """Loops after each other: the stacks of all of them are there from the beginning of the program."""
    for a in w:
        _, xs = lax.scan(lambda h, x, a=a: (jnp.tanh(x @ a + h),) * 2, jnp.zeros_like(xs[0]), xs)
    return jnp.sum(xs**2)


def experts(w, x):
    """A product of several at once is no cluster with what reads it."""
    gate, a, b = w
    y = jnp.einsum("etf,efd->etd", jax.nn.gelu(jnp.einsum("td,edf->etf", x, a)), b)
    return jnp.sum(jnp.einsum("te,etd->td", x @ gate, y) ** 2)


def attending(w, x):
    """A softmax over products of several at once: sums, products and what is between are one kernel."""
    q, k, v = (jnp.einsum("btd,dhe->bhte", x, p) for p in w)
    weights = jax.nn.softmax(jnp.einsum("bhqe,bhke->bhqk", q, k) / 4)
    return jnp.mean(jnp.einsum("bhqk,bhke->bhqe", weights, v) ** 2)


def contrasted(w, x):
    """What is computed twice of the same is computed once; of what is turned over it is not the same."""
    scores = jnp.tanh(x @ w[0]) @ jnp.tanh(x @ w[1]).T
    at = jnp.arange(len(scores))[:, None]
    once = lambda s: jnp.take_along_axis(s, at, -1) ** 2
    return jnp.sum(once(jnp.sin(scores)) + once(jnp.sin(scores)) + once(jnp.sin(scores.T)))


def dropped(w, x):
    """Random bits are made as two halves, which stay until a mask is made of them."""
    for i, p in enumerate(w):
        kept = jax.random.bernoulli(jax.random.key(i), 0.9, x.shape)
        x = jnp.where(kept, jax.nn.relu(x @ p), 0.0)
    return jnp.mean(x**2)


def narrow(w, x):
    """Products in bfloat16 are made in float32, of operands in float32."""
    for p in w:
        x = jax.nn.relu(x.astype(jnp.bfloat16) @ p.astype(jnp.bfloat16))
    return jnp.mean(x.astype(jnp.float32) ** 2)


def linear(w, x):
    """Operands that have their heads inside are turned over in copies, one for each order of the axes."""
    q, k, v = (jax.nn.elu((x @ p).reshape(*x.shape[:2], 4, -1)) + 1 for p in w)
    return jnp.sum(jnp.einsum("bthd,bhde->bthe", q, jnp.einsum("bthd,bthe->bhde", k, v)) ** 2)


def crossing(w, x):
    """A region is handed transposed values, so that its products are not of the library and are stored."""
    heads = lambda x, p: (x @ p).reshape(*x.shape[:2], 4, -1)
    q, k, v = heads(x[:, :32], w[0]), heads(x, w[1]), heads(x, w[2])
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 4)
    return jnp.sum((jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape[0], 32, -1) @ w[3]) ** 2)


PROGRAMS = {
    "linear": (linear, [struct(64, 64)] * 3, struct(4, 128, 64), False),
    "crossing, a region": (crossing, [struct(64, 64)] * 4, struct(8, 128, 64), True),
    "gated, a region": (gated, [(struct(64, 128), struct(64, 128), struct(128, 64))] * 3, struct(128, 64), True),
    "attending": (attending, [struct(64, 4, 16)] * 3, struct(2, 128, 64), False),
    "attending, a region": (attending, [struct(64, 4, 16)] * 3, struct(2, 128, 64), True),
    "contrasted": (contrasted, [struct(64, 64)] * 2, struct(256, 64), False),
    "dropped": (dropped, [struct(64, 64)] * 4, struct(128, 64), False),
    "narrow": (narrow, [struct(64, 64)] * 4, struct(512, 64), False),
    "lends": (lends, [struct(200, 400), struct(400, 200), struct(200, 100)], struct(64, 200), True),
    "normed": (normed, [struct(32, 32)] * 3, struct(256, 32), True),
    "convolved": (convolved, [struct(3, 3, 4, 8), *[struct(3, 3, 8, 8)] * 2], struct(2, 16, 16, 4), True),
    "read out": (read_out, [struct(16, 2048)], struct(64, 16), False),
    "gated": (gated, [(struct(32, 64), struct(32, 64), struct(64, 32))] * 3, struct(128, 32), False),
    "stacked": (stacked, [struct(16, 16)] * 3, struct(50, 8, 16), False),
    "experts": (experts, [struct(32, 4), struct(4, 32, 64), struct(4, 64, 32)], struct(128, 32), False),
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the model follows the CPU's buffers")
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_predicted_peak_is_within_a_tenth(name):
    f, w, x, outside_loops = PROGRAMS[name]
    backward = bp.Backward(outside_loops=outside_loops)
    compiled = jax.jit(backward.value_and_grad(f)).lower(w, x).compile()
    predicted = bp.residuals(f, backward=backward)(w, x).peak
    assert predicted == pytest.approx(compiled.memory_analysis().temp_size_in_bytes, rel=0.1)
