"""Learning rules by the paths of the parameters: a rate for each layer, for the biases, or none at all."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import jax
import optax

from ...jaxpr.types import PyTree


def by_path(rules: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformationExtraArgs:
    """A learning rule for each group of parameters, chosen by their paths, by means of `optax.partition`.

    Args:
        rules: from patterns such as `dense_0/kernel`, `dense_0/*` or `*/bias` to transformations. A parameter takes the
            first pattern that matches. `optax.set_to_zero()` freezes what it is given.

    Returns:
        An optax transformation.

    Raises:
        ValueError: a parameter is matched by no pattern, or a pattern comes first for no parameter.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from funcbp import optim
        >>> params = {"dense_0": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}, "dense_1": {"kernel": jnp.ones(1)}}
        >>> optimizer = optim.by_path(
        ...     {"*/bias": optax.set_to_zero(), "dense_0/*": optax.sgd(0.1), "*": optax.sgd(0.01)}
        ... )
        >>> updates, state = optimizer.update(params, optimizer.init(params))
        >>> print(updates["dense_0"]["kernel"], updates["dense_0"]["bias"], updates["dense_1"]["kernel"])
        [-0.1 -0.1] [0.] [-0.01]
    """

    def labels(params: PyTree) -> PyTree:
        paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree.leaves_with_path(params)]
        found = [next((p for p in rules if fnmatch.fnmatchcase(path, p)), None) for path in paths]
        if None in found:
            raise ValueError(
                f"by_path has no pattern for the parameter {paths[found.index(None)]}; a last pattern '*' matches "
                "everything."
            )
        idle = [pattern for pattern in rules if pattern not in found]
        if idle:
            raise ValueError(f"by_path's pattern {idle[0]!r} is the first to match none of {', '.join(paths)}.")
        return jax.tree.unflatten(jax.tree.structure(params), found)

    return optax.partition(dict(rules), labels)
