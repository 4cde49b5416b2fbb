"""One test, driven by the rows: every rule against `jax.vjp`, against finite differences, of itself, and its claims."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp.autodiff import recording
from funcbp.rules import TABLE
from funcbp.testing.rules import structural_claims

from ..interpret import interpreted
from .rows import ROWS

IDS = [f"{r.primitive}-{r.label or 'plain'}-{i}" for i, r in enumerate(ROWS)]
FIRST = {r.primitive: i for i, r in reversed(list(enumerate(ROWS)))}  # of each primitive, its first row
WITH_PROGRAMS = {"jit", "scan", "cond", "remat2"}


@pytest.mark.parametrize("number", range(len(ROWS)), ids=IDS)
def test_row(number):
    """All that is claimed of a rule, on one row."""
    row = ROWS[number]
    plain = number == FIRST[row.primitive]
    f = only_floats(row.f)
    outs, pullback = bp.vjp(f, *row.args)
    ct = a_cotangent(outs)
    cts = pullback(ct)
    check_against_jax(row, f, outs, ct, cts)
    if row.numeric:
        check_against_differences(f, tuple(map(jnp.asarray, row.args)), ct, cts)
    check_claims(f, row)
    if row.numeric or row.order > 1:  # traced, mapped, and of each other
        check_traced(f, row, ct, cts)
        if row.maps:
            check_mapped(f, row, outs, pullback)
        if row.order > 1 and (row.against_jax or row.same):
            check_order(2, f, row)
        if row.order > 2 and (row.against_jax or row.same) and (plain or row.same):
            check_order(3, f, row)
    if plain or row.primitive in WITH_PROGRAMS:
        assert_same(jax.jit(lambda args, ct: bp.vjp(f, *args)[1](ct))(row.args, ct), cts, 1e-11)


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


def check_against_jax(row, f, outs, ct, cts):
    if row.against_jax:
        want_outs, want_pullback = jax.vjp(f, *row.args)
        assert_same(cts, want_pullback(ct))
        assert_same(outs, want_outs, 1e-14)
    else:
        assert_same(outs, f(*row.args), 1e-14)


def check_against_differences(f, args, ct, cts):
    """⟨ct, f'(x) v⟩ by central differences, extrapolated to step 0, against ⟨vjp(ct), v⟩."""
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


def check_traced(f, row, ct, cts):
    """The rule records tracers as it records numbers."""
    assert_same(interpreted(lambda args, ct: bp.vjp(f, *args)[1](ct), row.args, ct), cts, 1e-11)


def check_mapped(f, row, outs, pullback):
    """The pullback maps over a batch of cotangents."""
    a, b = a_cotangent(outs, 1), a_cotangent(outs, 2)
    both = jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b)
    got = interpreted(lambda cts: jax.vmap(pullback)(cts), both)
    for i, ct in enumerate((a, b)):
        floats = [c for c in pullback(ct) if c.dtype != jax.dtypes.float0]
        assert_same([c[i] for c in got if c.dtype != jax.dtypes.float0], floats, 1e-11)


def check_claims(f, row):
    """Unperturbed inputs cost nothing; what is kept is read. Both are read off the programs."""
    broken = [c for c in structural_claims(f, row.args) if c.holds is False]
    assert not broken, broken


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


def test_every_ruled_primitive_has_a_row(monkeypatch):
    """Each row runs through the rule it names, and each rule has a row that does."""
    used = set()
    lookup = recording.lookup
    monkeypatch.setattr(recording, "lookup", lambda options, p: (used.add(p.name), lookup(options, p))[1])
    for row in ROWS:
        used.clear()
        jax.make_jaxpr(lambda *args, row=row: bp.vjp(only_floats(row.f), *args)[0])(*row.args)
        if row.primitive not in ("custom_jvp_call", "custom_vjp_call", "closed_call"):
            assert row.primitive in used, f"the row {row.primitive}-{row.label} never uses the rule"
    elsewhere = {
        "reshard",
        "feedback",
    }  # a mesh: tests/test_sharding.py; a feedback weight: tests/autodiff/test_marks.py
    rows = {r.primitive for r in ROWS} | elsewhere
    unrowed = {
        p.name for p, r in TABLE.items() if r.how not in ("zero", "non-differentiable") and r.message is None
    } - rows
    assert not unrowed, f"no row for {sorted(unrowed)}"


def test_singular_values_are_the_same_bits():
    """With a derivative they are computed beside the vectors, and are not taken from there."""
    f = lambda x: jnp.linalg.svd(x, compute_uv=False)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(6, 4)))
    assert jnp.array_equal(bp.vjp(f, x)[0], f(x))
