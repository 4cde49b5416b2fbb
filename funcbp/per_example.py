"""Per-example gradients, and what can be had of them without making them, in one forward and one backward pass.

Every function takes a loss of one example, `loss(params, example)`, a scalar, and returns a function of `(params,
batch)`: `params` is any pytree of floating-point arrays, and the batch a pytree of arrays with one leading axis, of
examples. W̄_n is the gradient of example n. A batch's gradient is the mean of its examples' gradients.

The walk leaves the cotangents of weights as factors: inputs and deltas. Their norms, sums and inner products follow
from those, so private training, weighting or the noise scale cost about as much as one gradient (see `pairs.py` for
the formula, and `ways` for which way each parameter goes). That holds for any model: weights used many times, loops
over time or layers, convolutions, lookups; what is no product, like the gradient of a bias, is an array per example.

Examples that interact have no gradients of their own. What can be found out is refused: a loss that returns more than
one number, a mean over a named axis of examples, and, by `of_batch`, a loss over a batch that is neither the mean nor
the sum of the losses of its examples, as under batch normalisation in training mode. A model that is given one example
and computes statistics over one of the example's own axes cannot be told from one that means to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .backward import Backward
from .examples import Examples, backpropagate, batch_size, inner_products, jacobian_rows

__all__ = [
    "Clipping",
    "Moments",
    "NoiseScale",
    "clipped_grad",
    "cosines",
    "factors",
    "grads",
    "gram",
    "moments",
    "noise_scale",
    "norms",
    "of_batch",
    "ways",
    "weighted_grad",
]

Array = jax.Array
Loss = Callable[[Any, Any], Any]
_DEFAULT = Backward()


class Clipping(NamedTuple):
    """What `clipped_grad` and `weighted_grad` found on their way.

    Attributes:
        losses: shape (n,).
        norms: the norm of each example's gradient, before clipping: shape (n,), or a tree of such arrays per leaf.
        scales: what each gradient was multiplied by, in the same form, without the division by the batch size.
        clipped: the fraction of examples (and leaves) whose scale is below 1.
    """

    losses: Array
    norms: Any
    scales: Any
    clipped: Array


class Moments(NamedTuple):
    """Mean, variance and signal-to-noise ratio of the per-example gradients, each a tree like the parameters."""

    mean: Any
    variance: Any
    snr: Any


class NoiseScale(NamedTuple):
    """The simple noise scale, tr Σ / ‖G‖², and the two estimates that it is the quotient of."""

    scale: Array
    trace: Array
    squared_norm: Array


def norms(
    loss: Loss,
    *,
    squared: bool = False,
    per_leaf: bool = False,
    with_grad: bool = False,
    backward: Backward = _DEFAULT,
) -> Callable[[Any, Any], Any]:
    """The norm of each example's gradient, ‖W̄_n‖.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        squared: the squares of the norms.
        per_leaf: a norm for each leaf of the parameters.
        with_grad: also the mean of the gradients, from the same pass.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)` that returns an array of shape (n,), or a tree of them like the parameters; or
        the pair of that and the mean gradient.

    Raises:
        TypeError: the loss is not one real number, or a parameter is not real floating point.
        ValueError: the batch has no common leading axis, or the examples interact over a named axis.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, example: (example[0] @ w - example[1]) ** 2 / 2
        >>> batch = jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([0.0, 0.0])
        >>> bp.per_example.norms(loss)(jnp.array([1.0, 0.0]), batch)
        Array([15.,  0.], dtype=float32)

    Source: I. Goodfellow, "Efficient per-example gradient computations", 2015.
    """

    def of(params: Any, batch: Any) -> Any:
        found = backpropagate(loss, params, batch, backward=backward, sums=with_grad)
        n2 = [leaf.squared_norms() for leaf in found.leaves]
        finish = (lambda a: a) if squared else jnp.sqrt
        out = jax.tree.unflatten(found.tree, map(finish, n2)) if per_leaf else finish(_total(n2, found))
        return (out, _mean(found)) if with_grad else out

    return of


def weighted_grad(
    loss: Loss,
    weight: Callable[[Array, Array], Array],
    *,
    divide_by: float | None = None,
    backward: Backward = _DEFAULT,
) -> Callable[..., tuple[Any, Clipping]]:
    """The sum of the examples' gradients, each with a weight that may depend on its norm and its loss.

    It is Σ_n c_n W̄_n / N with c = weight(norms, losses): the deltas are scaled by c_n / N, and contracted once.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        weight: from the norms and the losses, each of shape (n,), to c, of shape (n,).
        divide_by: N; the size of the batch if left out.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)`, or `(params, batch, mask)` with a factor for each example that is 0 for those
        that only fill up the batch, which returns the gradient and a `Clipping`.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, example: (example[0] @ w - example[1]) ** 2 / 2
        >>> batch = jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([0.0, 2.0])
        >>> hard_only = lambda norms, losses: (losses > 3).astype(norms.dtype)
        >>> bp.per_example.weighted_grad(loss, hard_only)(jnp.array([1.0, 0.0]), batch)[0]
        Array([4.5, 6. ], dtype=float32)
    """

    def of(params: Any, batch: Any, mask: Array | None = None) -> tuple[Any, Clipping]:
        found = backpropagate(loss, params, batch, backward=backward, sums=True)
        n = jnp.sqrt(_total([leaf.squared_norms() for leaf in found.leaves], found))
        scales = weight(n, found.outputs)
        gradient = found.map(lambda leaf: leaf.weighted_sum(_divided(scales, mask, divide_by)))
        return gradient, Clipping(found.outputs, n, scales, _fraction([scales], mask))

    return of


def clipped_grad(
    loss: Loss,
    max_norm: Any,
    *,
    per_leaf: bool = False,
    divide_by: float | None = None,
    backward: Backward = _DEFAULT,
) -> Callable[..., tuple[Any, Clipping]]:
    """The mean of the examples' gradients, each clipped to a norm: Σ_n min(1, C / ‖W̄_n‖) W̄_n / N.

    One forward and one backward pass: the norms come from the factors, the deltas are scaled and contracted once. With
    noise of standard deviation σ C / N added to each element (`optax.add_noise`), it is the gradient of differentially
    private training; see `examples/private_training.py`.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        max_norm: C, positive; with `per_leaf`, a number for all leaves or a tree of numbers like the parameters.
        per_leaf: clip each leaf by its own norm.
        divide_by: N; the size of the batch if left out. Under Poisson sampling, the expected size.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)`, or `(params, batch, mask)` with a factor for each example that is 0 for those
        that only fill up the batch, which returns the gradient and a `Clipping`.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, example: (example[0] @ w - example[1]) ** 2 / 2
        >>> batch = jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([0.0, 0.0])
        >>> gradient, found = bp.per_example.clipped_grad(loss, 5.0)(jnp.array([1.0, 0.0]), batch)
        >>> print(gradient, found.norms, found.clipped)
        [1.5 2. ] [15.  0.] 0.5

    Source: M. Abadi and others, "Deep learning with differential privacy", 2016; X. Li and others, "Large language
    models can be strong differentially private learners", 2022, for clipping without making the gradients.
    """
    clip = lambda norm, bound: jnp.where(norm > bound, bound / norm, jnp.ones_like(norm))
    if not per_leaf:
        return weighted_grad(loss, lambda n, _: clip(n, max_norm), divide_by=divide_by, backward=backward)

    def of(params: Any, batch: Any, mask: Array | None = None) -> tuple[Any, Clipping]:
        found = backpropagate(loss, params, batch, backward=backward, sums=True)
        one_for_all = jax.tree_util.all_leaves([max_norm])
        bounds = [max_norm] * len(found.leaves) if one_for_all else found.tree.flatten_up_to(max_norm)
        all_norms = [jnp.sqrt(leaf.squared_norms()) for leaf in found.leaves]
        scales = [clip(n, bound) for n, bound in zip(all_norms, bounds, strict=True)]
        sums = [leaf.weighted_sum(_divided(c, mask, divide_by)) for leaf, c in zip(found.leaves, scales, strict=True)]
        tree = lambda leaves: jax.tree.unflatten(found.tree, leaves)
        return tree(sums), Clipping(found.outputs, tree(all_norms), tree(scales), _fraction(scales, mask))

    return of


def grads(loss: Loss, *, max_bytes: int | None = None, backward: Backward = _DEFAULT) -> Callable[[Any, Any], Any]:
    """The gradient of each example, made: what `jax.vmap(jax.grad(loss), (None, 0))` returns.

    Convolutions are made from patches by one batched matrix product, not by a mapped convolution.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        max_bytes: how many bytes may be in use at a time beside the result: the batch is gone through in chunks that
            are as large as this allows, at least one example.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)` that returns a tree like the parameters, each leaf with a leading axis n.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.per_example.grads(lambda w, x: (w * x) ** 2)(jnp.array(1.0), jnp.array([1.0, 2.0]))
        Array([2., 8.], dtype=float32)
    """

    def of(params: Any, batch: Any) -> Any:
        run = lambda batch: backpropagate(loss, params, batch, backward=backward).map(lambda leaf: leaf.arrays())
        n = batch_size(batch)
        chunk = n if max_bytes is None else max(1, max_bytes // max(1, _bytes_of_one(loss, params, batch, backward)))
        if chunk >= n:
            return run(batch)
        whole = n // chunk * chunk
        chunks = jax.tree.map(lambda a: jnp.asarray(a)[:whole].reshape(-1, chunk, *a.shape[1:]), batch)
        out = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), jax.lax.map(run, chunks))
        if whole == n:
            return out
        rest = run(jax.tree.map(lambda a: a[whole:], batch))
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)

    return of


def moments(loss: Loss, *, backward: Backward = _DEFAULT) -> Callable[[Any, Any], Moments]:
    """Mean, variance and signal-to-noise ratio of the per-example gradients, element by element.

    mean = Σ_n W̄_n / N,   variance = Σ_n (W̄_n - mean)² / (N - 1),   snr = |mean| / √variance.

    The squares of a layer without shared positions are one contraction of squares, Σ_n x_n² δ_n².

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)` that returns `Moments`. For one example the variance is nan.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> found = bp.per_example.moments(lambda w, x: w * x)(jnp.array(1.0), jnp.array([1.0, 3.0]))
        >>> print(found.mean, found.variance, f"{found.snr:.3f}")
        2.0 2.0 1.414

    Source: F. Dangel, F. Kunstner, P. Hennig, "BackPACK: packing more into backprop", 2020.
    """

    def of(params: Any, batch: Any) -> Moments:
        found = backpropagate(loss, params, batch, backward=backward, sums=True)
        n = batch_size(batch)
        squares, mean = [leaf.sum_of_squares() for leaf in found.leaves], jax.tree.leaves(_mean(found))
        variance = [
            jnp.maximum(q - n * m.astype(q.dtype) ** 2, jnp.zeros((), q.dtype)) / jnp.asarray(n - 1, q.dtype)
            for q, m in zip(squares, mean, strict=True)
        ]
        snr = [jnp.abs(m.astype(v.dtype)) / jnp.sqrt(v) for m, v in zip(mean, variance, strict=True)]
        return Moments(*(jax.tree.unflatten(found.tree, leaves) for leaves in (mean, variance, snr)))

    return of


def noise_scale(loss: Loss, *, backward: Backward = _DEFAULT) -> Callable[[Any, Any], NoiseScale]:
    """The simple noise scale: the batch size at which noise and gradient are of one size.

    With ḡ the mean of the N gradients and m = Σ_n ‖W̄_n‖² / N,

        tr Σ ≈ (m - ‖ḡ‖²) N / (N - 1),   ‖G‖² ≈ (N ‖ḡ‖² - m) / (N - 1),   scale = tr Σ / ‖G‖²,

    both estimates unbiased. Average `trace` and `squared_norm` over several batches before dividing: near a minimum the
    second one is small, and can be negative.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)` that returns a `NoiseScale`. The batch must have at least two examples.

    Raises:
        ValueError: the batch has one example.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> found = bp.per_example.noise_scale(lambda w, x: w * x)(jnp.array(1.0), jnp.array([1.0, 3.0]))
        >>> print(found.trace, found.squared_norm, f"{found.scale:.4f}")
        2.0 3.0 0.6667

    Source: S. McCandlish, J. Kaplan, D. Amodei, "An empirical model of large-batch training", 2018, appendix A.1.
    """

    def of(params: Any, batch: Any) -> NoiseScale:
        n = batch_size(batch)
        if n < 2:
            raise ValueError("The noise scale compares examples with each other: it needs a batch of at least two.")
        found = backpropagate(loss, params, batch, backward=backward, sums=True)
        m = jnp.mean(_total([leaf.squared_norms() for leaf in found.leaves], found))
        big = sum(jnp.sum(jnp.square(g.astype(m.dtype))) for g in jax.tree.leaves(_mean(found)))
        trace, squared_norm = (m - big) * (n / (n - 1)), (n * big - m) / (n - 1)
        return NoiseScale(trace / squared_norm, trace, squared_norm)

    return of


def factors(loss: Loss, *, backward: Backward = _DEFAULT) -> Callable[[Any, Any], dict[str, tuple[Array, Array]]]:
    """The factors of each weight's gradients: `{path: (inputs, deltas)}`.

    For a weight W[i,o], W̄_n = Σ_p inputs[n,p,i] deltas[n,p,o]: p runs over the positions that the example shares the
    weight over (1 in a dense layer of a network that sees one vector per example). A stack of layers, or a convolution
    with groups of channels, has an axis g of groups before p. The inputs of an embedding are the numbers of its rows,
    integers without the axis i. A weight used several times in one way has the positions of all uses.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)` that returns a dict. Parameters whose cotangents are no products (biases), or
        products that do not go together, are not in it.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda p, x: jnp.sum(x @ p["kernel"] + p["bias"])
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
        >>> {k: (x.shape, d.shape) for k, (x, d) in bp.per_example.factors(loss)(params, jnp.ones((5, 2))).items()}
        {'kernel': ((5, 1, 2), (5, 1, 3))}
    """

    def of(params: Any, batch: Any) -> dict[str, tuple[Array, Array]]:
        found = backpropagate(loss, params, batch, backward=backward)
        return {leaf.path: leaf.factors() for leaf in found.leaves if leaf.pairs}

    return of


def gram(f: Loss, *, backward: Backward = _DEFAULT) -> Callable[[Any, Any], Array]:
    """The Gram matrix of the per-example gradients, J J': all inner products ⟨W̄_n, W̄_m⟩, over all parameters.

    Args:
        f: `f(params, example)`: a scalar, or an array, whose elements then have a row each.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)` that returns an array of shape (n, n); or, where f returns arrays with k
        elements, (n, k, n, k).

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.per_example.gram(lambda w, x: w @ x)(jnp.zeros(2), jnp.array([[1.0, 0.0], [1.0, 2.0]]))
        Array([[1., 1.],
               [1., 5.]], dtype=float32)
    """

    def of(params: Any, batch: Any) -> Array:
        rows, k = jacobian_rows(f, params, batch, backward)
        matrix = inner_products(rows, rows)
        return matrix if k is None else matrix.reshape(len(matrix) // k, k, len(matrix) // k, k)

    return of


def cosines(loss: Loss, *, backward: Backward = _DEFAULT) -> Callable[[Any, Any], Array]:
    """The cosines between the gradients of all pairs of examples: shape (n, n); 0 where a gradient is zero.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)` that returns an array of shape (n, n).

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.per_example.cosines(lambda w, x: w @ x)(jnp.zeros(2), jnp.array([[1.0, 0.0], [3.0, 4.0]]))
        Array([[1. , 0.6],
               [0.6, 1. ]], dtype=float32)
    """

    def of(params: Any, batch: Any) -> Array:
        found = backpropagate(loss, params, batch, backward=backward)
        matrix = inner_products(found, found)
        n = jnp.sqrt(jnp.diagonal(matrix))
        scale = n[:, None] * n[None, :]
        return jnp.where(scale > 0, matrix / jnp.where(scale > 0, scale, 1), 0)

    return of


def ways(loss: Loss, *, sums: bool = True, backward: Backward = _DEFAULT) -> Callable[[Any, Any], dict[str, str]]:
    """Which way each parameter goes: `{path: way}`, without computing anything.

    `"factors"`: norms come from the factors. `"products"`: the products are made, because that is cheaper, or for the
    reason given after it. `"array"`: the cotangents come as arrays, as those of biases do. `"zero"`: the loss does not
    depend on it.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        sums: whether a sum is asked for too, as in `clipped_grad`; in `norms` alone it is not.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, batch)`, which may be types (`jax.ShapeDtypeStruct`), that returns a dict.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda p, x: jnp.sum(x @ p["kernel"] + p["bias"])
        >>> bp.per_example.ways(loss)({"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, jnp.ones((5, 2)))
        {'bias': 'array', 'kernel': 'factors'}
    """

    def of(params: Any, batch: Any) -> dict[str, str]:
        out: dict[str, str] = {}

        def look(params: Any, batch: Any) -> None:
            found = backpropagate(loss, params, batch, backward=backward, sums=sums)
            out.update((leaf.path, leaf.way) for leaf in found.leaves)

        jax.eval_shape(look, params, batch)
        return out

    return of


def of_batch(batch_loss: Callable[[Any, Any], Any], params: Any, batch: Any, *, tolerance: float = 1e-3) -> Loss:
    """The loss of one example, from a loss that is written for a batch, once it is sure that examples do not interact.

    The batch's loss must be the mean or the sum of the losses of its examples alone. Under batch normalisation in
    training mode it is not, and then an example has no gradient of its own.

    Args:
        batch_loss: `batch_loss(params, batch)`, a scalar.
        params: parameters to try it with.
        batch: a batch of at least two examples to try it with; values, not tracers.
        tolerance: how far the two may differ, relative to the loss.

    Returns:
        `loss(params, example)`, which calls `batch_loss` with a batch of one.

    Raises:
        ValueError: the examples interact, or the batch has one example.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> mean_square = lambda w, x: jnp.mean((x @ w) ** 2)
        >>> params, batch = jnp.array([1.0, 2.0]), jnp.array([[1.0, 0.0], [3.0, 4.0]])
        >>> bp.per_example.norms(bp.per_example.of_batch(mean_square, params, batch))(params, batch)
        Array([  2., 110.], dtype=float32)
        >>> normalised = lambda w, x: jnp.mean(((x - x.mean(0)) @ w) ** 2)
        >>> bp.per_example.of_batch(normalised, params, batch)
        Traceback (most recent call last):
        ...
        ValueError: The examples interact: the loss of the batch is 25, and those of its examples alone have mean 0 ...
    """
    n = batch_size(batch)
    if n < 2:
        raise ValueError("Whether examples interact shows in a batch of at least two, and this one has one.")

    def loss(params: Any, example: Any) -> Any:
        return batch_loss(params, jax.tree.map(lambda a: jnp.asarray(a)[None], example))

    together = batch_loss(params, batch)
    apart = jax.vmap(loss, (None, 0))(params, batch)
    if jnp.shape(together) != ():
        raise ValueError(f"The loss of a batch must be one number, and has shape {list(jnp.shape(together))}.")
    scale = max(abs(float(together)), float(jnp.max(jnp.abs(apart))))
    mean, total = float(jnp.mean(apart)), float(jnp.sum(apart))
    if min(abs(float(together) - mean), abs(float(together) - total) / n) > tolerance * scale:
        raise ValueError(
            f"The examples interact: the loss of the batch is {float(together):.4g}, and those of its examples alone "
            f"have mean {mean:.4g} and sum {total:.4g}. So it is under batch normalisation in training mode, where an "
            "example's output depends on the others; then there is no gradient of one example. Use the running "
            "averages, or a normalisation within the example (layer or group normalisation)."
        )
    return loss


# --- shared -----------------------------------------------------------------------------------------------------------


def _total(squares: list[Array], found: Examples) -> Array:
    """The squared norms over all leaves."""
    if not squares:
        return jnp.zeros(jax.tree.leaves(found.outputs)[0].shape[:1])
    dtype = jnp.result_type(*(q.dtype for q in squares)) if len({q.dtype for q in squares}) == 1 else jnp.float32
    return sum((q.astype(dtype) for q in squares[1:]), squares[0].astype(dtype))


def _mean(found: Examples) -> Any:
    n = jax.tree.leaves(found.outputs)[0].shape[0]
    return found.map(lambda leaf: leaf.weighted_sum(jnp.full(n, 1 / n, jnp.finfo(leaf.aval.dtype).dtype)))


def _divided(scales: Array, mask: Array | None, divide_by: float | None) -> Array:
    scales = scales if mask is None else scales * jnp.asarray(mask, scales.dtype)
    return scales / (len(scales) if divide_by is None else divide_by)


def _fraction(scales: list[Array], mask: Array | None) -> Array:
    """The mean over leaves and (unmasked) examples of whether a scale is below 1."""
    below = jnp.stack([(c < 1).astype(c.dtype) for c in scales])
    if mask is None:
        return jnp.mean(below)
    mask = jnp.asarray(mask, below.dtype)
    return jnp.sum(below * mask[None]) / (len(scales) * jnp.maximum(jnp.sum(mask), 1))


def _bytes_of_one(loss: Loss, params: Any, batch: Any, backward: Backward) -> int:
    """About how many bytes the gradients and their factors take for one example."""

    def look(params: Any, batch: Any) -> Any:
        found = backpropagate(loss, params, jax.tree.map(lambda a: jnp.asarray(a)[:1], batch), backward=backward)
        return [leaf.factors() for leaf in found.leaves if leaf.pairs], found.map(lambda leaf: leaf.arrays())

    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(look, params, batch)))
