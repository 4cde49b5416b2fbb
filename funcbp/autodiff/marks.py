"""Two marks in a model, both identities for JAX: a name for a value, and another value to go back through."""

from __future__ import annotations

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name as _checkpoint_name
from jax.tree_util import KeyPath

from ..jaxpr import feedback_p
from ..jaxpr.types import PyTree, T, Value

__all__ = ["feedback", "name"]


def name(x: T, name: str) -> T:
    """Name a value, for `funcbp.cotangents`, `funcbp.trace` and `Backward(edits=...)`.

    It is JAX's `checkpoint_name`, so policies of `jax.checkpoint` see the same names.

    Args:
        x: a pytree of arrays.
        name: their name.

    Returns:
        x, the same values.

    Raises:
        TypeError: the name is no string.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, x: jnp.sum(bp.name(x @ w, "net") ** 2)
        >>> bp.cotangents(loss)(jnp.ones((2, 1)), jnp.array([[1.0, 2.0]]))[2]["net"]
        Array([[6.]], dtype=float32)
    """
    if not isinstance(name, str):
        raise TypeError(f"A name is a string, and was {name!r}.")
    return _checkpoint_name(x, name)


def feedback(w: T, b: PyTree) -> T:
    """Use w going forward and b going backward: whatever consumes w propagates its delta through b.

    Where w is a factor of a product, z = x w, the cotangents are x̄ = z̄ b' and w̄ = x' z̄: the gradient goes to w, and
    b gets none. The mark stays on w through transposing, casting, reshaping, slicing, joining, writing, masking and
    scaling, into loops, branches and `jax.checkpoint`; it has no effect on other uses of w, such as a penalty on its
    size. The product of two marked values (a weight written as a product) is itself not marked: mark the product. What
    is looked up in w by many indices, sorted, or comes out of a loop or branch, may be a weight or activations: used as
    the one factor without a mark, it is refused.

    For JAX, and for `funcbp.vjp` around it, it is the identity of w.

    Args:
        w: a pytree of arrays: a weight, or all the parameters of a model.
        b: a pytree like w, with arrays of the same shapes; None for leaves (or subtrees) that are not to be marked.

    Returns:
        A pytree like w, to be used in its place inside the function that is differentiated.

    Raises:
        ValueError: b has another structure, or an array of b another shape than that of w; or, where it is
            differentiated, the mark was lost.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> w, b = jnp.array([[1.0], [2.0]]), jnp.array([[10.0], [20.0]])
        >>> loss = lambda w, x: jnp.sum(x @ bp.feedback(w, b))
        >>> w_bar, x_bar = bp.grad(loss, argnums=(0, 1))(w, jnp.array([[3.0, 4.0]]))
        >>> w_bar.ravel(), x_bar.ravel()
        (Array([3., 4.], dtype=float32), Array([10., 20.], dtype=float32))

    References:
        T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, "Random synaptic feedback weights support error
        backpropagation for deep learning" (2016).
    """

    def mark(path: KeyPath, weight: Value, value: Value) -> Value:
        if weight is None or value is None:
            return value
        got, wanted = jax.numpy.shape(weight), jax.numpy.shape(value)
        if got != wanted:
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"feedback at {where or 'the root'} has shape {got}, and the value it stands for {wanted}."
            )
        return feedback_p.bind(value, lax.convert_element_type(weight, value.dtype))

    none = lambda x: x is None
    try:
        jax.tree.map(lambda weight, value: None, b, w, is_leaf=none)
    except ValueError:
        has, wanted = (", ".join(_paths(tree)) for tree in (b, w))
        raise ValueError(
            f"Feedback weights are a tree like what they stand for, with None where there is none; that has {wanted}, "
            f"and they have {has}."
        ) from None
    return jax.tree.map_with_path(mark, b, w, is_leaf=none)


def _paths(tree: PyTree) -> list[str]:
    """The paths of a tree's leaves, the first few."""
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]
    return [*(p or "the root" for p in paths[:8]), *(["..."] if len(paths) > 8 else [])] or ["nothing"]
