"""What is claimed of a rule, on each of the rows: against `jax.vjp`, against finite differences, of itself."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.autodiff import recording
from funcbp.jaxpr import sparse
from funcbp.rules import TABLE, traits_of
from funcbp.rules.traits import free
from funcbp.testing.rules import structural_claims

from ..interpret import interpreted
from .rows import MAPPED, ROWS

FIRST = {r.primitive: r for r in reversed(ROWS)}  # of each primitive, its first row
WITH_PROGRAMS = {"jit", "scan", "cond", "remat2"}


def rows(claimed=lambda row: True):
    """The rows of which something is claimed; in a quick run, the first of each primitive."""

    def decorate(test):
        chosen = pytest.mark.parametrize("row", list(filter(claimed, ROWS)), ids=lambda row: row.name)
        return pytest.mark.slow(once=["row.primitive"])(chosen(test))

    return decorate


class Ran(NamedTuple):
    """A row's function, its floating-point outputs, a cotangent of them, and those of the inputs."""

    f: Any
    outs: Any
    pullback: Any
    ct: Any
    cts: Any


@functools.cache  # once for all that is claimed of a row
def run(row):
    f = only_floats(row.f)
    outs, pullback = bp.vjp(f, *row.args)
    ct = a_cotangent(outs)
    return Ran(f, outs, pullback, ct, pullback(ct))


def is_float(x):
    return jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact)


def only_floats(f):
    """The floating-point outputs of f, flat."""
    return lambda *args: [y for y in jax.tree.leaves(f(*args)) if is_float(y)]


def a_cotangent(outs, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda y: rng.normal(size=y.shape) + (1j * rng.normal(size=y.shape) if jnp.iscomplexobj(y) else 0)
    return [jnp.asarray(draw(y), y.dtype) for y in outs]


def assert_same(got, want, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        if g.dtype == jax.dtypes.float0:
            continue
        g, w = np.asarray(g), np.asarray(w)
        precise = 1e-5 if w.dtype in (np.float32, np.complex64) else tolerance
        largest = np.max(np.abs(w[np.isfinite(w)]), initial=1.0) if w.size else 1.0
        np.testing.assert_allclose(g, w, rtol=precise, atol=precise * min(largest, 1e3))


@rows(lambda row: row.against_jax)
def test_equals_jax(row):
    f, outs, _, ct, cts = run(row)
    want_outs, want_pullback = jax.vjp(f, *row.args)
    assert_same(cts, want_pullback(ct))
    assert_same(outs, want_outs, 1e-14)


@rows(lambda row: not row.against_jax)
def test_outputs_are_the_functions_own(row):
    assert_same(run(row).outs, run(row).f(*row.args), 1e-14)


@rows(lambda row: row.numeric)
def test_equals_differences(row):
    """⟨ct, f'(x) v⟩ by central differences, extrapolated to step 0, against ⟨vjp(ct), v⟩."""
    f, _, _, ct, cts = run(row)
    args = tuple(map(jnp.asarray, row.args))
    rng = np.random.default_rng(7)
    for i, x in enumerate(args):
        if not is_float(x):
            continue
        v = rng.normal(size=np.shape(x)) + (1j * rng.normal(size=np.shape(x)) if np.iscomplexobj(x) else 0)

        def along(h, i=i, x=x, v=v):
            moved = f(*args[:i], x + h * v, *args[i + 1 :])
            # JAX's convention: a cotangent acts on a complex value by the real part of the plain product
            return sum(float(np.real(np.sum(np.asarray(c) * np.asarray(y)))) for c, y in zip(ct, moved, strict=True))

        slope = [(along(h) - along(-h)) / (2 * h) for h in (1e-3, 5e-4, 2.5e-4)]
        first = [(4 * b - a) / 3 for a, b in itertools.pairwise(slope)]
        numeric = (16 * first[1] - first[0]) / 15
        got = float(np.real(np.sum(np.asarray(cts[i]) * v)))
        scale = float(np.sum(np.abs(np.asarray(cts[i]) * v)))
        assert abs(got - numeric) <= 1e-8 * max(1.0, scale), (got, numeric)


@functools.cache
def claims(row):
    return structural_claims(run(row).f, row.args)


@rows()
def test_unperturbed_inputs_cost_nothing(row):
    assert claims(row)[0].holds is not False, claims(row)[0]


@rows()
def test_what_is_kept_is_read(row):
    assert claims(row)[1].holds is not False, claims(row)[1]


differentiable = lambda row: row.numeric or row.order > 1
compared = lambda row: differentiable(row) and (row.against_jax or row.same)


@pytest.mark.slow
@rows(differentiable)
def test_traced(row):
    """The rule records tracers as it records numbers."""
    f, _, _, ct, cts = run(row)
    assert_same(interpreted(lambda args, ct: bp.vjp(f, *args)[1](ct), row.args, ct), cts, 1e-11)


@pytest.mark.slow
@rows(lambda row: differentiable(row) and row.maps)
def test_mapped(row):
    """The pullback maps over a batch of cotangents."""
    _, outs, pullback, _, _ = run(row)
    a, b = a_cotangent(outs, 1), a_cotangent(outs, 2)
    both = jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b)
    got = interpreted(lambda cts: jax.vmap(pullback)(cts), both)
    for i, ct in enumerate((a, b)):
        floats = [c for c in pullback(ct) if c.dtype != jax.dtypes.float0]
        assert_same([c[i] for c in got if c.dtype != jax.dtypes.float0], floats, 1e-11)


@pytest.mark.slow
@rows(lambda row: row is FIRST[row.primitive] or row.primitive in WITH_PROGRAMS)
def test_compiled(row):
    f, _, _, ct, cts = run(row)
    assert_same(jax.jit(lambda args, ct: bp.vjp(f, *args)[1](ct))(row.args, ct), cts, 1e-11)


@pytest.mark.slow
@rows(lambda row: row.order > 1 and compared(row))
def test_second_order(row):
    check_order(2, run(row).f, row)


@pytest.mark.slow
@rows(lambda row: row.order > 2 and compared(row) and (row is FIRST[row.primitive] or row.same))
def test_third_order(row):
    check_order(3, run(row).f, row)


def check_order(order, f, row):
    """Reverse and forward mode of each other, in every sequence, along the same directions: JAX's, by all forward.

    JAX's are those of `row.same`, the same function by other operations, where it has no derivatives of that order.
    """
    floats = [i for i, x in enumerate(row.args) if is_float(x)]
    rng = np.random.default_rng(11)
    draw = lambda x: rng.normal(size=np.shape(x)) + (1j * rng.normal(size=np.shape(x)) if np.iscomplexobj(x) else 0)
    primals = [jnp.asarray(row.args[i]) for i in floats]
    directions = [[jnp.asarray(draw(x), x.dtype) for x in primals] for _ in range(order - 1)]

    def scalar(f):
        def total(*xs):
            full = list(row.args)
            for i, x in zip(floats, xs, strict=True):
                full[i] = x
            outs = f(*full)
            return product(outs, a_cotangent(outs, 5))

        return total

    total = scalar(f)

    def product(xs, ys):
        return sum(jnp.sum(jnp.real(x * y)) for x, y in zip(xs, ys, strict=True))

    def along(how, g, v):
        """The derivative of a scalar function in a direction, forward or reverse."""
        if how == "forward":
            return lambda *xs: jax.jvp(g, xs, tuple(v))[1]
        return lambda *xs: product(gradient(how, g)(*xs), v)

    def gradient(how, g):
        vjp = {"reverse": bp.vjp, "JAX's": jax.vjp}[how]
        pull = lambda y, pullback: pullback(jnp.ones_like(y))
        return lambda *xs: pull(*vjp(g, *xs))

    def mixed(hows, last, g=total):
        for how, v in zip(hows, directions, strict=True):
            g = along(how, g, v)
        return interpreted(gradient(last, g), *primals)

    # The last derivative gives the array; going forward over it would be one more direction of `along`.
    theirs = scalar(only_floats(row.same)) if row.same else total
    want = mixed(["forward" if row.forward or row.same else "JAX's"] * (order - 1), "JAX's", theirs)
    sequences = itertools.product(["reverse", "forward"] if row.forward else ["reverse"], repeat=order - 1)
    for hows in sequences:
        assert_same(mixed(hows, "reverse"), want, 1e-9)
    if row.same and not row.forward:  # nor has what its derivative has in it
        return
    if order == 2:  # forward over reverse: of the gradient itself
        over = lambda *xs: jax.jvp(gradient("reverse", total), xs, tuple(directions[0]))[1]
    else:
        over = lambda *xs: jax.jvp(
            gradient("reverse", along("reverse", total, directions[0])), xs, tuple(directions[1])
        )[1]
    assert_same(interpreted(over, *primals), want, 1e-9)


@rows(lambda row: row.primitive not in ("custom_jvp_call", "custom_vjp_call", "closed_call"))
def test_runs_through_the_rule_it_names(row, monkeypatch):
    used = set()
    lookup = recording.lookup
    monkeypatch.setattr(recording, "lookup", lambda options, p: (used.add(p.name), lookup(options, p))[1])
    backward = bp.Backward().observing(inline_calls=True)  # a call that was recorded before would not be again
    jax.make_jaxpr(lambda *args: backward.vjp(only_floats(row.f), *args)[0])(*row.args)
    assert row.primitive in used


def test_every_ruled_primitive_has_a_row():
    # a mesh: tests/test_sharding.py; a weight: tests/autodiff/test_marks.py; loops: tests/control_flow/test_revolve.py;
    # maps and collectives: tests/test_mapped.py; calls, and what is said to the compiler:
    # tests/control_flow/test_other_calls.py;
    # jax.experimental.sparse: test_sparse.py; operations written as classes: tests/control_flow/test_operations.py;
    # people's own dtypes, and `eval_jaxpr`: tests/outside/test_faults.py; attached: tests/autodiff/test_attach.py
    elsewhere = {
        "attached",
        "eval_jaxpr",
        "to_edtype",
        "from_edtype",
        "linear_call",
        "compute_on",
        "fused_call",
        "xla_metadata_call",
        "host_local_array_to_global_array",  # there once jax.experimental.multihost_utils is imported
        "global_array_to_host_local_array",
        "shard_alike",
        "xla_metadata_value",
        "reshard",
        "feedback",
        "snapshot_scan",
        "snapshot_while",
        "loop_tangent",
        *MAPPED,
        "call_hi_primitive",
        "spsolve",
        *(p.name for p in sparse.dense_programs()),
    }
    ruled = {p.name for p, r in TABLE.items() if r.how not in ("zero", "non-differentiable") and r.message is None}
    assert not (unrowed := ruled - elsewhere - FIRST.keys()), f"no row for {sorted(unrowed)}"


def test_singular_values_are_the_same_bits():
    """With a derivative they are computed beside the vectors, and are not taken from there."""
    f = lambda x: jnp.linalg.svd(x, compute_uv=False)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(6, 4)))
    assert jnp.array_equal(bp.vjp(f, x)[0], f(x))


def test_smooth_functions_have_no_derivative_at_nan():
    """A rule that asks which of its formulas holds, as that of `i1e`, is asked about nan, too."""
    piecewise_linear = "abs", "clamp", "cummax", "cummin", "custom_jvp_call"  # its row is relu
    asked = 0
    for name, row in FIRST.items():
        traits = traits_of(name)
        if traits.linear or traits.step or traits.sorts or traits.flops is free or name in piecewise_linear:
            continue
        if len(row.args) != 1 or getattr(row.args[0], "dtype", None) != np.float64:
            continue
        nan = jnp.full(row.args[0].shape, np.nan)
        y, pullback = bp.vjp(row.f, nan)
        if not (isinstance(y, jax.Array) and y.shape == nan.shape and np.isnan(y).all()):
            continue
        assert np.isnan(pullback(jnp.ones_like(y))[0]).all(), name
        asked += 1
    assert asked > 25, asked


@pytest.mark.parametrize("f", [lax.max, lax.min])
def test_a_nan_is_not_hidden_by_an_extremum(f):
    """At nan neither operand is chosen: a finite cotangent is 0 as in JAX, and nan stays nan."""
    nan, one = jnp.float64(np.nan), jnp.float64(1.0)
    for args in ((nan, one), (one, nan), (nan, nan)):
        _, pullback = bp.vjp(f, *args)
        for given, want in ((1.0, 0.0), (np.nan, np.nan)):
            np.testing.assert_array_equal(pullback(jnp.float64(given)), [want, want])
    # the operand that was not chosen gets nothing, not even of an infinite cotangent
    assert jax.tree.map(float, bp.vjp(lax.max, one, 2 * one)[1](jnp.float64(np.inf))) == (0.0, np.inf)
    assert np.isnan(bp.grad(jax.nn.celu)(nan))


@pytest.mark.parametrize("compile", [lambda f: f, jax.jit])
@pytest.mark.parametrize("f", [jnp.max, jnp.min])
def test_the_extremum_of_nan_has_no_derivative(f, compile):
    x = jnp.asarray([[0.3, np.nan, 0.7], [1.0, 2.0, 2.0]])
    got = compile(bp.grad(lambda x: f(x, 1).sum()))(x)
    want = [[np.nan] * 3, [0.0, 0.5, 0.5] if f is jnp.max else [1.0, 0.0, 0.0]]
    np.testing.assert_array_equal(got, want)
