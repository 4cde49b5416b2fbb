"""A convolutional network in the manner of LeNet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import lax

from .. import ops
from .initializers import Initializer, he_uniform
from .net import Net, Params, apply_dense, check_functions, check_sizes, dtype_like, init_dense, init_layer


def convnet(
    image_shape: Sequence[int],
    outputs: int,
    channels: Sequence[int] = (16, 32),
    hidden: Sequence[int] = (64,),
    kernel_size: int = 3,
    activation: Callable[[jax.Array], jax.Array] = ops.relu,
    output: Callable[[jax.Array], jax.Array] = ops.identity,
    initializer: Initializer = he_uniform,
) -> Net:
    """Convolutions that share their weights across the image, each followed by max pooling; then dense layers.

    A stage convolves with zeros around the border (so the size stays), adds a bias per channel, applies the activation,
    and takes the largest of every 2 x 2 values. What is left is flattened and read by dense layers.

    Args:
        image_shape: (height, width, channels) of an image.
        outputs: how many output units.
        channels: feature maps of each stage.
        hidden: units of each hidden dense layer; may be empty.
        kernel_size: height and width of the convolutions.
        activation: the activation of all layers but the last.
        output: the activation of the output layer.
        initializer: how the kernels are drawn; biases start at 0.

    Returns:
        A network from images, as (batch..., height, width, channels) or as flat vectors (batch..., height · width ·
        channels), to (batch..., outputs), with parameters `conv_0/kernel` (height, width, in, out), `conv_0/bias`, ...,
        `dense_0/kernel`, and so on.

    Raises:
        ValueError: the sizes are not positive whole numbers, or the image is too small for so many poolings.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import nets
        >>> net = nets.convnet((8, 8, 1), 10)
        >>> params = net.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
        >>> params["conv_1"]["kernel"].shape, net.apply(params, jnp.zeros((5, 64))).shape
        ((3, 3, 16, 32), (5, 10))

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    image_shape, channels, hidden = tuple(image_shape), tuple(channels), tuple(hidden)
    check_sizes("convnet's image", image_shape, 3)
    check_sizes("convnet's stages", channels, 1)
    check_sizes("convnet", [*hidden, outputs, kernel_size], 2)
    check_functions("convnet", activation=activation, output=output)
    if len(image_shape) != 3:
        raise ValueError(f"convnet needs an image shape (height, width, channels), and got {image_shape}.")
    height, width = image_shape[0] >> len(channels), image_shape[1] >> len(channels)
    if not height or not width:
        raise ValueError(
            f"convnet halves the image {len(channels)} times; {image_shape[0]} x {image_shape[1]} is too small."
        )
    sizes = [height * width * channels[-1], *hidden, outputs]

    def init(key: jax.Array, x: jax.Array | np.ndarray) -> Params:
        _batch_shape(image_shape, x.shape)
        key, *keys = jax.random.split(key, len(channels) + 1)
        shapes = zip((image_shape[2], *channels[:-1]), channels, strict=True)
        stages = {
            f"conv_{i}": init_layer(keys[i], initializer, (kernel_size, kernel_size, *io), True, dtype_like(x))
            for i, io in enumerate(shapes)
        }
        return {**stages, **init_dense(key, sizes, initializer, True, dtype_like(x))}

    def apply(params: Params, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        batch = _batch_shape(image_shape, x.shape)
        x = x.reshape(math.prod(batch), *image_shape)
        for i in range(len(channels)):
            x = _max_pool(activation(_convolve(x, **params[f"conv_{i}"])))
        x = x.reshape(*batch, sizes[0])
        return apply_dense(params, x, len(sizes) - 1, activation, output)

    return Net(init, apply)


def _batch_shape(image_shape: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes of images given as arrays of three axes or as flat vectors."""
    if shape[-3:] == image_shape:
        return shape[:-3]
    size = math.prod(image_shape)
    if shape[-1:] == (size,):
        return shape[:-1]
    raise ValueError(
        f"This network takes images of shape (batch..., {', '.join(map(str, image_shape))}) or (batch..., {size}), and "
        f"got shape {shape}."
    )


def _convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """net[b,y,x,j] = Σ_{u,v,i} image[b,y+u,x+v,i] W[u,v,i,j] + β[j]."""
    net = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return net + bias.reshape(1, 1, 1, -1)


def _max_pool(x: jax.Array) -> jax.Array:
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, window, window, "VALID")
