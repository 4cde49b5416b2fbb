"""What a data set is: three parts, scaled by what the training part knows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

LARGEST = 1e150  # its square is a finite number


class DataError(ValueError):
    """The data cannot be used as they are; the message says what is wrong, where, and what to do."""


class Scaling(NamedTuple):
    """A shift and a scale, (x - shift) / scale, and its inverse.

    Attributes:
        shift: what is subtracted, a scalar or one number per column.
        scale: what is divided by, of the same shape.

    Example:
        >>> from funcbp import data
        >>> scaling = data.Scaling(shift=1.0, scale=2.0)
        >>> scaling(5.0), scaling.undo(2.0)
        (2.0, 5.0)
    """

    shift: ArrayLike
    scale: ArrayLike

    def __call__(self, x: np.ndarray | Any) -> np.ndarray | Any:
        return (x - self.shift) / self.scale

    def undo(self, x: np.ndarray | Any) -> np.ndarray | Any:
        """The values before scaling."""
        return x * self.scale + self.shift


def standardize(x_train: np.ndarray | jax.Array, together: bool = False) -> Scaling:
    """The scaling that gives the training part mean 0 and standard deviation 1; a constant column is only shifted.

    Args:
        x_train: the training part alone, shape (examples, columns); nan is passed over.
        together: one shift and scale for all columns, as the pixels of images need; else one for each column.

    Returns:
        A scaling.

    Example:
        >>> import numpy as np
        >>> from funcbp import data
        >>> data.standardize(np.array([[0.0, 5.0], [2.0, 5.0]])).scale
        array([1., 1.])
    """
    axis = None if together else 0
    known = np.ma.masked_invalid(x_train)
    deviation = np.ma.filled(known.std(axis), 0.0)
    return Scaling(np.ma.filled(known.mean(axis), 0.0), np.where(deviation > 0, deviation, 1.0))


class Input(NamedTuple):
    """A column of a table that is an input.

    Attributes:
        name: what the table calls it.
        values: the words it holds, each of which is an input of 0 or 1; None if it holds numbers.
    """

    name: str
    values: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples in three parts: to learn from, to watch the learning by, and to judge the result by.

    Attributes:
        name: what to call it.
        x_train, x_validation, x_test: scaled inputs, float32, shape (examples, inputs).
        y_train, y_validation, y_test: the numbers of the classes, int32, shape (examples,); or, for regression, scaled
            targets, float32, shape (examples, targets).
        classes: the names of the classes, or None for regression.
        image_shape: (height, width, channels) if an input is an image, else None.
        inputs: how the inputs were scaled.
        targets: how the targets were scaled; None for classification.
        columns: which columns of a table the inputs were; None if they are not from a table.
        fills: whether the mean is put where an input is missing.
        about: what was found in a file, and what was decided about it, a line each.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...] | None
    image_shape: tuple[int, int, int] | None
    inputs: Scaling
    targets: Scaling | None
    columns: tuple[Input, ...] | None = None
    fills: bool = False
    about: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """What it is of, without the arrays."""
        sizes = ", ".join(f"{len(getattr(self, f'x_{part}'))} {part}" for part in ("train", "validation", "test"))
        targets = f"{self.n_outputs} targets" if self.classes is None else f"{len(self.classes)} classes"
        return f"Dataset({self.name!r}: {self.n_inputs} inputs, {targets}; examples: {sizes})"

    @property
    def n_inputs(self) -> int:
        """How many inputs a network for these data has."""
        return self.x_train.shape[1]

    @property
    def n_outputs(self) -> int:
        """How many output units a network for these data has: one per class, or one per target."""
        return self.y_train.shape[1] if self.classes is None else len(self.classes)


def counted(n: int, noun: str) -> str:
    """So many of something: `1 word`, `1,200 words`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def scaled(x: np.ndarray, scaling: Scaling, fills: bool) -> np.ndarray:
    """Inputs scaled; if missing ones are to be filled, the mean, which is 0, is put for nan."""
    return (np.nan_to_num(scaling(x), nan=0.0) if fills else scaling(x)).astype(np.float32)


def split(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    *,
    classes: tuple[str, ...] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    columns: tuple[Input, ...] | None = None,
    fills: bool = False,
    about: tuple[str, ...] = (),
    seed: int = 0,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
) -> Dataset:
    """Shuffle, divide and scale: a data set from a table of inputs and a table of targets.

    Args:
        name: what to call it.
        x: inputs, shape (examples, inputs).
        y: numbers of classes, shape (examples,), if `classes` is given; otherwise targets, shape (examples, targets).
        classes: the names of the classes.
        image_shape: (height, width, channels) if an input is an image: then all pixels are scaled alike.
        columns: which columns of a table the inputs are.
        fills: whether inputs may be nan; there the mean of the training part is put.
        about: what is to be said of the data.
        seed: of the shuffling.
        test: the test part (x, y), if it is given; otherwise it is taken from `x` and `y`.
        validation_fraction: how much of the data is for validation.
        test_fraction: how much of the data is for the test.

    Returns:
        A data set, scaled by the mean and standard deviation of its training part.

    Raises:
        DataError: there are too few examples for three parts, or nothing to learn.

    Example:
        >>> import numpy as np
        >>> from funcbp import data
        >>> x, y = np.arange(20.0).reshape(10, 2), np.array([0, 1] * 5)
        >>> d = data.split("toy", x, y, classes=("even", "odd"))
        >>> d.x_train.shape, d.x_validation.shape, d.x_test.shape
        ((7, 2), (1, 2), (2, 2))
    """
    if len(x) < 10:
        raise DataError(
            f"{name} has {counted(len(x), 'example')}, and at least 10 are needed for training, validation and test."
        )
    if np.all(y == y[:1]):
        raise DataError(f"{name} has the same target in every example, so there is nothing to learn.")
    for a in (x, y, *(test or ())):
        if a.dtype == np.float64 and np.any(large := np.abs(a) > LARGEST):
            raise DataError(f"{name} has {a[large][0]:g} among its numbers, too large to be scaled: use another unit.")
    order = np.random.default_rng(seed).permutation(len(x))
    n_test = 0 if test else math.ceil(test_fraction * len(x))
    n_validation = math.ceil(validation_fraction * len(x))
    tested, validated, trained = np.split(order, [n_test, n_test + n_validation])
    x_test, y_test = test or (x[tested], y[tested])
    inputs = standardize(x[trained], together=image_shape is not None)
    targets = None if classes else standardize(y[trained])
    scale_x = lambda x: scaled(x, inputs, fills)
    scale_y = targets or (lambda labels: labels)
    dtype = np.int32 if classes else np.float32
    return Dataset(
        name=name,
        x_train=scale_x(x[trained]),
        y_train=scale_y(y[trained]).astype(dtype),
        x_validation=scale_x(x[validated]),
        y_validation=scale_y(y[validated]).astype(dtype),
        x_test=scale_x(x_test),
        y_test=scale_y(y_test).astype(dtype),
        classes=classes,
        image_shape=image_shape,
        inputs=inputs,
        targets=targets,
        columns=columns,
        fills=fills,
        about=about,
    )
