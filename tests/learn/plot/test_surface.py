"""Error curves and surfaces, slices and directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcbp import plot

from .figures import RNG, drawn


def test_the_parabola_and_the_way_down():
    ax = drawn(plot.error_curve(lambda y: (1.0 - y) ** 2, -1, 3, path=[0.0, 0.5], xlabel="y", points=5)).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[-1, 4], [0, 1], [1, 0], [2, 1], [3, 4]])
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0, 1], [0.5, 0.25]])


def bowl(w):
    return jnp.array([1.0, 10.0]) @ w**2


@pytest.mark.slow
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
