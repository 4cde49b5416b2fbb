"""Multilayer perceptrons: stacks of dense layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from .. import ops
from .initializers import Initializer, xavier_uniform
from .net import Net, Params, apply_dense, check_functions, check_sizes, dtype_like, init_dense


def mlp(
    sizes: Sequence[int],
    activation: Callable[[jax.Array], jax.Array] = ops.logistic,
    output: Callable[[jax.Array], jax.Array] = ops.identity,
    initializer: Initializer = xavier_uniform,
    bias: bool = True,
) -> Net:
    """A multilayer perceptron: net_l = y_{l-1} W_l + b_l, y_l = activation(net_l), and the last layer with `output`.

    Backward, with δ_l the cotangent of net_l, this is the textbook's recursion δ_l = (δ_{l+1} W'_{l+1}) · f'(net_l),
    W̄_l = y'_{l-1} δ_l. With no hidden layer and `output=identity` it is the delta rule: under ½ Σ (t - y)², the
    gradient of a weight is -(t - y) times its input.

    Args:
        sizes: units per layer, inputs first: `[2, 2, 1]` has two inputs, two hidden units and one output.
        activation: the activation of the hidden layers.
        output: the activation of the output layer.
        initializer: how the kernels are drawn; biases start at 0.
        bias: whether the units have biases.

    Returns:
        A network from (batch..., sizes[0]) to (batch..., sizes[-1]), with parameters `dense_0/kernel`, `dense_0/bias`
        and so on.

    Raises:
        ValueError: there are fewer than two sizes, or one is not a positive whole number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import nets
        >>> params = nets.mlp([2, 2, 1]).init(jax.random.key(0), jnp.zeros(2))
        >>> params["dense_0"]["kernel"].shape, params["dense_1"]["bias"].shape
        ((2, 2), (1,))

    References:
        D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
    """
    sizes = list(sizes)
    check_sizes("mlp", sizes, 2)
    check_functions("mlp", activation=activation, output=output)

    def init(key: jax.Array, x: jax.Array | np.ndarray) -> Params:
        if not x.shape or x.shape[-1] != sizes[0]:
            raise ValueError(f"This network takes inputs of shape (batch..., {sizes[0]}), and got shape {x.shape}.")
        return init_dense(key, sizes, initializer, bias, dtype_like(x))

    def apply(params: Params, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return apply_dense(params, x, len(sizes) - 1, activation, output)

    return Net(init, apply)


def autoencoder(
    sizes: Sequence[int],
    activation: Callable[[jax.Array], jax.Array] = ops.logistic,
    output: Callable[[jax.Array], jax.Array] = ops.identity,
    initializer: Initializer = xavier_uniform,
    bias: bool = True,
) -> Net:
    """An autoencoder: an encoder of the given sizes, and its mirror image as the decoder.

    It is trained to give back its input, y ≈ x, through the narrow layer in the middle: backpropagation without a
    teacher.

    Args:
        sizes: units per layer of the encoder, inputs first: `[64, 32, 8]` makes the network 64-32-8-32-64.
        activation: the activation of all layers but the last.
        output: the activation of the last layer.
        initializer: how the kernels are drawn; biases start at 0.
        bias: whether the units have biases.

    Returns:
        A network from (batch..., sizes[0]) to the same shape, with parameters named as in `mlp`.

    Raises:
        ValueError: there are fewer than two sizes, or one is not a positive whole number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import nets
        >>> net = nets.autoencoder([8, 3])
        >>> net.apply(net.init(jax.random.key(0), jnp.zeros(8)), jnp.zeros((2, 8))).shape
        (2, 8)

    References:
        D. Ackley, G. Hinton, T. Sejnowski, "A learning algorithm for Boltzmann machines", 1985.
    """
    sizes = list(sizes)
    check_sizes("autoencoder", sizes, 2)
    check_functions("autoencoder", activation=activation, output=output)
    return mlp([*sizes, *sizes[-2::-1]], activation, output, initializer, bias)
