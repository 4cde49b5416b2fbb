"""What pictures are drawn on."""

import numpy as np
import pytest

from funcbp import plot

from .figures import drawn, records


def test_axes_that_are_given_are_drawn_on():
    axes = plot.new_axes(columns=2)
    assert plot.learning_curves(records(3), axes=axes) is axes[0].figure
    ax = plot.new_axes()
    assert plot.weights(np.eye(3), ax=ax) is plot.predictions([1, 2], [1, 2], ax) is ax.figure


@pytest.mark.parametrize("lines", [4, 5])
def test_a_long_legend_lies_beside_the_curves(lines):
    ax = plot.curves({f"run {i}": np.exp(-np.arange(9.0) / (i + 1)) for i in range(lines)}).axes[0]
    drawn(ax.figure)
    beside = ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1
    assert beside == (lines > 4)
