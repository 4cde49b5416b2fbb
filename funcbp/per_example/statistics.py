"""How the examples' gradients differ: the gradients themselves, their moments, and the noise scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..autodiff.arguments import checked_arrays, parameters_first
from ..autodiff.transformations import Backward, as_backward
from ..jaxpr.types import PyTree
from .examples import backpropagate, batch_size

__all__ = ["Moments", "NoiseScale", "grads", "moments", "noise_scale"]

Array = jax.Array
Loss = Callable[[PyTree, PyTree], PyTree]


class Moments(NamedTuple):
    """Mean, variance and signal-to-noise ratio of the per-example gradients, each a tree like the parameters."""

    mean: PyTree
    variance: PyTree
    snr: PyTree


class NoiseScale(NamedTuple):
    """The simple noise scale, tr Σ / ‖G‖², and the two estimates that it is the quotient of: scalars."""

    scale: Array
    trace: Array
    squared_norm: Array


def grads(
    loss: Loss,
    *,
    max_bytes: int | None = None,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Callable[[PyTree, PyTree], PyTree]:
    """Make the gradient of each example: what `jax.vmap(jax.grad(loss), (None, 0))` returns.

    Convolutions are made from patches by one batched matrix product, not by a mapped convolution.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        max_bytes: how many bytes may be in use at a time beside the result: the batch is gone through in chunks that
            are as large as this allows, at least one example.
        argnums: which argument of `loss`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)` that returns a tree like the parameters, each leaf with a leading axis n.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.per_example.grads(lambda w, x: (w * x) ** 2)(jnp.array(1.0), jnp.array([1.0, 2.0]))
        Array([2., 8.], dtype=float32)
    """
    loss = parameters_first(loss, argnums)

    def of(params: PyTree, batch: PyTree) -> PyTree:
        checked_arrays(params)
        made = lambda leaf: leaf.arrays(direct=False)

        def run(batch: PyTree) -> PyTree:
            found = backpropagate(loss, params, batch, backward=as_backward(backward), has_aux=has_aux)
            return found.returned(found.map(made))

        n = batch_size(batch)
        chunk = (
            n
            if max_bytes is None
            else max(1, max_bytes // max(1, _bytes_of_one(loss, params, batch, as_backward(backward), has_aux)))
        )
        if chunk >= n:
            return run(batch)
        whole = n // chunk * chunk
        chunks = jax.tree.map(lambda a: jnp.asarray(a)[:whole].reshape(-1, chunk, *a.shape[1:]), batch)
        out = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), jax.lax.map(run, chunks))
        if whole == n:
            return out
        rest = run(jax.tree.map(lambda a: a[whole:], batch))
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)

    return parameters_first(of, argnums)


def moments(
    loss: Loss, *, argnums: int = 0, has_aux: bool = False, backward: Backward | None = None
) -> Callable[[PyTree, PyTree], PyTree]:
    """Compute mean, variance and signal-to-noise ratio of the per-example gradients, element by element.

    mean = Σ_n W̄_n / N,   variance = Σ_n (W̄_n - mean)² / (N - 1),   snr = |mean| / √variance.

    The squares of a layer without shared positions are one contraction of squares, Σ_n x_n² δ_n².

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        argnums: which argument of `loss`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)` that returns `Moments`. For one example the variance is nan.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> found = bp.per_example.moments(lambda w, x: w * x)(jnp.array(1.0), jnp.array([1.0, 3.0]))
        >>> print(found.mean, found.variance, f"{found.snr:.3f}")
        2.0 2.0 1.414

    References:
        F. Dangel, F. Kunstner, P. Hennig, "BackPACK: packing more into backprop", 2020.
    """
    loss = parameters_first(loss, argnums)

    def of(params: PyTree, batch: PyTree) -> PyTree:
        found = backpropagate(loss, params, batch, backward=as_backward(backward), has_aux=has_aux, sums=True)
        n = batch_size(batch)
        squares, mean = [leaf.sum_of_squares() for leaf in found.leaves], jax.tree.leaves(found.mean())
        variance = [
            jnp.maximum(q - n * m.astype(q.dtype) ** 2, jnp.zeros((), q.dtype)) / jnp.asarray(n - 1, q.dtype)
            for q, m in zip(squares, mean, strict=True)
        ]
        snr = [jnp.abs(m.astype(v.dtype)) / jnp.sqrt(v) for m, v in zip(mean, variance, strict=True)]
        moments = Moments(*(jax.tree.unflatten(found.tree, leaves) for leaves in (mean, variance, snr)))
        return found.returned(moments)

    return parameters_first(of, argnums)


def noise_scale(
    loss: Loss, *, argnums: int = 0, has_aux: bool = False, backward: Backward | None = None
) -> Callable[[PyTree, PyTree], PyTree]:
    """Estimate the simple noise scale: the batch size at which noise and gradient are of one size.

    With ḡ the mean of the N gradients and m = Σ_n ‖W̄_n‖² / N,

        tr Σ ≈ (m - ‖ḡ‖²) N / (N - 1),   ‖G‖² ≈ (N ‖ḡ‖² - m) / (N - 1),   scale = tr Σ / ‖G‖²,

    both estimates unbiased. Average `trace` and `squared_norm` over several batches before dividing: near a minimum the
    second one is small, and can be negative.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        argnums: which argument of `loss`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)` that returns a `NoiseScale`. The batch must have at least two examples.

    Raises:
        ValueError: the batch has one example.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> found = bp.per_example.noise_scale(lambda w, x: w * x)(jnp.array(1.0), jnp.array([1.0, 3.0]))
        >>> print(found.trace, found.squared_norm, f"{found.scale:.4f}")
        2.0 3.0 0.6667

    References:
        S. McCandlish, J. Kaplan, D. Amodei, "An empirical model of large-batch training", 2018, appendix A.1.
    """
    loss = parameters_first(loss, argnums)

    def of(params: PyTree, batch: PyTree) -> PyTree:
        n = batch_size(batch)
        if n < 2:
            raise ValueError("The noise scale compares examples with each other: it needs a batch of at least two.")
        found = backpropagate(loss, params, batch, backward=as_backward(backward), has_aux=has_aux, sums=True)
        m = jnp.mean(found.squared_norms())
        big = sum(jnp.sum(jnp.square(g.astype(m.dtype))) for g in jax.tree.leaves(found.mean()))
        trace, squared_norm = (m - big) * (n / (n - 1)), (n * big - m) / (n - 1)
        return found.returned(NoiseScale(trace / squared_norm, trace, squared_norm))

    return parameters_first(of, argnums)


def _bytes_of_one(loss: Loss, params: PyTree, batch: PyTree, backward: Backward, has_aux: bool) -> int:
    """About how many bytes the gradients and their factors take for one example."""

    def look(params: PyTree, batch: PyTree) -> PyTree:
        one = jax.tree.map(lambda a: jnp.asarray(a)[:1], batch)
        found = backpropagate(loss, params, one, backward=backward, has_aux=has_aux)
        made = [leaf.arrays(direct=False) for leaf in found.leaves]
        return [leaf.factors() for leaf in found.leaves if leaf.pairs], made

    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(look, params, batch)))
