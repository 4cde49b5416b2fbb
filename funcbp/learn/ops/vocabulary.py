"""The cross-entropy of a layer of logits in chunks of its classes: all logits at once are alive in neither pass.

n: rows (examples, positions)    d: inputs    v: classes

The forward pass goes over the classes chunk by chunk with a running sum, and keeps two numbers per row. From these any
probability is had again. The tangent rule does that, chunk by chunk, and is linear in the tangents; read backward it
gives the gradients of inputs and weights in the same loop. So the one rule, carried by `jax.custom_jvp`, serves forward
and reverse mode, ours and JAX's, to any order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree, Value
from .dense import accumulator
from .losses import expm1

Array = jax.Array


def cross_entropy_of_logits(
    inputs: ArrayLike, weights: ArrayLike, labels: ArrayLike, bias: ArrayLike | None = None, *, chunk: int = 1024
) -> Array:
    """The cross-entropy of softmax(x W + β) against the numbers of the right classes, without all logits at once.

    Forward, z[n,v] = Σ_d x[n,d] W[d,v] + β[v] and E[n] = log Σ_v e^(z[n,v] - z[n,c]), for the right class c of row n:
    `softmax_cross_entropy_with_integer_labels(dense(x, W, β), c)`, in chunks of the classes. Backward, with the
    probabilities p[n,v] = e^(z[n,v] - z[n,c] - E[n]) computed again, chunk by chunk,

        δ[n,v] = E̅[n] (p[n,v] - 1_c)        x̄ = δ W'        W̄ = x' δ        β̄[v] = Σ_n δ[n,v]

    It keeps its arguments, z[n,c] and E[n]. Products of bfloat16 or float16 numbers are added up in float32. A label
    that is no class gives nan. The loss is exact where the right class is all but certain, too.

    Args:
        inputs: x, shape (batch..., in), floating point.
        weights: W, shape (in, classes), in the dtype of the inputs.
        labels: c, integers from 0 to the number of classes less 1, shape (batch...).
        bias: β, shape (classes,), or None for a layer without.
        chunk: of how many classes the logits are alive together.

    Returns:
        One number per row, shape (batch...), float32 for narrower inputs, otherwise of their dtype.

    Raises:
        ValueError: the shapes do not fit together, or the chunk is not positive.
        TypeError: the dtypes differ or are not floating, or the labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> x, w = jnp.array([[1.0, 2.0]]), jnp.zeros((2, 4))
        >>> print(ops.cross_entropy_of_logits(x, w, jnp.array([3])))
        [1.3862944]

    References:
        E. Wijmans, B. Huval, A. Hertzberg, V. Koltun, P. Krähenbühl, "Cut your losses in large-vocabulary language
        models", 2024.
        P. Hsu et al., "Liger kernel: efficient Triton kernels for LLM training", 2024.
    """
    x, w, c = jnp.asarray(inputs), jnp.asarray(weights), jnp.asarray(labels)
    bias = None if bias is None else jnp.asarray(bias)
    _check(x, w, c, bias, chunk)
    if w.shape[1] == 0:
        return jnp.full(c.shape, jnp.nan, accumulator(x.dtype))
    rows = x.reshape(c.size, w.shape[0]), w, bias, c.reshape(-1).astype(jnp.int32)
    loss, _ = _cross_entropy(*rows, min(chunk, w.shape[1]))
    return jnp.where((c >= 0) & (c < w.shape[1]), loss.reshape(c.shape), jnp.nan)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _cross_entropy(x: Array, w: Array, bias: Array | None, labels: Array, chunk: int) -> tuple[Array, Array]:
    """E and z[n,c]. The right class is left out of the sum, S = Σ_{v≠c} e^z, and E = log(1 + S e^(-z[n,c]))."""

    def step(carry: PyTree, start: Array) -> tuple[PyTree, None]:
        largest, total, own = carry
        z, mine, at, _ = _chunk(x, w, bias, labels, start, chunk)
        others = jnp.where(mine, -jnp.inf, z)
        top = jnp.maximum(largest, jnp.max(others, -1))
        shift = jnp.where(top == -jnp.inf, 0, top)
        total = jnp.exp(largest - shift) * total + jnp.sum(jnp.exp(others - shift[:, None]), -1)
        here = (labels >= start) & (at < chunk)
        found = jnp.take_along_axis(z, at[:, None], -1, mode="clip")[:, 0]  # a sum would write z again
        return (top, total, jnp.where(here, found, own)), None

    none = jnp.zeros(labels.shape, accumulator(x.dtype))
    (largest, total, own), _ = lax.scan(step, (none - jnp.inf, none, none), _starts(w.shape[1], chunk))
    above = jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + largest, -jnp.inf) - own
    return jnp.maximum(above, 0) + jnp.log1p(jnp.exp(-jnp.abs(above))), own


@functools.partial(_cross_entropy.defjvp, symbolic_zeros=True)
def cross_entropy_tangent(chunk: int, primals: Sequence[Value], tangents: Sequence[Value]) -> Value:
    """Ė = Σ_v (p_v - 1_c) ż_v, and that of z[n,c] is ż_c, with ż = ẋ W + x Ẇ + β̇ and p had again from both."""
    x, w, bias, labels = primals
    loss, own = _cross_entropy(x, w, bias, labels, chunk)
    dx, dw, db = (None if d is None or isinstance(d, SymbolicZero) else d for d in tangents[:3])
    dx = None if dx is None else dx.astype(loss.dtype)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(carry: PyTree, start: Array) -> tuple[PyTree, None]:
        change, slope = carry
        z, mine, _, part = _chunk(x, w, bias, labels, start, chunk)
        delta = jnp.where(mine, expm1(-loss)[:, None], jnp.exp(z - (own + loss)[:, None]))
        dz = []
        if dx is not None:
            dz.append(_linear(dx.astype(x.dtype), part(w)))
        if dw is not None:
            dz.append(_linear(x, part(dw)))
        if db is not None:
            dz.append(jnp.broadcast_to(part(db).astype(loss.dtype), z.shape))
        if dz:
            change, slope = change + jnp.sum(delta * sum(dz), -1), slope + jnp.sum(jnp.where(mine, sum(dz), 0), -1)
        return (change, slope), None

    none = jnp.zeros_like(loss)
    return (loss, own), lax.scan(step, (none, none), _starts(w.shape[1], chunk))[0]


def _starts(classes: int, chunk: int) -> Array:
    return jnp.arange(0, classes, chunk, dtype=jnp.int32)


def _chunk(x: Array, w: Array, bias: Array | None, labels: Array, start: Array, chunk: int) -> PyTree:
    """z of the classes from `start` on, which of them is the row's own, its place, and what takes a chunk of w.

    The last chunk begins earlier, to be as long as the others; the logits of those that were there before are -∞.
    """
    first = jnp.minimum(start, w.shape[1] - chunk)
    part = lambda a: lax.dynamic_slice_in_dim(a, first, chunk, -1, allow_negative_indices=False)
    place = lax.broadcasted_iota(jnp.int32, (1, chunk), 1)
    at = labels - first
    z = jnp.matmul(x, part(w), preferred_element_type=accumulator(x.dtype))
    z = z if bias is None else z + part(bias).astype(z.dtype)[None]
    mine = place == at[:, None]
    if w.shape[1] % chunk == 0:
        return z, mine, at, part
    new = place >= start - first
    return jnp.where(new, z, -jnp.inf), new & mine, at, part


def _linear(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y).astype(accumulator(x.dtype))


def _check(x: Array, w: Array, labels: Array, bias: Array | None, chunk: int) -> None:
    name = "cross_entropy_of_logits"
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{name} needs inputs of shape (batch..., in) and weights of shape (in, classes), and got {x.shape} and "
            f"{w.shape}."
        )
    if labels.shape != x.shape[:-1]:
        raise ValueError(
            f"{name} needs labels of shape {x.shape[:-1]} for inputs of shape {x.shape}, and got shape {labels.shape}."
        )
    if bias is not None and bias.shape != w.shape[1:]:
        raise ValueError(
            f"{name} needs a bias of shape {w.shape[1:]} for weights of shape {w.shape}, and got shape {bias.shape}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name} needs integer labels, and got {labels.dtype}.")
    if x.dtype != w.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} needs inputs and weights of one floating dtype, and got {x.dtype} and {w.dtype}.")
    if chunk < 1:
        raise ValueError(f"{name} needs a chunk of at least 1, and got {chunk}.")
