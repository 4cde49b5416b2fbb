"""Random well-typed programs: gradients equal to `jax.vjp`, in float64.

A hundred run with the tests; `python -m pytest tests/test_random_programs.py --hypothesis-profile=long` runs 10,000.
The seeds are those of the four parts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jax import lax

import funcbp as bp

COMMON = dict(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None)
settings.register_profile("short", max_examples=25, **COMMON)
settings.register_profile("long", max_examples=2_500, phases=[Phase.generate, Phase.shrink], **COMMON)
settings.load_profile("short")


@jax.custom_jvp
def with_tangent(x):
    return x * jnp.cos(x)


with_tangent.defjvp(lambda p, t: (with_tangent(p[0]), 3 * t[0] * jnp.sin(p[0])))


@jax.custom_vjp
def with_bwd(x, y):
    return x * y


with_bwd.defvjp(lambda x, y: (x * y, (x, y)), lambda res, ct: (ct * res[1] * 2, ct * jnp.tanh(res[0])))

UNARY = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "logistic": jax.nn.sigmoid,
    "square": jnp.square,
    "softplus": jax.nn.softplus,
    "relu": jax.nn.relu,
    "abs": jnp.abs,
    "gelu": jax.nn.gelu,
    "neg": jnp.negative,
    "expm1": lambda x: jnp.expm1(jnp.tanh(x)),
    "sqrt": lambda x: jnp.sqrt(1 + x * x),
    "log": lambda x: jnp.log(1 + x * x),
    "round": jnp.round,
    "stop": lax.stop_gradient,
    "custom_jvp": with_tangent,
    "cube": lambda x: x**3 / 4,
}
BINARY = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": lambda x, y: x / (1 + y * y),
    "max": jnp.maximum,
    "min": jnp.minimum,
    "where": lambda x, y: jnp.where(x > y, x, y * 2),
    "atan2": lambda x, y: jnp.arctan2(x, 2 + y * y),
    "custom_vjp": lambda x, y: with_bwd(*jnp.broadcast_arrays(x, y)),
    "pow": lambda x, y: (1 + x * x) ** jnp.tanh(y),
}
WRAPPERS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "remat dots": lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable),
    "jit of remat": lambda f: jax.jit(jax.checkpoint(f)),
}


def tame(x):
    """Keep values of order 1, so that a long program does not overflow."""
    return x / (1 + 0.1 * jnp.abs(x))


@st.composite
def instructions(draw, depth=0):
    """A list of steps; each names an operation, which earlier values it reads, and its own choices."""
    kinds = ["unary", "binary", "reduce", "contract", "reshape", "transpose", "index", "slice", "update", "concatenate"]
    kinds += ["sort", "cumulate", "pad", "softmax"] + (["scan", "cond", "block", "vmap"] if depth < 2 else [])
    steps = []
    for _ in range(draw(st.integers(1, 3 if depth else 6))):
        kind = draw(st.sampled_from(kinds))
        step = {
            "kind": kind,
            "a": draw(st.integers(0, 30)),
            "b": draw(st.integers(0, 30)),
            "n": draw(st.integers(0, 60)),
        }
        if kind == "unary":
            step["op"] = draw(st.sampled_from(sorted(UNARY)))
        if kind == "binary":
            step["op"] = draw(st.sampled_from(sorted(BINARY)))
        if kind in ("scan", "cond", "block", "vmap"):
            step["body"] = draw(instructions(depth=depth + 1))
            step["other"] = draw(instructions(depth=depth + 1)) if kind == "cond" else None
            step["wrap"] = draw(st.sampled_from(sorted(WRAPPERS)))
            step["reverse"] = draw(st.booleans())
        steps.append(step)
    return steps


def broadcastable(x, y):
    """y, cut or grown so that it broadcasts against x."""
    y = y.reshape(-1)[: max(1, x.shape[-1] if x.ndim else 1)]
    if x.ndim and y.size != x.shape[-1]:
        y = y[:1]
    return y.reshape((1,) * (x.ndim - 1) + (y.size,)) if x.ndim else y[0]


def same_shape(y, like):
    """The numbers of y, repeated or cut to another shape."""
    flat = y.reshape(-1)
    return jnp.tile(flat, -(-like.size // flat.size))[: like.size].reshape(like.shape)


def perform(step, values):
    x, y, n = values[step["a"] % len(values)], values[step["b"] % len(values)], step["n"]
    axis = n % x.ndim if x.ndim else 0
    kind = step["kind"]
    if kind == "unary":
        return UNARY[step["op"]](x)
    if kind == "binary":
        return BINARY[step["op"]](x, jnp.broadcast_to(broadcastable(x, y), x.shape) if n % 2 else broadcastable(x, y))
    if kind == "block":
        return WRAPPERS[step["wrap"]](lambda *v: run(step["body"], v)[-1])(*values)
    if kind == "cond":
        one = lambda v: same_shape(run(step["body"], v)[-1], x)
        other = lambda v: same_shape(run(step["other"], v)[-1], x)
        return lax.cond(jnp.sum(y) > 0, WRAPPERS[step["wrap"]](one), other, list(values))
    if x.ndim == 0:
        return x * jnp.sum(y)
    if kind == "reduce":
        op = [jnp.sum, jnp.mean, jnp.max, jnp.min, jnp.prod, jax.nn.logsumexp][n % 6]
        return op(x, axis=axis, keepdims=bool(step["b"] % 2))
    if kind == "contract":
        other = same_shape(y, jnp.zeros((x.shape[axis], 2 + n % 2)))
        return lax.dot_general(x, other, (((axis,), (0,)), ((), ()))) if n % 3 else jnp.tensordot(other.T, x, (1, axis))
    if kind == "reshape":
        return x.reshape(-1) if n % 2 else x[None]
    if kind == "transpose":
        return jnp.transpose(x, np.random.default_rng(n).permutation(x.ndim))
    if kind == "index":
        return jnp.take(x, np.random.default_rng(n).integers(0, x.shape[axis], 3), axis)
    if kind == "slice":
        return lax.slice_in_dim(x, 0, max(1, x.shape[axis] - 1), 1 + n % 2, axis) if n % 3 else jnp.flip(x, axis)
    if kind == "update":
        row = same_shape(y, x[0])
        return x.at[n % x.shape[0]].set(row) if n % 2 else x.at[np.array([0, 0])].add(row[None])
    if kind == "concatenate":
        return jnp.concatenate([x, same_shape(y, x)], axis) if n % 2 else jnp.stack([x, same_shape(y, x)], axis)
    if kind == "sort":
        return jnp.sort(x, axis)
    if kind == "cumulate":
        return [jnp.cumsum, jnp.cumprod, lambda a, axis: lax.cummax(a, axis)][n % 3](x, axis=axis)
    if kind == "pad":
        return jnp.pad(x, [(n % 2, 1)] * x.ndim, constant_values=0.5)
    if kind == "softmax":
        return jax.nn.softmax(x, axis)
    if kind == "vmap":
        return jax.vmap(lambda v: run(step["body"], [v, y])[-1])(x)
    assert kind == "scan"

    def body(carry, u):
        out = run(step["body"], [carry[0], u, y])[-1]
        return (jnp.tanh(same_shape(out, carry[0]) + carry[0]), carry[1] + 1), out

    (last, count), stacked = lax.scan(
        WRAPPERS[step["wrap"]](body), (same_shape(y, x[0]), 0), x, reverse=step["reverse"], unroll=1 + n % 2
    )
    return stacked if n % 2 else last * count


def run(steps, values):
    values = list(values)
    for step in steps:
        out = tame(perform(step, values))
        values.append(out if out.size <= 4000 else out.reshape(-1)[:100])
    return values


def program(steps):
    def f(*inputs):
        values = run(steps, inputs)
        return values[-1], sum(jnp.sum(v) for v in values[len(inputs) :]), jnp.argmax(values[-1].reshape(-1))

    return f


def check_program(steps, numbers, jitted):
    rng = np.random.default_rng(numbers)
    inputs = [jnp.asarray(rng.normal(size=s)) for s in ((3,), (2, 3), (), (2, 1, 4))]
    f = program(steps)
    outs, pullback = bp.vjp(f, *inputs)
    want_outs, want_pullback = jax.vjp(f, *inputs)
    ct = (
        jnp.asarray(rng.normal(size=outs[0].shape)),
        jnp.asarray(rng.normal()),
        np.zeros((), jax.dtypes.float0),
    )
    got = jax.jit(lambda c: bp.vjp(f, *inputs)[1]((*c, ct[2])))(ct[:2]) if jitted else pullback(ct)
    want = want_pullback(ct)
    size = max(1.0, *(float(np.max(np.abs(w))) for w in want))
    for g, w in zip((*got, *outs), (*want, *want_outs), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-10 * size)


@pytest.mark.parametrize("part", range(4))  # so that workers share them
def test_equals_jax(part):
    @seed(part)
    @given(instructions(), st.integers(0, 2**32 - 1), st.booleans())
    def every(steps, numbers, jitted):
        check_program(steps, numbers, jitted)

    every()
