"""Does the checker accuse what is right? Functions that are hard to check, with right derivatives: none is accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.testing import check


class Hostile(NamedTuple):
    why: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    verdict: str | None
    options: dict[str, Any]


HOSTILE: list[Hostile] = []


def hostile(why, f, *args, verdict=None, **options):
    HOSTILE.append(Hostile(why, f, args, verdict, options))


def draw(*shape, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


zeros, x5, x23 = jnp.zeros(3), draw(5), draw(2, 3)
as_float = lambda x, like: x.astype(like.dtype)

# kinks, ties and steps
NEAR = 1e-4 * jnp.where(jnp.abs(draw(10_100, seed=2)) < 0.5, 0.5, draw(10_100, seed=2))  # within the first steps
hostile("relu at 0", jax.nn.relu, zeros, verdict="kink")
hostile("abs at 0", jnp.abs, zeros, verdict="kink")
hostile("max of equals", jnp.maximum, jnp.ones(2), jnp.ones(2), verdict="kink")
hostile("max of all equal", jnp.max, jnp.ones(4), verdict="kink")
hostile("min of all equal", jnp.min, jnp.ones(4), verdict="kink")
hostile("clip at its bounds", lambda x: jnp.clip(x, -1.0, 1.0), jnp.array([-1.0, 0.0, 1.0]), verdict="kink")
hostile("leaky relu at 0", jax.nn.leaky_relu, zeros, verdict="kink")
hostile("relu6 at 6", jax.nn.relu6, jnp.array([0.0, 6.0, 3.0]), verdict="kink")
hostile("sort of equals", jnp.sort, jnp.array([1.0, 1.0, 0.0]), verdict="kink")
hostile("pooling of equals", lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "VALID"), jnp.ones(4),
        verdict="kink")  # fmt: skip
hostile("a kink near the point", lambda x: jnp.abs(x - 1e-4), zeros)
hostile("many kinks nearby", lambda x: jnp.abs(jnp.sin(1e3 * x)), draw(3))
hostile("x |x|, kink of the second order", lambda x: x * jnp.abs(x), zeros)
hostile("hinge loss at its corner", lambda w: jnp.sum(jax.nn.relu(1.0 - w)), jnp.ones(3), verdict="kink")
hostile("floor", jnp.floor, x5, verdict="not informative")
hostile("floor at a step", jnp.floor, jnp.array([0.0, 1.0]))
hostile("sign at 0", jnp.sign, zeros)
hostile("round", jnp.round, x5 * 3, verdict="not informative")
hostile("comparison", lambda x: jnp.where(x > 0, x, 2 * x), zeros, verdict="kink")
hostile("dead inputs and zero biases", lambda b, w: jnp.sum(jax.nn.relu(jnp.zeros((4, 3)) @ w + b[None]) ** 2
        + jax.nn.relu(b)[None]), jnp.zeros(5), draw(3, 5))  # fmt: skip
hostile("a large layer with a kink at every bias", lambda w, b: jnp.sum(jax.nn.relu(w @ jnp.zeros(20) + b) * draw(600)),
        draw(600, 20), jnp.zeros(600))  # fmt: skip
hostile("more than 10,000 rectifiers, each with its kink near", lambda w: jnp.sum(draw(10_100, seed=1)
        * jax.nn.relu(w - draw(10_100) + NEAR)), draw(10_100))  # fmt: skip
hostile("norm at 0", jnp.linalg.norm, zeros, verdict="not finite")
hostile("modulo", lambda x: jnp.mod(x, 0.3), x5)

# saturation, constants
hostile("tanh saturated", jnp.tanh, jnp.array([40.0, -40.0]), verdict="not informative")
hostile("logistic saturated", jax.nn.sigmoid, jnp.array([800.0, -800.0]))
hostile("softmax saturated", jax.nn.softmax, jnp.array([0.0, 400.0, -400.0]))
hostile("cross entropy saturated", lambda x: -jax.nn.log_softmax(x)[1], jnp.array([0.0, 60.0, -60.0]))
hostile("constant", lambda x: jnp.ones(3) + 0 * x, zeros, verdict="not informative")
hostile("an argument that is not used", lambda x, y: jnp.sum(x), x5, x23)
hostile("x - x", lambda x: x - x, x5, verdict="not informative")
hostile("x / x", lambda x: x / x, x5)
hostile("sin² + cos²", lambda x: jnp.sin(x) ** 2 + jnp.cos(x) ** 2, x5)
hostile("exp underflows", jnp.exp, jnp.array([-1e3, -750.0]))
hostile("erfc in its tail", lax.erfc, jnp.array([5.0, 20.0, 26.0]))

# scales
hostile("tiny inputs", jnp.sin, 1e-30 * x5)
hostile("tiny inputs, value near 1", lambda x: jnp.cos(x) + x, 1e-30 * x5)
hostile("huge inputs", lambda x: jnp.sqrt(1 + x * x), 1e20 * x5)
hostile("huge outputs", lambda x: 1e30 * x**3, x5)
hostile("tiny outputs", lambda x: 1e-30 * x**3, x5)
hostile("elements of all scales", lambda x: jnp.log(x), 10.0 ** jnp.arange(-30.0, 30.0, 6.0))
hostile("leaves of all scales", lambda a, b: jnp.sum(a**2) * 1e-9 + jnp.sum(b**2) * 1e9, x5, x23)
hostile("outputs of all scales", lambda x: [x * 1e-20, x**2 * 1e20], x5)
hostile("variance of nearly equal numbers", jnp.var, 1e4 + 1e-3 * x5)
hostile("std with a large mean", jnp.std, 1e6 + x5)
hostile("logsumexp far from 0", lambda x: jax.nn.logsumexp(x), 1e3 * x5)
hostile("cancellation", lambda x: (1e8 + x) - 1e8, x5)
hostile("fast oscillation", lambda x: jnp.sin(1e4 * x), x5)
hostile("high power", lambda x: x**40, x5)
hostile("deep composition", lambda x: lax.fori_loop(0, 30, lambda i, c: jnp.sin(2 * c), x), x5)
hostile("zeros in a product", jnp.prod, jnp.array([0.0, 2.0, 3.0]))
hostile("float32 noise", lambda x: jnp.sum(jnp.sin(x)), 1e3 * draw(50, dtype=np.float32))
hostile("half precision", lambda x: jnp.tanh(x) * x, draw(4, dtype=np.float16))
hostile("bfloat16", lambda x: jnp.sum(jax.nn.gelu(x)), draw(4, dtype=jnp.bfloat16))
hostile("a cast to float32 inside", lambda x: as_float(jnp.sin(x.astype(np.float32)), x), x5)
hostile("a cast to bfloat16 inside", lambda x: as_float(jnp.sin(x.astype(jnp.bfloat16)), x), x5)
hostile("an integer inside", lambda x: as_float(x.astype(np.int32), x) * x, x5)
hostile("float32 wanted by a loop", lambda x: lax.scan(lambda c, u: (c + u, c), jnp.zeros((), np.float32), x),
        draw(4, dtype=np.float32))  # fmt: skip

# edges of domains
hostile("sqrt at 0", jnp.sqrt, jnp.array([0.0, 1.0]), verdict="not finite")
hostile("log at 0", jnp.log, jnp.array([0.0, 1.0]), verdict="not finite")
hostile("log next to 0", jnp.log, jnp.array([1e-12, 1e-300]))
hostile("arcsin at 1", jnp.arcsin, jnp.array([1.0, 0.5]), verdict="not finite")
hostile("x to the 2.5 at 0", lambda x: x**2.5, jnp.array([0.0, 1.0]))
hostile("infinity and nan", jnp.tanh, jnp.array([jnp.inf, jnp.nan, 0.3]), verdict="not finite")
hostile("1 / x at 0", lambda x: 1 / x, jnp.array([0.0, 2.0]), verdict="not finite")
hostile("the safe square root", lambda x: jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0), zeros)
hostile("sinc", jnp.sinc, jnp.array([0.0, 1e-9, 0.3]))

# integers, booleans, nothing, structure
hostile("integer input", lambda x, i: x[i], x5, jnp.array([0, 3]))
hostile(
    "integer leaf next to a float", lambda p: p["x"] * 2 ** p["n"].astype(p["x"].dtype), {"x": x5, "n": jnp.int32(3)}
)
hostile("boolean leaf", lambda p: jnp.where(p["mask"], p["x"], 0.0), {"x": x5, "mask": x5 > 0})
hostile("integer output", lambda x: (jnp.sum(x), jnp.argmax(x), x > 0), x5)
hostile("integer outputs alone", jnp.argmax, x5)
hostile("size 0", lambda x: jnp.sum(x), jnp.zeros((0, 3)), verdict="not informative")
hostile("size 0 next to others", lambda x, y: jnp.concatenate([x, y]) ** 2, jnp.zeros(0), x5)
hostile("an empty output", lambda x: x[:0], x5)
hostile("Python numbers", lambda x, y: jnp.sin(x) * y, 0.3, 2.0)
hostile("a NumPy array", lambda x: jnp.sin(x), np.array([0.3, 1.0]))
hostile("nested structure", lambda p: {"out": (p["a"][0] * p["b"], p["a"][1])}, {"a": [x5, x23], "b": jnp.float64(2)})
hostile("functions among the leaves", lambda p, x: p["act"](x * p["w"]), {"act": jnp.tanh, "w": x5}, x5)
hostile("auxiliary data", lambda x: (jnp.sum(x**2), {"note": "text", "norm": jnp.max(x)}), x5, has_aux=True)
hostile("a random key", lambda key, x: x * jax.random.normal(key, x.shape), jax.random.key(0), x5)
hostile("draws with an implicit derivative", lambda a: jax.random.gamma(jax.random.key(0), a), jnp.array([0.5, 2.0]),
        verdict="not informative")  # fmt: skip
hostile("control flow in Python", lambda x: x**2 if jnp.sum(x) > 0 else -(x**3), jnp.abs(x5))
hostile("a keyword argument", lambda x, *, power: x**power, x5, power=3)
hostile("a stopped gradient", lambda x: x * lax.stop_gradient(x), x5, verdict="stopped gradient")
hostile("a target network", lambda p, q: jnp.sum((p * x5 - lax.stop_gradient(q * x5)) ** 2), x5, x5 + 1)
hostile("a stopped gradient in a loop", lambda x: lax.scan(lambda c, u: (c * u + lax.stop_gradient(c), c), x[0], x), x5)
hostile("a straight-through estimator", lambda x: x + lax.stop_gradient(jnp.round(x) - x), x5)
hostile("not deterministic to the bit", lambda x: jnp.sum(jnp.exp(x) / jnp.sum(jnp.exp(x)) * x), draw(1000))
hostile("more than ten thousand entries", lambda w: jnp.sum(jnp.tanh(w @ w.T) ** 2), draw(110, 100))

# complex numbers
z = lax.complex(x23, draw(2, 3, seed=3))
hostile("complex, holomorphic", lambda z: jnp.exp(z) * z, z)
hostile("complex to real", lambda z: jnp.sum(jnp.abs(z) ** 2), z)
hostile("complex abs", jnp.abs, z)
hostile("complex abs at 0", jnp.abs, jnp.zeros(2, np.complex128))
hostile("real to complex", lambda x: jnp.exp(lax.complex(0 * x, x)), x5)
hostile("conjugate", lambda z: z * jnp.conj(z) + jnp.conj(z), z)
hostile("complex64", lambda z: jnp.sin(z), z.astype(np.complex64))
hostile("complex and real together", lambda z, x: jnp.real(z) * x + jnp.imag(z), z, x23)
hostile(
    "fourier",
    lambda x: jnp.abs(
        jnp.sum(x.astype(np.complex128) * jnp.exp(np.array(0.4j * np.pi) * jnp.arange(5).astype(np.complex128)))
    ),
    x5,
)


@pytest.mark.slow(once=["h.verdict"])
@pytest.mark.parametrize("h", HOSTILE, ids=[h.why for h in HOSTILE])
def test_what_is_right_is_not_accused(h):
    report = check(h.f, *h.args, vjp=bp.vjp, **h.options)
    assert report.ok, report
    if h.verdict:
        assert h.verdict in [leaf.verdict for leaf in report.leaves], report


@pytest.mark.slow
@pytest.mark.parametrize("h", HOSTILE[::6], ids=[h.why for h in HOSTILE[::6]])
def test_nor_by_jax(h):
    assert check(h.f, *h.args, vjp=jax.vjp, seed=5, **h.options).ok


def test_there_are_enough():
    assert len(HOSTILE) >= 60
