"""Images: a layer's weights, and the examples a network got wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from .canvas import INK, SIGNED, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def weights(
    kernel: ArrayLike, image_shape: Sequence[int] | None = None, title: str | None = None, ax: Axes | None = None
) -> Figure | Any:
    """The weights of a layer: red is positive, blue negative, white zero.

    Args:
        kernel: shape (in, out), or a convolution's (height, width, in, out).
        image_shape: (height, width, channels) of the inputs: then each unit is drawn as an image of its weights,
            averaged over the channels. Otherwise the kernel is drawn as a table, inputs down and units across.
        title: what to write above.
        ax: axes to draw on.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from funcbp import plot
        >>> plot.weights(np.ones((64, 10)), (8, 8, 1)).axes[0].get_title()
        'Weights of 10 units'
    """
    kernel = np.asarray(kernel, float)
    images = None
    if kernel.ndim == 4:
        images = np.moveaxis(kernel.mean(2), -1, 0)
    elif image_shape is not None:
        images = np.moveaxis(kernel.reshape(*image_shape, -1).mean(2), -1, 0)
    picture = kernel if images is None else tile(images)
    largest = np.nanmax(np.abs(picture)) if picture.size else 1.0
    height = 6.0 * picture.shape[0] / max(picture.shape[1], 1)
    ax = new_axes(7, min(max(height, 2.5), 8)) if ax is None else ax
    ax.set_facecolor("0.8")
    drawn = ax.imshow(
        picture, cmap=SIGNED, vmin=-largest, vmax=largest, aspect="equal" if images is not None else "auto"
    )
    ax.figure.colorbar(drawn, ax=ax, shrink=0.8, label="weight")
    if images is None:
        ax.set(xlabel="unit", ylabel="input")
        for axis in (ax.xaxis, ax.yaxis):
            locator: Any = axis.get_major_locator()
            locator.set_params(integer=True)
    else:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    ax.set_title(title or f"Weights of {kernel.shape[-1]} units")
    return ax.figure


def mistakes(
    images: ArrayLike,
    true: ArrayLike,
    predicted: ArrayLike,
    classes: Sequence[str],
    image_shape: Sequence[int],
    most: int = 40,
    ax: Axes | None = None,
) -> Figure | Any:
    """The misclassified images, each over its true class and the predicted one.

    Args:
        images: all images, shape (examples, height · width · channels).
        true: the numbers of their classes, shape (examples,).
        predicted: the numbers of the predicted classes, shape (examples,).
        classes: the names of the classes.
        image_shape: (height, width, channels).
        most: how many to show at most.
        ax: axes to draw on.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from funcbp import plot
        >>> figure = plot.mistakes(np.zeros((2, 4)), [0, 1], [0, 0], ("a", "b"), (2, 2, 1))
        >>> figure.axes[0].get_title()
        '1 of 2 misclassified: true → predicted'
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    wrong = np.flatnonzero(true != predicted)
    shown = wrong[:most]
    pictures = np.asarray(images, float)[shown].reshape(len(shown), *image_shape).mean(-1)
    labels = [f"{classes[true[i]]} → {classes[predicted[i]]}" for i in shown]
    title = f"{len(wrong)} of {len(true)} misclassified: true → predicted"
    if len(shown) < len(wrong):
        title += f" (the first {len(shown)})"
    if not len(wrong):
        title = f"None of {len(true)} misclassified"
    return _captioned(pictures, labels, title, ax)


def reconstructions(
    images: ArrayLike, given_back: ArrayLike, image_shape: Sequence[int], most: int = 10, ax: Axes | None = None
) -> Figure | Any:
    """An autoencoder's worst reconstructions: above what it was shown, below what it made of it.

    Args:
        images: what it was shown, shape (examples, height · width · channels).
        given_back: its outputs, of the same shape.
        image_shape: (height, width, channels).
        most: how many to show.
        ax: axes to draw on.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from funcbp import plot
        >>> plot.reconstructions(np.zeros((3, 4)), np.ones((3, 4)), (2, 2, 1)).axes[0].get_title()
        'The 3 worst reconstructions: input above, output below'
    """
    images, given_back = np.asarray(images, float), np.asarray(given_back, float)
    worst = np.argsort(-np.sum(np.square(images - given_back), -1))[:most]
    low, high = (images[worst].min(), images[worst].max()) if len(worst) else (0, 1)
    pairs = np.concatenate([images[worst], np.clip(given_back[worst], low, high)])
    pictures = pairs.reshape(-1, *image_shape).mean(-1)
    ax = new_axes(max(len(worst), 4) * 0.9, 2.6) if ax is None else ax
    ax.imshow(tile(pictures, max(len(worst), 1)), cmap=INK)
    ax.set_axis_off()
    ax.set_title(f"The {len(worst)} worst reconstructions: input above, output below")
    return ax.figure


def tile(images: np.ndarray | jax.Array, columns: int | None = None) -> np.ndarray:
    """Many small images in one, row by row, with a gap of nan around each.

    Args:
        images: shape (n, height, width).
        columns: how many beside each other; if not given, about a square, without a last row that is not full where
            that is possible.

    Returns:
        One array.

    Example:
        >>> import numpy as np
        >>> from funcbp import plot
        >>> plot.tile(np.zeros((5, 2, 2)), columns=3).shape
        (7, 10)
    """
    n, height, width = images.shape
    side = max(math.ceil(math.sqrt(n)), 1)
    columns = columns or next((c for c in range(side, 2 * side) if n % c == 0), side)
    rows = max(math.ceil(n / columns), 1)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas


def _captioned(pictures: np.ndarray, labels: Sequence[str], title: str, ax: Axes | None) -> Figure | Any:
    """Small grey images in rows, each with a line of text below."""
    n, height, width = pictures.shape
    columns = min(max(n, 1), 8)
    rows = max(math.ceil(n / columns), 1)
    across, down = 1.25, 1.32  # from one picture to the next, in pictures
    ax = new_axes(max(1.2 * columns, 4.5), 1.28 * rows + 0.35) if ax is None else ax
    low, high = (pictures.min(), pictures.max()) if n else (0, 1)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = (i % columns) * across, (i // columns) * down
        right, bottom = left + min(1, width / height), top + min(1, height / width)
        ax.imshow(picture, cmap=INK, vmin=low, vmax=high, extent=(left, right, bottom, top))
        ax.text((left + right) / 2, top + 1.05, label, ha="center", va="top", fontsize=9)
    ax.set(xlim=(-0.1, columns * across), ylim=(rows * down, -0.05), aspect="equal")
    ax.set_axis_off()
    ax.set_title(title)
    return ax.figure
