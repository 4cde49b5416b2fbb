"""What goes ahead of a loop: products with its constants, and what products read of its constants."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.remat import hoisting, sinking

from .programs import rng


def rnn(w, xs):
    """Two products a step: of the input, which could go ahead, and of the state."""
    step = lambda h, x: (jnp.tanh((2 * x).astype(w["in"].dtype) @ w["in"].T + h @ w["hidden"]), h)
    h, hs = lax.scan(step, jnp.zeros((xs.shape[1], len(w["in"])), xs.dtype), xs)
    return (h**2).sum() + hs.sum()


def products_in_loops(f, *args):
    loops = [e for e in jax.make_jaxpr(bp.grad(f))(*args).eqns if e.primitive.name == "scan"]
    return [sum(e.primitive.name == "dot_general" for e in jx.inner(loop)) for loop in loops]


@pytest.mark.parametrize(
    ("batch", "units", "ahead"),
    [(1, 128, True), (16, 128, False), (128, 128, False), (1, 32, False), (1, 512, True), (64, 512, False)],
)
def test_products_with_a_large_constant_go_ahead(batch, units, ahead):
    """The sizes of W6: for a batch of 1 before the loop; for 16 and 128 the stacks would take more than they save."""
    w = {k: jax.ShapeDtypeStruct((units, units), jnp.float32) for k in ("in", "hidden")}
    w["in"] = jax.ShapeDtypeStruct((4 * units, units), jnp.float32)
    w["hidden"] = jax.ShapeDtypeStruct((4 * units, 4 * units), jnp.float32)
    xs = jax.ShapeDtypeStruct((3, batch, units), jnp.float32)
    assert products_in_loops(rnn, w, xs)[0] == (1 if ahead else 2)


@pytest.mark.parametrize("inside", [lambda f: f, jax.jit])
def test_a_body_whose_products_all_read_its_carry_is_not_written_out(monkeypatch, inside):
    """They may be as large as they like: that none can go ahead is seen without another trace."""
    monkeypatch.setattr(sinking, "HOIST", sinking.Deferral(0.0, 0))
    monkeypatch.setattr(jx, "inlined", lambda program: pytest.fail("the body was written out"))
    product = inside(lambda h, x, w: ((h + x) @ w, x @ x.T))
    h, w, xs = jnp.ones((2, 3)), jnp.ones((3, 3)), jnp.ones((4, 2, 3))
    f = lambda w, xs: lax.scan(lambda h, x: product(h, x, w), h, xs)[0].sum()
    assert bp.grad(f)(w, xs).shape == w.shape


@pytest.mark.slow
def test_going_ahead_changes_no_gradient(monkeypatch):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    w, xs = {"in": normal(4, 3), "hidden": normal(4, 4)}, normal(5, 2, 3)
    nested = lambda w, xs: lax.scan(lambda c, _: (jnp.sin(rnn(w, c * xs)), None), 1.0, None, 2)[0]
    twice = lambda grad: lambda w, xs: (grad(rnn)(w, xs)["in"] ** 2).sum()
    backwards = lambda w, xs: lax.scan(
        lambda h, x: (jnp.tanh(x @ w["in"].T + h), None), w["hidden"][:2], xs, reverse=True
    )[0].sum()
    sides = [(f, f) for f in (rnn, nested, backwards)] + [(twice(bp.grad), twice(jax.grad))]
    monkeypatch.setattr(sinking, "HOIST", sinking.Deferral(0.0, 0))
    for ours, theirs in sides:
        want = jax.jit(jax.grad(theirs, (0, 1)))(w, xs)
        for got in (bp.grad(ours, (0, 1))(w, xs), jax.jit(bp.grad(ours, (0, 1)))(w, xs)):
            jax.tree.map(lambda g, h: np.testing.assert_allclose(g, h, rtol=1e-10, atol=1e-11), got, want)
    assert products_in_loops(rnn, w, xs)[0] == 1


def test_what_the_carry_or_a_name_is_in_does_not_go_ahead(monkeypatch):
    monkeypatch.setattr(sinking, "HOIST", sinking.Deferral(0.0, 0))
    w, xs = jnp.eye(3), jnp.ones((4, 3))
    named = lambda w, xs: lax.scan(lambda h, x: (h + bp.name(x, "x") @ w, None), jnp.zeros(3), xs)[0].sum()
    carried = lambda w, xs: lax.scan(lambda h, x: ((h + x) @ w, None), jnp.zeros(3), xs)[0].sum()
    draws = lambda w, xs: lax.scan(lambda h, x: (h + x @ (w * h[None]), None), jnp.ones(3), xs)[0].sum()
    assert [products_in_loops(f, w, xs)[0] for f in (named, carried, draws)] == [1, 1, 1]


def test_for_one_step_nothing_goes_ahead(monkeypatch):
    monkeypatch.setattr(sinking, "HOIST", sinking.Deferral(0.0, 0))
    w = {"in": jnp.eye(4, 3), "hidden": jnp.eye(4)}
    assert [products_in_loops(rnn, w, jnp.ones((n, 2, 3)))[0] for n in (1, 2)] == [2, 1]


def test_what_a_product_is_made_of_counts(monkeypatch):
    """One-hot rows as wide as the table would be stacked for all steps; and so would what is summed on the way."""
    table, centres = jnp.ones((1000, 8)), jnp.ones((1000, 8))
    one_hot = lambda table, ids: lax.scan(
        lambda h, i: (h + jax.nn.one_hot(i, 1000, dtype=table.dtype) @ table, None), jnp.zeros(8), ids
    )[0].sum()
    near = lambda table, xs: lax.scan(
        lambda h, x: (h + ((x[None] - centres) ** 2).sum(0) @ table[:8], None), jnp.zeros(8), xs
    )[0].sum()
    args = (table, jnp.arange(5)), (table, jnp.ones((5, 8)))
    for when, ahead in ((sinking.Deferral(7.5, 0), False), (sinking.Deferral(0.0, 0), True)):
        monkeypatch.setattr(sinking, "HOIST", when)
        assert [products_in_loops(f, *a)[0] for f, a in zip((one_hot, near), args, strict=True)] == [not ahead] * 2


def test_products_in_compiled_calls_go_ahead_and_bear_their_lines(monkeypatch):
    monkeypatch.setattr(sinking, "HOIST", sinking.Deferral(0.0, 0))

    @jax.jit
    def cell(h, x, w):
        with jax.named_scope("input"):
            net = x @ w
        return jnp.tanh(net + h)

    f = lambda w, xs: lax.scan(lambda h, x: (cell(h, x, w), None), jnp.zeros(3), xs)[0].sum()
    program = jax.make_jaxpr(bp.grad(f))(jnp.eye(3), jnp.ones((4, 3)))
    assert products_in_loops(f, jnp.eye(3), jnp.ones((4, 3)))[0] == 0
    first, *_ = (e for e in program.eqns if e.primitive.name == "dot_general")
    assert jx.user_line(first.source_info).endswith("cell)")
    assert jx.scope(first.source_info) == "vmap(input)"
    assert [jx.scope(e.source_info) for e in program.eqns if e.primitive.name == "scan"] == ["", "transpose(scan_bwd)"]


def test_what_has_a_rule_of_the_users_stays_in_the_loop(monkeypatch):
    """A rule may look at the whole cotangent of a step, which all steps' together would change."""
    clipped = bp.rule(lambda res, ct, perturbed, **params: (ct / jnp.linalg.norm(ct),))
    f = lambda xs: lax.scan(lambda h, x: (h + (jnp.tanh(x) @ jnp.eye(3)).sum(), None), 0.0, xs)[0]
    monkeypatch.setattr(sinking, "HOIST", sinking.Deferral(0.0, 0))
    got = bp.Backward(rules={lax.tanh_p: clipped}).grad(f)(jnp.ones((4, 3)))
    np.testing.assert_allclose(got, np.full((4, 3), 3**-0.5), rtol=1e-12)


def cell(xs, w, h):
    """A net of [x h] W, of which no x̄ is wanted: the product that goes back reads half of the weight."""
    step = lambda h, x: (jnp.tanh(jnp.concatenate([x, h], 1) @ w), None)
    return (lax.scan(step, h, xs)[0] ** 2).sum()


def inside_and_before(f, *args):
    """The equations that make what the last loop reads of a weight; and how its bodies read that in products."""
    program = jax.make_jaxpr(f)(*args)
    moves = [e.primitive.name for e in program.eqns if e.primitive.name in ("slice", "transpose")]
    bodies = [e for e in program.eqns if e.primitive.name == "scan"][-1:]
    read = []
    while bodies:
        eqns = [e for body in bodies for e in jx.inner(body)]
        read += [e.params["dimension_numbers"][0] for e in eqns if e.primitive.name == "dot_general"]
        moves += [f"inside: {e.primitive.name}" for e in eqns if e.primitive.name in ("slice", "transpose")]
        bodies = [e for e in eqns if e.primitive.name == "scan"]
    return moves, read


@pytest.mark.parametrize(
    ("rows", "large", "turned"), [(4, 0, True), (48, 0, True), (49, 0, False), (1, 0, False), (4, 2**17, False)]
)
def test_what_products_read_of_a_constant_is_made_before_the_loop(monkeypatch, rows, large, turned):
    """The part of it always; and with its contracted axis first where a CPU would copy it for each product."""
    monkeypatch.setattr(hoisting, "LARGE", large)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape, scale=0.3))
    xs, w, h = normal(6, rows, 3), normal(8, 5), normal(rows, 5)
    for g, inputs in ((bp.grad, (1, 2)), (bp.grad, 1)):
        moves, read = inside_and_before(g(cell, inputs), xs, w, h)
        assert moves == ["slice", *["transpose"] * turned]
        assert ((1,), (0,) if turned else (1,)) in read
        assert not (turned and ((1,), (1,)) in read)


@pytest.mark.parametrize("residuals", ["min_cut", "inputs", "needed"])
def test_what_is_made_before_the_loop_changes_no_gradient(monkeypatch, residuals):
    monkeypatch.setattr(hoisting, "LARGE", 0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape, scale=0.3))
    xs, w, h = normal(6, 2, 3), normal(8, 5), normal(2, 5)
    own = bp.Backward(residuals=residuals)
    nested = lambda xs, w, h: lax.scan(lambda c, _: (jnp.sin(cell(xs, w * c, h)), None), 1.0, None, 2)[0]
    bent = lambda api, f: lambda *a: sum((g**2).sum() for g in api.grad(f, (1, 2))(*a))
    mapped = lambda xs, w, h: jax.vmap(cell, (None, 0, None))(xs, jnp.stack([w, 2 * w]), h).sum()
    sides = [(f, f) for f in (cell, nested, mapped)] + [(bent(own, cell), bent(jax, cell))]
    for ours, theirs in sides:
        want = jax.jit(jax.grad(theirs, (1, 2)))(xs, w, h)
        for got in (own.grad(ours, (1, 2))(xs, w, h), jax.jit(own.grad(ours, (1, 2)))(xs, w, h)):
            jax.tree.map(lambda g, h: np.testing.assert_allclose(g, h, rtol=1e-10, atol=1e-11), got, want)


def test_a_loop_that_reads_its_constants_as_they_are_makes_nothing_before():
    moves, read = inside_and_before(
        bp.grad(lambda w, xs: rnn({"in": w, "hidden": w}, xs)), jnp.eye(3), jnp.ones((4, 2, 3))
    )
    assert "slice" not in moves and "transpose" not in moves and ((1,), (1,)) in read


def test_of_a_batch_of_any_size_nothing_is_turned_and_its_parts_are_made_before(monkeypatch):
    monkeypatch.setattr(hoisting, "LARGE", 0)
    (rows,) = jax.export.symbolic_shape("rows")
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = jax.export.export(jax.jit(bp.grad(cell, 1)))(struct(6, rows, 3), struct(8, 5), struct(rows, 5))
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape, scale=0.3), jnp.float32)
    args = normal(6, 4, 3), normal(8, 5), normal(4, 5)
    np.testing.assert_allclose(exported.call(*args), jax.grad(cell, 1)(*args), rtol=1e-4, atol=1e-5)
