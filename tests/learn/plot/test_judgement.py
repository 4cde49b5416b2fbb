"""Predictions, confusions and decision boundaries show the numbers they were given."""

import numpy as np
import pytest

from funcbp import data, plot

from .figures import RNG, drawn


@pytest.mark.slow
def test_predictions_and_confusion():
    ax = drawn(plot.predictions(RNG.normal(size=(9, 2)), RNG.normal(size=(9, 2)))).axes[0]
    assert ax.get_title() == "18 predictions"
    ax = drawn(plot.confusion([[3, 1], [0, 2]], ("no", "yes"))).axes[0]
    assert ax.get_title() == "1 of 6 misclassified"
    said = [(*t.get_position(), t.get_text()) for t in ax.texts]  # predicted across, true down
    assert said == [(0, 0, "3"), (1, 0, "1"), (0, 1, "0"), (1, 1, "2")]
    drawn(plot.confusion(np.eye(40, dtype=int), [str(i) for i in range(40)]))


def test_decision_boundaries():
    x, t = data.two_spirals(20)
    stages = {"right": np.array([1.0, 0.0]), "up": np.array([0.0, 1.0])}
    figure = drawn(plot.decision_boundaries(lambda w, x: 1 / (1 + np.exp(-x @ w)), stages, x, t, points=21))
    right, up = figure.axes
    assert (right.get_title(), up.get_title()) == ("right", "up")
    assert np.all(np.diff(right.images[0].get_array(), axis=1) > 0)
    assert np.all(np.diff(up.images[0].get_array(), axis=0) > 0) and up.images[0].origin == "lower"
    np.testing.assert_allclose(right.collections[0].get_paths()[0].vertices[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(right.collections[1].get_offsets(), x[t[:, 0] == 1])
    one = plot.new_axes()
    assert plot.decision_boundaries(lambda w, x: 0.0 * x[:, 0], {"flat": 0}, x, t, axes=one) is drawn(one.figure)
