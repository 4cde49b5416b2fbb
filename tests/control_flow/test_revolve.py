"""Loops with snapshots: the schedule is optimal and is what runs, and the gradients are those of the plain loop."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.control_flow import revolve as loops


@functools.cache
def fewest(steps, places):
    """How many steps must be run forward to reverse so many, by dynamic programming."""
    if steps <= 1:
        return 0
    if places == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, places - 1) + fewest(m, places) for m in range(1, steps))


def advanced(actions):
    return sum(a.stop - a.start for a in actions if a.kind == "advance")


@pytest.mark.parametrize("places", [1, 2, 3, 6])
def test_the_schedule_is_optimal(places):
    for steps in range(1, 45):
        actions = loops.schedule(steps, places)
        # the first sweep runs on to the end, for the value: what it passes after its last snapshot is run again
        passed = steps - max(loops.first_snapshots(steps, places))
        assert advanced(actions) <= fewest(steps, places) + passed
        assert [a.start for a in actions if a.kind == "reverse"] == list(reversed(range(steps)))


@pytest.mark.parametrize(("steps", "places"), [(1, 1), (7, 1), (20, 3), (100, 5), (286, 10), (1001, 10)])
def test_the_schedule_reverses_each_step_from_a_state_it_has(steps, places):
    stored, at = set(), 0
    for action in loops.schedule(steps, places):
        if action.kind == "store":
            assert action.start == at
            stored.add(action.start)
            assert len(stored) <= places
        elif action.kind == "drop":
            stored.remove(action.start)
        elif action.kind == "advance":
            assert action.start == at or action.start in stored
            at = action.stop
        else:
            assert action.start == at or action.start in stored
            at = -1
    assert not stored


def test_a_thousand_steps_with_ten_snapshots():
    """C(13, 10) = 286 < 1000 ≤ C(14, 10) = 1001: no step is run more than four times."""
    runs = np.zeros(1000, int)
    stored = most = 0
    for action in loops.schedule(1000, 10):
        runs[action.start : action.stop] += action.kind == "advance"
        stored += (action.kind == "store") - (action.kind == "drop")
        most = max(most, stored)
    assert (most, runs.sum(), runs.max()) == (10, 3640, 4)


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
    assert len(counts) == advanced(loops.schedule(50, 3)) + 50  # each reversed step runs forward once, to be reversed


def everything(scan, p, reverse):
    """A state of floats, integers and a key; ys of both kinds; a closed-over array and integer."""
    shift = jnp.arange(3.0)

    def step(c, x):
        h, i, key = c
        h = jnp.sin(h * p["w"] + x + shift) * (1 + i.astype(float) * 0.01)
        return (h, i + 1, jax.random.fold_in(key, 1)), (h**2, i)

    (h, _, _), (ys, _) = scan(step, (p["h"], 0, jax.random.key(0)), p["xs"], reverse=reverse)
    return h.sum() + (ys * jnp.arange(7.0)[:, None]).sum()


P = {"w": jnp.linspace(0.1, 1, 3), "h": jnp.ones(3), "xs": jnp.linspace(0, 1, 21).reshape(7, 3)}


@pytest.mark.parametrize(
    ("snapshots", "reverse"),
    [(3, True), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((1, False), (20, False)))],
)
def test_gradients_are_those_of_the_plain_loop(snapshots, reverse):
    want = jax.jit(jax.value_and_grad(lambda p: everything(lax.scan, p, reverse)))(P)
    few = functools.partial(bp.scan, snapshots=snapshots)
    for api in (bp, jax):
        got = jax.jit(api.value_and_grad(lambda p: everything(few, p, reverse)))(P)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-12), got, want)


def newton(a):
    return bp.while_loop(lambda x: jnp.abs(x * x - a) > 1e-10, lambda x: (x + a / x) / 2, a, max_steps=50, snapshots=3)


def test_a_loop_whose_length_depends_on_the_data():
    squares = jnp.array([4.0, 1e4, 1.0])  # the last one takes no step at all
    want = 0.5 * squares**-0.5
    np.testing.assert_allclose(jax.vmap(bp.grad(newton))(squares)[:2], want[:2], rtol=1e-9)
    for api in (bp, jax):
        np.testing.assert_allclose(jax.jit(api.grad(newton))(4.0), want[0], rtol=1e-9)
    assert bp.grad(newton)(1.0) == 1.0  # the loop returned its argument
    np.testing.assert_allclose(bp.hvp(newton, (4.0,), (1.0,)), -0.25 * 4.0**-1.5, rtol=1e-6)


def test_a_bounded_loop_stops():
    double = lambda x: bp.while_loop(lambda c: True, lambda c: 2 * c, x, max_steps=5)
    value, slope = bp.value_and_grad(double)(1.5)
    assert (value, slope) == (48.0, 32.0)


def test_without_snapshots_it_is_jax():
    step = lambda c, x: (c * x, c)
    xs = jnp.arange(1.0, 4.0)
    got, want = bp.scan(step, 1.0, xs), lax.scan(step, 1.0, xs)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    jax.tree.map(np.testing.assert_array_equal, bp.scan(step, 1.0, xs[:0], snapshots=2), lax.scan(step, 1.0, xs[:0]))


@pytest.mark.parametrize(
    "f",
    [newton, lambda x: bp.scan(lambda c, _: (jnp.sin(c), c), x, length=3, snapshots=2)[0]],
    ids=["while_loop", "scan"],
)
def test_a_second_reverse_pass_is_refused_and_forward_over_reverse_is_the_way_out(f):
    with pytest.raises(NotImplementedError, match=r"second reverse pass .* with funcbp\.hvp or jax\.jacfwd of the"):
        bp.grad(bp.grad(f))(4.0)
    h = 1e-5
    slope = jax.jit(bp.grad(f))
    np.testing.assert_allclose(jax.jacfwd(slope)(4.0), (slope(4.0 + h) - slope(4.0 - h)) / (2 * h), rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="snapshots is a positive integer, and was 0"):
        bp.scan(lambda c, x: (c, None), 1.0, length=3, snapshots=0)
    with pytest.raises(ValueError, match=r"max_steps is a positive integer, and was 2\.5"):
        bp.while_loop(lambda c: True, lambda c: c, 1.0, max_steps=2.5)
    with pytest.raises(TypeError, match="carry"):
        bp.scan(lambda c, x: ((c, c), None), 1.0, length=3, snapshots=2)
