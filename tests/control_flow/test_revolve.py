"""Loops with snapshots: the schedule is what runs, and the caller's options reach the steps as in JAX's own loops."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jex

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.control_flow import revolve
from funcbp.control_flow.schedule import schedule
from funcbp.per_example import examples

close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
few = functools.partial(bp.scan, snapshots=3)


def bounded(f, init, xs, **_):
    """A scan whose xs are read by number, as a `bp.while_loop` of the same steps; the ys are not there."""
    n = len(jax.tree.leaves(xs)[0])
    step = lambda c: (c[0] + 1, f(c[1], jax.tree.map(lambda x: x[c[0]], xs))[0])
    return bp.while_loop(lambda c: c[0] < n, step, (0, init), max_steps=n + 3, snapshots=3)[1], None


LOOPS = pytest.mark.parametrize("loop", [few, bounded], ids=["scan", "while"])


@pytest.fixture(scope="module")
def counter():
    counts = []
    yield counts, lambda: counts.append(1)


def test_the_compiled_loop_runs_what_the_schedule_says(counter):
    counts, count = counter

    def step(c, _):
        jax.debug.callback(count)
        return jnp.sin(c), None

    f = lambda x: bp.scan(step, x, length=50, snapshots=3)[0]
    counts.clear()
    jax.block_until_ready(jax.jit(bp.grad(f))(1.0))
    jax.effects_barrier()
    assert len(counts) == sum(a.stop - a.start for a in schedule(50, 3) if a.kind == "advance")


def test_what_is_kept_are_the_snapshots():
    step = lambda c, x: (jnp.tanh(jnp.exp(c) * x), jnp.sin(c))
    f = lambda c, xs: jax.tree.map(jnp.sum, bp.scan(step, c, xs, snapshots=5))
    report = bp.residuals(f)(jnp.ones(16), jnp.ones((100, 16)))
    assert [(v.name, v.shape, v.why) for v in report.values if v.fate == "kept"] == [
        ("snapshots", (5, 16), "the state before 5 of 100 steps")
    ]
    assert report.total == 5 * 16 * 8


# --- the derivative is that of the plain loop -------------------------------------------------------------------------


def everything(scan, p, reverse):
    """A state of floats, integers and a key; ys of both kinds; a closed-over array and integer."""
    shift = jnp.arange(3.0)

    def step(c, x):
        h, i, key = c
        h = jnp.sin(h * p["w"] + x + shift) * (1 + i.astype(float) * 0.01)
        return (h, i + 1, jax.random.fold_in(key, 1)), (h**2, i)

    (h, _, _), (ys, _) = scan(step, (p["h"], 0, jax.random.key(0)), p["xs"], reverse=reverse, unroll=2)
    return h.sum() + (ys * jnp.arange(7.0)[:, None]).sum()


P = {"w": jnp.linspace(0.1, 1, 3), "h": jnp.ones(3), "xs": jnp.linspace(0, 1, 21).reshape(7, 3)}


@pytest.mark.parametrize(
    ("snapshots", "reverse"),
    [(3, True), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((1, False), (20, False)))],
)
def test_gradients_are_those_of_the_plain_loop(snapshots, reverse):
    want = jax.jit(jax.value_and_grad(lambda p: everything(lax.scan, p, reverse)))(P)
    loop = functools.partial(bp.scan, snapshots=snapshots)
    for api in (bp, jax):
        got = jax.jit(api.value_and_grad(lambda p: everything(loop, p, reverse)))(P)
        jax.tree.map(close, got, want)
    jax.tree.map(close, bp.value_and_grad(lambda p: everything(loop, p, reverse))(P), want)  # one by one


def rnn(loop, p):
    return loop(lambda h, x: (jnp.tanh(p["w"] @ h + x), None), p["h"], p["xs"])[0]


R = {"w": jnp.linspace(-1, 1, 9).reshape(3, 3), "h": jnp.ones(3), "xs": P["xs"]}
V = jax.tree.map(lambda x: jnp.cos(x + 1), R)


@pytest.mark.slow(once=[])
@LOOPS
def test_forward_mode_and_both_second_orders(loop):
    squares = lambda run: lambda p: (rnn(run, p) ** 2).sum()
    f, plain = squares(loop), squares(lax.scan)
    jax.tree.map(close, jax.jvp(f, (R,), (V,)), jax.jvp(plain, (R,), (V,)))
    want = jax.jvp(jax.grad(plain), (R,), (V,))[1]
    jax.tree.map(close, jax.jit(lambda p: bp.hvp(f, (p,), (V,)))(R), want)
    jax.tree.map(close, jax.jvp(jax.grad(f), (R,), (V,))[1], want)
    reverse_over_forward = lambda p: jax.jvp(f, (p,), (V,))[1]
    for api in (bp, jax):
        jax.tree.map(close, api.grad(reverse_over_forward)(R), want)
    twice = lambda g: jax.jvp(lambda p: jax.jvp(g, (p,), (V,))[1], (R,), (V,))[1]
    close(twice(f), twice(plain))


@pytest.mark.slow(once=[])
@LOOPS
def test_mapped_and_nested_in_other_loops(loop):
    p = R | {"h": jnp.linspace(-1, 1, 12).reshape(4, 3)}
    axes = ({"w": None, "h": 0, "xs": None},)
    mapped = lambda run: lambda p: (jax.vmap(functools.partial(rnn, run), axes)(p) ** 2).sum()
    want = jax.grad(mapped(lax.scan))(p)
    for api in (bp, jax):
        jax.tree.map(close, api.grad(mapped(loop))(p), want)
    apart = jax.vmap(lambda h: bp.grad(lambda h: (rnn(loop, p | {"h": h}) ** 2).sum())(h))(p["h"])
    close(apart, want["h"])

    def nested(outer, inner):
        return lambda p: outer(lambda h, _: (rnn(inner, p | {"h": h}), None), R["h"], jnp.ones(4))[0].sum()

    want = jax.grad(nested(lax.scan, lax.scan))(R)
    for outer in (lax.scan, loop):
        for api in (bp, jax):
            jax.tree.map(close, jax.jit(api.grad(nested(outer, loop)))(R), want)


def test_lanes_that_have_ended_have_no_derivative_of_a_step_that_is_not_defined():
    """x -> sqrt(a x - 1) until x < 2, three times, once, never: from 0.5 the next step is nan, and so is 0 times it."""
    f = lambda x, a: bp.while_loop(lambda x: x >= 2, lambda x: jnp.sqrt(a * x - 1), x, max_steps=9)
    step = lambda x: jnp.sqrt(x - 1)
    x, scale = jnp.array([30.0, 2.25, 0.5]), jnp.ones(3)  # 30: 5.39, 2.10, 1.05
    by_hand = [jax.grad(lambda x: step(step(step(x))))(30.0), 1 / (2 * np.sqrt(1.25)), 1.0]
    for api in (bp, jax):
        got = api.grad(lambda x, a: jax.vmap(f)(x, a).sum(), argnums=(0, 1))(x, scale)
        close(got[0], by_hand)
        assert jnp.isfinite(got[1]).all()
        shared = api.grad(lambda x, a: jax.vmap(f, (0, None))(x, a).sum(), argnums=1)(x, 1.0)
        close(shared, got[1].sum())
    close(jax.vmap(bp.grad(f))(x, scale), by_hand)
    twice = jnp.stack([x, x + 0.25])
    close(bp.grad(lambda x: jax.vmap(jax.vmap(f))(x, jnp.ones((2, 3))).sum())(twice)[0], by_hand)


# --- the caller's options ---------------------------------------------------------------------------------------------


@LOOPS
def test_rules_reach_the_steps(loop):
    """Straight-through rounding, (round(c) * 1.5) three times: 1.5³."""
    f = lambda x: loop(lambda c, _: (jnp.round(c) * 1.5, None), x, jnp.ones(3))[0]
    assert bp.Backward(rules=bp.credit.straight_through()).grad(f)(1.2) == 1.5**3
    assert bp.grad(f)(1.2) == 0


@LOOPS
def test_edits_and_names_reach_the_steps(loop):
    """c -> 3 c, named, three times, then times 2: the name's cotangents are 2, 6, 18 from the last step on."""
    f = lambda x: 2 * bp.name(loop(lambda c, _: (bp.name(3 * c, "h"), None), x, jnp.ones(3))[0], "out")
    _, slope, found = bp.cotangents(f)(1.0)
    assert slope == 54
    np.testing.assert_array_equal(found["h"][:3], [18, 6, 2])
    np.testing.assert_array_equal(found["h"][3:], 0)  # steps that were not taken
    edits = {"h": lambda ct, cts: ct + 10 * cts["out"]}  # 22, 86, 278 at the three names
    assert bp.Backward(edits=edits).grad(f)(1.0) == 3 * (3 * (3 * (2 + 20) + 20) + 20)
    with pytest.raises(ValueError, match="'g', and the names there are: 'h', 'out'"):
        bp.Backward(edits={"g": lambda ct, _: ct}).grad(f)(1.0)


@LOOPS
def test_feedback_weights_reach_the_steps(loop):
    """Two steps c -> w c under a mark: c̄ is 5 · 5, and w̄ is c₁ + 5 c₀ with c₁ = 2 c₀."""
    f = lambda w, c: loop(lambda c, _: (bp.feedback(w, 5.0) * c, None), c, jnp.ones(2))[0]
    g = lambda w, c: loop(lambda c, _: (w * c, None), c, jnp.ones(2))[0]
    marked = lambda w, c: g(bp.feedback(w, 5.0), c)
    for h in (f, marked):
        assert bp.grad(h, argnums=(0, 1))(2.0, 3.0) == (6 + 15, 25)


@LOOPS
def test_residual_plans_reach_loops_inside_the_steps(loop):
    inner = lambda c: lax.scan(lambda c, _: (jnp.tanh(jnp.exp(c)), None), c, length=5)[0]
    f = lambda x: loop(lambda c, _: (inner(c), None), x, jnp.ones(3))[0]

    def stacked(residuals):
        """How many numbers the inner loop keeps at each of its steps, running again to be reversed."""
        found = []

        def look(program):
            for eqn in program.eqns:
                if eqn.primitive.name == "scan" and eqn.params["length"] == 5:
                    found.append(len(eqn.outvars) - jx.scan_parts(eqn.params)[2])
                for inside in jex.jaxprs_in_params(eqn.params):
                    look(inside)

        look(jax.make_jaxpr(bp.Backward(residuals=residuals).grad(f))(1.0).jaxpr)
        return max(found)

    assert stacked("needed") == 2  # the values of exp and tanh
    assert stacked("inputs") == 1  # the state


@LOOPS
def test_the_trace_shows_the_steps(loop):
    t = bp.trace(lambda x: loop(lambda c, _: (bp.name(jnp.exp(c), "h"), None), x, jnp.ones(2))[0])(0.0)
    close(t["h"].value[:2], [1, np.e])
    close(t["h"].cotangent[:2], [np.e, 1])
    assert "test_revolve.py" in t["h"].line
    assert "test_revolve.py" in next(r for r in t if r.primitive.startswith("snapshot")).line


@LOOPS
def test_find_nan_blames_an_equation_inside(loop):
    f = lambda x: loop(lambda c, _: (jnp.sqrt(c) - 1, None), x, jnp.ones(4))[0]  # 9, 2, 0.41, -0.36
    found = bp.find_nan(f)(9.0)
    assert (found.operation, found.backward, found.steps, found.trap) == (
        "sqrt", False, (3,), "argument outside the domain"
    )  # fmt: skip


@pytest.mark.slow(once=[])
@LOOPS
def test_a_check_sees_a_wrong_rule_inside(loop):
    f = lambda x: loop(lambda c, _: (jnp.sin(c), None), x, jnp.ones(3))[0]
    wrong = bp.rule(lambda x, ct, perturbed, **_: (2 * ct * jnp.cos(x[0]),))
    assert bp.check(f, 1.0).ok
    assert not bp.check(f, 1.0, backward=bp.Backward(rules={lax.sin_p: wrong})).ok


@LOOPS
def test_per_example_quantities(loop):
    batch = {"h": jnp.linspace(-1, 1, 12).reshape(4, 3), "xs": jnp.linspace(0, 1, 84).reshape(4, 7, 3)}
    loss = lambda run: lambda w, example: (rnn(run, example | {"w": w}) ** 2).sum()
    gradients = jax.vmap(jax.grad(loss(lax.scan)), (None, 0))(R["w"], batch)
    want = jnp.sqrt((gradients**2).sum((1, 2)))
    close(bp.per_example.norms(loss(loop))(R["w"], batch), want)
    gram = jnp.einsum("nij,mij->nm", gradients, gradients)
    close(bp.per_example.gram(loss(loop))(R["w"], batch), gram)
    found = examples.backpropagate(loss(loop), R["w"], batch, backward=bp.Backward())
    close(found.leaves[0].arrays(), gradients)


@pytest.mark.slow(once=[])
@LOOPS
def test_a_second_reverse_pass_is_refused_and_forward_over_reverse_is_the_way_out(loop):
    f = lambda x: loop(lambda c, _: (jnp.sin(c), None), x, jnp.ones(3))[0]
    message = r"through `loop_reversal` at .*test_revolve.py.* a second time.* with funcbp\.hvp or jax\.jacfwd of the"
    for twice in (bp.grad(bp.grad(f)), jax.grad(bp.grad(f)), jax.grad(jax.grad(f)), jax.jacrev(bp.jacrev(f))):
        with pytest.raises(NotImplementedError, match=message):
            twice(4.0)
    unread = lambda x: f(x) + lax.stop_gradient(bp.grad(f)(x))  # nobody asks for its derivative
    assert bp.grad(unread)(4.0) == bp.grad(f)(4.0)
    plain = lambda x: jnp.sin(jnp.sin(jnp.sin(x)))
    close(jax.jacfwd(bp.grad(f))(4.0), jax.grad(jax.grad(plain))(4.0))
    close(bp.hvp(f, (4.0,), (1.0,)), jax.grad(jax.grad(plain))(4.0))


@pytest.mark.parametrize("residuals", ["min_cut", "inputs"])
def test_in_regions_and_under_jax_checkpoint(residuals):
    f = lambda run: lambda p: (jnp.sin(rnn(run, p)) ** 2).sum()
    want = jax.grad(f(lax.scan))(R)
    backward = bp.Backward(residuals=residuals, outside_loops=True)
    jax.tree.map(close, backward.grad(f(few))(R), want)
    for api in (bp, jax):
        jax.tree.map(close, api.grad(jax.checkpoint(f(few)))(R), want)


def test_the_way_back_of_a_step_is_traced_once(monkeypatch):
    traced, trace = [], revolve.backward_body
    monkeypatch.setattr(revolve, "backward_body", lambda *which: (traced.append(which), trace(*which))[1])
    f = lambda x: jnp.sum(bp.scan(lambda c, _: (jnp.sin(c) * 1.5, None), x, None, length=21, snapshots=3)[0])
    jax.jit(bp.grad(f)).lower(jnp.ones(3))
    assert len(traced) == 1
