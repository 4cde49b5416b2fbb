"""Surrogate derivatives: steps that pass a cotangent on although their derivative is zero almost everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..autodiff.transformations import Backward
from ..cotangents import Cotangent, unbroadcast
from ..jaxpr.types import Primitive, PyTree
from ..rules import NOTHING, TABLE, Rule, rule, traits_of
from ..rules.kinds import SurrogateRule

__all__ = [
    "arctan",
    "boxcar",
    "cosine",
    "exponential",
    "fast_sigmoid",
    "gaussian",
    "leaky_boxcar",
    "logistic",
    "multi_gaussian",
    "parabolic",
    "q_pseudo",
    "sech",
    "spikes",
    "straight",
    "straight_through",
    "superspike",
    "triangular",
]


def straight_through(*primitives: Primitive) -> Backward:
    """Pass the cotangent through steps as if they were the identity: x̄ = ȳ.

    Args:
        primitives: which ones; by default `round`, `floor`, `ceil` and `sign`. For a comparison see `spikes`.

    Returns:
        A `Backward` with these rules.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.credit.straight_through().grad(lambda x: jnp.round(x) ** 2)(1.7)
        Array(4., dtype=float32, weak_type=True)

    References:
        Y. Bengio, N. Léonard, A. Courville, "Estimating or propagating gradients through stochastic neurons for
        conditional computation" (2013).
    """
    chosen = primitives or [p for p in TABLE if traits_of(p).step]
    return Backward(rules=dict.fromkeys(chosen, STRAIGHT_THROUGH))


def straight_through_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
    """y = step(x):  x̄ = ȳ."""
    return [ct]


STRAIGHT_THROUGH = rule(straight_through_bwd, save=NOTHING)  # one value, so that the schemes made of it join


def spikes(derivative: Callable[[jax.Array], jax.Array]) -> Backward:
    """Give comparisons a surrogate derivative: a unit that spikes, `(x > threshold).astype(float)`, then learns.

    z = 1 where u = x - threshold is positive, 0 elsewhere:  x̄ = z̄ h(u). The model stays as it is. A cotangent reaches
    the comparison where its boolean becomes a number: converted, or `jnp.where` between two constants; before, it may
    be moved, reshaped, joined, negated, counted, combined with other booleans, multiplied into a matrix. A boolean that
    only chooses (a mask, the reset `jnp.where(spike, reset, v)`) is left alone. What stops the cotangent (a comparison
    of counts, a loop that the boolean enters) is an error that names it.

    Args:
        derivative: h, a function of u: one of this module's, such as `fast_sigmoid(slope=10.0)`, or your own.

    Returns:
        A `Backward` with rules for the four comparisons.

    The slope may be learned: written in the model, `slope * (x - threshold) > 0`, it gets a gradient like any other
    parameter.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> unit = lambda x: (x > 1.0).astype(jnp.float32)
        >>> backward = bp.credit.spikes(bp.credit.triangular())
        >>> float(backward.grad(unit)(1.25)), float(bp.grad(unit)(1.25))
        (0.75, 0.0)

    References:
        E. O. Neftci, H. Mostafa, F. Zenke, "Surrogate gradient learning in spiking neural networks" (2019).
    """

    def over(sign: int) -> Rule:
        def spike_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
            """z = x > y:  x̄ = z̄ h(x - y),  ȳ = -x̄; for x < y the other way round."""
            x, y = map(jnp.asarray, res)
            slope = derivative(lax.sub(*jnp.broadcast_arrays(x, y)) * sign)
            x_bar = (ct * slope.astype(ct.dtype)).astype(x.dtype) * sign
            return [unbroadcast(x_bar, x), unbroadcast(-x_bar, y)]

        return SurrogateRule(spike_bwd)

    above, below = over(1), over(-1)
    return Backward(rules={lax.gt_p: above, lax.ge_p: above, lax.lt_p: below, lax.le_p: below})


# --- derivatives: h(u) = g(slope · u), each with h(0) = 1 -------------------------------------------------------------


def straight() -> Callable[[jax.Array], jax.Array]:
    """h(u) = 1 (Bengio, Léonard, Courville 2013).

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.straight()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 1.0, 1.0]
    """
    return lambda u: jnp.ones_like(u)


def boxcar(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = 1 where |k u| < 1, 0 elsewhere (Wu, Deng, Li, Zhu, Shi 2018).

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.boxcar()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 1.0, 0.0]
    """
    return lambda u: (abs(slope * u) < 1).astype(u.dtype)


def leaky_boxcar(slope: float | jax.Array = 1.0, leak: float | jax.Array = 0.1) -> Callable[[jax.Array], jax.Array]:
    """h(u) = 1 where |k u| < 1, `leak` elsewhere.

    Args:
        slope: k, the steepness, a number; it may be learned.
        leak: the value elsewhere.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.leaky_boxcar()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 1.0, 0.1]
    """
    return lambda u: jnp.where(abs(slope * u) < 1, jnp.ones_like(u), leak * jnp.ones_like(u))


def triangular(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = max(0, 1 - |k u|) (Esser et al. 2016; Bellec et al. 2018).

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.triangular()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.5, 0.0]
    """
    return lambda u: jnp.maximum(1 - abs(slope * u), 0)


def parabolic(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = max(0, 1 - (k u)²).

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.parabolic()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.75, 0.0]
    """
    return lambda u: jnp.maximum(1 - (slope * u) ** 2, 0)


def cosine(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = (1 + cos(π k u)) / 2 where |k u| < 1, 0 elsewhere.

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.cosine()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.5, 0.0]
    """
    return lambda u: jnp.where(abs(slope * u) < 1, (1 + jnp.cos(np.pi * slope * u)) / 2, jnp.zeros_like(u))


def logistic(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = 4 σ(k u) (1 - σ(k u)), the derivative of the logistic function (Zenke, Vogels 2021).

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.logistic()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.94, 0.42]
    """
    return lambda u: 4 * jax.nn.sigmoid(slope * u) * jax.nn.sigmoid(-slope * u)


def sech(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = 1 / cosh(k u), as 2 e^-|k u| / (1 + e^-2|k u|), which does not overflow.

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.sech()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.8868, 0.2658]
    """
    return lambda u: 2 * jnp.exp(-abs(slope * u)) / (1 + jnp.exp(-2 * abs(slope * u)))


def gaussian(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = exp(-(k u)² / 2), the derivative of the error function (Yin, Corradi, Bohté 2020).

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.gaussian()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.8825, 0.1353]
    """
    return lambda u: jnp.exp(-((slope * u) ** 2) / 2)


def multi_gaussian(
    slope: float | jax.Array = 1.0, height: float = 0.15, scale: float = 6.0
) -> Callable[[jax.Array], jax.Array]:
    """A Gaussian with a negative lobe on either side (Yin, Corradi, Bohté 2021), brought to h(0) = 1.

    With g a Gaussian of width 1: ((1 + height) g(k u) - height g((k u - 1)/scale) - height g((k u + 1)/scale)).

    Args:
        slope: k, the steepness, a number; it may be learned.
        height: of the negative lobes.
        scale: their width, and distance, in units of the bell.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.multi_gaussian()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.843, -0.146]
    """

    def derivative(u: jax.Array) -> jax.Array:
        bell = lambda x: jnp.exp(-(x**2) / 2)
        lobes = lambda x: (1 + height) * bell(x) - height * (bell((x - 1) / scale) + bell((x + 1) / scale))
        return lobes(slope * u) / lobes(jnp.zeros((), u.dtype))

    return derivative


def exponential(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = exp(-|k u|), the escape rate of a noisy unit (Shrestha, Orchard 2018).

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.exponential()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.6065, 0.1353]
    """
    return lambda u: jnp.exp(-abs(slope * u))


def fast_sigmoid(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = 1 / (1 + |k u|)², the derivative of x / (1 + |x|).

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.fast_sigmoid()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.4444, 0.1111]
    """
    return lambda u: 1 / (1 + abs(slope * u)) ** 2


def superspike(slope: float | jax.Array = 100.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = 1 / (1 + |k u|)², `fast_sigmoid` with the steep slope of SuperSpike (Zenke, Ganguli 2018).

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.superspike()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.01, 2.0)]
        [1.0, 0.25, 0.0]
    """
    return fast_sigmoid(slope)


def arctan(slope: float | jax.Array = 1.0) -> Callable[[jax.Array], jax.Array]:
    """h(u) = 1 / (1 + (π k u / 2)²), the derivative of the arc tangent (Fang et al. 2021).

    Args:
        slope: k, the steepness, a number; it may be learned.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.arctan()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.6185, 0.092]
    """
    return lambda u: 1 / (1 + (np.pi / 2 * slope * u) ** 2)


def q_pseudo(slope: float | jax.Array = 1.0, q: float = 1.5) -> Callable[[jax.Array], jax.Array]:
    """h(u) = (1 + 2 |k u| / (q - 1))^-q: q sets how heavy the tail is (Herranz-Celotti, Rouat 2022).

    Args:
        slope: k, the steepness, a number; it may be learned.
        q: above 1; the tail falls off as u^-q.

    Returns:
        h, a function of an array u of floats, which keeps its shape and dtype.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> h = bp.credit.q_pseudo()
        >>> [round(float(h(jnp.float32(u))), 4) for u in (0.0, 0.5, 2.0)]
        [1.0, 0.1925, 0.037]
    """
    return lambda u: (1 + 2 / (q - 1) * abs(slope * u)) ** -q
