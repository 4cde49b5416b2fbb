"""What a user's policy permits is kept, and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp import remat
from funcbp.remat.cut import permitted

from .programs import W, X

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
    """In each of 7 steps the carry (3, 4) and the product (3, 4) are kept; neg, exp and tanh are computed again."""
    f = lambda x, w: lax.scan(lambda c, _: (jnp.tanh(jnp.exp(-c @ w)), None), x, None, 7)[0].sum()
    x, w = jnp.linspace(-1, 1, 12).reshape(3, 4), 0.1 * jnp.ones((4, 4))
    backward = bp.Backward(residuals=policy)
    np.testing.assert_allclose(backward.grad(f, (0, 1))(x, w)[1], jax.grad(f, 1)(x, w), rtol=1e-12)
    report = bp.residuals(f, (0, 1), backward=backward)(x, w)
    kept = sorted((v.name, v.steps, v.bytes) for v in report.values if v.fate == "kept")
    assert kept == [("carry 0", 7, 96), ("dot_general", 7, 96)]
    assert {v.name for v in report.values if v.fate == "recomputed"} == {"neg", "exp", "tanh"}
    if isinstance(policy, remat.Policy):
        assert policy.steps == 7
    else:
        assert report.policy == repr(backward.options.policy) == "cheap_is_recomputed"
        assert repr(backward) == "Backward(residuals=cheap_is_recomputed)"


def test_a_policy_without_a_choice_says_so():
    empty = type("Empty", (remat.Policy,), {})
    with pytest.raises(NotImplementedError, match="Empty is a policy without `choose`"):
        bp.Backward(residuals=empty()).grad(lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0])(1.0)


def test_a_policy_that_saves_too_little_is_refused():
    class Nothing(remat.Policy):
        def choose(self, forward, needed, available, steps=1):
            return []

    f = lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0]
    with pytest.raises(ValueError, match=r"saved too little.* without input 0, float64\[\], of the body"):
        bp.Backward(residuals=Nothing()).grad(f)(jnp.array(1.0))


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


@pytest.mark.slow(once=["policy"])
@pytest.mark.parametrize("residuals", ["min_cut", "needed"])
@pytest.mark.parametrize(
    ("policy", "saves", "again"),
    [
        (None, 0, 18),
        (stock.dots_saveable, 2, 0),
        (stock.save_only_these_names("net"), 2, 0),
        (stock.save_only_these_names("h", "unused"), 1, 18),
    ],
    ids=["none", "contractions", "a name of use", "names of which one is of no use"],
)
def test_a_policy_reaches_into_the_loops_of_a_region(policy, saves, again, residuals):
    f = bp.Backward(residuals=residuals).grad(jax.checkpoint(looped, policy=policy))
    report = bp.residuals(jax.checkpoint(looped, policy=policy), backward=bp.Backward(residuals=residuals))(X)
    saved = [v for v in report.values if v.why == "saved in a loop by the region's policy"]
    assert [v.fate for v in saved] == ["kept"] * saves
    assert contractions(f, X) == 18 + 18 + again  # forward, backward (the weights are constants), and again
    np.testing.assert_allclose(jax.jit(f)(X), jax.jit(jax.grad(looped))(X), rtol=1e-12)


def test_a_name_is_kept_though_it_could_be_had_again():
    """A cheap value that the user named and wants kept is kept, even where a narrower one would do."""
    f = lambda x: [jnp.exp(checkpoint_name(jnp.broadcast_to(jnp.sum(x, 1)[:, None], (4, 100)), "wide"))]
    named = jx.trace(f, [jax.typeof(jnp.ones((4, 3)))])
    (kept,) = permitted(lambda eqn: eqn.primitive.name == "name")(named, named.outvars, set(named.invars))
    assert kept.aval.shape == (4, 100)


# --- values that wait in another memory -------------------------------------------------------------------------------

OFFLOADS = {
    "names": stock.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["s"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "products": stock.offload_dot_with_no_batch_dims("device", "pinned_host"),
}
named = lambda y: jnp.sin(checkpoint_name(jnp.sin(y @ jnp.eye(3)), "s"))
step = lambda y, _: (named(y), None)
REGIONS = {
    "straight": lambda policy: jax.checkpoint(lambda y: named(named(y)), policy=policy),
    "a call inside": lambda policy: jax.checkpoint(jax.jit(named), policy=policy),
    "a loop inside": lambda policy: jax.checkpoint(lambda y: lax.scan(step, y, length=3)[0], policy=policy),
    "in a loop": lambda policy: lambda y: lax.scan(jax.checkpoint(step, policy=policy), y, length=3)[0],
    "mapped": lambda policy: jax.vmap(jax.checkpoint(named, policy=policy)),
}


def transfers(f, y):
    """How many equations send values to the host, and how many bring them back."""
    program = str(jax.make_jaxpr(f)(y))
    return [program.count(f"devices=(MemorySpace.{space},)") for space in ("Host", "Device")]


@pytest.mark.parametrize("policy", OFFLOADS)
@pytest.mark.parametrize("region", REGIONS)
def test_what_is_offloaded_is_transferred_as_in_jax(region, policy):
    """It leaves the device once and comes back once, inside loops too; the gradient is that of no policy."""
    y = jnp.linspace(0.1, 0.9, 6).reshape(2, 3)
    f, plain = (lambda y, p=p: jnp.sum(REGIONS[region](p)(y)) for p in (OFFLOADS[policy], None))
    assert transfers(bp.grad(f), y) == transfers(jax.grad(f), y) != [0, 0]
    np.testing.assert_allclose(jax.jit(bp.grad(f))(y), bp.grad(plain)(y))


def test_a_branch_sends_zeros_where_another_offloads_and_derivatives_go_twice():
    region = jax.checkpoint(named, policy=OFFLOADS["names"])
    f = lambda y: jnp.sum(lax.cond(y[0] > 0, region, lambda y: y, y))
    y = jnp.array([0.1, 0.5, 0.9])
    s = np.sin(y)
    np.testing.assert_allclose(jax.jit(bp.grad(f))(y), np.cos(s) * np.cos(y))
    np.testing.assert_allclose(np.diag(bp.hessian(f)(y)), -np.sin(s) * np.cos(y) ** 2 - np.cos(s) * s)
    assert bp.grad(f)(-y).tolist() == [1, 1, 1]


def test_of_the_inputs_what_is_there_anyway_is_not_stacked():
    f = lambda w, xs: lax.scan(lambda c, x: (jnp.sin(c * w + x), None), 0.0, xs)[0]
    assert bp.residuals(f, backward=bp.Backward(residuals="inputs"))(2.0, jnp.ones(5)).total == 5 * 8  # the states
