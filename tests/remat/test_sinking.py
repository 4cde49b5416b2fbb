"""Products of a loop's constants that wait until a block of its steps has been gone back through, or all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.remat import sinking
from funcbp.remat.machine import MACHINES

from .programs import rng


def recurrent(w, xs, reverse=False, unroll=1):
    units = xs.shape[-1]
    step = lambda h, x: (jnp.tanh((jnp.concatenate([x, h], -1) @ w)[:, :units]), h)
    h, hs = lax.scan(step, xs[0], xs, reverse=reverse, unroll=unroll)
    return h.sum() + (hs**2).sum()


def loops_of(w, xs):
    """The lengths of the last loop and of the one inside it, and whether the weight's products wait for its end."""
    *_, last = (e for e in jax.make_jaxpr(bp.grad(recurrent))(w, xs).eqns if e.primitive.name == "scan")
    *around, innermost = [last, *(e for e in jx.inner(last) if e.primitive.name == "scan")]
    made = [v.aval.size for e in jx.inner(innermost) if e.primitive.name == "dot_general" for v in e.outvars]
    return [e.params["length"] for e in (*around, innermost)], w.size not in made


@pytest.mark.parametrize(
    ("steps", "batch", "units", "loops", "waits"),
    [
        (500, 16, 128, [100, 5], True),  # W6
        (1000, 16, 128, [200, 5], True),
        (200, 4, 128, [8, 25], True),
        (100, 1, 128, [100], True),  # after the loop: what all steps hold takes no more than the sum
        (499, 1, 128, [499], True),  # no block divides a prime number: all steps, if a step holds very little
        (499, 16, 128, [499], False),
        (502, 16, 128, [502], False),  # blocks of two are not worth it
        (500, 128, 128, [500], False),  # a step has rows enough
        (500, 16, 32, [500], False),  # the sum stays in a core's cache
        (1, 16, 128, [1], False),
    ],
)
def test_what_a_block_holds_takes_no_more_than_the_sum(steps, batch, units, loops, waits):
    w = jax.ShapeDtypeStruct((2 * units, 4 * units), jnp.float32)
    xs = jax.ShapeDtypeStruct((steps, batch, units), jnp.float32)
    assert loops_of(w, xs) == (loops, waits)


def test_a_sum_that_is_moved_while_a_product_is_launched_is_not_worth_a_block(monkeypatch):
    w, xs = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((256, 512), (500, 16, 128)))
    monkeypatch.setattr(sinking, "machine_here", lambda: MACHINES["h200"])
    assert loops_of(w, xs) == ([500], False)


class Waiting(sinking.Blocks):
    """All products wait for so many steps, or for all."""

    def choose(self, steps, cts):
        waits = [sinking._bytes(c)[1] > 0 for c in cts]
        block = self.at_least or steps
        return (waits, block) if any(waits) and steps > 1 and steps % block == 0 else ([False] * len(cts), 1)

    def before(self, block):
        return sinking.Deferral(0.0, 0)


@pytest.fixture(params=[0, 3], ids=["after the loop", "in blocks"])
def waiting(request, monkeypatch):
    monkeypatch.setattr(sinking, "SINK", Waiting(at_least=request.param))
    return request.param


W, XS = jnp.asarray(rng.normal(size=(8, 16)) / 2), jnp.asarray(rng.normal(size=(6, 2, 4)))


def both_ways(w, xs):
    """One body, traced once, gone over in both directions."""
    step = lambda h, x: (jnp.tanh(jnp.concatenate([x, h], -1) @ w)[:, :4], h)
    (h, hs), (g, gs) = (lax.scan(step, xs[0], xs, reverse=r) for r in (False, True))
    return (h * g).sum() + (hs**2 * gs).sum()


def nested(w, xs):
    return lax.scan(lambda c, _: (c + jnp.sin(recurrent(w * c, xs)), None), 1.0, None, 3)[0]


def two(w, xs):
    """A state of integers beside, a constant without a product, and two products of one constant."""

    def step(carry, x):
        i, h = carry
        h = jnp.tanh(x @ w[:4, :4] + h @ w[4:, :4]) * w[0, 0] + i
        return (i + 1, h), (h * i, h > 0)

    (_, h), (ys, _) = lax.scan(step, (0, xs[0]), xs)
    return h.sum() + (ys**2).sum()


def drawn(w, xs):
    keys = jax.random.split(jax.random.key(0), len(xs))
    step = lambda h, x: (jnp.tanh(h @ w[:4, :4]) * jax.random.uniform(x[0], h.shape) + x[1], None)
    h, _ = lax.scan(step, xs[0], (keys, xs))
    return h.sum()


PROGRAMS = {
    "plain": recurrent,
    "both ways": both_ways,
    "unrolled": lambda w, xs: recurrent(w, xs, unroll=2),
    "nested": nested,
    "two": two,
    "drawn": drawn,
    "no product": lambda w, xs: lax.scan(lambda h, x: (jnp.tanh(h * w[0, 0] + x), None), xs[0], xs)[0].sum(),
    "mapped": lambda w, xs: jax.vmap(recurrent, (0, None))(jnp.stack([w, 2 * w]), xs).sum(),
    "mapped along": lambda w, xs: jax.vmap(recurrent, (None, 0))(w, jnp.stack([xs, 2 * xs])).sum(),
    "steps not divided": lambda w, xs: recurrent(w, xs[:4]),
    "no step": lambda w, xs: lax.scan(lambda h, x: (h @ w[:4, :4], None), xs[0], xs[:0])[0].sum(),
    "one step": lambda w, xs: recurrent(w, xs[:1]),
}


QUICK = "both ways", "two"


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PROGRAMS])
def test_waiting_changes_no_gradient(name, waiting):
    f = PROGRAMS[name]
    got = jax.jit(bp.grad(f, (0, 1)))(W, XS)
    want = jax.jit(jax.grad(f, (0, 1)))(W, XS)
    jax.tree.map(lambda g, h: np.testing.assert_allclose(g, h, rtol=1e-11, atol=1e-12), got, want)


@pytest.mark.slow
@pytest.mark.parametrize("outer", [bp.jacrev, jax.jacfwd])
def test_nor_a_second_derivative(outer, waiting):
    f = lambda v: recurrent(W * v[0] + jnp.sin(v[1] * W), XS * v[2])
    v = jnp.asarray([1.0, 0.5, 0.7])
    np.testing.assert_allclose(jax.jit(outer(bp.grad(f)))(v), jax.jit(jax.hessian(f))(v), rtol=1e-10, atol=1e-11)


def test_what_looks_at_steps_finds_the_same(waiting, monkeypatch):
    """Names' cotangents, edits of them at each step, and the step of the first nan."""

    def f(w, xs):
        def step(h, x):
            h = bp.name(jnp.tanh(jnp.concatenate([x, h], -1) @ w)[:, :4], "h")
            return h, None

        return lax.scan(step, xs[0], xs)[0].sum()

    clipped = bp.Backward(edits={"h": lambda ct, _: jnp.clip(ct, -0.1, 0.1)})
    looks = lambda: (
        bp.cotangents(f)(W, XS)[2]["h"],
        clipped.grad(f)(W, XS),
        bp.find_nan(lambda w, xs: f(w, jnp.sqrt(xs)))(W, XS.at[4].set(-1)),
    )
    got = looks()
    monkeypatch.setattr(sinking, "SINK", sinking.STEPWISE)
    want = looks()
    assert got[0].shape == (6, 2, 4)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-12)
    assert str(got[2]) == str(want[2])


def test_the_report_says_how_many_steps_a_block_has():
    w, xs = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((256, 512), (500, 16, 128)))
    report = bp.residuals(recurrent)(w, xs)
    assert {v.inside[0].split(" at ")[0] for v in report.values if v.inside} == {
        "loop of 500 steps, gone back in blocks of 5"
    }


@pytest.mark.slow
def test_the_peak_counts_the_factors_of_one_block():
    w, xs = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((256, 512), (100, 16, 128)))
    compiled = jax.jit(bp.grad(recurrent)).lower(w, xs).compile()
    assert bp.residuals(recurrent)(w, xs).peak == pytest.approx(compiled.memory_analysis().temp_size_in_bytes, rel=0.1)


def test_what_a_block_recomputes_by_a_product_is_contracted_before_its_steps():
    w, xs = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((256, 512), (500, 16, 128)))
    gradient = bp.Backward(balance=1e9).grad(recurrent)  # a product costs nothing
    *_, blocks = (e for e in jax.make_jaxpr(gradient)(w, xs).eqns if e.primitive.name == "scan")
    (block,) = (p for p in jx.inside_of(blocks).programs)
    shapes = lambda eqns: [e.outvars[0].aval.shape for e in eqns if e.primitive.name == "dot_general"]
    (steps,) = (e for e in block.eqns if e.primitive.name == "scan")
    assert shapes(block.eqns) == [(5, 16, 512), (256, 512)]  # the net inputs of all five steps; the sum
    assert shapes(jx.inner(steps)) == [(16, 128)]  # the cotangent that goes back


@pytest.mark.parametrize("steps", [3, 100])
def test_a_factor_that_the_loop_was_handed_is_not_stacked_again(steps):
    """After the loop, or in blocks: of x and h, which the loop goes along, nothing is written but the other factor."""
    w, xs = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((256, 512), (steps, 16, 128)))
    *_, last = (e for e in jax.make_jaxpr(bp.grad(recurrent))(w, xs).eqns if e.primitive.name == "scan")
    *_, innermost = [last, *(e for e in jx.inner(last) if e.primitive.name == "scan")]
    assert [v.aval.shape[1:] for v in innermost.outvars if v.aval.ndim == 3] == [(16, 512)]
