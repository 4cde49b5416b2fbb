"""Curves of learning show the numbers they were given."""

import numpy as np
import pytest

from funcbp import plot

from .figures import drawn, records


@pytest.mark.slow
def test_learning_curves():
    losses, scores = drawn(plot.learning_curves(records(5))).axes
    assert [line.get_label() for line in losses.lines] == ["training", "validation"]
    np.testing.assert_allclose(losses.lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert losses.get_yscale() == "log"
    assert scores.get_title() == "Validation accuracy: 80.0 % at the end"
    assert drawn(plot.learning_curves(records(1))).axes[0].lines[0].get_marker() == "o"
    assert drawn(plot.learning_curves(records(4, "r2"), "r2")).axes[1].get_ylabel() == "R²"


def test_records_that_are_none_are_told_so():
    with pytest.raises(TypeError, match=r"curves\(\{'training': fit.history\['loss'\]\}\)"):
        plot.learning_curves({"loss": [1.0, 0.5]})
    with pytest.raises(ValueError, match=r"there is no validation_loss, validation_accuracy"):
        plot.learning_curves([{"epoch": 1, "loss": 0.5}])


def test_learning_curves_without_positive_losses():
    rows = [{"epoch": i, "loss": 0.0, "validation_loss": 0.0, "validation_accuracy": 1.0} for i in range(3)]
    assert drawn(plot.learning_curves(rows)).axes[0].get_yscale() == "linear"


def test_curves_show_the_median_and_the_middle_of_the_runs():
    runs = np.arange(1.0, 12)[:, None] * np.array([[4.0, 2.0, 1.0]])
    ax = drawn(plot.curves({"many": runs, "one": runs[0]}, ylabel="error", title="Eleven")).axes[0]
    many, one = ax.lines
    np.testing.assert_allclose(many.get_ydata(), [24, 12, 6])
    np.testing.assert_allclose(one.get_ydata(), [4, 2, 1])
    band = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [2, 40])  # 10 % and 90 % of 1 .. 11, at 1 and 4
    assert (ax.get_yscale(), ax.get_ylabel(), ax.get_title()) == ("log", "error", "Eleven")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["many: 11 runs", "one"]


def test_curves_of_runs_that_stopped_and_of_losses_that_are_not_positive():
    ax = drawn(plot.curves({"stopped": [[3, 2, np.nan, np.nan], [3, 1, 0, np.nan]]})).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [3, 1.5, 1])  # the first stays at 2, and both end together
    assert ax.get_yscale() == "linear"


def test_curves_stand_where_their_numbers_were_counted():
    counted = lambda **how: plot.curves({"a": [3.0, 2.0, np.nan], "b": [3.0, 1.0, 1.0]}, **how).axes[0].lines
    assert [line.get_xdata().tolist() for line in counted()] == [[0, 1], [0, 1, 2]]
    assert [line.get_xdata().tolist() for line in counted(at=[50, 100, 120])] == [[50, 100], [50, 100, 120]]
