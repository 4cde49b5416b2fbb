"""What holds of the planner wherever a program stands: the price decides, and what must not be made again is not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.autodiff import fitting
from funcbp.autodiff.fitting import Search, fitted
from funcbp.remat import policies
from funcbp.remat.machine import MACHINES
from funcbp.remat.regions import straight

W = jnp.linspace(-1.0, 1.0, 64 * 16).reshape(16, 64)
X = jnp.linspace(-1.0, 1.0, 128 * 16).reshape(128, 16)


def step(w, x):
    return jnp.tanh(jnp.sin(x @ w) @ w.T)


def times(n, f):
    """The function, applied so often."""
    return lambda w, x: f(w, x) if n == 1 else times(n - 1, f)(w, f(w, x))


def scanned(f):
    return lambda w, x: lax.scan(lambda c, _: (f(w, c), None), x, None, 2)[0]


# What a step stands in, and the options by which it is planned there. A `jax.checkpoint` around it keeps what its own
# policy says, see tests/remat/test_policies.py.
PLACES = {
    "scan": (scanned, {}),
    "nested scan": (lambda f: scanned(scanned(f)), {}),
    "straight line": (lambda f: times(3, f), {"outside_loops": True}),
    "cond in a scan": (lambda f: scanned(lambda w, x: lax.cond(x[0, 0] < 9, f, lambda w, x: x, w, x)), {}),
    "jit in a scan": (lambda f: scanned(jax.jit(f)), {}),
    "while": (
        lambda f: (
            lambda w, x: bp.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, f(w, c[1])), (0, x), max_steps=4)[1]
        ),
        {},
    ),
    "snapshots": (lambda f: lambda w, x: bp.scan(lambda c, _: (f(w, c), None), x, None, 4, snapshots=2)[0], {}),
}  # fmt: skip

STARTS = ("while", "snapshots")  # a step keeps nothing but what it starts from, and is asked to run again


def loss(place, f=step):
    return lambda w, x: jnp.sum(PLACES[place][0](f)(w, x) ** 2)


@pytest.mark.parametrize("place", PLACES)
def test_the_price_decides_everywhere(place):
    """How many products a gradient has, where they cost little, and where they cost more than to keep their results."""
    products = []
    for balance in (1e9, 1e-9):
        gradient = bp.Backward(balance=balance, **PLACES[place][1]).grad(loss(place))
        products.append(sum(o.eqn.primitive is lax.dot_general_p for o in jx.equations(jax.make_jaxpr(gradient)(W, X))))
    assert products[0] == products[1] if place in STARTS else products[0] > products[1]


ONCE = ("pure_callback", "random_bits")


def noisy(w, x):
    told = jax.pure_callback(np.cos, jax.typeof(x), lax.stop_gradient(x), vmap_method="sequential")
    return jnp.sin(step(w, x) * jax.random.normal(jax.random.key(1), x.shape)) * told


def written(f, *args):
    """How often what must run once is written in a program."""
    names = [o.eqn.primitive.name for o in jx.equations(jax.make_jaxpr(f)(*args))]
    return [names.count(name) for name in ONCE]


@pytest.mark.parametrize("place", [p for p in PLACES if p not in STARTS])
def test_a_draw_and_a_callback_are_made_once_everywhere(place):
    f = loss(place, noisy)
    assert written(bp.Backward(balance=1e9, **PLACES[place][1]).grad(f), W, X) == written(f, W, X)


def test_what_no_key_draws_is_the_same_on_the_way_back():
    f = lambda x: lax.scan(lambda c, _: (c * lax.rng_uniform(0.5, 1.0, ()), None), x, None, 3)[0]
    value, grad = jax.jit(bp.value_and_grad(f))(2.0)
    assert value == pytest.approx(2 * grad)  # the function is linear


def test_a_budget_reruns_no_step_with_a_draw():
    """The same loop fits into less with snapshots where its steps may be run again, and has none where they may not."""
    long = lambda f: lambda w, x: jnp.sum(lax.scan(lambda c, _: (f(w, c), None), x, None, 60)[0] ** 2)
    loops = []
    for f in (step, noisy):
        types = [jax.typeof(W), jax.typeof(X)]
        search = Search(straight(lambda w, x, f=f: [long(f)(w, x)], types), [True, True], bp.Backward().options)
        loops.append([r.snapshots for ladder in search.ladders(np.inf) for r in ladder if r.snapshots])
    assert loops[0] and not loops[1]


@pytest.mark.parametrize("place", [*PLACES, "two loops"])
def test_where_plans_are_few_the_first_that_fits_is_taken(place):
    """Against a look at every rung; and what fits nowhere is told the smallest that does."""
    two = lambda w, x: jnp.sum(scanned(step)(w, jnp.cos(scanned(step)(w, x))) ** 2)
    f = two if place == "two loops" else loss(place)
    types = [jax.typeof(W), jax.typeof(X)]
    options = bp.Backward(**PLACES.get(place, (None, {}))[1]).options
    search = Search(straight(lambda *a: [f(*a)], types), [True, True], options)
    rungs = [rung for ladder in search.ladders(np.inf) for rung in ladder]
    peaks = [search.fit(rung).peak for rung in rungs]
    budget = lambda least: options.replace(policy=bp.Budget(bytes=least))
    for least in sorted(set(peaks)):
        found = fitted(lambda *a: [f(*a)], types, [True, True], budget(least))
        assert found.peak == next(p for p in peaks if p <= least)
    with pytest.raises(ValueError, match=rf"The smallest budget is Budget\(bytes={min(peaks)}\)"):
        fitted(lambda *a: [f(*a)], types, [True, True], budget(min(peaks) - 1))


def test_snapshots_that_fit_at_the_first_look_are_looked_at_once(monkeypatch):
    """Each look traces the way back anew: there is one for the default, and one for what the budget has room for."""
    looked_at = []
    fit = fitting._fit
    monkeypatch.setattr(fitting, "_fit", lambda *args: looked_at.append(args) or fit(*args))
    long = lambda w, x: jnp.sum(lax.scan(lambda c, _: (step(w, c), None), x, None, 60)[0] ** 2)
    found = bp.residuals(long, backward=bp.Backward(residuals=bp.Budget(fraction=0.6)))(W, X)
    assert 0 < found.peak <= 0.6 * bp.residuals(long)(W, X).peak and len(looked_at) == 2


def test_of_many_parts_the_first_ones_that_fit_are_found_at_a_few_looks(monkeypatch):
    """The plan is the one that a look at every rung finds; each part is expected to keep what its plan says."""

    def loss(x, *layers):
        for w in layers:
            x = x + jnp.tanh(jax.nn.softmax(x @ w) * jnp.exp(jnp.sin(x)))
        return [jnp.sum(x**2)]

    types, perturbed = [jax.typeof(jnp.ones((n, 64))) for n in (256, *20 * [64])], [False, *20 * [True]]
    options = bp.Backward().options
    search = Search(straight(loss, types), perturbed, options)
    rungs = [rung for ladder in search.ladders(0) for rung in ladder if rung.snapshots is None]
    peaks = [search.fit(rung).peak for rung in rungs]
    fit, looked_at = fitting._fit, []
    monkeypatch.setattr(fitting, "_fit", lambda *args: looked_at.append(args) or fit(*args))
    for limit in (*(int(f * peaks[0]) for f in (0.9, 0.7, 0.5, 0.3)), min(peaks)):
        looked_at.clear()
        found = fitted(loss, types, perturbed, options.replace(policy=bp.Budget(bytes=limit)))
        n, peak = next((rung.regions, peak) for rung, peak in zip(rungs, peaks, strict=True) if peak <= limit)
        assert (sum(r.policy is not None for r in found.regions), found.peak) == (n, peak)
        assert len(rungs) > 20 and len(looked_at) <= 4


def test_a_body_in_two_loops_has_the_turning_points_of_both(monkeypatch):
    """What 50 steps keep is within the cache: 10,486 bytes through memory, a product, are five times as many there."""
    monkeypatch.setattr(fitting, "machine_here", lambda: MACHINES["cpu"])
    monkeypatch.setattr(policies, "machine_here", lambda balance: MACHINES["cpu"])

    def loss(w, x):
        body = lambda h, _: (jnp.sin(h @ w), None)
        for steps in (100, 50):
            x = lax.scan(body, x, None, steps)[0]
        return [jnp.sum(x**2)]

    types = [jax.typeof(jnp.ones(shape)) for shape in ((128, 128), (32, 128))]
    search = Search(straight(loss, types), [True, True], bp.Backward().options)
    points = [w for ladder in search.ladders(np.inf) for w in sorted({r.weight for r in ladder} - {1.0, np.inf})]
    assert points == pytest.approx([5 * 2 * 32 * 128 * 128 / 50 / 2 / (32 * 128 * 8)], rel=2e-3)
