"""Planted losses of precision, each found by its operation and its remedy; and what is measured, against NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

bf16, f16, f32, fp8 = jnp.bfloat16, jnp.float16, jnp.float32, jnp.float8_e4m3fn
wide = np.float64
rng = np.random.default_rng(0)
normal = lambda *shape: rng.standard_normal(shape)
total = jnp.sum


def running(start, terms):
    return lax.scan(lambda c, x: (c + x, None), start, terms)[0].astype(f32)


def unshifted(x):
    e = jnp.exp(x)
    return -jnp.log(e[0] / total(e))


def small_loss(w, x):
    return jnp.mean((x @ w).astype(f32) ** 2) * f32(1e-7)


# name: (loss, arguments, operation, in the backward pass, a word of what is said)
PLANTED = {
    "one-pass variance": (
        lambda x: jnp.mean(x**2) - jnp.mean(x) ** 2, [f32(1000 + 0.1 * normal(50))], "sub", False, "jnp.var"),
    "softmax without shift": (unshifted, [f32([1, 100, 3])], "exp", False, "maximum"),
    "log of a softmax": (
        lambda x: -jnp.log(jax.nn.softmax(x)[0]), [f32([1, -3, 120])], "exp", False, "log_softmax"),
    "running sum in bfloat16": (running, [bf16(0), jnp.full(300, 1, bf16)], "add", False, "Kahan"),
    "running sum beside a large one": (running, [f32(1e6), jnp.full(60, 0.02, f32)], "add", False, "Kahan"),
    "loss scaled too small": (
        small_loss, [f16(normal(3, 2)), f16(normal(4, 3))], "convert_element_type", True, "Scale the loss up"),
    "1 - cos x": (lambda x: total(1 - jnp.cos(x)), [f32([1e-3, 2e-3])], "sub", False, "sin(x/2)"),
    "exp(x) - 1": (lambda x: total(jnp.exp(x) - 1), [f32([1e-5, 2e-5])], "sub", False, "expm1"),
    "log(1 + x)": (lambda x: total(jnp.log(1 + x)), [f32([1e-6, 3e-6])], "log", False, "log1p"),
    "difference of roots": (
        lambda x: total(jnp.sqrt(x + 1) - jnp.sqrt(x)), [f32([1e5, 3e5])], "sub", False, "√a + √b"),
    "tanh far out": (lambda x: total(jnp.tanh(x)), [f32([9, 9.5])], "tanh", True, "flat part"),
    "overflow in half precision": (
        lambda x: total((x * x).astype(f32)) * f32(1e-3), [f16([300, 1])], "mul", False, "overflow"),
    "cast to eight bits": (
        lambda x, w: total((x.astype(fp8).astype(f32) * w) ** 2), [f32(normal(6)), f32(normal(6))],
        "convert_element_type", False, "cast"),
}  # fmt: skip


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_loss_is_found_by_its_operation(name):
    loss, args, operation, backward, word = PLANTED[name]
    found = bp.precision(loss)(*args)
    worst = next(r for r in found.by_loss if not (r.backward and r.operation == "add"))  # a difference's own cotangents
    assert (worst.operation, worst.backward) == (operation, backward)
    assert any(f"`{operation}`" in s and word in s and "test_precision.py" in s for s in found.worst(2))


SOUND = {
    "network": (lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2), [f32(normal(4, 3)), f32(normal(5, 4))]),
    "log-softmax": (lambda x: -jax.nn.log_softmax(x)[0], [f32([1, -3, 120])]),
    "variance": (jnp.var, [f32(1000 + normal(50))]),
    "quantised": (
        lambda x, w: total(jnp.round(x * 50).astype(jnp.int8).astype(f32) / 50 * w), [f32(normal(4)), f32(normal(4))]),
    "integers and draws": (
        lambda x, key: total(x * jax.random.bernoulli(key, 0.5, (3,)).astype(f32) + jax.random.normal(key, (3,), f32)),
        [f32(normal(3)), jax.random.key(0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_of_a_sound_program_nothing_is_said(name):
    loss, args = SOUND[name]
    found = bp.precision(loss)(*args)
    assert found.worst() == [] and found.value_error < 1e-6


def test_what_came_in_and_what_was_added_are_as_in_numpy():
    x = f32([0.3, 1.7, 12.1])
    found = bp.precision(lambda x: total(bp.name(jnp.sin(jnp.exp(x)), "s")))(x)
    e, s = (next(r for r in found if r.primitive == p and not r.backward) for p in ("exp", "sin"))
    of_e, exact = np.exp(wide(x)), np.sin(np.exp(wide(x)))
    got = np.asarray(jnp.exp(x))
    rms = lambda v: np.sqrt(np.mean(wide(v) ** 2))
    assert np.isclose(e.added[0], rms(got - of_e) / rms(of_e)) and e.came_in == [0]
    assert np.isclose(s.came_in[0], rms(np.sin(wide(got)) - exact) / rms(exact))
    assert np.isclose(s.added[0], rms(wide(jnp.sin(jnp.exp(x))) - np.sin(wide(got))) / rms(exact))
    assert np.isclose(found.value_error, abs(np.sum(wide(found.value) - np.sum(exact)) / np.sum(exact)))
    assert found["s"].total == s.total and found["s"].added == [0]


def test_the_gradient_is_compared_with_that_of_float64():
    w, x = normal(3, 2), normal(4, 3)
    loss = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
    low = bp.precision(loss, argnums=(0, 1))(bf16(w), bf16(x))
    as_given = [jnp.asarray(np.float64(bf16(v))) for v in (w, x)]
    for path, got, true in zip(
        low.gradient_errors, bp.grad(loss, (0, 1))(bf16(w), bf16(x)), jax.grad(loss, (0, 1))(*as_given), strict=True
    ):
        error = np.linalg.norm(np.float64(got) - true) / np.linalg.norm(true)
        assert 2**-10 < low.gradient_errors[path] < 2**-4 and np.isclose(low.gradient_errors[path], error, rtol=0.5)


def test_flushed_overflowed_and_decided_are_counted():
    x = f16([1e-4, 200, 300, 1])
    found = bp.precision(lambda x: total((x * x).astype(f32)))(x)
    squares = next(r for r in found if r.primitive == "mul" and not r.backward)
    assert (squares.flushed, squares.overflowed) == (1, 1)
    near = bp.precision(lambda x: total(jnp.where((1 + x) - 1 > x, x, 2 * x)))(f32([1e-8, 1.1e-8, 1.0]))
    assert next(r for r in near if r.primitive == "gt").decided == 0
    near = bp.precision(lambda x: total(jnp.where((1 + x) - 1 > 0, x, 2 * x)))(f32([1e-8, 1.1e-8, 1.0]))
    assert next(r for r in near if r.primitive == "gt").decided == 2


def loop(w, xs):
    return lax.scan(lambda c, x: (bp.name(jnp.tanh(c * w + x), "h"), None), xs[0], xs)[0].astype(f32)


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "jit"])
def test_the_compiled_form_measures_named_values_by_step(jit):
    args = bf16(0.7), bf16(normal(4))
    found, names = bp.precision(loop)(*args), bp.precision(loop).errors
    errors = (jax.jit(names) if jit else names)(*args)["h"]
    h = found["h"]
    assert h.steps == [(0,), (1,), (2,), (3,)]
    assert errors.value.shape == errors.cotangent.shape == (4,)
    if not jit:
        np.testing.assert_allclose(errors.value, h.ulps(h.total), rtol=1e-4)
    assert 0 < errors.value.max() < 8 and errors.cotangent[-1] == 0 < errors.cotangent[0]


def test_loops_branches_and_calls_are_gone_into():
    def f(x):
        x = jax.checkpoint(lambda x: lax.cond(x > 0, jnp.sin, jnp.cos, x))(x)
        x = lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c), x)
        x = bp.while_loop(lambda c: c < 0.9, lambda c: jnp.sqrt(c), x, max_steps=9)
        return jax.jit(jnp.exp)(x)

    rows = [r for r in bp.precision(f)(f32(0.5)) if not r.backward]
    times = {p: max(len(r.steps) for r in rows if r.primitive == p) for p in ("sin", "tanh", "exp")}
    assert times == {"sin": 1, "tanh": 3, "exp": 1} and not any(r.primitive == "cos" for r in rows)
    assert all(max(r.total) < 1e-6 and not r.opaque for r in rows)


def test_what_cannot_be_run_in_float64_is_said():
    sine = lambda x: np.sin(x, dtype=np.float32)
    call = lambda x: jax.pure_callback(sine, jax.ShapeDtypeStruct((2,), f32), x)
    found = bp.precision(lambda x: total(lax.stop_gradient(call(x)) * x))(f32([1, 2]))
    assert [r.primitive for r in found if r.opaque] == ["pure_callback"]
    assert "could not be run in float64" in str(found)


def test_it_is_refused_under_jit_and_names_are_listed():
    with pytest.raises(TypeError, match=r"precision\(f\).errors"):
        jax.jit(lambda x: bp.precision(jnp.sin)(x).value_error)(f32(1))
    with pytest.raises(KeyError, match="there are 'h'"):
        bp.precision(lambda x: bp.name(x * 2, "h"))(f32(1))["g"]


def test_it_prints_and_shows():
    found = bp.precision(lambda x: total(1 - jnp.cos(x)))(f32([1e-3, 2e-3]))
    first = str(found).splitlines()[2]
    assert first.startswith("→") and "sub" in first and re.search(r"test_\S*\.py:\d+$", first)
    assert "<ol><li>`sub`" in found._repr_html_() and len(found) == len(list(found))
