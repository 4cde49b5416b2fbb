"""The pictures of learning: curves, landscapes, boundaries and networks show the numbers they were given."""

import importlib
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcbp import data, plot

RNG = np.random.default_rng(0)


def drawn(figure):
    """The figure, after it could be written as a PNG that is more than one colour."""
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png")
    assert importlib.import_module("matplotlib.image").imread(io.BytesIO(pixels.getvalue())).std() > 0
    return figure


# --- curves -----------------------------------------------------------------------------------------------------------


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


# --- landscapes -------------------------------------------------------------------------------------------------------


def test_the_parabola_and_the_way_down():
    ax = drawn(plot.error_curve(lambda y: (1.0 - y) ** 2, -1, 3, path=[0.0, 0.5], xlabel="y", points=5)).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[-1, 4], [0, 1], [1, 0], [2, 1], [3, 4]])
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0, 1], [0.5, 0.25]])


def bowl(w):
    return jnp.array([1.0, 10.0]) @ w**2


def test_the_bowl_as_a_surface_and_as_lines():
    path = [[-2.0, 1.0], [1.0, 0.5]]
    solid = drawn(plot.error_surface(bowl, (-2, 2), (-1, 1), path, points=9)).axes[0]
    assert solid.name == "3d"
    np.testing.assert_allclose(np.transpose(solid.lines[0].get_data_3d()), [[-2, 1, 14], [1, 0.5, 3.5]])
    flat = drawn(plot.error_surface(bowl, (-2, 2), (-1, 1), path, points=9, ax=plot.new_axes())).axes[0]
    np.testing.assert_allclose((flat.collections[0].zmin, flat.collections[0].zmax), (0, 14))
    np.testing.assert_allclose(flat.lines[0].get_xydata(), path)
    drawn(plot.error_surface(bowl, points=5, ax=plot.new_axes()))


def test_a_slice_goes_through_the_parameters_along_the_directions():
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])}
    first, second = {"a": jnp.array([2.0, 0]), "b": jnp.zeros((1, 1))}, {"a": jnp.zeros(2), "b": jnp.full((1, 1), 0.5)}
    loss = lambda p: p["a"][0] + 100 * p["b"][0, 0]
    off = {"a": jnp.array([[1.0, 2], [5, -7]]), "b": jnp.array([[[3.0]], [[2.0]]])}  # a[1] is not in the plane
    ax = drawn(plot.loss_slice(loss, params, (first, second), reach=1.5, path=off, points=5)).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0], [2, -2]], atol=1e-12)
    reach = 2 * 1.1  # the path goes further than 1.5
    np.testing.assert_allclose(ax.get_xlim(), (-reach, reach))
    np.testing.assert_allclose(ax.collections[0].zmin, 301 - reach * 52)
    np.testing.assert_allclose(ax.collections[0].zmax, 301 + reach * 52)


def test_random_directions_are_normalised_filter_by_filter():
    params = {
        "conv": {"kernel": RNG.normal(size=(3, 3, 2, 4)), "bias": RNG.normal(size=4)},
        "dense": {"kernel": RNG.normal(size=(5, 6)).astype(np.float32)},
    }
    first, second = plot.random_directions(jax.tree.map(jnp.asarray, params), key=jax.random.key(0))
    for direction in (first, second):
        jax.tree.map(lambda d, w: np.testing.assert_equal((d.shape, d.dtype), (w.shape, w.dtype)), direction, params)
        for j in range(4):
            a, b = (np.linalg.norm(p["conv"]["kernel"][..., j]) for p in (direction, params))
            np.testing.assert_allclose(a, b)
        np.testing.assert_allclose(
            *(np.linalg.norm(p["dense"]["kernel"], axis=0) for p in (direction, params)), rtol=1e-6
        )
        assert not np.any(direction["conv"]["bias"])
    assert not np.allclose(first["conv"]["kernel"], second["conv"]["kernel"])


def test_principal_directions_span_the_plane_that_a_path_lies_in():
    long, short = np.array([3.0, 0, 4.0, 0]) / 5, np.array([0, 1.0, 0, 0])
    steps = np.outer([5, 3, 1, 0], long) + np.outer([0.5, -0.5, 0.2, 0], short) + 7
    first, second = (np.asarray(d["w"]).ravel() for d in plot.principal_directions({"w": steps.reshape(4, 2, 2)}))
    np.testing.assert_allclose([first @ first, first @ second, second @ second], [1, 0, 1], atol=1e-12)
    assert abs(first @ long) > 0.99 and abs(second @ short) > 0.99
    np.testing.assert_allclose(first[3], 0, atol=1e-12)


# --- boundaries -------------------------------------------------------------------------------------------------------


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


# --- networks ---------------------------------------------------------------------------------------------------------


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
