"""Derivatives by differences: what a function does, whatever its rules say.

A slope is had from four central differences, each step half of the one before, extrapolated to step 0 (Richardson). The
table of extrapolations also says how far it can be trusted: an estimate's error is how much it moved when a power of
the step was removed, plus what rounding of the values does to the smallest step. The same values give the slopes on
either side, which differ at a kink.

Steps are powers of two, near 1e-2 to 1e-3 of the scale of what is moved, so that moving it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["LEVELS", "STEP", "Evaluator", "Slopes", "compiled", "power_of_two", "slopes"]

LEVELS = 4
STEP = 2.0**-7
CHUNK = 2**20  # numbers evaluated at a time
BATCHES = (2, 8, 64)  # directions evaluated at a time: few sizes, so that the function is compiled for few


def compiled(f: Callable[..., Any], **options: Any) -> Any:
    """Compile what runs a few times only: most of the time of a check goes into compiling, so little is optimized."""
    lean = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(f, compiler_options=lean, **options)


class Slopes(NamedTuple):
    """Slopes along some directions, with their errors.

    Attributes:
        central: from both sides, error of even order in the step.
        error: of `central`, estimated.
        right, left: from one side each, the kink's two slopes where there is one.
        right_error, left_error: of these, estimated.
        noise: what rounding the values does to `central` at the smallest step.
    """

    central: np.ndarray
    error: np.ndarray
    right: np.ndarray
    left: np.ndarray
    right_error: np.ndarray
    left_error: np.ndarray
    noise: np.ndarray

    def at(self, index: Any) -> Slopes:
        return Slopes(*(a[index] for a in self))


def power_of_two(x: float | np.ndarray) -> np.ndarray:
    """The power of two nearest to |x| on a logarithmic scale, and 1 for 0, infinities and nan."""
    x = np.abs(np.asarray(x, np.float64))
    usable = np.isfinite(x) & (x > 0)
    return np.where(usable, 2.0 ** np.round(np.log2(np.where(usable, x, 1.0))), 1.0)


def slopes(
    minus: np.ndarray, middle: np.ndarray, plus: np.ndarray, steps: np.ndarray, resolution: np.ndarray
) -> Slopes:
    """The slope of a function at 0 from its values around 0, extrapolated to step 0, with an error estimate.

    From D[l], the difference quotient with step h / 2^l, whose error has the powers p, 2p, ... of the step (p = 2 for
    central differences, 1 for one-sided ones), Neville's T[l,k] = T[l,k-1] + (T[l,k-1] - T[l-1,k-1]) / (2^(pk) - 1)
    removes a power each. The entry that moved least is taken, and how far it moved is its error.

    Args:
        minus, plus: values at -h and h for each step, `(levels, ...)`.
        middle: the values at 0, `(...)`.
        steps: `(levels, ...)`, each half of the one before.
        resolution: the absolute error of one value, `(...)`.

    Returns:
        The slopes, each `(...)`.

    Example:
        >>> import numpy as np
        >>> h = 0.01 / 2.0 ** np.arange(4)
        >>> s = slopes(np.sin(-h), np.float64(0), np.sin(h), h, np.float64(1e-16))
        >>> bool(abs(s.central - 1) < 1e-13), bool(s.error < 1e-11)
        (True, True)

    References:
        C. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982.
    """
    minus, middle, plus, steps = (np.asarray(a, np.float64) for a in (minus, middle, plus, steps))
    with np.errstate(all="ignore"):
        noise = resolution / steps
        central, error = _extrapolate((plus - minus) / (2 * steps), 2, noise)
        right, right_error = _extrapolate((plus - middle) / steps, 1, 2 * noise)
        left, left_error = _extrapolate((middle - minus) / steps, 1, 2 * noise)
    return Slopes(central, error, right, left, right_error, left_error, noise[-1])


def _extrapolate(quotients: np.ndarray, power: int, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    best, least = quotients[-1].copy(), np.full(quotients.shape[1:], np.inf)
    row = [quotients[0]]
    for level in range(1, len(quotients)):
        new = [quotients[level]]
        for k, before in enumerate(row, start=1):
            new.append(new[-1] + (new[-1] - before) / (2.0 ** (power * k) - 1))
            moved = np.maximum(np.abs(new[k] - new[k - 1]), np.abs(new[k] - before)) + noise[level]
            better = moved < least
            best, least = np.where(better, new[k], best), np.where(better, moved, least)
        row = new
    return best, least


class Evaluator:
    """A function of a real vector, evaluated around a point: compiled and many values at a time where it allows that.

    Args:
        f: from a vector `(n,)` to a vector `(m,)`, in JAX.
        point: the point, `(n,)`.
        resolution: the relative error of one value: that of the precision `f` computes in.
        step: the largest step, relative to the scale of what is moved.
        middle: the value at the point, if it is known.
    """

    def __init__(
        self, f: Callable[[Any], Any], point: np.ndarray, resolution: float, step: float = STEP, middle: Any = None
    ):
        self.f, self.point, self.resolution, self.step = f, np.asarray(point), resolution, step
        self.middle = np.asarray(f(jnp.asarray(self.point)) if middle is None else middle, np.float64)
        self.looping = False
        self._batch = compiled(lambda z, d, t: jax.vmap(lambda d, t: f(z + t * d))(d, t))

    def slopes(
        self, directions: np.ndarray, scales: np.ndarray, project: Callable[[np.ndarray, bool], np.ndarray]
    ) -> Slopes:
        """The slopes along some directions, of linear combinations of the outputs.

        Args:
            directions: `(r, n)`.
            scales: the scale of the step along each, `(r,)`.
            project: from values `(..., m)` to linear combinations of them `(..., k)`, or, if its second argument is
                true, from absolute values to bounds of the combinations' absolute values.

        Returns:
            Slopes of shape `(r, k)`.
        """
        steps = self.step * scales[:, None] * 2.0 ** -np.arange(LEVELS)
        offsets = np.concatenate([-steps, steps], 1)
        widest = max(self.point.size, self.middle.size, 1)
        fitting = next((size for size in BATCHES if len(directions) <= size), BATCHES[-1])
        rows = max(1, min(fitting, CHUNK // (widest * 2 * LEVELS)))
        middle = project(self.middle, False)
        parts = []
        for start in range(0, len(directions), rows):
            part = slice(start, start + rows)
            values = self._values(directions[part], offsets[part], rows)
            with np.errstate(all="ignore"):
                size = project(np.maximum(np.abs(values).max(1), np.abs(self.middle)), True)
            values = np.moveaxis(project(values, False), 1, 0)
            parts.append(
                slopes(
                    values[:LEVELS],
                    np.broadcast_to(middle, values.shape[1:]),
                    values[LEVELS:],
                    np.moveaxis(steps[part], 1, 0)[..., None],
                    self.resolution * size,
                )
            )
        return Slopes(*(np.concatenate(field) for field in zip(*parts, strict=True)))

    def _values(self, directions: np.ndarray, offsets: np.ndarray, rows: int) -> np.ndarray:
        """The values at `point + t direction`: `(r, offsets of each, m)`."""
        if not self.looping:
            count, each = offsets.shape
            d = np.zeros((rows, directions.shape[1]))
            t = np.zeros((rows, each))
            d[:count], t[:count] = directions, offsets
            dtype = self.point.dtype
            try:
                flat = self._batch(
                    jnp.asarray(self.point),
                    jnp.asarray(np.repeat(d, each, 0), dtype),
                    jnp.asarray(t.ravel(), dtype),
                )
                return np.asarray(flat, np.float64).reshape(rows, each, -1)[:count]
            except Exception:  # it cannot be traced, or not be mapped: one value at a time
                self.looping = True
        at = lambda d, t: np.asarray(self.f(jnp.asarray((self.point + t * d).astype(self.point.dtype))), np.float64)
        return np.stack([np.stack([at(d, t) for t in ts]) for d, ts in zip(directions, offsets, strict=True)])
