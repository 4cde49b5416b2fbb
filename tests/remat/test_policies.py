"""Policies: the cheapest plan that fits a budget, what a user's policy permits, and when products wait."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp import remat
from funcbp.remat import sinking
from funcbp.remat.budget import Budget
from funcbp.remat.cut import minimum_cut, permitted
from funcbp.remat.graph import bytes_of


def body(x, w):
    a = x @ w  # wide, dear
    b = jnp.sin(a)
    c = jnp.sum(b, 1)  # narrow, cheap
    d = jnp.exp(jnp.broadcast_to(c[:, None], (4, 6)))
    e = d @ w.T  # dear
    f = jnp.tanh(e) * b[:, :3]
    return [f, b, d, e]


@pytest.fixture(scope="module")
def program():
    return jx.trace(lambda x, w: body(x, w), [jax.typeof(jnp.ones((4, 3))), jax.typeof(jnp.ones((3, 6)))])


def made_again(program, kept, needed, there):
    """The equations that run again, or None if what is needed cannot be had from what is kept."""
    given, again = {*kept, *there}, []
    wanted = set(needed) - given
    for eqn in reversed(program.eqns):
        if any(v in wanted for v in eqn.outvars):
            again.append(eqn)
            wanted |= {v for v in eqn.invars if not jx.is_literal(v)} - given
    return None if any(v in wanted for v in program.invars) else again


@pytest.mark.parametrize("fraction", [0.3, 0.45, 0.6, 0.8, 1.0])
def test_a_budget_is_the_cheapest_plan_that_fits(program, fraction):
    """Against every subset of what could be kept."""
    needed, there = program.outvars, {program.invars[1]}
    values = [program.invars[0], *(v for eqn in program.eqns for v in eqn.outvars)]
    limit = fraction * bytes_of(needed)
    best = np.inf
    for n in range(len(values) + 1):
        for kept in itertools.combinations(values, n):
            again = made_again(program, kept, needed, there) if bytes_of(kept) <= limit else None
            if again is not None:
                best = min(best, sum(map(jx.flops, again)))
    kept = Budget(fraction=fraction).for_body()(program, needed, there)
    assert bytes_of(kept) <= limit
    assert sum(map(jx.flops, made_again(program, kept, needed, there))) == best


def test_the_cut_is_the_smallest_without_dear_equations(program):
    needed, there = program.outvars, {program.invars[1]}
    values = [v for eqn in program.eqns for v in eqn.outvars]
    least = min(
        bytes_of(kept)
        for n in range(len(values) + 1)
        for kept in itertools.combinations(values, n)
        if (again := made_again(program, kept, needed, there)) is not None and all(map(jx.is_cheap, again))
    )
    assert bytes_of(minimum_cut(program, needed, there)) == least


def test_a_budget_that_cannot_be_met_says_what_can():
    f = lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 6)[0].sum()
    with pytest.raises(ValueError, match=r"cannot do with less than 384 bytes \(6 × 64 bytes\): 284 bytes are missing"):
        bp.Backward(residuals=Budget(bytes=100)).grad(f)(jnp.ones(8))
    with pytest.raises(ValueError, match=r"at .*test_policies.py:\d+.*The smallest budget is Budget\(bytes=384\)"):
        bp.Backward(residuals=Budget(bytes=100)).grad(f)(jnp.ones(8))
    assert bp.Backward(residuals=Budget(bytes=384)).grad(f)(jnp.ones(8)).shape == (8,)


@pytest.mark.parametrize("given", [{}, {"bytes": 1, "fraction": 0.5}, {"bytes": 0}, {"fraction": -0.1}])
def test_a_budget_is_given_one_way(given):
    with pytest.raises(ValueError, match="one of the two and positive"):
        Budget(**given)


def test_a_budget_is_a_part_of_what_is_needed():
    with pytest.raises(ValueError, match="at most 1, and was 3"):
        Budget(fraction=3)
    assert repr(Budget(fraction=0.3)) == "Budget(fraction=0.3)" and repr(Budget(bytes=8)) == "Budget(bytes=8)"


def layers(w, x, length):
    def block(x, _):
        h = jax.nn.gelu(x @ w["up"]) * jax.nn.sigmoid(x @ w["gate"])
        return x + h @ w["down"], None

    return (lax.scan(block, x, None, length)[0] ** 2).sum()


rng = np.random.default_rng(0)
W = {k: jnp.asarray(rng.normal(size=s) * 0.3) for k, s in {"up": (4, 16), "gate": (4, 16), "down": (16, 4)}.items()}
X = jnp.asarray(rng.normal(size=(8, 4)))


def stacked(f, backward):
    return sum(v.total for v in bp.residuals(f, backward=backward)(W, X).values if v.inside and v.fate == "kept")


@pytest.mark.parametrize("fraction", [0.6, 0.2])
def test_a_budget_predicts_the_compiled_loops_stacks(fraction):
    """What the loop's length adds to the compiled program's memory is what the report says, within 2 %."""
    backward = bp.Backward(residuals=Budget(fraction=fraction))
    temp, said = [], []
    for length in (40, 80):
        f = lambda w, x, length=length: layers(w, x, length)
        temp.append(jax.jit(backward.grad(f)).lower(W, X).compile().memory_analysis().temp_size_in_bytes)
        said.append(stacked(f, backward))
    assert temp[1] - temp[0] == pytest.approx(said[1] - said[0], rel=0.02)
    assert said[1] <= fraction * stacked(f, bp.Backward(residuals="needed"))
    want = jax.jit(jax.grad(f))(W, X)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-12), jax.jit(backward.grad(f))(W, X), want)


@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.5])
def test_a_budget_keeps_nothing_that_is_not_read(fraction):
    """Narrow values of a softmax that would fit too, which XLA then leaves out of what it stacks."""

    def attention(x, w):
        q = x @ w
        return [jax.nn.softmax(q @ q.T) @ q]

    program = jx.trace(attention, [jax.typeof(jnp.ones((16, 64))), jax.typeof(jnp.ones((64, 64)))])
    exps = [v for eqn in program.eqns for v in eqn.outvars if eqn.primitive.name in ("exp", "div", "dot_general")]
    needed, there = [program.invars[0], *exps[:-1]], {program.invars[1]}
    kept = Budget(fraction=fraction).for_body()(program, needed, there)
    for v in kept:
        others = [u for u in kept if u is not v]
        assert made_again(program, others, needed, there) != made_again(program, kept, needed, there)


# --- the user's policies ----------------------------------------------------------------------------------------------

stock = jax.checkpoint_policies


def region(x):
    h = checkpoint_name(jnp.sin(x @ W["up"]), "h")
    return jnp.sum(jnp.tanh(jnp.exp(h) @ W["down"]) ** 2)


def kept_by(policy, **options):
    report = bp.residuals(jax.checkpoint(region, policy=policy), backward=bp.Backward(**options))(X)
    return sorted(v.name for v in report.values if v.fate == "kept" and v.inside)


def cheap_is_recomputed(forward, needed, available):
    """Keep what contractions make and the inputs that are read; compute elementwise results again."""
    read = remat.read_for(forward, needed, set())
    chosen = [v for eqn in forward.eqns if not remat.is_cheap(eqn) for v in eqn.outvars if v in read]
    return chosen + [v for v in forward.invars if v in read and v not in available]


class CheapIsRecomputed(remat.Policy):
    """The same as a class, which also hears how often the body runs."""

    steps = 0

    def choose(self, forward, needed, available, steps=1):
        CheapIsRecomputed.steps = steps
        return cheap_is_recomputed(forward, needed, available)


@pytest.mark.parametrize("policy", [cheap_is_recomputed, CheapIsRecomputed()], ids=["function", "class"])
def test_a_policy_of_ones_own(policy):
    """In each of 7 steps the carry (3, 4) and the product (3, 4) are kept; exp and tanh are computed again."""
    f = lambda x, w: lax.scan(lambda c, _: (jnp.tanh(jnp.exp(-c @ w)), None), x, None, 7)[0].sum()
    x, w = jnp.linspace(-1, 1, 12).reshape(3, 4), 0.1 * jnp.ones((4, 4))
    backward = bp.Backward(residuals=policy)
    np.testing.assert_allclose(backward.grad(f, (0, 1))(x, w)[1], jax.grad(f, 1)(x, w), rtol=1e-12)
    report = bp.residuals(f, (0, 1), backward=backward)(x, w)
    kept = sorted((v.name, v.steps, v.bytes) for v in report.values if v.fate == "kept")
    assert kept == [("carry 0", 7, 96), ("dot_general", 7, 96)]
    assert {v.name for v in report.values if v.fate == "computed again"} == {"exp", "tanh"}
    if isinstance(policy, remat.Policy):
        assert policy.steps == 7
    else:
        assert report.policy == repr(backward.options.policy) == "cheap_is_recomputed"
        assert repr(backward) == "Backward(residuals=cheap_is_recomputed)"


def test_a_policy_without_a_choice_says_so():
    empty = type("Empty", (remat.Policy,), {})
    with pytest.raises(NotImplementedError, match="Empty is a policy without `choose`"):
        bp.Backward(residuals=empty()).grad(lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0])(1.0)


def test_a_users_policy_is_honoured():
    assert kept_by(None) == kept_by(stock.nothing_saveable) == []
    assert kept_by(stock.save_only_these_names("h")) == ["h"]
    assert kept_by(stock.dots_saveable) == ["dot_general", "dot_general"]
    # all may be kept, and two values suffice: of the second product, what the rules want is as narrow
    assert kept_by(stock.everything_saveable) == ["dot_general", "tanh"]
    assert len(kept_by(stock.everything_saveable, residuals="needed")) > 2
    want = jax.grad(region)(X)
    for policy in (None, stock.save_only_these_names("h"), stock.everything_saveable):
        got = jax.jit(bp.grad(jax.checkpoint(region, policy=policy)))(X)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def contractions(f, *args):
    """How many contractions run, those in loops counted at each step."""

    def count(eqns):
        here = sum(e.primitive.name == "dot_general" for e in eqns)
        return here + sum(e.params.get("length", 1) * count(jx.inner(e)) for e in eqns)

    return count(jax.make_jaxpr(f)(*args).eqns)


def looped(x):
    """A loop, and one inside it the other way round, in a region; with a counter, and a value of no use."""

    def inner(h, w):
        net = checkpoint_name(h @ W["up"] @ W["down"], "net")
        return jnp.sin(net) * w + checkpoint_name(jnp.tanh(h), "h"), checkpoint_name(h * 2, "unused")

    def outer(carry, w):
        h, n = carry
        h, _ = lax.scan(inner, jnp.tanh(checkpoint_name(h @ W["up"] @ W["down"], "net")) * n, w, reverse=True)
        return (h, n + 1), h.sum()

    (h, _), sums = lax.scan(outer, (x, 1), jnp.linspace(0.1, 1.0, 6).reshape(3, 2))
    return (h**2).sum() + sums.sum()


@pytest.mark.parametrize("residuals", ["min_cut", "needed"])
@pytest.mark.parametrize(
    ("policy", "saves", "again"),
    [
        (None, 0, 18),
        (stock.dots_saveable, 2, 0),
        (stock.save_only_these_names("net"), 2, 0),
        (stock.save_only_these_names("h", "unused"), 1, 18),
    ],
)
def test_a_policy_reaches_into_the_loops_of_a_region(policy, saves, again, residuals):
    f = bp.Backward(residuals=residuals).grad(jax.checkpoint(looped, policy=policy))
    report = bp.residuals(jax.checkpoint(looped, policy=policy), backward=bp.Backward(residuals=residuals))(X)
    saved = [v for v in report.values if v.why == "saved in a loop by the region's policy"]
    assert [v.fate for v in saved] == ["kept"] * saves
    assert contractions(f, X) == 18 + 18 + again  # forward, backward (the weights are constants), and again
    np.testing.assert_allclose(jax.jit(f)(X), jax.jit(jax.grad(looped))(X), rtol=1e-12)


def test_a_name_is_kept_though_it_could_be_had_again(program):
    """A cheap value that the user named and wants kept is kept, even where a narrower one would do."""
    f = lambda x: [jnp.exp(checkpoint_name(jnp.broadcast_to(jnp.sum(x, 1)[:, None], (4, 100)), "wide"))]
    named = jx.trace(f, [jax.typeof(jnp.ones((4, 3)))])
    (kept,) = permitted(lambda eqn: eqn.primitive.name == "name")(named, named.outvars, set(named.invars))
    assert kept.aval.shape == (4, 100)


# --- products that wait -----------------------------------------------------------------------------------------------


def recurrent(w, xs):
    units = xs.shape[-1]
    step = lambda h, x: (jnp.tanh((jnp.concatenate([x, h], -1) @ w)[:, :units]), None)
    return lax.scan(step, xs[0], xs)[0].sum()


@pytest.mark.parametrize(
    ("batch", "units", "waits"), [(1, 128, True), (16, 128, False), (128, 128, False), (1, 32, False)]
)
def test_small_products_of_a_large_weight_wait(batch, units, waits):
    """The sizes of W6: for a batch of 1 after the loop; for 16 and 128 the stacks would take more than they save."""
    w, xs = jnp.ones((2 * units, 4 * units), jnp.float32), jnp.ones((3, batch, units), jnp.float32)
    *_, last = (e for e in jax.make_jaxpr(bp.grad(recurrent))(w, xs).eqns if e.primitive.name == "scan")
    assert sum(e.primitive.name == "dot_general" for e in jx.inner(last)) == (1 if waits else 2)


def test_waiting_changes_no_gradient(monkeypatch):
    w, xs = jnp.asarray(rng.normal(size=(8, 16))), jnp.asarray(rng.normal(size=(5, 2, 4)))
    monkeypatch.setattr(sinking, "SINK", sinking.Deferral(0.0, 0))

    def nested(w, xs):
        return lax.scan(lambda c, _: (c + recurrent(w * c, xs), None), 1.0, None, 2)[0]

    for f in (recurrent, nested):
        got = jax.jit(bp.grad(lambda w, xs, f=f: f(w, xs), (0, 1)))(w, xs)
        want = jax.jit(jax.grad(f, (0, 1)))(w, xs)
        jax.tree.map(lambda g, h: np.testing.assert_allclose(g, h, rtol=1e-11, atol=1e-12), got, want)


# --- products ahead of the loop ---------------------------------------------------------------------------------------


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
