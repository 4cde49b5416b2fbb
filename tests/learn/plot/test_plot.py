"""The pictures: what they say, and that they can be drawn from anything a run may produce."""

import importlib
import io

import numpy as np
import pytest

from funcbp import plot

RNG = np.random.default_rng(0)


def drawn(figure):
    """The figure, after it could be written as a PNG that is more than one colour."""
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png")
    image = importlib.import_module("matplotlib.image").imread(io.BytesIO(pixels.getvalue()))
    assert image.std() > 0
    return figure


def records(n, score="accuracy"):
    return [
        {"epoch": i, "loss": 1 / (i + 1), "validation_loss": 2 / (i + 1), f"validation_{score}": i / n}
        for i in range(n)
    ]


def test_learning_curves():
    losses, scores = drawn(plot.learning_curves(records(5))).axes
    assert [line.get_label() for line in losses.lines] == ["training", "validation"]
    np.testing.assert_allclose(losses.lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert losses.get_yscale() == "log"
    assert scores.get_title() == "Validation accuracy: 80.0 % at the end"
    assert drawn(plot.learning_curves(records(1))).axes[0].lines[0].get_marker() == "o"
    assert drawn(plot.learning_curves(records(4, "r2"), "r2")).axes[1].get_ylabel() == "R²"


def test_learning_curves_without_positive_losses():
    rows = [{"epoch": i, "loss": 0.0, "validation_loss": 0.0, "validation_accuracy": 1.0} for i in range(3)]
    assert drawn(plot.learning_curves(rows)).axes[0].get_yscale() == "linear"


def test_axes_that_are_given_are_drawn_on():
    axes = plot.new_axes(columns=2)
    assert plot.learning_curves(records(3), axes=axes) is axes[0].figure
    ax = plot.new_axes()
    assert plot.weights(np.eye(3), ax=ax) is plot.predictions([1, 2], [1, 2], ax) is ax.figure


def test_weights_of_a_table_an_image_and_a_convolution():
    table = drawn(plot.weights(RNG.normal(size=(4, 7)))).axes[0]
    np.testing.assert_array_equal(table.images[0].get_array().shape, (4, 7))
    kernel = RNG.normal(size=(6, 2))
    image = drawn(plot.weights(kernel, (2, 3, 1))).axes[0].images[0]
    np.testing.assert_allclose(image.get_array()[1:3, 1:4], kernel[:, 0].reshape(2, 3))
    low, high = image.get_clim()
    assert -low == high == np.abs(kernel).max()
    convolution = RNG.normal(size=(3, 3, 2, 4))
    tiles = drawn(plot.weights(convolution, (8, 8, 2))).axes[0].images[0].get_array()
    np.testing.assert_allclose(tiles[1:4, 1:4], convolution[:, :, :, 0].mean(2))
    drawn(plot.weights(np.zeros((4, 3))))


def test_mistakes():
    images, classes = RNG.normal(size=(30, 12)), ("a", "b", "c")
    true = np.arange(30) % 3
    predicted = np.where(np.arange(30) < 5, (true + 1) % 3, true)
    ax = drawn(plot.mistakes(images, true, predicted, classes, (3, 4, 1))).axes[0]
    assert ax.get_title() == "5 of 30 misclassified: true → predicted"
    assert [t.get_text() for t in ax.texts] == ["a → b", "b → c", "c → a", "a → b", "b → c"]
    np.testing.assert_allclose(ax.images[1].get_array(), images[1].reshape(3, 4))
    few = plot.mistakes(images, true, predicted, classes, (3, 4, 1), most=2).axes[0]
    assert few.get_title().endswith("(the first 2)") and len(few.images) == 2
    none = plot.mistakes(images, true, true, classes, (3, 4, 1)).axes[0]
    assert none.get_title() == "None of 30 misclassified"
    drawn(none.figure)


def test_reconstructions_show_the_worst_first():
    images = RNG.normal(size=(5, 4))
    given_back = images + np.array([0.1, 0.0, 3.0, 0.0, 0.0])[:, None]
    picture = drawn(plot.reconstructions(images, given_back, (2, 2, 1), most=2)).axes[0].images[0].get_array()
    np.testing.assert_allclose(picture[1:3, 1:3], images[2].reshape(2, 2))
    np.testing.assert_allclose(picture[1:3, 4:6], images[0].reshape(2, 2))
    drawn(plot.reconstructions(images[:0], images[:0], (2, 2, 1)))


def test_predictions_and_confusion():
    ax = drawn(plot.predictions(RNG.normal(size=(9, 2)), RNG.normal(size=(9, 2)))).axes[0]
    assert ax.get_title() == "18 predictions"
    ax = drawn(plot.confusion([[3, 1], [0, 2]], ("no", "yes"))).axes[0]
    assert ax.get_title() == "1 of 6 misclassified"
    assert [t.get_text() for t in ax.texts] == ["3", "1", "0", "2"]
    drawn(plot.confusion(np.eye(40, dtype=int), [str(i) for i in range(40)]))


@pytest.mark.parametrize(("n", "rows", "columns"), [(0, 1, 1), (1, 1, 1), (4, 2, 2), (7, 3, 3), (10, 2, 5), (32, 4, 8)])
def test_tiles(n, rows, columns):
    tiles = plot.tile(np.ones((n, 2, 3)))
    assert tiles.shape == (3 * rows + 1, 4 * columns + 1)
    assert np.nansum(tiles) == 6 * n


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r'not installed: pip install "funcbp\[plots\]"'):
        plot.weights(np.eye(2))
