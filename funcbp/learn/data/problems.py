"""The classical problems, made on the spot: each a function that returns inputs and targets, float32.

Inputs have shape (examples, inputs) and targets (examples, outputs). Where a value is one of two, the pair says which:
`inputs=(0, 1)` or `(-0.5, 0.5)` or `(-1, 1)`, the low value first, and likewise `targets`.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from .dataset import DataError

Problem: TypeAlias = tuple[np.ndarray, np.ndarray]
Pair: TypeAlias = tuple[float, float]

T = ("###", ".#.", ".#.")
C = ("###", "#.#")


def encoder(n: int, *, inputs: Pair = (0, 1), targets: Pair = (0, 1)) -> Problem:
    """The encoder n-m-n: give back which one of `n` units is on, through fewer than n hidden ones.

    Args:
        n: how many units, and examples.
        inputs: the values of a unit that is off and of one that is on.
        targets: the same of the targets.

    Returns:
        Inputs and targets, both of shape (n, n).

    Example:
        >>> from funcbp import data
        >>> x, t = data.encoder(3, targets=(-1, 1))
        >>> x.tolist()[0], t.tolist()[0]
        ([1.0, 0.0, 0.0], [1.0, -1.0, -1.0])

    References:
        D. Ackley, G. Hinton, T. Sejnowski, "A learning algorithm for Boltzmann machines", 1985; S. Fahlman, "An
        empirical study of learning speed in back-propagation networks", 1988.
    """
    on = np.eye(_at_least(1, "An encoder", "units", n), dtype=bool)
    return _as_values(on, inputs), _as_values(on, targets)


def parity(n: int, *, inputs: Pair = (0, 1), targets: Pair = (0, 1)) -> Problem:
    """Whether the number of units that are on is odd, for all 2ⁿ patterns.

    Args:
        n: how many inputs.
        inputs: the values of a unit that is off and of one that is on.
        targets: the targets of even and of odd.

    Returns:
        Inputs of shape (2ⁿ, n), counting up in binary, and targets of shape (2ⁿ, 1).

    Example:
        >>> from funcbp import data
        >>> data.parity(3)[1].ravel().tolist()
        [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]

    References:
        D. Rumelhart, G. Hinton, R. Williams, "Learning internal representations by error propagation", 1986.
    """
    on = _patterns(_at_least(1, "Parity", "inputs", n))
    return _as_values(on, inputs), _as_values(on.sum(1, keepdims=True) % 2 == 1, targets)


def xor(*, inputs: Pair = (0, 1), targets: Pair = (0, 1)) -> Problem:
    """The exclusive or: parity of two inputs, the smallest problem that needs a hidden unit.

    Args:
        inputs: the values of false and of true.
        targets: the same of the targets.

    Returns:
        Inputs of shape (4, 2) and targets of shape (4, 1).

    Example:
        >>> from funcbp import data
        >>> x, t = data.xor()
        >>> x.tolist(), t.ravel().tolist()
        ([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0.0, 1.0, 1.0, 0.0])
    """
    return parity(2, inputs=inputs, targets=targets)


def symmetry(n: int = 6, *, inputs: Pair = (0, 1), targets: Pair = (0, 1)) -> Problem:
    """Whether a pattern is its own mirror image, for all 2ⁿ patterns.

    Args:
        n: how many inputs.
        inputs: the values of a unit that is off and of one that is on.
        targets: the targets of a pattern that is not symmetric and of one that is.

    Returns:
        Inputs of shape (2ⁿ, n), counting up in binary, and targets of shape (2ⁿ, 1).

    Example:
        >>> from funcbp import data
        >>> x, t = data.symmetry(6)
        >>> len(t), int(t.sum())
        (64, 8)

    References:
        D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
    """
    on = _patterns(_at_least(1, "Symmetry", "inputs", n))
    return _as_values(on, inputs), _as_values(np.all(on == on[:, ::-1], axis=1, keepdims=True), targets)


def t_c(*, inputs: Pair = (0, 1), targets: Pair = (0, 1)) -> Problem:
    """T or C: a letter of five pixels, in each of four rotations and at each place of a 4 x 4 grid where it fits.

    The bounding box of a T is 3 x 3, so it has 4 places in each rotation; that of a C is 2 x 3, so it has 6.

    Args:
        inputs: the values of a pixel that is off and of one that is on.
        targets: the targets of C and of T.

    Returns:
        Inputs of shape (40, 16), row by row, and targets of shape (40, 1): 16 times T, then 24 times C.

    Example:
        >>> from funcbp import data
        >>> x, t = data.t_c()
        >>> x[0].reshape(4, 4).astype(int)
        array([[1, 1, 1, 0],
               [0, 1, 0, 0],
               [0, 1, 0, 0],
               [0, 0, 0, 0]])

    References:
        D. Rumelhart, G. Hinton, R. Williams, "Learning internal representations by error propagation", 1986; on a 4 x 4
        grid in H. Braun, T. Ragg, "ENZO: evolution of neural networks", 1996.
    """
    ts, cs = (_placements(np.array([[pixel == "#" for pixel in row] for row in letter])) for letter in (T, C))
    is_t = np.arange(len(ts) + len(cs))[:, None] < len(ts)
    return _as_values(np.concatenate([ts, cs]), inputs), _as_values(is_t, targets)


def two_spirals(n: int = 97, *, targets: Pair = (0, 1)) -> Problem:
    """Two spirals of three turns around each other: which of them does a point lie on?

    For i = 0 .. n-1, with angle a = i π / 16 and radius r = 6.5 (104 - i) / 104, the point (r sin a, r cos a) is on the
    one and (-r sin a, -r cos a) on the other.

    Args:
        n: how many points on each spiral; 97 make the three turns, and there are no more than 104.
        targets: the targets of the second spiral and of the first.

    Returns:
        Inputs of shape (2n, 2), the spirals' points in turn, and targets of shape (2n, 1).

    Raises:
        DataError: n is not from 1 to 104.

    Example:
        >>> from funcbp import data
        >>> x, t = data.two_spirals()
        >>> x[:2].tolist(), t[:2].tolist()
        ([[0.0, 6.5], [0.0, -6.5]], [[1.0], [0.0]])

    References:
        The generator of A. Wieland, in the CMU neural network benchmark collection; K. Lang, M. Witbrock, "Learning to
        tell two spirals apart", 1988.
    """
    if not 1 <= n <= 104:
        raise DataError(f"A spiral has 1 to 104 points, after which its radius is 0, and {n} were asked for.")
    i = np.arange(n)
    angle, radius = i * math.pi / 16, 6.5 * (104 - i) / 104
    first = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    points = np.stack([first, 0.0 - first], axis=1).reshape(2 * n, 2)  # not -first: that would make zeros negative
    return points.astype(np.float32), _as_values(np.arange(2 * n)[:, None] % 2 == 0, targets)


def sine(n: int = 41, *, periods: float = 1.0, amplitude: float = 1.0, offset: float = 0.0) -> Problem:
    """A curve to fit: t = offset + amplitude · sin(periods · π x), on the interval from -1 to 1.

    `sine(40, periods=3, amplitude=1/4, offset=1/2)` is the first problem of Hagan and Menhaj.

    Args:
        n: how many points, equally far apart, both ends included.
        periods: how many periods on the interval.
        amplitude: of the curve.
        offset: of the curve.

    Returns:
        Inputs and targets, both of shape (n, 1).

    Example:
        >>> from funcbp import data
        >>> x, t = data.sine(5)
        >>> x.ravel().tolist(), t.ravel().round(3).tolist()
        ([-1.0, -0.5, 0.0, 0.5, 1.0], [-0.0, -1.0, 0.0, 1.0, 0.0])

    References:
        M. Hagan, M. Menhaj, "Training feedforward networks with the Marquardt algorithm", 1994.
    """
    x = np.linspace(-1, 1, _at_least(2, "A curve", "points", n))[:, None]
    return x.astype(np.float32), (offset + amplitude * np.sin(periods * math.pi * x)).astype(np.float32)


def sinc(n: int = 41, dimensions: int = 1, *, reach: float = 10.0) -> Problem:
    """A curve or a surface to fit: t = Π sin(x_i) / x_i, each x_i from -reach to reach.

    Args:
        n: how many points in each dimension, equally far apart, both ends included.
        dimensions: 1 for a curve, 2 for a surface, or more.
        reach: how far from 0 the inputs go.

    Returns:
        Inputs of shape (n ** dimensions, dimensions), the last one counting fastest, and targets of shape
        (n ** dimensions, 1).

    Example:
        >>> from funcbp import data
        >>> x, t = data.sinc(11, dimensions=2)
        >>> x.shape, t.shape, float(t.max())
        ((121, 2), (121, 1), 1.0)

    References:
        In two dimensions, with n = 11 and reach = 10, J. Jang, "ANFIS: adaptive-network-based fuzzy inference system",
        1993.
    """
    _at_least(2, "A curve", "points", n)
    axis = np.linspace(-reach, reach, n)
    grid = np.meshgrid(*[axis] * _at_least(1, "A curve or surface", "dimensions", dimensions), indexing="ij")
    x = np.stack([g.ravel() for g in grid], axis=1)
    # numpy's sinc is sin(πx) / (πx)
    return x.astype(np.float32), np.prod(np.sinc(x / math.pi), axis=1, keepdims=True).astype(np.float32)


def _at_least(least: int, what: str, of: str, n: int) -> int:
    if n < least:
        raise DataError(f"{what} needs at least {least} {of}, and {n} were asked for.")
    return n


def _as_values(on: np.ndarray, pair: Pair) -> np.ndarray:
    low, high = pair
    return np.where(on, high, low).astype(np.float32)


def _patterns(n: int) -> np.ndarray:
    """All 2ⁿ rows of n booleans, counting up, the first column the most significant."""
    return (np.arange(2**n)[:, None] >> np.arange(n)[::-1]) & 1 == 1


def _placements(letter: np.ndarray, side: int = 4) -> np.ndarray:
    """The letter in four rotations, at each place of a square grid where it fits."""
    grids = []
    for quarter_turns in range(4):
        turned = np.rot90(letter, quarter_turns)
        height, width = turned.shape
        for top in range(side - height + 1):
            for left in range(side - width + 1):
                grid = np.zeros((side, side), bool)
                grid[top : top + height, left : left + width] = turned
                grids.append(grid.ravel())
    return np.array(grids)
