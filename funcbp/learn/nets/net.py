"""What a network is: a function that makes parameters, and a function that applies them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ...autodiff.arguments import checked_arrays
from ...jaxpr.types import PyTree
from .. import ops
from .initializers import Initializer

Params = dict[str, dict[str, jax.Array]]


class Net(NamedTuple):
    """A network as a pair of pure functions.

    Parameters are nested dicts, `{"dense_0": {"kernel": (in, out), "bias": (out,)}}`; the path of a leaf is written
    `dense_0/kernel`.

    Attributes:
        init: `init(key, x) -> params`. `key` is a typed key (`jax.random.key`), `x` an example input, or a batch of
            them, whose shape is checked and whose dtype the parameters take (float32 if `x` holds integers).
        apply: `apply(params, x, *, key=None) -> y`. `key` is for networks that draw random numbers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import nets
        >>> net = nets.mlp([2, 3, 1])
        >>> params = net.init(jax.random.key(0), jnp.zeros(2))
        >>> net.apply(params, jnp.zeros((5, 2))).shape
        (5, 1)
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]


def dtype_like(x: jax.Array | np.ndarray) -> DTypeLike:
    """The dtype of the parameters of a network that takes inputs like `x`."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32


def init_layer(
    key: jax.Array, initializer: Initializer, shape: Sequence[int], bias: bool, dtype: DTypeLike
) -> dict[str, jax.Array]:
    """A kernel drawn by the initialiser, and a bias of zeros for each output."""
    kernel = {"kernel": initializer(key, tuple(shape), dtype)}
    return {**kernel, "bias": jnp.zeros(shape[-1], dtype)} if bias else kernel


def init_dense(
    key: jax.Array, sizes: Sequence[int], initializer: Initializer, bias: bool, dtype: DTypeLike
) -> dict[str, dict[str, jax.Array]]:
    """The parameters of a stack of dense layers, `dense_0` and so on."""
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"dense_{i}": init_layer(keys[i], initializer, shape, bias, dtype) for i, shape in enumerate(pairwise(sizes))
    }


def apply_dense(
    params: Params,
    x: jax.Array,
    layers: int,
    activation: Callable[[jax.Array], jax.Array],
    output: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """A stack of dense layers: net_l = y_{l-1} W_l + b_l, y_l = activation(net_l), and the last one with `output`."""
    for i in range(layers):
        layer = params[f"dense_{i}"]
        net = ops.dense(x, layer["kernel"], layer.get("bias"))
        x = output(net) if i == layers - 1 else activation(net)
    return x


def check_sizes(name: str, sizes: Sequence[int], least: int) -> None:
    """Raise if `sizes` are not at least so many positive whole numbers."""
    if len(sizes) < least or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"{name} needs at least {least} sizes, positive whole numbers, and got {list(sizes)}.")


def check_functions(name: str, **functions: object) -> None:
    """Raise if one of these is no function, as where an activation is given by its name."""
    for what, value in functions.items():
        if not callable(value):
            raise TypeError(f"{name}'s {what} is a function, such as funcbp.ops.relu, and was {value!r}.")


def count(params: PyTree) -> int:
    """The number of parameters: the sizes of all leaves together.

    Args:
        params: a pytree of arrays.

    Returns:
        How many numbers, an integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import nets
        >>> nets.count(nets.mlp([2, 2, 1]).init(jax.random.key(0), jnp.zeros(2)))
        9
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(checked_arrays(params)))
