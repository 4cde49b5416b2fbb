"""A network, with its weights on its edges."""

import itertools

import numpy as np
import pytest

from funcbp import plot

from .figures import RNG, drawn


def layers(*sizes):
    return {
        f"dense_{i}": {"kernel": RNG.normal(size=(a, b)), "bias": RNG.normal(size=b)}
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }


def test_a_network_has_its_weights_on_its_edges():
    params = layers(2, 3, 1)
    ax = drawn(plot.network(params, title="2-3-1")).axes[0]
    assert len(ax.lines) == 2 * 3 + 3 + 3 + 1
    text = {t.get_text(): t for t in ax.texts}
    assert {"i1", "i2", "h1", "h2", "h3", "o1", "1"} <= text.keys()
    for (j, k), w in np.ndenumerate(params["dense_0"]["kernel"]):
        start, end, label = (text[name].get_position() for name in (f"i{j + 1}", f"h{k + 1}", f"{w:.2f}"))
        cross = (end[0] - start[0]) * (label[1] - start[1]) - (end[1] - start[1]) * (label[0] - start[0])
        assert abs(cross) < 1e-9  # the weight is written on the line between them
    widths = [line.get_linewidth() for line in ax.lines[:6]]
    np.testing.assert_array_equal(np.argsort(widths), np.argsort(np.abs(params["dense_0"]["kernel"]).ravel()))


def test_values_in_the_units_and_layers_without_biases():
    ax = drawn(plot.network([np.array([[0.5], [-2.0]])], values=[[0.05, 0.1], [12.34]])).axes[0]
    assert [t.get_text() for t in ax.texts] == ["0.50", "-2.00", "i1\n0.05", "i2\n0.10", "o1\n12.3"]
    positive, negative = (line.get_color() for line in ax.lines)
    assert positive != negative


def test_many_weights_are_not_written_and_too_many_not_drawn():
    ax = drawn(plot.network(layers(4, 6, 5, 2))).axes[0]
    assert {t.get_text() for t in ax.texts} == {"1", "i1", "i2", "i3", "i4", "o1", "o2"} | {
        f"h{layer}.{j}" for layer, n in ((1, 6), (2, 5)) for j in range(1, n + 1)
    }
    drawn(plot.network([np.zeros((2, 2))]))
    with pytest.raises(ValueError, match=r"A layer of 64 units is too large to be drawn .* plot.weights shows it"):
        plot.network(layers(64, 2))
    with pytest.raises(ValueError, match=r"and one is \(3, 1\)"):
        plot.network([np.ones((2, 2)), np.ones((3, 1))])
    with pytest.raises(ValueError, match=r"layers of \[2, 1\] units, and values for \[2\]"):
        plot.network(layers(2, 1), values=[[1, 2]])
