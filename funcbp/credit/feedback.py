"""Feedback weights: what deltas go back through in the place of the weights, and how such arrays are made and learn.

Feedback weights are data: a pytree like the parameters, with an array for each leaf that takes part in products and
None for the rest. `Backward(feedback=...)` goes back through them, and so does the mark `funcbp.feedback(w, b)` inside
a model. The schemes return that `Backward`, which joins with others by `|`:

    backward = credit.feedback_alignment(key, params) | credit.straight_through()
    grads = backward.grad(loss)(params, x, y)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..autodiff.transformations import Backward
from ..jaxpr.types import PyTree

__all__ = [
    "batchwise_sign",
    "direct_feedback",
    "feedback_alignment",
    "feedback_weights",
    "fixed_sign",
    "kolen_pollack",
    "uniform_sign",
    "weight_mirror",
]

Draw = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]


def _is_weight(w: object) -> bool:
    """Whether a leaf takes part in products: a floating-point array with at least two axes."""
    return isinstance(w, (jax.Array, np.ndarray)) and w.ndim >= 2 and jax.dtypes.issubdtype(w.dtype, np.floating)


def unit_gain(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Normal numbers with standard deviation 1/√(units above): a delta going through keeps its size."""
    return jax.random.normal(key, shape, dtype) / math.sqrt(shape[-1])


def feedback_weights(key: jax.Array, params: PyTree, draw: Draw = unit_gain) -> PyTree:
    """Draw random feedback weights for parameters.

    Args:
        key: a typed random key.
        params: a pytree of parameters.
        draw: `draw(key, shape, dtype)`, the distribution of each array.

    Returns:
        A pytree like the parameters: an array for each leaf with at least two axes, None for the others.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
        >>> bp.Backward(feedback=bp.credit.feedback_weights(jax.random.key(0), params))
        Backward(feedback={'bias': None, 'kernel': float32[3,2]})
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [draw(k, w.shape, w.dtype) if _is_weight(w) else None for k, w in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def feedback_alignment(key: jax.Array, params: PyTree, draw: Draw = unit_gain) -> Backward:
    """Go back through fixed random weights: x̄ = z̄ B', with a B that has nothing to do with W. Learning aligns W to it.

    Args:
        key: a typed random key.
        params: a pytree of parameters, the first argument that is differentiated.
        draw: `draw(key, shape, dtype)`, the distribution of each array.

    Returns:
        A `Backward` with these feedback weights, which are its `feedback`.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> params, x = {"w0": jnp.ones((1, 2)), "w1": jnp.ones((2, 1))}, jnp.ones((1, 1))
        >>> backward = bp.credit.feedback_alignment(jax.random.key(0), params)
        >>> w0_bar = backward.grad(lambda p: jnp.sum(x @ p["w0"] @ p["w1"]))(params)["w0"]
        >>> bool(jnp.all(w0_bar == backward.feedback["w1"].T))
        True

    References:
        T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, "Random synaptic feedback weights support error
        backpropagation for deep learning" (2016).
    """
    return Backward(feedback=feedback_weights(key, params, draw))


def uniform_sign(params: PyTree, size: float | None = None) -> Backward:
    """Go back through the signs of the weights (uSF): B = s · sign(W), with one size s per array.

    Args:
        params: a pytree of parameters.
        size: s; by default 1/√(units above), with which a delta keeps its size.

    Returns:
        A `Backward` with these feedback weights.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.credit.uniform_sign({"kernel": jnp.array([[0.3, -0.2]])}, size=1.0).feedback["kernel"]
        Array([[ 1., -1.]], dtype=float32)

    References:
        Q. Liao, J. Z. Leibo, T. Poggio, "How important is weight symmetry in backpropagation?" (2016); T. H. Moskovitz,
        A. Litwin-Kumar, L. F. Abbott, "Feedback alignment in deep convolutional networks" (2018).
    """
    signs = lambda w: jnp.sign(w) * jnp.asarray(size or w.shape[-1] ** -0.5, w.dtype)
    return Backward(feedback=jax.tree.map(lambda w: signs(w) if _is_weight(w) else None, params))


def fixed_sign(magnitudes: PyTree, params: PyTree) -> Backward:
    """Go back through the signs of the weights with fixed random magnitudes (frSF): B = |R| ∘ sign(W).

    Args:
        magnitudes: feedback weights R, drawn once: see `feedback_weights`.
        params: a pytree of parameters.

    Returns:
        A `Backward` with these feedback weights.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> params = {"kernel": jnp.array([[0.3, -0.2]])}
        >>> bp.credit.fixed_sign({"kernel": jnp.array([[2.0, 3.0]])}, params).feedback["kernel"]
        Array([[ 2., -3.]], dtype=float32)

    References:
        As `uniform_sign`.
    """
    signed = lambda r, w: None if r is None else jnp.abs(r) * jnp.sign(w)
    return Backward(feedback=jax.tree.map(signed, magnitudes, params, is_leaf=lambda x: x is None))


def batchwise_sign(key: jax.Array, params: PyTree, draw: Draw = unit_gain) -> Backward:
    """Go back through the signs of the weights with magnitudes drawn anew for each batch (brSF): B = |R| ∘ sign(W).

    Args:
        key: a typed random key, another one for each batch.
        params: a pytree of parameters.
        draw: `draw(key, shape, dtype)`, the distribution of R.

    Returns:
        A `Backward` with these feedback weights.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> bp.credit.batchwise_sign(jax.random.key(0), {"kernel": jnp.array([[0.3, -0.2]])}).feedback["kernel"] > 0
        Array([[ True, False]], dtype=bool)

    References:
        As `uniform_sign`.
    """
    return fixed_sign(feedback_weights(key, params, draw), params)


def kolen_pollack(params: PyTree, weights: PyTree, updates: PyTree, decay: float) -> tuple[PyTree, PyTree]:
    """Give weights and feedback weights the same update and let both decay alike, so that they meet.

    The updates come from a pass back through the feedback weights: `Backward(feedback=weights)`.

    W ← W + ΔW - λ W and B ← B + ΔW - λ B, so W - B shrinks by 1 - λ at each step, whatever the updates are.

    Args:
        params: a pytree of parameters.
        weights: their feedback weights.
        updates: ΔW, a pytree like params, as an optax optimiser gives it.
        decay: λ.

    Returns:
        The new parameters and the new feedback weights. Leaves without these get their update and do not decay.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> w, b = {"kernel": jnp.array([[1.0]])}, {"kernel": jnp.array([[3.0]])}
        >>> w, b = bp.credit.kolen_pollack(w, b, {"kernel": jnp.array([[0.5]])}, decay=0.1)
        >>> w["kernel"], b["kernel"]
        (Array([[1.4]], dtype=float32), Array([[3.2]], dtype=float32))

    References:
        J. F. Kolen, J. B. Pollack, "Backpropagation without weight transport" (1994); M. Akrout, C. Wilson,
        P. C. Humphreys, T. Lillicrap, D. B. Tweed, "Deep learning without weight transport" (2019).
    """
    none = lambda x: x is None
    forward = lambda b, w, u: w + u if b is None else w + u - jnp.asarray(decay, w.dtype) * w
    backward = lambda b, u: None if b is None else b + u - jnp.asarray(decay, b.dtype) * b
    return (
        jax.tree.map(forward, weights, params, updates, is_leaf=none),
        jax.tree.map(backward, weights, updates, is_leaf=none),
    )


def weight_mirror(
    layer: Callable[[jax.Array, jax.Array], jax.Array],
    w: jax.Array,
    b: jax.Array,
    noise: jax.Array,
    rate: float = 0.01,
    decay: float = 0.0,
) -> jax.Array:
    """Let feedback weights learn from noise: B ← (1 - λ) B + η ξ'(ξ W) / N, which tends to a multiple of W.

    Noise ξ goes into the layer and comes out as y = ξ W; B sees both, and learns their correlation, whose mean is W
    times the variance of the noise. For any other layer linear in w and in ξ, the same is the cotangent of w at y.

    Args:
        layer: `layer(w, noise)`, linear in both: a dense layer or a convolution, without its bias.
        w: the weights, an array: of a dense layer, shape (in, out).
        b: their feedback weights, an array of the same shape.
        noise: a batch of ξ, with mean zero, shape (N, ...), of the dtype of `w`.
        rate: η.
        decay: λ.

    Returns:
        The new feedback weights.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> w, noise = jnp.array([[2.0], [-1.0]]), jax.random.normal(jax.random.key(0), (1000, 2))
        >>> b = bp.credit.weight_mirror(lambda w, x: x @ w, w, jnp.zeros((2, 1)), noise, rate=1.0)
        >>> bool(jnp.allclose(b, w, atol=0.2))
        True

    References:
        M. Akrout, C. Wilson, P. C. Humphreys, T. Lillicrap, D. B. Tweed, "Deep learning without weight transport"
        (2019).
    """
    y, pullback = Backward().vjp(lambda w: layer(w, noise), w)
    (correlation,) = pullback(y)
    kept, step = jnp.asarray(1 - decay, b.dtype), jnp.asarray(rate / len(noise), b.dtype)
    return kept * b + step * correlation


def direct_feedback(weights: Mapping[str, jax.Array], error: str) -> Backward:
    """Tell each hidden layer of the error directly: the cotangent of a named activation h becomes ē B.

    ē is the cotangent of the value named `error`, the output layer's. What would have carried deltas from layer to
    layer is not computed: under jit, the products whose results nobody reads disappear.

    Args:
        weights: for each name of an activation, shaped (batch, units), its B, shaped (units of the output, units).
        error: the name of the output layer's net input or activation.

    Returns:
        A `Backward` with these edits.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> w0, w1, x = jnp.ones((1, 2)), jnp.ones((2, 1)), jnp.ones((1, 1))
        >>> loss = lambda w0: jnp.sum(bp.name(bp.name(x @ w0, "h") @ w1, "out"))
        >>> bp.credit.direct_feedback({"h": jnp.array([[5.0, 7.0]])}, error="out").grad(loss)(w0)
        Array([[5., 7.]], dtype=float32)

    References:
        A. Nøkland, "Direct feedback alignment provides learning in deep neural networks" (2016).
    """
    edit = lambda b: lambda ct, cts: (cts[error] @ b).astype(ct.dtype)
    return Backward(edits={name: edit(b) for name, b in weights.items()})
