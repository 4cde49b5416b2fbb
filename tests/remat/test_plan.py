"""What is kept between the passes: the same gradients under every policy, and no more bytes than the policy says."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.remat.cut import minimum_cut
from funcbp.remat.policies import POLICIES

policies = pytest.mark.parametrize("residuals", POLICIES)
x23 = jnp.linspace(-1.0, 2.0, 6).reshape(2, 3)


def recurrent(w, xs):
    def step(h, x):
        h = jnp.tanh(x @ w["in"] + h @ w["hidden"] + w["bias"])
        return h, h * 2

    return lax.scan(step, jnp.zeros(4), xs)


def layers(w, x):
    """A block scanned over stacked weights: normalisation, a gated product, a residual connection."""

    def block(x, w):
        h = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        h = jax.nn.gelu(h @ w["up"]) * jax.nn.sigmoid(h @ w["gate"])
        return x + h @ w["down"], None

    return lax.scan(block, x, w)[0]


rng = np.random.default_rng(0)
RNN = {k: jnp.asarray(rng.normal(size=s) * 0.5) for k, s in {"in": (3, 4), "hidden": (4, 4), "bias": (4,)}.items()}
SIZES = {"up": (3, 4, 8), "gate": (3, 4, 8), "down": (3, 8, 4)}
BLOCKS = {k: jnp.asarray(rng.normal(size=s) * 0.5) for k, s in SIZES.items()}
XS = jnp.asarray(rng.normal(size=(5, 3)))


def integers(w, xs):
    def step(c, x):
        h, i, key = c
        key, sub = jax.random.split(key)
        h = jnp.sin(h * w) + jnp.where(jax.random.bernoulli(sub, 0.5, h.shape), x, 0) * i
        return (h, i + 1, key), jnp.exp(-h * h)

    (h, _, _), ys = lax.scan(step, (jnp.ones(3), 0, jax.random.key(0)), xs, reverse=True)
    return h.sum() + (ys**2).sum()


def tied(w):
    """One weight used twice in a step, once transposed."""
    return lax.scan(lambda h, x: (jnp.tanh((h @ w["in"].T) @ w["in"] + x @ w["in"]), None), jnp.ones(4), XS)[0]


PROGRAMS = {
    "reversed": (lambda x: lax.scan(lambda c, u: (jnp.sin(c) * u, c), x[0], x, reverse=True)[1].sum(), x23),
    "rnn": (lambda w: (recurrent(w, XS)[0] ** 2).sum() + recurrent(w, XS)[1].sum(), RNN),
    "layers": (lambda w: (layers(w, jnp.tile(jnp.arange(4.0), (2, 1))) ** 2).sum(), BLOCKS),
    "integers and draws": (lambda w: integers(w, XS), jnp.linspace(0.1, 1.0, 3)),
    "nested": (
        lambda x: lax.scan(lambda c, u: (lax.scan(lambda d, v: (jnp.sin(d * v), d), c, x)[0] * u, c), x[0], x)[0].sum(),
        x23,
    ),
    "cond inside": (
        lambda x: lax.scan(lambda c, u: (lax.cond(u[0] > 0, jnp.sin, lambda a: a * u, c), None), x[0], x)[0].sum(),
        x23,
    ),
    "inside remat": (jax.checkpoint(lambda x: lax.scan(lambda c, u: (jnp.sin(c) * u, c), x[0], x)[0].sum()), x23),
    "remat inside": (lambda x: lax.scan(jax.checkpoint(lambda c, u: (jnp.sin(c) * u, c)), x[0], x)[0].sum(), x23),
    "relu": (lambda x: lax.scan(lambda c, u: (jax.nn.relu(c * u - 0.1), c), x[0], x)[0].sum(), x23),
    "tied weights": (lambda w: (tied(w) ** 2).sum(), RNN),
}  # fmt: skip


def twice(grad, f):
    return grad(lambda a: sum(jnp.sum(c**2) for c in jax.tree.leaves(grad(f)(a))))


@functools.cache
def jaxs_gradients(program):
    f, args = PROGRAMS[program]
    return jax.jit(lambda a: (jax.grad(f)(a), twice(jax.grad, f)(a)))(args)


@pytest.mark.slow(once=["residuals"])
@policies
@pytest.mark.parametrize("program", PROGRAMS)
def test_gradients_do_not_depend_on_what_is_kept(program, residuals):
    f, args = PROGRAMS[program]
    backward = bp.Backward(residuals=residuals)
    want, want_twice = jaxs_gradients(program)
    for got in (backward.grad(f)(args), jax.jit(backward.grad(f))(args)):
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-13), got, want)
    got = jax.jit(twice(backward.grad, f))(args)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-11), got, want_twice)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_smallest_budget_is_met_and_changes_no_gradient(program):
    """Asked for too little, it names the smallest budget; with that, the gradients are the same."""
    f, args = PROGRAMS[program]
    least = 1
    while True:
        gradient = bp.Backward(residuals=bp.Budget(bytes=least)).grad(f)
        try:
            jax.eval_shape(gradient, args)
            break
        except ValueError as error:
            (needed,) = re.findall(r"The smallest budget is Budget\(bytes=(\d+)\)", str(error))
            assert int(needed) > least
            least = int(needed)
    want = jax.jit(jax.grad(f))(args)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-13), jax.jit(gradient)(args), want)


def bytes_between(f, args, residuals):
    """Bytes that the first loop of a gradient hands to the last one."""
    eqns = [
        e for e in jax.make_jaxpr(bp.Backward(residuals=residuals).grad(f))(args).eqns if e.primitive.name == "scan"
    ]
    read = {id(v) for v in eqns[-1].invars}
    return sum(v.aval.size * v.aval.dtype.itemsize for v in eqns[0].outvars if id(v) in read)


def count(f, args, name):
    return str(jax.make_jaxpr(f)(args)).count(f"= {name}[")


def test_the_cut_keeps_fewer_bytes_and_repeats_no_contraction():
    f = lambda w: (layers(w, jnp.tile(jnp.arange(4.0), (2, 1))) ** 2).sum()
    cut, needed = bytes_between(f, BLOCKS, "min_cut_cheap"), bytes_between(f, BLOCKS, "needed")
    assert cut <= 0.6 * needed
    contractions = {r: count(bp.Backward(residuals=r).grad(f), BLOCKS, "dot_general") for r in POLICIES}
    assert contractions["min_cut_cheap"] == contractions["needed"] < contractions["inputs"]
    # x, the two products going into gelu and sigmoid: all that cannot be had again cheaply
    assert cut == 3 * (2 * 4 + 2 * 8 + 2 * 8) * 8


def test_the_cut_is_the_narrowest():
    """A value that is narrow in the middle of a chain is kept in the place of the wide ones around it."""

    def f(x):
        narrow = jnp.sum(x, axis=1)
        return jnp.sin(jnp.broadcast_to(narrow[:, None], (4, 100)))

    program = jx.trace(lambda x: [f(x)], [jax.typeof(jnp.ones((4, 100)))])
    wide = program.eqns[-1].invars[0]
    (kept,) = minimum_cut(program, [wide], set())
    assert kept.aval.shape in ((4,), (4, 1))


def test_a_mask_is_kept_for_relu():
    f = lambda x: lax.scan(lambda c, _: (jax.nn.relu(c + 0.5) - 0.1, None), x, None, 6)[0].sum()
    assert bytes_between(f, jnp.ones(6), "min_cut") == 6 * 6  # one byte each
    assert bytes_between(f, jnp.ones((2, 16)), "min_cut") == 6 * 2 * 16 // 8  # whole bytes: one bit each
    x = jnp.asarray(rng.normal(size=(2, 16)))
    np.testing.assert_array_equal(bp.grad(f)(x), jax.grad(f)(x))
    assert bp.residuals(f)(x).total == 6 * 2 * 16 // 8


def test_a_loop_is_unrolled_in_both_passes():
    f = lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 8, unroll=4)[0].sum()
    loops = [e for e in jax.make_jaxpr(bp.grad(f))(jnp.ones(3)).eqns if e.primitive.name == "scan"]
    assert [(e.params["unroll"], e.params["reverse"]) for e in loops] == [(4, False), (4, True)]


def test_unknown_policy():
    with pytest.raises(
        ValueError,
        match=r"residuals is one of 'min_cut', 'min_cut_cheap', 'needed', 'inputs', a Budget, .*, and was 'most'",
    ):
        bp.Backward(residuals="most")


@pytest.mark.parametrize("policy", ["nothing_saveable", "dots_saveable", "save_only_these_names"])
def test_a_policy_of_jax_is_none_of_ours(policy):
    theirs = getattr(jax.checkpoint_policies, policy)
    with pytest.raises(ValueError, match=r"variables to keep, and was .*\. Policies of JAX's go into"):
        bp.Backward(residuals=theirs("a") if policy == "save_only_these_names" else theirs)
    with pytest.raises(ValueError, match=r"Policies of JAX's go into"):
        bp.Backward(
            residuals=lambda primitive, *_, **params: primitive is lax.dot_general_p
        )  # a person's, of that kind
    kept = lambda forward, needed, available: needed
    f = lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 2)[0]
    np.testing.assert_allclose(bp.Backward(residuals=kept).grad(f)(1.0), np.cos(1.0) * np.cos(np.sin(1.0)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["scan", "cond", "jit", "remat"])
def test_called_again_nothing_is_compiled_again(kind):
    """Called plainly with the same functions, the programs of both passes are those of the first time."""
    step = lambda c, u: (jnp.sin(c * u) * c.sum(), c)
    cube, sine = (lambda a: a**3), (lambda a: jnp.sin(a) * a)
    compiled, region = jax.jit(sine), jax.checkpoint(sine)
    f = {
        "scan": lambda x: lax.scan(step, x[0], x)[0].sum(),
        "cond": lambda x: lax.cond(x.sum() > 0, cube, sine, x).sum(),
        "jit": lambda x: compiled(x).sum(),
        "remat": lambda x: region(x).sum(),
    }[kind]
    other = x23 + 1
    for _ in range(2):
        bp.grad(f)(x23)
    compilations = []
    listen = lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        bp.grad(f)(other)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compilations == []
