"""`check` and its report: what is asked, what is said, and in which settings it works."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.testing import assert_gradients, check
from funcbp.testing.numerical import Evaluator, power_of_two, slopes
from funcbp.testing.programs import blame, program_of
from funcbp.testing.subject import Subject
from funcbp.testing.witnesses import FULL_WORK, _work

X = jnp.array([0.3, -1.2, 2.0])


def wrong_tanh(y, ct, perturbed, **params):
    return (ct * (1 - y * y) * np.asarray(1.001, ct.dtype),)


WRONG = bp.Backward(rules={lax.tanh_p: bp.rule(wrong_tanh, save=bp.rules.OUTPUT)})


def leaf(report, path):
    (found,) = [r for r in report.leaves if r.path == path and r.order == 1]
    return found


# --- the report -------------------------------------------------------------------------------------------------------


def network(params, x):
    return jnp.mean(jnp.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"][None]) ** 2)


PARAMS = {
    "dense_0": {"kernel": jnp.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "bias": jnp.ones(2, np.float32)}
}
INPUT = jnp.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)


def test_a_right_gradient():
    report = check(network, PARAMS, INPUT)
    assert report.ok and report.culprit == "" and report.mode == "whole Jacobian"
    assert [r.path for r in report.leaves] == ["params/dense_0/bias", "params/dense_0/kernel", "x"]
    for r in report.leaves:
        assert r.verdict == "ok" and r.dtype == "float32"
        assert r.error < 1e-9 and r.reference_error < 1e-9 and r.against_jax < 1e-12 and r.dot < 1e-12
        assert r.own_ulps < 10 and r.jax_ulps < 10
    assert [r.path for r in check(network, PARAMS, INPUT, argnums=0).leaves] == ["dense_0/bias", "dense_0/kernel"]
    assert [r.path for r in check(network, PARAMS, INPUT, argnums=-1).leaves] == ["x"]


def test_a_wrong_gradient_says_what_where_and_whose_fault():
    report = check(network, PARAMS, INPUT, argnums=0, backward=WRONG, seed=3)
    text = str(report)
    assert not report.ok and report.worst.verdict == "wrong"
    kernel = leaf(report, "dense_0/kernel")
    assert len(kernel.worst) == 2 and kernel.got == pytest.approx(1.001 * kernel.wanted, rel=1e-6)
    assert kernel.ulps == pytest.approx(1e-3 / np.finfo(np.float32).eps, rel=0.5)
    assert 1e-5 < kernel.dot <= 1.001e-3  # by the tangents, of what the terms come to
    assert "`tanh`" in report.culprit and "test_check.py" in report.culprit and "(network)" in report.culprit
    for part in ("dense_0/kernel", "WRONG", "seed 3", "culprit", "called again", "jit equals eager"):
        assert part in text
    again = check(network, PARAMS, INPUT, argnums=0, backward=WRONG, seed=3)
    assert str(again) == text


def test_the_report_as_json_and_html():
    report = check(network, PARAMS, INPUT, argnums=0, backward=WRONG)
    data = json.loads(report.to_json())
    assert data["ok"] is False and data["leaves"][0]["path"] == "dense_0/bias" and "tanh" in data["culprit"]
    page = report._repr_html_()
    assert "<table>" in page and "dense_0/kernel" in page and "WRONG" in page


@pytest.mark.slow
def test_the_worst_leaf_is_the_gravest():
    report = check(lambda a, b: jnp.tanh(a) + jnp.sin(b), X, X, backward=WRONG)
    assert report.worst.path == "a" and leaf(report, "b").verdict == "ok"


def test_the_equation_is_named_inside_a_loop_and_a_function_with_its_own_rule():
    looped = lambda x: lax.scan(lambda c, u: (jnp.tanh(c * u), c), x[0], x)
    assert "`tanh`" in check(looped, X, backward=WRONG).culprit

    @jax.custom_vjp
    def my_square(x):
        return x * x

    my_square.defvjp(lambda x: (x * x, x), lambda x, ct: (3 * x * ct,))
    culprit = check(lambda x: jnp.sum(my_square(x)), X, vjp=jax.vjp).culprit
    assert "my_square" in culprit and "custom_vjp" in culprit


def layer(x):
    return jnp.tanh(x)


class Layer:
    def __call__(self, x):
        return jnp.tanh(x)


@pytest.mark.parametrize("around", [lambda f: f, jax.vmap, jax.jit])
@pytest.mark.parametrize(
    ("f", "name"),
    [(layer, "layer"), (functools.partial(layer), "layer"), (Layer(), "Layer"), (Layer().__call__, "__call__")],
)
def test_an_attached_function_is_named_by_its_line(f, name, around):
    attached = around(WRONG.attach(f))
    assert f"rule of {name} at {__file__}:" in check(lambda x: jnp.sum(attached(x)), X, vjp=jax.vjp).culprit


def wrong_where(bad):
    """sin, with a rule of its own, which is wrong at these numbers."""

    @jax.custom_vjp
    def faulty(x):
        return jnp.sin(x)

    faulty.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (jnp.where(bad(x), 1.5, 1.0) * ct * jnp.cos(x),))
    return faulty


faulty, faulty_far_out = wrong_where(lambda x: x == x), wrong_where(lambda x: x > 0.9)
AROUND = {
    "scan": lambda x: lax.scan(lambda c, _: (faulty(c), None), x, length=3)[0],
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, c: faulty(c), x),
    "map": lambda x: lax.map(faulty, x),
    "cond": lambda x: lax.cond(x[0] < 9, faulty, jnp.cos, x),
    "switch": lambda x: lax.switch(1, [jnp.cos, faulty, jnp.exp], x),
    "bp.scan": lambda x: bp.scan(lambda c, _: (faulty(c), None), x, None, length=4, snapshots=2)[0],
    "bp.while_loop": lambda x: bp.while_loop(
        lambda c: c[1] < 2, lambda c: (faulty(c[0]), c[1] + 1), (x, 0), max_steps=3),
    "a map in a branch in a loop": lambda x: lax.fori_loop(
        0, 2, lambda i, c: lax.cond(i < 5, lambda c: lax.map(faulty, c), jnp.cos, c), x),
    "a late step": lambda x: lax.scan(lambda c, a: (c + faulty_far_out(a), None), 0.0, x * jnp.linspace(0, 1.2, 12))[0],
}  # fmt: skip


def named(f, x):
    return blame(Subject(f, (x,), {}, [0], False), bp.vjp)


@pytest.mark.parametrize("name", AROUND)
def test_a_wrong_rule_is_named_inside_loops_and_branches(name):
    culprit = named(AROUND[name], jnp.linspace(0.9, 1.0, 12 if "late" in name else 2))
    assert re.search(r"custom_vjp rule of .*faulty.*, used at .*test_check.py:\d+", culprit), culprit


def test_of_a_rule_that_cannot_be_looked_at_nothing_false_is_said():
    """What runs on each device is not gone into, and `jax.vjp` has the same rule."""
    spec = jax.sharding.PartitionSpec("i")
    mapped = jax.shard_map(
        faulty,
        mesh=jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=spec,
        out_specs=spec,
    )
    culprit = named(mapped, X)
    assert culprit.startswith("No equation was found at fault, but of some it cannot be told: `shard_map`"), culprit
    assert named(jnp.tanh, X).startswith("Each equation's own derivative is right")


def test_the_equation_is_named_where_python_branches_on_values():
    """The record is of what ran; the same function cannot be traced to a program."""

    @jax.custom_vjp
    def my_cube(x):
        return x**3

    my_cube.defvjp(lambda x: (x**3, x), lambda x, ct: (2 * x**2 * ct,))

    def f(x):
        for _ in range(int(x[0] > 0) + 1):
            x = jnp.tanh(x) if x[0] > 0 else jnp.sin(x)
        return my_cube(x) if jnp.sum(x) < 100 else x

    with pytest.raises(jax.errors.ConcretizationTypeError):
        jax.make_jaxpr(f)(X)
    assert "custom_vjp rule of" in (culprit := check(f, X).culprit) and "my_cube" in culprit and ".f)" in culprit
    culprit = check(lambda x: jnp.tanh(x) if x[0] > 0 else x, X, backward=WRONG).culprit
    assert "`tanh`" in culprit and "test_check.py" in culprit


def test_a_function_that_cannot_be_recorded_is_not_named():
    """Nothing under a trace can be turned to NumPy, and the report says so."""

    def vjp(f, x):
        return f(x), lambda ct: (ct if np.array_equal(f(x), x) else 2 * ct,)

    culprit = check(lambda x: jnp.asarray(np.sin(np.asarray(x))), X, vjp=vjp).culprit
    assert "cannot be named" in culprit and "TracerArrayConversionError" in culprit


# --- witnesses --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_large_leaves_are_checked_along_directions_and_element_by_element():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(120, 100)))
    f = lambda w: jnp.sum(jnp.sin(w) ** 2)
    report = check(f, w)
    assert report.ok and report.mode == "random directions"

    def one_element_wrong(f, *primals):
        out, pullback = bp.vjp(f, *primals)
        return out, lambda ct: (pullback(ct)[0].at[71, 3].multiply(1.01),)

    report = check(f, w, vjp=one_element_wrong)
    assert report.worst.verdict == "wrong" and report.worst.worst == (71, 3)


@pytest.mark.slow
def test_a_wrong_element_is_found_without_jax_as_a_witness():
    """A function with its own rule makes JAX agree with what is wrong; halving finds the element."""

    @jax.custom_vjp
    def f(w):
        return jnp.sum(jnp.sin(w))

    f.defvjp(lambda w: (f(w), w), lambda w, ct: (ct * jnp.cos(w).at[7777].multiply(1.5),))
    report = check(f, jnp.linspace(0.1, 1.0, 10_500))
    assert report.worst.verdict == "wrong" and report.worst.worst == (7777,)


@pytest.mark.slow(once=[])
@pytest.mark.parametrize(
    ("slope", "verdict"),
    [(-1e-6, "wrong"), (0.0, "kink"), (0.3, "kink"), (1.0, "kink"), (1 + 1e-6, "wrong"), (1.1, "wrong")],
)
def test_at_a_kink_what_lies_between_the_slopes_is_right_and_no_more(slope, verdict):
    """max(sinh x, 0) has the slopes 0 and 1 at 0."""

    @jax.custom_vjp
    def f(x):
        return jnp.maximum(jnp.sinh(x), 0.0)

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (ct * jnp.where(x == 0, slope, jnp.where(x > 0, jnp.cosh(x), 0.0)),))
    report = check(f, jnp.array([0.0, 1.0, -1.0]))
    assert (report.worst.verdict, report.ok) == (verdict, verdict == "kink")


@pytest.mark.slow
def test_where_jax_is_wrong_we_are_not_accused():
    f = jnp.arccosh
    z = jnp.array([0.3 + 0.4j, -0.5 + 1j])
    report = check(f, z)
    assert report.ok
    if report.worst.against_jax > 1e-3:  # JAX's rule has the wrong sign for some complex numbers
        assert not check(f, z, vjp=jax.vjp).ok


def test_stopped_gradients():
    report = check(lambda x: x * lax.stop_gradient(jnp.sin(x)), X)
    assert report.ok and report.worst.verdict == "stopped gradient" and "test_check.py" in str(report)
    wrong = lambda f, *a: (f(*a), lambda ct: (ct * 0.5,))
    assert not check(lambda x: x * lax.stop_gradient(jnp.sin(x)), X, vjp=wrong).ok


@pytest.mark.parametrize("rule, ok", [(jnp.sin, True), (faulty, False)])
def test_a_gradient_stopped_in_a_loop_excuses_no_wrong_rule(rule, ok):
    f = lambda x: lax.scan(lambda c, _: (rule(c) * lax.stop_gradient(c), None), x, length=2)[0]
    report = check(f, jnp.linspace(0.5, 0.6, 2))
    assert report.ok is ok and ("custom_vjp rule of" in report.culprit) is not ok
    assert report.worst.verdict == ("stopped gradient" if ok else "wrong")


@pytest.mark.slow
def test_casts_are_pointed_out_with_their_line():
    f = lambda x: jnp.sum(jnp.sin(x.astype(np.float32)))
    report = check(f, X)
    assert report.ok and any("float32" in n and "test_check.py" in n for n in report.notes)
    assert not check(lambda x: jnp.sum(jnp.tanh(x.astype(np.float32))), X, backward=WRONG).ok


def test_second_order():
    def cosine_forgotten(res, ct, perturbed, **params):
        (x,) = res
        return (ct * lax.stop_gradient(jnp.cos(x)),)

    flat = bp.Backward(rules={lax.sin_p: bp.rule(cosine_forgotten)})
    f = lambda x: jnp.sum(jnp.sin(x))
    assert check(f, X, backward=flat).ok
    report = check(f, X, backward=flat, order=2)
    assert [(r.order, r.verdict) for r in report.leaves] == [(1, "ok"), (2, "stopped gradient")]
    assert check(lambda x, y: jnp.sum(jnp.tanh(x) * y**2), X, X + 1, order=2).ok

    @jax.custom_vjp
    def cube(x):
        return x**3

    @jax.custom_vjp
    def slope(x):
        return 3 * x**2

    slope.defvjp(lambda x: (3 * x**2, x), lambda x, ct: (ct * 5 * x,))
    cube.defvjp(lambda x: (x**3, x), lambda x, ct: (ct * slope(x),))
    assert check(cube, X).ok
    report = check(cube, X, order=2)
    assert [(r.order, r.verdict) for r in report.leaves] == [(1, "ok"), (2, "wrong")]


def test_the_complex_step_is_shown_and_decides_nothing():
    assert check(lambda x: jnp.sum(jnp.exp(x)), X, complex_step=True).leaves[0].complex_step < 1e-14
    report = check(lambda x: jnp.sum(x * jnp.abs(x)), X, complex_step=True)
    assert report.ok and report.leaves[0].complex_step > 0.1


@jax.custom_vjp
def reciprocal(x):
    return 1 / x


reciprocal.defvjp(lambda x: (1 / x, x), lambda x, ct: (jnp.where(jnp.abs(x) < 0.01, -1.01, -1) * ct / x**2,))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("n", [3, 40_000], ids=["by coordinate", "by direction"])
def test_what_the_first_steps_say_nothing_of_is_measured_with_smaller_ones(n, dtype):
    """At 0.001 the first steps of 1/x are beyond its pole: their error is the size of the derivative, and so is the
    room for its error. JAX takes the same rule, so no other witness finds what is wrong there."""
    with jax.enable_x64(dtype == "float64"):
        x = jnp.ones(n, dtype).at[n // 2].set(0.001)
        wrong, right = (check(f, x) for f in (lambda x: jnp.sum(reciprocal(x)), lambda x: jnp.sum(1 / x)))
    assert wrong.mode == ("whole Jacobian" if n == 3 else "random directions")
    assert not wrong.ok and wrong.worst.worst == (n // 2,) and "reciprocal" in wrong.culprit
    assert abs(wrong.worst.got / wrong.worst.wanted - 1.01) < 1e-6
    assert right.worst.verdict == "ok" and right.worst.error < 1e-10 and not right.worst.note


def test_a_derivative_that_is_infinite_along_directions_has_a_verdict():
    """Its elements are sought by halving, where sums of them overflow; warnings are errors here."""
    report = check(lambda x: jnp.sum(1 / x), jnp.zeros(40_000))
    assert report.mode == "random directions"
    assert [leaf.verdict for leaf in report.leaves] == ["not finite"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_beside_ok_stands_the_error_of_an_element_that_differences_settle(dtype):
    """Of many rectifiers, some have their kinks within every step that rounding allows."""
    weights = np.arange(400.0)

    def rectifiers(x):
        return jnp.sum(jax.nn.relu(jnp.sin(x * weights.astype(x.dtype))) * weights.astype(x.dtype))

    with jax.enable_x64(dtype == "float64"):
        (leaf,) = check(rectifiers, jnp.ones(400, dtype)).leaves
        settled = check(rectifiers, jnp.ones(400, dtype) * 0.001).leaves[0]
        (vague,) = check(lambda x: jnp.sum(jnp.tanh(x)) + 1e11, jnp.array([1.0, 0.01, 2.0], dtype)).leaves
    assert leaf.verdict == "ok" and leaf.error < 1e-4, leaf
    assert re.fullmatch(r"differences are too coarse to settle \d+ of 400 elements, which rest on jax.vjp", leaf.note)
    assert settled.verdict == "ok" and settled.note == ""
    assert vague.verdict == "ok" and vague.error < 0.1 and "settle 3 of 3 elements" in vague.note


def test_error_in_the_own_dtype_is_shown_beside_jax():
    def sloppy(y, ct, perturbed, **params):
        return (
            (ct * (1 - y * y)).astype(jnp.bfloat16).astype(ct.dtype) if ct.dtype == np.float32 else ct * (1 - y * y),
        )

    backward = bp.Backward(rules={lax.tanh_p: bp.rule(sloppy, save=bp.rules.OUTPUT)})
    (r,) = check(jnp.tanh, X.astype(np.float32), backward=backward).leaves
    assert r.own_ulps > 1e3 and r.jax_ulps < 10


def test_a_dropout_has_another_mask_in_float64_and_that_is_no_error_in_float32():
    def loss(x):
        return jnp.sum(jnp.where(jax.random.uniform(jax.random.key(3), x.shape, x.dtype) < 0.5, jnp.tanh(x), 0) ** 2)

    report = check(loss, jnp.linspace(0.1, 1, 32, dtype=np.float32))
    assert report.ok and report.leaves[0].own_ulps is None and "draws random numbers" in str(report)


def test_a_leaf_of_rounding_alone_says_nothing_of_the_distance_between_two_runs():
    def loss(bias, x):  # which a normalisation takes out
        y = jnp.tanh(x + bias)
        z = x * 1.7 + bias
        return jnp.sum((z - z.mean()) ** 2 / z.var()) * 0.1 + jnp.sum(y)

    report = check(lambda b, x: loss(b, x) - jnp.sum(jnp.tanh(x + b)), jnp.float32(0.3), X.astype(np.float32))
    assert report.ok and all("e+" not in f.result for f in report.consistency), report


# --- the derivative against itself ------------------------------------------------------------------------------------


def failed(report):
    return [f.name for f in report.consistency if not f.ok]


def returning(change):
    def vjp(f, *primals):
        out, pullback = bp.vjp(f, *primals)
        return out, lambda ct: change(pullback(ct))

    return vjp


def test_wrong_types_and_structure():
    narrow = returning(lambda cts: tuple(c.astype(np.float32) for c in cts))
    assert failed(check(jnp.sin, X, vjp=narrow)) == ["shapes, dtypes, structure"]
    assert failed(check(jnp.sin, X, vjp=returning(list))) == ["structure"]
    assert failed(check(jnp.sin, X, vjp=lambda f, *a: f(*a))) == ["structure"]
    report = check(jnp.sin, X, vjp=returning(lambda cts: (jnp.sum(cts[0]),)))
    assert failed(report) == ["shapes, dtypes, structure"] and report.worst.verdict == "wrong"
    integers = lambda p: p["x"] * 2.0
    report = check(integers, {"x": X, "n": jnp.arange(3)}, vjp=returning(lambda cts: ({**cts[0], "n": jnp.zeros(3)},)))
    assert failed(report) == ["shapes, dtypes, structure"] and "float0" in str(report)


def test_what_differs_from_run_to_run_and_under_jit():
    calls = []

    def drifting(f, *primals):
        calls.append(1)
        out, pullback = bp.vjp(f, *primals)
        drift = 1 + 0.1 * len(calls)
        return out, lambda ct: tuple(c * (drift if i == 0 else 1) for i, c in enumerate(pullback(ct)))

    report = check(lambda x, y: jnp.sin(x) + y, X, X, vjp=drifting)
    assert "called again" in failed(report)  # one leaf of two
    assert "it draws without a key, or remembers something" in str(report)

    def under_jit(f, *primals):
        out, pullback = bp.vjp(f, *primals)
        factor = 2.0 if isinstance(primals[0], jax.core.Tracer) else 1.0
        return out, lambda ct: tuple(c * factor for c in pullback(ct))

    assert "jit equals eager" in failed(check(jnp.sin, X, vjp=under_jit))


def test_another_value_than_the_functions():
    def other(f, *primals):
        out, pullback = bp.vjp(f, *primals)
        return out * 2, pullback

    assert failed(check(jnp.sin, X, vjp=other)) == ["value equals the function's"]


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_, error, sentence",
    [
        (lambda: check(3, X), TypeError, "needs a function"),
        (lambda: check(lambda x, y: x), TypeError, "beside it"),  # written as grad(f)(*args) is
        (lambda: check(jnp.sin, X, order=3), ValueError, "order is 1 or 2"),
        (lambda: check(jnp.sin, X, samples=0), ValueError, "samples is a whole number"),
        (lambda: check(jnp.sin, X, samples=1), ValueError, "samples is a whole number of at least 2, and was 1"),
        (lambda: check(jnp.sin, X, tolerance=-1), ValueError, "tolerance is a positive number"),
        (lambda: check(jnp.sin, X, argnums=2), ValueError, "argnums=2 requires at least 3 positional arguments"),
        (lambda: check(jnp.sin, X, argnums="x"), TypeError, "an int or a sequence of ints"),
        (lambda: check(lambda i: i, jnp.arange(3)), ValueError, "no argument has a floating-point leaf"),
        (lambda: check(lambda x: "text", X), TypeError, "returned 'text' of type str, which is no array"),
        (lambda: check(lambda x: x, X, has_aux=True), TypeError, r"must return a two-element tuple \(output, aux\)"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_in_a_sentence(request_, error, sentence):
    with pytest.raises(error, match=sentence):
        request_()


def test_an_error_in_the_function_is_the_users():
    def broken(x):
        raise KeyError("my own error")

    with pytest.raises(KeyError, match="my own error") as caught:
        check(broken, X)
    assert caught.value.__cause__ is None


def test_assert_gradients_raises_with_the_table():
    assert assert_gradients(jnp.tanh, X).ok
    with pytest.raises(AssertionError, match=r"(?s)leaf +type +verdict.*culprit: `tanh`"):
        assert_gradients(jnp.tanh, X, backward=WRONG)


@pytest.mark.slow
def test_models_as_functions():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=np.float32)
    graph, params = nnx.split(model)
    report = check(lambda p: nnx.merge(graph, p)(X[None].astype(np.float32)), params)
    assert report.ok and len(report.leaves) == 2
    eqx = pytest.importorskip("equinox")
    mlp = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0), dtype=np.float32)
    report = check(lambda m, x: m(x), mlp, X.astype(np.float32), argnums=0)
    assert report.ok and len(report.leaves) == 4


@pytest.mark.slow
def test_a_pallas_kernel_with_its_own_derivative():
    pl = pytest.importorskip("jax.experimental.pallas")

    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] * x_ref[...]

    def make(factor):
        @jax.custom_vjp
        def squared(x):
            return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)

        squared.defvjp(lambda x: (squared(x), x), lambda x, ct: (factor * x * ct,))
        return squared

    assert check(make(2), X).ok
    report = check(make(3), X)
    assert report.worst.verdict == "wrong" and "squared" in report.culprit


# --- numerical --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f, df, x", [
    (np.sin, np.cos, 0.7), (np.exp, np.exp, 3.0), (np.tanh, lambda x: 1 / np.cosh(x) ** 2, -2.0),
    (lambda x: x**3, lambda x: 3 * x**2, 1e-8), (np.sqrt, lambda x: 0.5 / np.sqrt(x), 1e12),
])  # fmt: skip
def test_slopes_are_as_good_as_they_say(f, df, x):
    h = power_of_two(x) * 2.0 ** -np.arange(7, 11)
    s = slopes(f(x - h), f(np.float64(x)), f(x + h), h, 2e-16 * abs(f(x)))
    off = abs(s.central - df(x))
    assert off <= 10 * s.error and off <= 1e-9 * abs(df(x))
    assert abs(s.right - df(x)) <= 10 * s.right_error and abs(s.left - df(x)) <= 10 * s.left_error


def test_central_differences_are_extrapolated_by_even_powers():
    """By all powers the error of the last step, h = 1/16, is 1e-5; by even ones h², h⁴ and h⁶ are gone."""
    h = 0.5 / 2.0 ** np.arange(4)
    s = slopes(np.exp(-h), np.float64(1), np.exp(h), h, 1e-16)
    assert abs(s.central - 1) < 1e-10 and s.error < 1e-6


def test_one_sided_slopes_at_a_kink():
    h = 2.0 ** -np.arange(7, 11)
    s = slopes(np.abs(-h), np.float64(0), np.abs(h), h, 1e-16)
    assert s.central == 0 and s.right == pytest.approx(1) and s.left == pytest.approx(-1)


def test_the_evaluator_falls_back_to_a_loop():
    project = lambda v, bound: v
    quick = Evaluator(jnp.sin, np.array([0.3, 1.0]), 2e-16)
    slow = Evaluator(lambda z: jnp.sin(z) if z[0] > 0 else z, np.array([0.3, 1.0]), 2e-16)
    a, b = (e.slopes(np.eye(2), np.ones(2), project) for e in (quick, slow))
    assert slow.looping and not quick.looping
    np.testing.assert_allclose(a.central, b.central, rtol=1e-12)


# --- plain float32 ----------------------------------------------------------------------------------------------------

PLAIN = """
import dataclasses, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np, funcbp as bp
from funcbp.testing import check
assert not jax.config.jax_enable_x64
w = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
held = jnp.ones(3)
f = lambda w, x: jnp.sum(jnp.tanh(w @ x) ** 2 * 0.5) + jnp.sum(w * held)
report = check(f, w, jnp.ones(3), order=2)
assert report.ok and report.leaves[0].dtype == "float32" and report.leaves[0].reference_error < 1e-10, report
rule = bp.rules.TABLE[jax.lax.tanh_p]
wrong = dataclasses.replace(rule, bwd=lambda *a, **k: [c * 1.001 for c in rule.bwd(*a, **k)])
assert not check(f, w, jnp.ones(3), backward=bp.Backward(rules={jax.lax.tanh_p: wrong})).ok
assert check(lambda x: x * 2, 0.3).ok and check(jnp.sin, np.array([0.1, 0.2])).ok
stuck = lambda x: jax.lax.scan(lambda c, u: (c + u * u, c), jnp.zeros((), np.float32), x)[0]
counted = lambda x, n: jnp.sum(x**2) * jax.lax.cond(x[0] > 0, lambda: n + 1, lambda: jnp.int32(n))  # as a layer counts
for report in (check(stuck, jnp.ones(3)), check(counted, jnp.ones(3), jnp.asarray(3))):
    assert report.ok and any("cannot be run in float64" in n for n in report.notes), report
assert not jax.config.jax_enable_x64 and jnp.ones(1).dtype == np.float32
print("fine")
"""


@pytest.mark.slow
def test_in_plain_float32():
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "fine", done.stderr


# --- what is whose fault ----------------------------------------------------------------------------------------------


def test_reports_are_values():
    (r,) = check(jnp.sin, X).leaves
    with pytest.raises(dataclasses.FrozenInstanceError):
        r.verdict = "wrong"


def test_a_rule_that_returns_nan_is_wrong_and_named():
    """`jax.vjp` uses the same rule and agrees, and the slope is there: what the function computes decides."""

    @jax.custom_vjp
    def silent(x):
        return jnp.sin(x)

    silent.defvjp(lambda x: (jnp.sin(x), None), lambda res, ct: (ct * jnp.nan,))
    report = check(lambda x: jnp.sum(silent(x) ** 2), jnp.array([0.3, -0.7], jnp.float32))
    assert report.worst.verdict == "wrong"
    assert "custom_vjp rule of silent" in report.culprit and "is not finite" in report.culprit


def test_the_nan_of_a_branch_not_taken_is_no_rules_fault():
    """sqrt has no slope at -1, and its rule is right to say so: the trap is in the function."""
    report = check(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0), jnp.array([-1.0, 2.0]))
    assert [leaf.verdict for leaf in report.leaves] == ["not finite"]
    assert report.ok and not report.culprit


def test_compiling_may_round_otherwise_what_is_computed_in_bfloat16():
    """XLA leaves roundings to bfloat16 out where it fuses: no failure of the derivative."""
    f = lambda x: jnp.sum(jnp.sin(x.astype(jnp.bfloat16)).astype(jnp.float32))
    report = check(f, jnp.array([0.3, -0.7, 1.1], jnp.float32))
    assert report.ok, report


def test_a_vjp_that_rounds_everything_is_no_single_equations_fault():
    def coarse(f, *args):
        out, pullback = jax.vjp(f, *args)
        return out, lambda ct: tuple(g.astype(jnp.bfloat16).astype(g.dtype) for g in pullback(ct))

    report = check(jnp.sin, jnp.array([0.3, -0.7]), vjp=coarse)
    assert report.culprit.startswith("No equation")


def test_the_whole_jacobian_is_looked_at_where_it_takes_few_operations():
    """A convolution's kernel has few elements and takes many: mapped over kernels it would run for minutes."""
    few, many = (
        _work(program_of(Subject(f, (x,), {}, [0], False)), x.size, 1)
        for f, x in (
            (lambda w: jnp.sum(jnp.ones((4, 3)) @ w), jnp.ones((3, 2))),
            (lambda k: jnp.sum(lax.conv(jnp.ones((8, 4, 16, 16)), k, (1, 1), "SAME")), jnp.ones((16, 4, 3, 3))),
        )
    )
    assert few < FULL_WORK < many
    assert few == (8 * 6 + 3) * (2 * 4 * 3 * 2 + 4 * 2)  # along each coordinate and back, times the product and the sum


def test_a_bias_of_zeros_that_a_softmax_cancels_is_right_though_its_gradient_is_rounding():
    """Of q · (k + b) the part q · b is one number for all keys: b̄ = 0, which each way of running rounds otherwise."""
    q, k, v = (jax.random.normal(jax.random.key(i), (6, 8), jnp.float32) for i in range(3))
    f = lambda b: jnp.sum(jnp.tanh(jax.nn.softmax(q @ (k + b[None]).T) @ v))
    b = jnp.zeros(8, jnp.float32)
    assert 0 < np.max(np.abs(bp.grad(f)(b))) < 1e-5
    report = check(f, b)
    assert report.ok, report


def test_what_is_wrong_in_second_order_only_is_blamed_there():
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    @jax.custom_vjp
    def cosine(x):
        return jnp.cos(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (ct * cosine(x),))
    cosine.defvjp(lambda x: (jnp.cos(x), x), lambda x, ct: (-1.3 * ct * jnp.sin(x),))
    report = check(sine, 0.4, order=2)
    assert [leaf.verdict for leaf in report.leaves] == ["ok", "wrong"]
    assert report.culprit.startswith("the custom_vjp rule of cosine at ")


def test_differences_that_are_too_coarse_are_said_to_be():
    """Rounded to bfloat16 on the way, a small slope is lost in the rounding of the value."""
    rounded = lambda w: jnp.sum((1000.0 + 1e-3 * w).astype(jnp.bfloat16).astype(w.dtype))
    (leaf,) = check(rounded, X).leaves
    assert leaf.verdict == "not informative" and leaf.note.startswith("differences are too coarse to tell: ")
    (flat,) = check(lambda w: jnp.sum(0.0 * w), X).leaves
    assert (flat.verdict, flat.note) == ("not informative", "")
