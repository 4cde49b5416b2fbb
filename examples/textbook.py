"""The textbook's backpropagation, written out: equal to funcbp's gradient and to JAX's, for a layered network.

Forward, net_l = y_{l-1} W_l + b_l and y_l = f(net_l). Backward, with δ_l = ∂E/∂net_l,

    δ_L = -(t - y_L) · f'(net_L)        δ_l = (δ_{l+1} W'_{l+1}) · f'(net_l)        ∂E/∂W_l = y'_{l-1} δ_l

Source: D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
"""

from typing import Any

import jax
import jax.numpy as jnp

import funcbp as bp
from funcbp import nets, ops


def textbook(params: Any, x: Any, t: Any) -> Any:
    """The gradient of ½ Σ (t - y)², layer by layer, for logistic units."""
    layers = list(params)
    y = {-1: x}
    for i, name in enumerate(layers):
        net = y[i - 1] @ params[name]["kernel"] + params[name]["bias"][None, :]
        y[i] = 1 / (1 + jnp.exp(-net))

    gradient = {}
    last = len(layers) - 1
    delta = -(t - y[last]) * y[last] * (1 - y[last])
    for i in reversed(range(len(layers))):
        gradient[layers[i]] = {"kernel": y[i - 1].T @ delta, "bias": jnp.sum(delta, axis=0)}
        if i > 0:
            delta = (delta @ params[layers[i]]["kernel"].T) * y[i - 1] * (1 - y[i - 1])
    return gradient


def main() -> None:
    """Compare the three gradients of a 4-8-6-3 network on ten examples, leaf by leaf."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, t = jax.random.normal(keys[0], (10, 4)), jax.random.uniform(keys[1], (10, 3))
    net = nets.mlp([4, 8, 6, 3], activation=ops.logistic, output=ops.logistic)
    params = net.init(keys[2], x)

    def error(params: Any) -> Any:
        return ops.squared_error(net.apply(params, x), t)

    by_hand, ours, jaxs = textbook(params, x, t), bp.grad(error)(params), jax.grad(error)(params)
    print(f"{'leaf':16}{'textbook':>14}{'bp.grad':>14}{'jax.grad':>14}   largest difference")
    for layer, leaves in params.items():
        for leaf in leaves:
            three = [gradient[layer][leaf] for gradient in (by_hand, ours, jaxs)]
            difference = max(float(jnp.max(jnp.abs(g - three[0]))) for g in three)
            first = "".join(f"{float(g.ravel()[0]):14.9f}" for g in three)
            print(f"{layer}/{leaf}".ljust(16) + f"{first}   {difference:.1e}")
            assert difference < 1e-14, "the three gradients differ"


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
