"""One test, driven by the rows: every rule against `jax.vjp`, against finite differences, and of itself."""

from __future__ import annotations

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import ROWS, Row  # type: ignore[import-not-found]

import funcbp as bp
from funcbp.rules import TABLE

IDS = [f"{r.primitive}-{r.label or 'plain'}-{i}" for i, r in enumerate(ROWS)]
every_row = pytest.mark.parametrize("row", ROWS, ids=IDS)


def some_rows(wanted):
    """The rows that `wanted` holds for: of programs inside programs all, of other primitives the first three."""
    seen: collections.Counter[str] = collections.Counter()
    chosen = []
    for i, row in zip(IDS, ROWS, strict=True):
        seen[row.primitive] += 1
        if wanted(row) and (seen[row.primitive] <= 3 or row.primitive in ("jit", "scan", "cond", "remat2")):
            chosen.append(pytest.param(row, id=i))
    return pytest.mark.parametrize("row", chosen)


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


@every_row
def test_equals_jax(row: Row):
    f = only_floats(row.f)
    outs, pullback = bp.vjp(f, *row.args)
    want_outs, want_pullback = jax.vjp(f, *row.args) if row.against_jax else (f(*row.args), None)
    assert_same(outs, want_outs, 1e-14)
    if want_pullback is not None:
        ct = a_cotangent(outs)
        assert_same(pullback(ct), want_pullback(ct))


@some_rows(lambda row: True)
def test_jit_equals_eager(row: Row):
    f = only_floats(row.f)
    outs, pullback = bp.vjp(f, *row.args)
    ct = a_cotangent(outs)
    assert_same(jax.jit(lambda args, ct: bp.vjp(f, *args)[1](ct))(row.args, ct), pullback(ct), 1e-11)


@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.numeric], ids=[i for i, r in zip(IDS, ROWS, strict=True) if r.numeric]
)
def test_equals_finite_differences(row: Row):
    """⟨ct, f'(x) v⟩ by central differences, extrapolated to step 0, against ⟨vjp(ct), v⟩."""
    f, args = only_floats(row.f), tuple(map(jnp.asarray, row.args))
    outs, pullback = bp.vjp(f, *args)
    ct = a_cotangent(outs)
    cts = pullback(ct)
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


@some_rows(lambda row: row.order > 1 and row.against_jax)
def test_second_order(row: Row):
    f = only_floats(row.f)

    def gradients(vjp):
        def total(*args):
            outs, pullback = vjp(f, *args)
            return sum(jnp.sum(jnp.real(c * c)) for c in pullback(a_cotangent(outs)) if c.dtype != jax.dtypes.float0)

        floats = tuple(i for i, x in enumerate(row.args) if is_float(x))
        return lambda grad: grad(total, floats)(*row.args)

    want = gradients(jax.vjp)(jax.grad)
    assert_same(gradients(bp.vjp)(bp.grad), want, 1e-9)
    assert_same(gradients(bp.vjp)(jax.grad), want, 1e-9)


@some_rows(lambda row: row.maps)
def test_vmap(row: Row):
    """The pullback maps over a batch of cotangents."""
    f = only_floats(row.f)
    outs, pullback = bp.vjp(f, *row.args)
    a, b = a_cotangent(outs, 1), a_cotangent(outs, 2)
    got = jax.vmap(pullback)(jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b))
    for i, ct in enumerate((a, b)):
        floats = [c for c in pullback(ct) if c.dtype != jax.dtypes.float0]
        assert_same([c[i] for c in got if c.dtype != jax.dtypes.float0], floats, 1e-11)


def test_every_ruled_primitive_has_a_row(monkeypatch):
    """Each row runs through the rule it names, and each rule has a row that does."""
    used = set()
    lookup = bp.Backward.lookup
    monkeypatch.setattr(bp.Backward, "lookup", lambda self, p: (used.add(p.name), lookup(self, p))[1])
    for row in ROWS:
        used.clear()
        jax.jit(lambda *args, row=row: bp.vjp(only_floats(row.f), *args)[0])(*row.args)
        if row.primitive not in ("custom_jvp_call", "custom_vjp_call", "closed_call"):
            assert row.primitive in used, f"the row {row.primitive}-{row.label} never uses the rule"
    rows = {r.primitive for r in ROWS} | {"reshard"}  # which needs a mesh: tests/test_sharding.py
    unrowed = {
        p.name for p, r in TABLE.items() if r.kind not in ("zero", "nondiff", "missing") and r.message is None
    } - rows
    assert not unrowed, f"no row for {sorted(unrowed)}"
