"""Weights, mistakes and reconstructions as images."""

import numpy as np
import pytest

from funcbp import plot

from .figures import RNG, drawn


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


@pytest.mark.parametrize(("n", "rows", "columns"), [(0, 1, 1), (1, 1, 1), (4, 2, 2), (7, 3, 3), (10, 2, 5), (32, 4, 8)])
def test_tiles(n, rows, columns):
    tiles = plot.tile(np.ones((n, 2, 3)))
    assert tiles.shape == (3 * rows + 1, 4 * columns + 1)
    assert np.nansum(tiles) == 6 * n
