"""The error as a landscape over the weights: the parabola, the bowl, slices through many dimensions, and the path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from ...jaxpr.types import PyTree
from .canvas import TRAINING, VALIDATION, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHTS = "viridis"


def error_curve(
    error: Callable[[jax.Array], jax.Array],
    low: float,
    high: float,
    path: ArrayLike = (),
    xlabel: str = "weight",
    title: str = "",
    points: int = 400,
    ax: Axes | None = None,
) -> Figure | Any:
    """The error over one number: for a linear unit and one example a parabola.

    Args:
        error: a JAX function from a scalar to a scalar.
        low: where the curve begins.
        high: where it ends.
        path: the numbers that learning went through, shape (steps,).
        xlabel: what the number is.
        title: what to write above.
        points: how many there are on the curve.
        ax: axes to draw on.

    Returns:
        The figure.

    Example:
        >>> from funcbp import plot
        >>> figure = plot.error_curve(lambda y: (0.0 - y) ** 2, -1, 1, path=[0.9, 0.5, 0.2], xlabel="output y")
        >>> len(figure.axes[0].lines)
        2
    """
    ax = new_axes(4.5, 3.5) if ax is None else ax
    x, path = np.linspace(low, high, points), np.asarray(path, float)
    ax.plot(x, _values(error, x), color=TRAINING)
    if len(path):
        ax.plot(path, _values(error, path), "o-", color=VALIDATION, markersize=4, linewidth=1)
    ax.set(xlabel=xlabel, ylabel="error E", title=title)
    return tidy(ax).figure


def error_surface(
    error: Callable[[jax.Array], jax.Array],
    x: tuple[float, float] = (-1.0, 1.0),
    y: tuple[float, float] = (-1.0, 1.0),
    path: ArrayLike = (),
    labels: tuple[str, str] = ("weight w1", "weight w2"),
    title: str = "",
    points: int = 61,
    ax: Axes | None = None,
) -> Figure | Any:
    """The error over two weights: for a linear unit a parabolic bowl.

    Args:
        error: a JAX function from two weights, shape (2,), to a scalar.
        x: the first weight's range.
        y: the second weight's range.
        path: the weights that learning went through, shape (steps, 2).
        labels: what the weights are called.
        title: what to write above.
        points: how many along each side.
        ax: axes to draw on: three-dimensional ones show a surface, as do those that are made if none are given; flat
            ones show contour lines.

    Returns:
        The figure.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import plot
        >>> bowl = lambda w: 0.5 * jnp.sum(w**2)
        >>> figure = plot.error_surface(bowl, path=[[0.9, 0.5], [0.4, 0.2]])
        >>> plot.error_surface(bowl, ax=plot.new_axes()).axes[0].get_ylabel()
        'weight w2'
    """
    sides = np.linspace(*x, points), np.linspace(*y, points)
    corners = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
    heights = _values(error, corners).reshape(points, points)
    path = np.asarray(path, float).reshape(-1, 2)
    return _landscape(*sides, heights, path, _values(error, path), labels, title, ax)


def loss_slice(
    loss: Callable[[PyTree], jax.Array],
    params: PyTree,
    directions: tuple[PyTree, PyTree],
    reach: float = 1.0,
    path: PyTree | None = None,
    title: str = "",
    points: int = 41,
    ax: Axes | None = None,
) -> Figure | Any:
    """The loss of a network on a plane through its parameters: loss(w + a d1 + b d2), with the path learning took.

    A path leaves the plane; drawn is the point of the plane nearest to each of its points, and the steps are to be read
    with that in mind. `principal_directions` gives the plane that a path stays closest to.

    Args:
        loss: a JAX function from parameters to a scalar.
        params: the parameters in the middle, w.
        directions: two pytrees like `params`, d1 and d2.
        reach: how far a and b go from 0, in both directions; if there is a path, at least as far as it goes.
        path: parameters with a leading axis, one step after the other.
        title: what to write above.
        points: how many along each side.
        ax: axes to draw on, as for `error_surface`; if none are given, flat ones are made.

    Returns:
        The figure.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import plot
        >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
        >>> loss = lambda p: jnp.sum(p["kernel"] ** 2) + jnp.sum(p["bias"] ** 2)
        >>> directions = plot.random_directions(params, key=jax.random.key(0))
        >>> plot.loss_slice(loss, params, directions, points=5).axes[0].get_xlabel()
        'along direction 1'
    """
    middle, unravel = ravel_pytree(params)
    plane = np.stack([_flat(d) for d in directions], 1)
    walked, height = np.zeros((0, 2)), np.zeros(0)
    if path is not None:
        steps = _flat_steps(path)
        walked = np.linalg.lstsq(plane, (steps - _flat(params)).T, rcond=None)[0].T
        height = _values(lambda w: loss(unravel(w)), steps, middle.dtype)
        reach = max(reach, 1.1 * float(np.abs(walked).max(initial=0.0)))
    side = np.linspace(-reach, reach, points)
    corners = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    basis = jnp.asarray(plane, middle.dtype)
    heights = _values(lambda ab: loss(unravel(middle + basis @ ab)), corners, middle.dtype).reshape(points, points)
    ax = new_axes(5.5, 4.5) if ax is None else ax
    labels = "along direction 1", "along direction 2"
    return _landscape(side, side, heights, walked, height, labels, title, ax)


def random_directions(params: PyTree, *, key: jax.Array) -> tuple[PyTree, PyTree]:
    """Two random directions, normalised filter by filter: each unit's weights as long as those it has in `params`.

    A unit's weights are all axes of a kernel but the last. Leaves of fewer than two axes, the biases, do not move. Thus
    a slice looks the same if a layer's weights are multiplied by a number and the next one's divided by it.

    Args:
        params: a pytree of floating-point arrays.
        key: a typed key.

    Returns:
        Two pytrees like `params`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import plot
        >>> params = {"kernel": 5.0 * jnp.ones((4, 3)), "bias": jnp.zeros(3)}
        >>> d, _ = plot.random_directions(params, key=jax.random.key(0))
        >>> jnp.linalg.norm(d["kernel"], axis=0).round(3), d["bias"]
        (Array([10., 10., 10.], dtype=float32), Array([0., 0., 0.], dtype=float32))

    References:
        H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein, "Visualizing the loss landscape of neural nets", 2018.
    """
    leaves, tree = jax.tree.flatten(params)

    def direction(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(tree, [_like(w, k) for w, k in zip(leaves, keys, strict=True)])

    first, second = jax.random.split(key)
    return direction(first), direction(second)


def principal_directions(path: PyTree) -> tuple[PyTree, PyTree]:
    """The two orthogonal directions, of length 1, in which a path goes furthest away from its end.

    Args:
        path: parameters with a leading axis, at least three steps.

    Returns:
        Two pytrees like one step of it.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import plot
        >>> path = {"w": jnp.array([[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])}
        >>> first, second = plot.principal_directions(path)
        >>> jnp.abs(first["w"]), jnp.abs(second["w"])
        (Array([1., 0., 0.], dtype=float32), Array([0., 1., 0.], dtype=float32))

    References:
        E. Lorch, "Visualizing deep network training trajectories with PCA", 2016.
    """
    steps = _flat_steps(path)
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], path))[1]
    away = np.linalg.svd(steps - steps[-1:], full_matrices=False)[2]
    dtype = ravel_pytree(path)[0].dtype
    return unravel(jnp.asarray(away[0], dtype)), unravel(jnp.asarray(away[1], dtype))


def _like(w: jax.Array, key: jax.Array) -> jax.Array:
    """A random direction for one leaf."""
    if w.ndim < 2:
        return jnp.zeros_like(w)
    d = jax.random.normal(key, w.shape, w.dtype)
    length = lambda a: jnp.linalg.norm(a.reshape(-1, a.shape[-1]), axis=0).reshape((1,) * (a.ndim - 1) + (-1,))
    return d * (length(w) / length(d))


def _flat(params: PyTree) -> np.ndarray:
    return np.asarray(ravel_pytree(params)[0], float)


def _flat_steps(path: PyTree) -> np.ndarray:
    return np.asarray(jax.vmap(lambda step: ravel_pytree(step)[0])(path), float)


def _values(f: Callable[[jax.Array], jax.Array], points: np.ndarray, dtype: DTypeLike | None = None) -> np.ndarray:
    """f at each of the points, in one compiled loop that holds a few of them at a time."""
    if not len(points):
        return np.zeros(0)
    mapped = jax.jit(lambda xs: jax.lax.map(f, xs, batch_size=64))
    return np.asarray(mapped(jnp.asarray(points, dtype or jnp.zeros(()).dtype)), float)


def _landscape(
    x: np.ndarray,
    y: np.ndarray,
    heights: np.ndarray,
    path: np.ndarray,
    path_heights: np.ndarray,
    labels: tuple[str, str],
    title: str,
    ax: Any,
) -> Figure | Any:
    """Heights on a grid, as a surface or as contour lines, and a path on it."""
    ax = new_axes(5.5, 4.5, projection="3d") if ax is None else ax
    if ax.name == "3d":
        ax.plot_surface(*np.meshgrid(x, y), heights, cmap=HEIGHTS, alpha=0.7, linewidth=0)
        ax.plot(*path.T, path_heights, "o-", color=VALIDATION, markersize=3, linewidth=1.5, zorder=5)
        ax.set_zlabel("error E")
        ax.locator_params(nbins=5)
    else:
        low, high = np.nanmin(heights), np.nanmax(heights)
        # equal steps of the root: a parabola's lines lie equally far apart
        levels = low + (high - low) * np.linspace(0, 1, 25) ** 2
        drawn = ax.contourf(x, y, heights, np.unique(levels), cmap=HEIGHTS)
        ax.figure.colorbar(drawn, ax=ax, label="error E", format="%.2g")
        ax.plot(*path.T, "o-", color=VALIDATION, markersize=3, linewidth=1.5)
        if len(path):
            ax.plot(*path[-1], "*", color="white", markeredgecolor="black", markersize=11)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel=labels[0], ylabel=labels[1], title=title)
    return ax.figure
