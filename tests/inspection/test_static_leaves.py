"""What looks at a model takes it as `jax.grad` takes it: Python's numbers among its leaves stay what they are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cell:
    kernel: jax.Array
    size: int  # leaves, as in an Equinox module
    residual: bool


def loss(cell, x, rate, *, power=2, train=False):
    h = x * cell.kernel + jnp.zeros(cell.size)
    h = h + 1 if cell.residual else h
    return jnp.sum((h * rate if rate > 0 and train else h) ** power)


def looked_at(tool):
    return tool(loss)(Cell(jnp.array([1.0, 2.0]), 2, True), jnp.array(3.0), 0.5, power=2, train=True)


@pytest.mark.parametrize("tool", [bp.cotangents, bp.find_nan, bp.precision, bp.residuals, bp.summary, bp.trace])
def test_sizes_and_switches_among_the_leaves(tool):
    assert looked_at(tool) is not None


def test_only_arrays_are_parameters():
    assert looked_at(bp.summary).parameters == 2
    value, grads, _ = looked_at(bp.cotangents)
    assert value == 0.25 * (4.0**2 + 7.0**2) and (grads.size, grads.residual) == (None, None)
    np.testing.assert_allclose(grads.kernel, [2 * 4.0 * 0.25 * 3.0, 2 * 7.0 * 0.25 * 3.0])  # 2 h (rate)² x
