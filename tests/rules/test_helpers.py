"""What rules are made with."""

import jax.numpy as jnp
import numpy as np
import pytest

from funcbp.cotangents import Factored, materialize
from funcbp.rules import unbroadcast
from funcbp.rules.inlined import inline_bwd


@pytest.mark.parametrize(
    "shape, want",
    [((2, 3), [[0, 1, 2], [3, 4, 5]]), ((1, 3), [[3, 5, 7]]), ((2, 1), [[3], [12]]), ((1, 1), [[15]]), ((), 15)],
    ids=str,
)
def test_unbroadcast_sums_over_what_was_broadcast(shape, want):
    np.testing.assert_array_equal(unbroadcast(jnp.arange(6.0).reshape(2, 3), jnp.zeros(shape)), want)


@pytest.mark.parametrize(
    "name, factored",
    [("one side follows from the cotangent", True), ("both sides do", False), ("neither side does", False)],
)
def test_a_contraction_is_left_only_where_it_is_linear_in_the_cotangent(name, factored):
    x, ct = jnp.arange(6.0).reshape(3, 2), jnp.cos(jnp.arange(6.0)).reshape(3, 2)
    left, right = {"one": (x, ct), "both": (ct, ct), "neither": (x, x)}[name.split()[0]]

    def bwd(res, cts, perturbed):
        given = {id(x): res[0], id(ct): cts[0]}
        return [given[id(left)].T @ given[id(right)]]

    (out,) = inline_bwd(bwd, [jnp.zeros((2, 2))], [x], [ct], (True,))
    assert (type(out) is Factored) == factored
    np.testing.assert_allclose(materialize(out), left.T @ right, rtol=1e-12)
