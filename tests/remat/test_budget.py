"""A budget is the cheapest plan that fits, and says what fits where it does not."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.remat.budget import Budget
from funcbp.remat.graph import bytes_of
from funcbp.rules.cost import work

from .programs import W, X, made_again


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
                best = min(best, sum(map(work, again)))
    kept = Budget(fraction=fraction).for_body()(program, needed, there)
    assert bytes_of(kept) <= limit
    assert sum(map(work, made_again(program, kept, needed, there))) == best


def test_a_budget_that_cannot_be_met_says_what_can():
    f = lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 6)[0].sum()
    with pytest.raises(ValueError, match=r"cannot do with less than 384 bytes \(6 × 64 bytes\): 284 bytes are missing"):
        bp.Backward(residuals=Budget(bytes=100)).grad(f)(jnp.ones(8))
    with pytest.raises(ValueError, match=r"6 bytes are missing"):  # a byte a step
        bp.Backward(residuals=Budget(bytes=378)).grad(f)(jnp.ones(8))
    with pytest.raises(ValueError, match=r"at .*test_budget.py:\d+.*The smallest budget is Budget\(bytes=384\)"):
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


def stacked(f, backward):
    return sum(v.total for v in bp.residuals(f, backward=backward)(W, X).values if v.inside and v.fate == "kept")


@pytest.mark.slow
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
