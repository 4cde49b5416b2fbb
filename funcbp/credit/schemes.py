"""Other ways to hand out credit: backward passes that brains, or chips, could have.

Each is a short function over two mechanisms. A *mirror tree* b goes into `funcbp.feedback(params, b)`, so that deltas
go through b instead of through the weights; the functions of the first part make and change such trees. And a
`funcbp.Backward` value replaces rules or the cotangents of named values; the functions of the second part make those.

    mirrors = credit.feedback_alignment(key, params)
    grads = bp.grad(lambda params, x, y: loss(bp.feedback(params, mirrors), x, y))(params, x, y)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..autodiff.marks import feedback
from ..autodiff.transformations import Backward
from ..cotangents import unbroadcast
from ..rules.contract import NOTHING
from ..rules.kinds import Rule, SurrogateRule

__all__ = [
    "Alignment",
    "alignment",
    "arctan",
    "batchwise_sign",
    "boxcar",
    "cosine",
    "direct_feedback",
    "exponential",
    "fast_sigmoid",
    "feedback_alignment",
    "fixed_sign",
    "gaussian",
    "kolen_pollack",
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
    "uniform_sign",
    "weight_mirror",
]

Draw = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


# --- mirror trees: what deltas go through in the place of the weights -------------------------------------------------


def _is_weight(w: Any) -> bool:
    """Whether a leaf takes part in products: a floating-point array with at least two axes."""
    return isinstance(w, (jax.Array, np.ndarray)) and w.ndim >= 2 and jax.dtypes.issubdtype(w.dtype, np.floating)


def unit_gain(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Normal numbers with standard deviation 1/√(units above): a delta going through keeps its size."""
    return jax.random.normal(key, shape, dtype) / np.sqrt(shape[-1])


def feedback_alignment(key: jax.Array, params: Any, draw: Draw = unit_gain) -> Any:
    """Fixed random mirrors: x̄ = z̄ B' with a B that has nothing to do with W. Learning brings W into line with it.

    Args:
        key: a typed random key.
        params: a pytree of parameters.
        draw: `draw(key, shape, dtype)`, the distribution of each array.

    Returns:
        A mirror tree: an array for each leaf with at least two axes, None for the others.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
        >>> mirrors = bp.credit.feedback_alignment(jax.random.key(0), params)
        >>> mirrors["kernel"].shape, mirrors["bias"]
        ((3, 2), None)

    Source:
        T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, "Random synaptic feedback weights support error
        backpropagation for deep learning" (2016).
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [draw(k, w.shape, w.dtype) if _is_weight(w) else None for k, w in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def uniform_sign(params: Any, size: float | None = None) -> Any:
    """The signs of the weights (uSF): B = s · sign(W), with one size s per array.

    Args:
        params: a pytree of parameters.
        size: s; by default 1/√(units above), with which a delta keeps its size.

    Returns:
        A mirror tree.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.credit.uniform_sign({"kernel": jnp.array([[0.3, -0.2]])}, size=1.0)["kernel"]
        Array([[ 1., -1.]], dtype=float32)

    Source:
        Q. Liao, J. Z. Leibo, T. Poggio, "How important is weight symmetry in backpropagation?" (2016);
        T. H. Moskovitz, A. Litwin-Kumar, L. F. Abbott, "Feedback alignment in deep convolutional networks" (2018).
    """
    signs = lambda w: jnp.sign(w) * jnp.asarray(size or w.shape[-1] ** -0.5, w.dtype)
    return jax.tree.map(lambda w: signs(w) if _is_weight(w) else None, params)


def fixed_sign(magnitudes: Any, params: Any) -> Any:
    """The signs of the weights with fixed random magnitudes (frSF): B = |R| ∘ sign(W).

    Args:
        magnitudes: a mirror tree R, drawn once: see `feedback_alignment`.
        params: a pytree of parameters.

    Returns:
        A mirror tree.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.credit.fixed_sign({"kernel": jnp.array([[2.0, 3.0]])}, {"kernel": jnp.array([[0.3, -0.2]])})["kernel"]
        Array([[ 2., -3.]], dtype=float32)

    Source:
        As `uniform_sign`.
    """
    signed = lambda r, w: None if r is None else jnp.abs(r) * jnp.sign(w)
    return jax.tree.map(signed, magnitudes, params, is_leaf=lambda x: x is None)


def batchwise_sign(key: jax.Array, params: Any, draw: Draw = unit_gain) -> Any:
    """The signs of the weights with magnitudes drawn anew for each batch (brSF): B = |R| ∘ sign(W).

    Args:
        key: a typed random key, another one for each batch.
        params: a pytree of parameters.
        draw: `draw(key, shape, dtype)`, the distribution of R.

    Returns:
        A mirror tree.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> bp.credit.batchwise_sign(jax.random.key(0), {"kernel": jnp.array([[0.3, -0.2]])})["kernel"] > 0
        Array([[ True, False]], dtype=bool)

    Source:
        As `uniform_sign`.
    """
    return fixed_sign(feedback_alignment(key, params, draw), params)


def kolen_pollack(params: Any, mirrors: Any, updates: Any, decay: float) -> tuple[Any, Any]:
    """One step in which weights and mirrors get the same update and decay alike, so that they meet.

    W ← W + ΔW - λ W and B ← B + ΔW - λ B, so W - B shrinks by 1 - λ at each step, whatever the updates are.

    Args:
        params: a pytree of parameters.
        mirrors: their mirror tree.
        updates: ΔW, a pytree like params, as an optax optimiser gives it.
        decay: λ.

    Returns:
        The new parameters and the new mirrors. Leaves without a mirror get their update and do not decay.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> w, b = {"kernel": jnp.array([[1.0]])}, {"kernel": jnp.array([[3.0]])}
        >>> w, b = bp.credit.kolen_pollack(w, b, {"kernel": jnp.array([[0.5]])}, decay=0.1)
        >>> w["kernel"], b["kernel"]
        (Array([[1.4]], dtype=float32), Array([[3.2]], dtype=float32))

    Source:
        J. F. Kolen, J. B. Pollack, "Backpropagation without weight transport" (1994); M. Akrout, C. Wilson,
        P. C. Humphreys, T. Lillicrap, D. B. Tweed, "Deep learning without weight transport" (2019).
    """
    none = lambda x: x is None
    weights = lambda b, w, u: w + u if b is None else w + u - jnp.asarray(decay, w.dtype) * w
    mirror = lambda b, u: None if b is None else b + u - jnp.asarray(decay, b.dtype) * b
    return (
        jax.tree.map(weights, mirrors, params, updates, is_leaf=none),
        jax.tree.map(mirror, mirrors, updates, is_leaf=none),
    )


def weight_mirror(
    layer: Callable[[Any, Any], Any], w: Any, b: Any, noise: Any, rate: float = 0.01, decay: float = 0.0
) -> Any:
    """One step in which a mirror learns from noise: B ← (1 - λ) B + η ξ'(ξ W) / N, which tends to a multiple of W.

    Noise ξ goes into the layer and comes out as y = ξ W; the mirror sees both, and learns their correlation, whose mean
    is W times the variance of the noise. For any other layer linear in w and in ξ, the same is the cotangent of w at y.

    Args:
        layer: `layer(w, noise)`, linear in both: a dense layer or a convolution, without its bias.
        w: the weights, an array.
        b: their mirror, an array of the same shape.
        noise: a batch of ξ, with mean zero; its leading axis has size N.
        rate: η.
        decay: λ.

    Returns:
        The new mirror.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> w, noise = jnp.array([[2.0], [-1.0]]), jax.random.normal(jax.random.key(0), (1000, 2))
        >>> b = bp.credit.weight_mirror(lambda w, x: x @ w, w, jnp.zeros((2, 1)), noise, rate=1.0)
        >>> bool(jnp.allclose(b, w, atol=0.2))
        True

    Source:
        M. Akrout, C. Wilson, P. C. Humphreys, T. Lillicrap, D. B. Tweed, "Deep learning without weight transport"
        (2019).
    """
    y, pullback = Backward().vjp(lambda w: layer(w, noise), w)
    (correlation,) = pullback(y)
    kept, step = jnp.asarray(1 - decay, b.dtype), jnp.asarray(rate / len(noise), b.dtype)
    return kept * b + step * correlation


# --- backward passes: rules and edits ---------------------------------------------------------------------------------


def direct_feedback(mirrors: Mapping[str, Any], error: str) -> Backward:
    """Each hidden layer hears of the error directly: the cotangent of a named activation h becomes ē B.

    ē is the cotangent of the value named `error`, the output layer's. What would have carried deltas from layer to
    layer is not computed: under jit, the products whose results nobody reads disappear.

    Args:
        mirrors: for each name of an activation, shaped (batch, units), its B, shaped (units of the output, units).
        error: the name of the output layer's net input or activation.

    Returns:
        A `Backward` with these edits.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> w0, w1, x = jnp.ones((1, 2)), jnp.ones((2, 1)), jnp.ones((1, 1))
        >>> loss = lambda w0: jnp.sum(bp.name(bp.name(x @ w0, "h") @ w1, "out"))
        >>> bp.credit.direct_feedback({"h": jnp.array([[5.0, 7.0]])}, error="out").grad(loss)(w0)
        Array([[5., 7.]], dtype=float32)

    Source:
        A. Nøkland, "Direct feedback alignment provides learning in deep neural networks" (2016).
    """
    edit = lambda b: lambda ct, cts: (cts[error] @ b).astype(ct.dtype)
    return Backward(edits={name: edit(b) for name, b in mirrors.items()})


def straight_through(*primitives: Any) -> dict[Any, Rule]:
    """Rules that pass the cotangent through steps as if they were the identity: x̄ = ȳ.

    Args:
        primitives: which ones; by default `round`, `floor`, `ceil` and `sign`. For a comparison see `spikes`.

    Returns:
        Rules for `funcbp.Backward(rules=...)`.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.Backward(rules=bp.credit.straight_through()).grad(lambda x: jnp.round(x) ** 2)(1.7)
        Array(4., dtype=float32, weak_type=True)

    Source:
        Y. Bengio, N. Léonard, A. Courville, "Estimating or propagating gradients through stochastic neurons for
        conditional computation" (2013).
    """
    chosen = primitives or (lax.round_p, lax.floor_p, lax.ceil_p, lax.sign_p)
    return dict.fromkeys(chosen, Rule(_straight_through_bwd, save=NOTHING))


def _straight_through_bwd(res: Any, ct: Any, perturbed: Any, **params: Any) -> list[Any]:
    """y = step(x):  x̄ = ȳ."""
    return [ct]


def spikes(derivative: Callable[[Any], Any]) -> dict[Any, Rule]:
    """Rules for comparisons: a unit that spikes, `(x > threshold).astype(float)`, gets a surrogate derivative.

    z = 1 where u = x - threshold is positive, 0 elsewhere:  x̄ = z̄ h(u). The model stays as it is. A cotangent reaches
    the comparison where its boolean becomes a number: converted, or `jnp.where` between two constants; before, it may
    be moved, reshaped, joined, negated, counted, combined with other booleans, multiplied into a matrix. A boolean that
    only chooses (a mask, the reset `jnp.where(spike, reset, v)`) is left alone. What stops the cotangent (a comparison
    of counts, a loop that the boolean enters) is an error that names it.

    Args:
        derivative: h, a function of u: one of this module's, such as `fast_sigmoid(slope=10.0)`, or your own.

    Returns:
        Rules for `funcbp.Backward(rules=...)`.

    The slope may be learned: written in the model, `slope * (x - threshold) > 0`, it gets a gradient like any other
    parameter.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> unit = lambda x: (x > 1.0).astype(jnp.float32)
        >>> backward = bp.Backward(rules=bp.credit.spikes(bp.credit.triangular()))
        >>> backward.grad(unit)(jnp.array(1.25)), bp.grad(unit)(jnp.array(1.25))
        (Array(0.75, dtype=float32, weak_type=True), Array(0., dtype=float32, weak_type=True))

    Source:
        E. O. Neftci, H. Mostafa, F. Zenke, "Surrogate gradient learning in spiking neural networks" (2019).
    """

    def over(sign: int) -> Rule:
        def spike_bwd(res: Any, ct: Any, perturbed: Any, **params: Any) -> list[Any]:
            """z = x > y:  x̄ = z̄ h(x - y),  ȳ = -x̄; for x < y the other way round."""
            x, y = map(jnp.asarray, res)
            slope = derivative(lax.sub(*jnp.broadcast_arrays(x, y)) * sign)
            x_bar = (ct * slope.astype(ct.dtype)).astype(x.dtype) * sign
            return [unbroadcast(x_bar, x), unbroadcast(-x_bar, y)]

        return SurrogateRule(spike_bwd)

    above, below = over(1), over(-1)
    return {lax.gt_p: above, lax.ge_p: above, lax.lt_p: below, lax.le_p: below}


# --- surrogate derivatives: h(u) = g(slope · u), each with h(0) = 1 ---------------------------------------------------


def straight() -> Callable[[Any], Any]:
    """h(u) = 1 (Bengio, Léonard, Courville 2013)."""
    return lambda u: jnp.ones_like(u)


def boxcar(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = 1 where |k u| < 1, 0 elsewhere (Wu, Deng, Li, Zhu, Shi 2018)."""
    return lambda u: (abs(slope * u) < 1).astype(u.dtype)


def leaky_boxcar(slope: Any = 1.0, leak: Any = 0.1) -> Callable[[Any], Any]:
    """h(u) = 1 where |k u| < 1, `leak` elsewhere."""
    return lambda u: jnp.where(abs(slope * u) < 1, jnp.ones_like(u), leak * jnp.ones_like(u))


def triangular(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = max(0, 1 - |k u|) (Esser et al. 2016; Bellec et al. 2018)."""
    return lambda u: jnp.maximum(1 - abs(slope * u), 0)


def parabolic(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = max(0, 1 - (k u)²)."""
    return lambda u: jnp.maximum(1 - (slope * u) ** 2, 0)


def cosine(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = (1 + cos(π k u)) / 2 where |k u| < 1, 0 elsewhere."""
    return lambda u: jnp.where(abs(slope * u) < 1, (1 + jnp.cos(np.pi * slope * u)) / 2, jnp.zeros_like(u))


def logistic(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = 4 σ(k u) (1 - σ(k u)), the derivative of the logistic function (Zenke, Vogels 2021)."""
    return lambda u: 4 * jax.nn.sigmoid(slope * u) * jax.nn.sigmoid(-slope * u)


def sech(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = 1 / cosh(k u), as 2 e^-|k u| / (1 + e^-2|k u|), which does not overflow."""
    return lambda u: 2 * jnp.exp(-abs(slope * u)) / (1 + jnp.exp(-2 * abs(slope * u)))


def gaussian(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = exp(-(k u)² / 2), the derivative of the error function (Yin, Corradi, Bohté 2020)."""
    return lambda u: jnp.exp(-((slope * u) ** 2) / 2)


def multi_gaussian(slope: Any = 1.0, height: float = 0.15, scale: float = 6.0) -> Callable[[Any], Any]:
    """A Gaussian with a negative lobe on either side (Yin, Corradi, Bohté 2021), brought to h(0) = 1.

    With g a Gaussian of width 1: ((1 + height) g(k u) - height g((k u - 1)/scale) - height g((k u + 1)/scale)).
    """

    def derivative(u: Any) -> Any:
        bell = lambda x: jnp.exp(-(x**2) / 2)
        lobes = lambda x: (1 + height) * bell(x) - height * (bell((x - 1) / scale) + bell((x + 1) / scale))
        return lobes(slope * u) / lobes(jnp.zeros((), u.dtype))

    return derivative


def exponential(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = exp(-|k u|), the escape rate of a noisy unit (Shrestha, Orchard 2018)."""
    return lambda u: jnp.exp(-abs(slope * u))


def fast_sigmoid(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = 1 / (1 + |k u|)², the derivative of x / (1 + |x|)."""
    return lambda u: 1 / (1 + abs(slope * u)) ** 2


def superspike(slope: Any = 100.0) -> Callable[[Any], Any]:
    """h(u) = 1 / (1 + |k u|)², `fast_sigmoid` with the steep slope of SuperSpike (Zenke, Ganguli 2018)."""
    return fast_sigmoid(slope)


def arctan(slope: Any = 1.0) -> Callable[[Any], Any]:
    """h(u) = 1 / (1 + (π k u / 2)²), the derivative of the arc tangent (Fang et al. 2021)."""
    return lambda u: 1 / (1 + (np.pi / 2 * slope * u) ** 2)


def q_pseudo(slope: Any = 1.0, q: float = 1.5) -> Callable[[Any], Any]:
    """h(u) = (1 + 2 |k u| / (q - 1))^-q: q sets how heavy the tail is (Herranz-Celotti, Rouat 2022)."""
    return lambda u: (1 + 2 / (q - 1) * abs(slope * u)) ** -q


# --- how far from the gradient ----------------------------------------------------------------------------------------


class Alignment(NamedTuple):
    """How an array's update direction lies to the gradient.

    Attributes:
        angle: between the two, in degrees, 0 to 180; nan where either is zero.
        ratio: the norm of the one over that of the gradient.
    """

    angle: Any
    ratio: Any


def alignment(loss: Callable[..., Any], mirrors: Any = None, backward: Backward | None = None) -> Callable[..., Any]:
    """How far another backward pass is from backpropagation, parameter by parameter, at no extra forward pass.

    Both passes go over what one forward pass recorded: those with mirrors are one walk, vectorised over {B, W}; those
    with edits are two walks, one of which edits nothing.

    Args:
        loss: `loss(params, *args)`, a scalar, without feedback marks.
        mirrors: a mirror tree for `params`.
        backward: in the place of mirrors: a `Backward` with edits, such as `direct_feedback(...)`.

    Returns:
        A function of the loss's arguments that returns a pytree like `params`, with an `Alignment` for each array.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> params = {"w0": jnp.array([[1.0]]), "w1": jnp.array([[1.0]])}
        >>> loss = lambda p, x: jnp.sum(jnp.tanh(x @ p["w0"]) @ p["w1"])
        >>> mirrors = {"w0": None, "w1": jnp.array([[-2.0]])}
        >>> found = bp.credit.alignment(loss, mirrors)(params, jnp.ones((1, 1)))
        >>> found["w0"].angle, found["w0"].ratio, found["w1"].angle
        (Array(180., dtype=float32), Array(2., dtype=float32), Array(0., dtype=float32))
    """
    if (mirrors is None) == (backward is None):
        raise TypeError("alignment takes mirrors, or a Backward with edits: one of the two.")
    options = backward or Backward()

    def measured(params: Any, *args: Any) -> Any:
        def pullback(mirrors: Any) -> Any:
            return options.vjp(lambda p: loss(p if mirrors is None else feedback(p, mirrors), *args), params)

        if mirrors is None:
            value, back = pullback(None)
            (other,), (true,) = (back.observed(jnp.ones_like(value), edits)[0] for edits in (True, False))
            return jax.tree.map(_compare, other, true)

        def gradient(mirrors: Any) -> Any:
            value, back = pullback(mirrors)
            return back(jnp.ones_like(value))[0]

        pair = lambda b, w: None if b is None else jnp.stack([b.astype(w.dtype), w])
        pairs = jax.tree.map(pair, mirrors, params, is_leaf=lambda x: x is None)
        return jax.tree.map(lambda g: _compare(g[0], g[1]), jax.vmap(gradient)(pairs))

    return measured


def _compare(other: jax.Array, true: jax.Array) -> Alignment:
    a, b = other.ravel(), true.ravel()
    size_a, size_b = jnp.sqrt(jnp.sum(a * a)), jnp.sqrt(jnp.sum(b * b))
    # of unit vectors u and v, 2 atan2(|u - v|, |u + v|): exact near 0 and 180 degrees, where the arc cosine is not
    u, v = a / size_a, b / size_b
    half = jnp.arctan2(jnp.sqrt(jnp.sum((u - v) ** 2)), jnp.sqrt(jnp.sum((u + v) ** 2)))
    return Alignment(jnp.degrees(2 * half), size_a / size_b)
