"""Multilayer perceptrons whose units read all the layers below, and not only the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np

from .. import ops
from .initializers import Initializer, xavier_uniform
from .net import Net, Params, check_functions, check_sizes, dtype_like, init_layer


def shortcut_mlp(
    sizes: Sequence[int],
    activation: Callable[[jax.Array], jax.Array] = ops.logistic,
    output: Callable[[jax.Array], jax.Array] = ops.identity,
    initializer: Initializer = xavier_uniform,
    bias: bool = True,
) -> Net:
    """A multilayer perceptron with shortcut connections: net_l = [x, y_1, ..., y_{l-1}] W_l + b_l.

    Backward, a layer's cotangent is the sum over all layers above it, so that deltas reach the first layer directly.

    Args:
        sizes: units per layer, inputs first.
        activation: the activation of the hidden layers.
        output: the activation of the output layer.
        initializer: how the kernels are drawn; biases start at 0.
        bias: whether the units have biases.

    Returns:
        A network from (batch..., sizes[0]) to (batch..., sizes[-1]), with parameters `dense_l/kernel` of shape
        (inputs and units of all layers below, units), and `dense_l/bias`.

    Raises:
        ValueError: there are fewer than two sizes, or one is not a positive whole number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import nets
        >>> net = nets.shortcut_mlp([2, 5, 5, 5, 1])
        >>> nets.count(net.init(jax.random.key(0), jnp.zeros(2)))
        138

    References:
        K. Lang, M. Witbrock, "Learning to tell two spirals apart", 1988.
    """
    sizes = list(sizes)
    check_sizes("shortcut_mlp", sizes, 2)
    check_functions("shortcut_mlp", activation=activation, output=output)

    def init(key: jax.Array, x: jax.Array | np.ndarray) -> Params:
        if not x.shape or x.shape[-1] != sizes[0]:
            raise ValueError(f"This network takes inputs of shape (batch..., {sizes[0]}), and got shape {x.shape}.")
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = zip(accumulate(sizes), sizes[1:], strict=False)
        return {
            f"dense_{i}": init_layer(keys[i], initializer, shape, bias, dtype_like(x)) for i, shape in enumerate(shapes)
        }

    def apply(params: Params, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        below = x
        for i in range(len(sizes) - 1):
            layer = params[f"dense_{i}"]
            net = ops.dense(below, layer["kernel"], layer.get("bias"))
            if i == len(sizes) - 2:
                break
            below = jnp.concatenate([below, activation(net)], axis=-1)
        return output(net)

    return Net(init, apply)
