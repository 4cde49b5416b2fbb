"""Random well-typed programs, and whether their gradients equal `jax.vjp`'s, in float64, once and twice.

A few hundred run with the tests. The long run goes by chunks of a hundred programs, the chunk's number being its seed.
It writes a line per chunk, and goes on where the log ends:

    python -m tests.random_programs --programs 10000 --log random_programs.log
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jax import lax

import funcbp as bp

from .interpret import interpreted

CHUNK = 100
COMMON = dict(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None)


@jax.custom_jvp
def with_tangent(x):
    return x * jnp.cos(x)


with_tangent.defjvp(lambda p, t: (with_tangent(p[0]), 3 * t[0] * jnp.sin(p[0])))


@jax.custom_vjp
def with_bwd(x, y):
    return x * y


with_bwd.defvjp(lambda x, y: (x * y, (x, y)), lambda res, ct: (ct * res[1] * 2, ct * jnp.tanh(res[0])))


def root(x):
    """The root of z + z³ / 3 = x, by JAX's `custom_root`."""
    newton = lambda _, z: lax.fori_loop(0, 20, lambda _, z: z - (z + z**3 / 3 - x) / (1 + z * z), z)
    return lax.custom_root(lambda z: z + z**3 / 3 - x, x * 0, newton, lambda g, y: y / g(jnp.ones_like(y)))


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
    "boolean": lambda x: x * (x > 0.1).astype(x.dtype),
    "integer": lambda x: x * (3 * x).astype(int).astype(x.dtype),
    "narrow": lambda x: x.astype(jnp.float32).astype(x.dtype),
    "complex": lambda x: jnp.abs(lax.complex(1 + x * x, x)),
    "logaddexp": lambda x: jnp.logaddexp(x, lax.rev(x, range(x.ndim))),
    "attached": bp.Backward().attach(lambda x: x * jnp.tanh(x)),
    "root": root,
    "switch": lambda x: lax.switch(jnp.sum(x).astype(int), [jnp.sin, jnp.cos, lambda x: x * jnp.sum(x)], x),
    "fori": lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) * x + i, x),
    "jax's gradient": lambda x: jax.grad(lambda x: jnp.sum(jnp.sin(x) ** 2))(x),
    "jax's jvp": lambda x: jax.jvp(lambda y: jnp.sin(y) * x, (x,), (x * x,))[1],
    "fft": lambda x: jnp.abs(jnp.fft.fft(x.reshape(-1))).reshape(x.shape) if x.size else x,
    "solve": lambda x: jnp.linalg.solve(jnp.eye(x.size) * 9 + jnp.outer(x, x), x.reshape(-1)).reshape(x.shape),
    "barrier": lambda x: lax.optimization_barrier((x, 2 * x))[1],
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
    "remat of jit": lambda f: jax.checkpoint(jax.jit(f)),
}


def settled(x):
    """Values of order 1, so that a long program does not overflow, in one of few shapes, so that little is compiled."""
    if x.ndim > 3:
        x = x.reshape(-1, *x.shape[-2:])
    if any(n > 3 for n in x.shape):
        x = lax.slice(x, (0,) * x.ndim, [min(n, 3) for n in x.shape])
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
        size = x.shape[axis]  # two beyond it, on each side
        at, mode = np.random.default_rng(n).integers(-size - 2, size + 2, 3), ["fill", "clip", "wrap"][n % 3]
        return jnp.take(x, at, axis, mode=mode, fill_value=0.5)
    if kind == "slice" and n % 4 == 0:
        return lax.dynamic_slice_in_dim(x, n - 30, max(1, x.shape[axis] - 1), axis)  # moved inside, where it is not
    if kind == "slice":
        return lax.slice_in_dim(x, 0, max(1, x.shape[axis] - 1), 1 + n % 2, axis) if n % 3 else jnp.flip(x, axis)
    if kind == "update":
        row = same_shape(y, x[0])
        return x.at[n % x.shape[0]].set(row) if n % 2 else x.at[np.array([0, 0])].add(row[None])
    if kind == "concatenate":
        return jnp.concatenate([x, same_shape(y, x)], axis) if n % 2 else jnp.stack([x, same_shape(y, x)], axis)
    if kind == "sort":
        other = same_shape(y, x)
        return [
            lambda: jnp.sort(x, axis),
            lambda: lax.sort((jnp.round(x), other, x * other), axis, num_keys=2)[2],
            lambda: jnp.moveaxis(lax.top_k(jnp.moveaxis(x, axis, -1), 1 + n % x.shape[axis])[0], -1, axis),
        ][n % 3]()
    if kind == "cumulate":
        reverse = bool(n % 2)
        return [
            lambda: lax.cumsum(x, axis, reverse=reverse),
            lambda: lax.cumprod(x, axis, reverse=reverse),
            lambda: lax.cummax(x, axis, reverse=reverse),
            lambda: lax.cumlogsumexp(x, axis, reverse=reverse),
            lambda: lax.associative_scan(lambda a, b: jnp.sin(a) * b, x, reverse=reverse, axis=axis),
        ][n % 5]()
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
        values.append(settled(perform(step, values)))
    return values


def program(steps):
    def f(*inputs):
        values = run(steps, inputs)
        return values[-1], sum(jnp.sum(v) for v in values[len(inputs) :]), jnp.argmax(values[-1].reshape(-1))

    return f


def twice(vjp, again):
    """`vjp`, but that its pullback also has the derivative of its own cotangents along themselves, by `again`."""

    def vjp_and_more(f, *inputs):
        outs, pullback = vjp(f, *inputs)

        def pulled(ct):
            back = lambda *xs: vjp(f, *xs)[1](ct)
            return *pullback(ct), *again(back, inputs, pullback(ct))

        return outs, pulled

    return vjp_and_more


def in_reverse(vjp):
    return lambda back, inputs, along: vjp(back, *inputs)[1](along)


def in_forward_mode(back, inputs, along):
    return jax.jvp(back, inputs, along)[1]


def opened(f, *args):
    """Called with concrete values, loops unrolled and branches taken by Python."""
    with jax.disable_jit():
        return f(*args)


# how a program is run, how the witness is, and what is asked of a `vjp`
WAYS = {
    "traced": (interpreted, interpreted, lambda vjp: vjp),
    "traced, twice": (interpreted, interpreted, lambda vjp: twice(vjp, in_reverse(vjp))),
    "traced, jvp of": (interpreted, interpreted, lambda vjp: twice(vjp, in_forward_mode)),
    "eager, opened": (opened, opened, lambda vjp: vjp),
    "eager": (lambda f, *args: f(*args), opened, lambda vjp: vjp),
    "compiled": (lambda f, *args: jax.jit(f)(*args), opened, lambda vjp: vjp),
}
# the others compile a program, which takes a hundred times as long
CHEAP = ["traced"] * 13 + ["traced, twice", "traced, jvp of", "eager, opened"]


def check_program(steps, numbers, way):
    """Raise an AssertionError if the outputs or the cotangents of a program are not those of `jax.vjp`."""
    rng = np.random.default_rng(numbers)
    inputs = [jnp.asarray(rng.normal(size=s)) for s in ((3,), (2, 3), (), (2, 1, 3))]
    f = program(steps)
    numbers = jnp.asarray(rng.normal(size=28))

    def by(vjp):
        def outputs_and_cotangents(numbers, *inputs):
            outs, pullback = vjp(f, *inputs)
            y = outs[0]
            ct = (same_shape(numbers[1:], y), numbers[0], np.zeros((), jax.dtypes.float0))
            return outs, pullback(ct)

        return outputs_and_cotangents

    run_ours, run_theirs, asked = WAYS[way]
    got_outs, got = run_ours(by(asked(bp.vjp)), numbers, *inputs)
    want_outs, want = run_theirs(by(asked(jax.vjp)), numbers, *inputs)
    size = max(1.0, *(float(np.max(np.abs(w))) for w in want))
    for g, w in zip((*got, *got_outs), (*want, *want_outs), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-10 * size)


def check_chunk(number, size, ways):
    """`size` programs from the seed `number`, each checked in one of these ways; how many of which."""
    counts = collections.Counter()

    @seed(number)
    @settings(max_examples=size, phases=[Phase.generate, Phase.shrink], **COMMON)
    @given(instructions(), st.integers(0, 2**32 - 1), st.sampled_from(ways))
    def every(steps, numbers, way):
        counts[way] += 1
        check_program(steps, numbers, way)

    every()
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--log", type=pathlib.Path, default=pathlib.Path("random_programs.log"))
    arguments = parser.parse_args()
    for option, value in ("enable_x64", True), ("disable_most_optimizations", True):
        jax.config.update(f"jax_{option}", value)
    done = arguments.log.read_text().splitlines() if arguments.log.exists() else []
    finished = {int(line.split()[1].strip(",")) for line in done if line.startswith("seed ")}
    for number in range(-(-arguments.programs // CHUNK)):
        if number in finished:
            continue
        start = time.process_time()
        try:
            found = check_chunk(number, CHUNK, CHEAP)
            said = "ok, " + ", ".join(f"{n} {way}" for way, n in sorted(found.items()))
        except Exception as error:
            said = f"FAILED: {error!r}\n{chr(10).join(getattr(error, '__notes__', []))}"
        with arguments.log.open("a") as log:
            seconds = time.process_time() - start
            log.write(f"seed {number}, {CHUNK} programs, jax {jax.__version__}, {seconds:.0f} s: {said}\n")
        if number % 25 == 24:
            jax.clear_caches()  # memory


if __name__ == "__main__":
    main()
