"""A budget bounds what a whole gradient has in use: the first plan that is predicted to fit, or what would fit."""

from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.remat.budget import Budget
from funcbp.remat.cut import cheapest_cut, turning_points
from funcbp.remat.machine import MACHINES

rng = np.random.default_rng(0)
W = jnp.asarray(rng.normal(size=(16, 16)) * 0.3)
LAYERS = [
    {"up": jnp.asarray(rng.normal(size=(16, 64)) * 0.2), "down": jnp.asarray(rng.normal(size=(64, 16)) * 0.2)}
] * 8
X = jnp.asarray(rng.normal(size=(256, 16)))  # larger than the weights, whose gradients have buffers of their own


def recurrent(w, x):
    return jnp.sum(lax.scan(lambda h, _: (jnp.tanh(h @ w) + 0.1 * h, None), x, None, 100)[0] ** 2)


def unrolled(layers, x):
    for p in layers:
        x = x + jax.nn.gelu(x @ p["up"]) @ p["down"]
    return jnp.sum(x**2)


PROGRAMS = {"recurrent": (recurrent, W), "unrolled": (unrolled, LAYERS)}
BUDGETS = [("recurrent", 1.0), ("recurrent", 0.3), ("unrolled", 1.0), ("unrolled", 0.8), ("unrolled", 0.45)]


def limited(fraction):
    return bp.Backward(residuals=Budget(fraction=fraction))


@pytest.mark.parametrize(("program", "fraction"), BUDGETS)
def test_the_predicted_peak_is_the_compiled_programs_and_fits(program, fraction):
    f, params = PROGRAMS[program]
    backward = limited(fraction)
    compiled = jax.jit(backward.grad(f)).lower(params, X).compile()
    predicted = bp.residuals(f, backward=backward)(params, X).peak
    assert predicted <= fraction * bp.residuals(f)(params, X).peak
    if jax.default_backend() == "cpu":  # whose buffers the model follows
        assert predicted == pytest.approx(compiled.memory_analysis().temp_size_in_bytes, rel=0.1)
    want = jax.jit(jax.grad(f))(params, X)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12), compiled(params, X), want)


def test_a_budget_above_what_the_default_takes_is_the_default():
    text = lambda backward: str(jax.make_jaxpr(backward.grad(recurrent))(W, X))
    assert text(bp.Backward(residuals=Budget(bytes=10**9))) == text(bp.Backward())


def test_a_budget_that_cannot_be_met_says_what_can():
    f = lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 6)[0].sum()
    with pytest.raises(ValueError, match=r"at .*test_budget.py:\d+.* needs \d+ at the least, as predicted") as stop:
        bp.Backward(residuals=Budget(bytes=100)).grad(f)(jnp.ones(8))
    (needed,) = re.findall(r"are missing. The smallest budget is Budget\(bytes=(\d+)\)", str(stop.value))
    assert bp.Backward(residuals=Budget(bytes=int(needed))).grad(f)(jnp.ones(8)).shape == (8,)
    with pytest.raises(ValueError, match=r": 1 are missing"):
        bp.Backward(residuals=Budget(bytes=int(needed) - 1)).grad(f)(jnp.ones(8))


@pytest.mark.parametrize(
    "around",
    [
        lambda g: jax.vmap(g, (None, 0)),
        lambda g: lambda w, xs: lax.map(lambda x: g(w, x), xs),
        lambda g: jax.jit(lambda w, xs: jnp.stack([g(w, x) for x in xs])),
    ],
    ids=["vmap", "in a loop", "jit"],
)
def test_a_budget_is_that_of_each_gradient(around):
    xs = jnp.stack([X, 2 * X])
    got = around(limited(0.3).grad(recurrent))(W, xs)
    np.testing.assert_allclose(got, around(jax.grad(recurrent))(W, xs), rtol=1e-10)


def test_a_budget_plans_all_regions_where_it_is_asked_to():
    backward = limited(1.0).replace(outside_loops=True)
    assert bp.residuals(unrolled, backward=backward)(LAYERS, X).peak < 0.5 * bp.residuals(unrolled)(LAYERS, X).peak


def test_aux_and_a_value_of_the_outer_trace_come_through():
    def f(w, x):
        loss = lambda w: (recurrent(w, x), {"twice": 2 * w, "name": "aux"})
        return limited(0.3).value_and_grad(loss, has_aux=True)(w)

    (value, aux), grad = f(W, X)
    assert aux["name"] == "aux" and value == pytest.approx(recurrent(W, X))
    np.testing.assert_allclose(grad, jax.grad(recurrent)(W, X), rtol=1e-10)


def test_the_weights_of_a_ladder_are_where_the_cut_changes(program):
    question = program, program.outvars, {program.invars[1]}
    machine = MACHINES["cpu"]
    points = turning_points(*question, 1, machine)
    cut = lambda weight: set(cheapest_cut(*question, 1, machine, weight))
    assert points and points == sorted(points) and all(p >= 1 for p in points)
    edges = [1.0, *points, points[-1] * 100]
    for low, high in itertools.pairwise(edges):
        assert cut(low) == cut(low * (high / low) ** 0.5) == cut(low * (high / low) ** 0.95)
    assert len({frozenset(cut(e)) for e in edges[:-1]}) == len(points) + 1


@pytest.mark.parametrize("given", [{}, {"bytes": 1, "fraction": 0.5}, {"bytes": 0}, {"fraction": -0.1}])
def test_a_budget_is_given_one_way(given):
    with pytest.raises(ValueError, match="one of the two and positive"):
        Budget(**given)


def test_a_budget_is_a_part_of_what_the_default_takes():
    with pytest.raises(ValueError, match="at most 1, and was 3"):
        Budget(fraction=3)
    assert repr(Budget(fraction=0.3)) == "Budget(fraction=0.3)" and repr(Budget(bytes=8)) == "Budget(bytes=8)"


def test_a_constant_of_a_loop_is_cast_once_in_each_pass():
    def loss(w, x):
        half = lambda c: jnp.tanh(c.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(c.dtype)
        return lax.scan(lambda c, _: (half(c), None), x, None, 5)[0].sum()

    loops = [e for e in jax.make_jaxpr(bp.grad(loss))(W, X).eqns if e.primitive.name == "scan"]
    narrowed = [
        eqn
        for loop in loops
        for eqn in jx.inner(loop)
        if eqn.primitive.name == "convert_element_type" and eqn.params["new_dtype"] == jnp.bfloat16
    ]
    assert len(loops) == 2 and not [eqn for eqn in narrowed if eqn.outvars[0].aval.shape == W.shape]
    got, want = bp.grad(loss)(W, X), jax.grad(loss)(W, X)
    np.testing.assert_allclose(got, want, rtol=0.05, atol=0.05 * float(jnp.abs(want).max()))
