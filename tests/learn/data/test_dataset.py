"""Splitting and scaling."""

import numpy as np
import pytest

from funcbp import data


def toy(n=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(5, 3, (n, 4)), rng.integers(0, 3, n)


def test_parts_are_disjoint_and_complete():
    x, y = toy()
    d = data.split("toy", x, y, classes=("a", "b", "c"))
    parts = np.concatenate([d.x_train, d.x_validation, d.x_test])
    assert [len(p) for p in (d.x_train, d.x_validation, d.x_test)] == [35, 5, 10]
    np.testing.assert_allclose(np.sort(d.inputs.undo(parts), 0), np.sort(x, 0), rtol=1e-5)
    assert (d.n_inputs, d.n_outputs) == (4, 3)
    assert d.x_train.dtype == np.float32 and d.y_train.dtype == np.int32


def test_scaling_knows_the_training_part_alone():
    x, y = toy()
    d = data.split("toy", x, y, classes=("a", "b", "c"))
    np.testing.assert_allclose(d.x_train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(d.x_train.std(0), 1, rtol=1e-5)
    changed = x.copy()
    order = np.random.default_rng(0).permutation(len(x))
    changed[order[:15]] += 100  # validation and test
    again = data.split("toy", changed, y, classes=("a", "b", "c"))
    np.testing.assert_array_equal(again.x_train, d.x_train)
    np.testing.assert_allclose(again.inputs.undo(again.x_test), d.inputs.undo(d.x_test) + 100, rtol=1e-5)


def test_the_seed_decides():
    x, y = toy()
    first, same, other = (data.split("toy", x, y, classes=("a", "b", "c"), seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.x_train, same.x_train)
    assert not np.array_equal(first.y_train, other.y_train)


def test_regression_targets_are_scaled_and_can_be_had_back():
    x, _ = toy()
    y = 100 + 7 * x[:, :2]
    d = data.split("toy", x, y)
    assert (d.classes, d.n_outputs, d.y_train.dtype) == (None, 2, np.float32)
    np.testing.assert_allclose(d.y_train.std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(d.targets.undo(d.y_test), 100 + 7 * d.inputs.undo(d.x_test)[:, :2], rtol=1e-4)


def test_pixels_are_scaled_together_and_constant_columns_only_shifted():
    scaling = data.standardize(np.array([[0.0, 4.0], [0.0, 4.0]]), together=True)
    assert (scaling.shift, scaling.scale) == (2, 2)
    constant = data.standardize(np.array([[7.0, 1.0], [7.0, 3.0]]))
    np.testing.assert_array_equal(constant(np.array([[7.0, 2.0]])), [[0, 0]])


def test_too_little_to_learn_from():
    x, y = toy()
    with pytest.raises(data.DataError, match="toy has 9 examples, and at least 10 are needed"):
        data.split("toy", x[:9], y[:9], classes=("a", "b", "c"))
    with pytest.raises(data.DataError, match="same target in every example"):
        data.split("toy", x, np.zeros(50, int), classes=("a",))
    with pytest.raises(data.DataError, match="same target in every example"):
        data.split("toy", x, np.ones((50, 1)))
