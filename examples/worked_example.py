"""The textbook's 2-2-2 network, one number after another, every derivative from funcbp.

Two inputs, two hidden and two output units, all logistic; E = Σ ½ (target - output)²; learning rate ½; biases stay as
they are. Each line prints what the slides print, and fails if a digit differs; one of theirs, ∂E_o2/∂out_h1, is off by
one in its ninth digit. At the end, 10,000 updates in two variants: the slides say that weights are updated when all
gradients are known, but the numbers they print after the first update come from hidden deltas computed with output
weights that were already updated.

Source: M. Mazur, "A step by step backpropagation example", 2015, as taught in J. Urbain's slides "Backpropagation".
"""

# %%
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import funcbp as bp
from funcbp import ops

jax.config.update("jax_enable_x64", True)


class Weights(NamedTuple):
    """The kernels, shaped (in, out): w1..w4 to the hidden units, w5..w8 to the output units."""

    hidden: Any
    output: Any


RATE = 0.5


def example() -> tuple[Weights, Any, Any, Any, Any]:
    """Initial weights, biases of hidden and output units, inputs and targets."""
    w1, w2, w3, w4, w5, w6, w7, w8 = 0.15, 0.20, 0.25, 0.30, 0.40, 0.45, 0.50, 0.55
    weights = Weights(jnp.array([[w1, w3], [w2, w4]]), jnp.array([[w5, w7], [w6, w8]]))
    return weights, jnp.full(2, 0.35), jnp.full(2, 0.60), jnp.array([0.05, 0.10]), jnp.array([0.01, 0.99])


def forward(weights: Weights) -> tuple[Any, Any, Any, Any]:
    """Net inputs and outputs of the hidden units, then of the output units."""
    _, hidden_bias, output_bias, x, _ = example()
    net_h = ops.dense(x, weights.hidden, hidden_bias)
    out_h = ops.logistic(net_h)
    net_o = ops.dense(out_h, weights.output, output_bias)
    return net_h, out_h, net_o, ops.logistic(net_o)


def error(weights: Weights) -> Any:
    """E, the sum over the output units."""
    targets = example()[4]
    return ops.squared_error(forward(weights)[3], targets)


# %% [markdown]
# Two orders of updating: all weights at once, from gradients that belong together, or the output weights first.


# %%
def update(weights: Weights) -> Weights:
    """All weights at once, from gradients that belong to the same weights: backpropagation."""
    return jax.tree.map(lambda w, g: w - RATE * g, weights, bp.grad(error)(weights))


def update_output_first(weights: Weights) -> Weights:
    """The output weights first; the hidden deltas then go back through the new ones."""
    _, _, _, x, targets = example()
    net_h, out_h, net_o, _ = forward(weights)
    delta_o = bp.grad(lambda net: ops.squared_error(ops.logistic(net), targets))(net_o)
    output = weights.output - RATE * bp.vjp(lambda w: ops.dense(out_h, w), weights.output)[1](delta_o)[0]
    out_h_bar = bp.vjp(lambda h: ops.dense(h, output), out_h)[1](delta_o)[0]
    delta_h = bp.vjp(ops.logistic, net_h)[1](out_h_bar)[0]
    hidden = weights.hidden - RATE * bp.vjp(lambda w: ops.dense(x, w), weights.hidden)[1](delta_h)[0]
    return Weights(hidden, output)


def after(updates: int, rule: Any) -> Weights:
    """The weights after so many updates, in one compiled loop."""
    return jax.jit(lambda w: jax.lax.scan(lambda w, _: (rule(w), None), w, length=updates)[0])(example()[0])


# %%
def show(name: str, value: Any, printed: str) -> None:
    """Print a number, and fail unless it is the printed one to all of its digits."""
    rounded = f"{float(value):.{len(printed.partition('.')[2])}f}"
    assert rounded == printed, f"{name} is {float(value)!r}, and the slides print {printed}"
    print(f"  {name:42} = {printed}")


weights, _, _, _, targets = example()
net_h, out_h, net_o, out_o = forward(weights)

# %% [markdown]
# ## Forward pass

# %%
print("Forward pass")
show("net_h1 = w1 i1 + w2 i2 + b1", net_h[0], "0.3775")
show("out_h1 = 1 / (1 + e^-net_h1)", out_h[0], "0.593269992")
show("out_h2", out_h[1], "0.596884378")
show("net_o1 = w5 out_h1 + w6 out_h2 + b2", net_o[0], "1.105905967")
show("out_o1", out_o[0], "0.75136507")
show("out_o2", out_o[1], "0.772928465")

# %% [markdown]
# ## The error

# %%
print("The error")
errors = ops.squared_error(out_o[:, None], targets[:, None], None)
show("E_o1 = ½ (target_o1 - out_o1)²", errors[0], "0.274811083")
show("E_o2", errors[1], "0.023560026")
show("E = E_o1 + E_o2", error(weights), "0.298371109")

# %% [markdown]
# ## Backward pass, output layer

# %%
print("Backward pass, output layer")
gradient = bp.grad(error)(weights)
out_o_bar = bp.grad(ops.squared_error)(out_o, targets)
slope_o = bp.vjp(ops.logistic, net_o)[1](jnp.ones(2))[0]
delta_o = bp.vjp(ops.logistic, net_o)[1](out_o_bar)[0]
show("∂E/∂out_o1 = -(target_o1 - out_o1)", out_o_bar[0], "0.74136507")
show("∂out_o1/∂net_o1 = out_o1 (1 - out_o1)", slope_o[0], "0.186815602")
show("∂net_o1/∂w5 = out_h1", out_h[0], "0.593269992")
show("∂E/∂w5, the product of the three", gradient.output[0, 0], "0.082167041")
show("δ_o1 = ∂E/∂net_o1", delta_o[0], "0.138498562")

# %% [markdown]
# ## Backward pass, hidden layer

# %%
print("Backward pass, hidden layer")
by_output = jax.vmap(bp.vjp(lambda h: ops.dense(h, weights.output), out_h)[1])(jnp.diag(delta_o))[0]
slope_h = bp.vjp(ops.logistic, net_h)[1](jnp.ones(2))[0]
show("∂E_o1/∂out_h1 = δ_o1 w5", by_output[0, 0], "0.055399425")
show("∂E_o2/∂out_h1 = δ_o2 w7 (printed: ...119)", by_output[1, 0], "-0.019049118")
show("∂E/∂out_h1, their sum", jnp.sum(by_output[:, 0]), "0.036350306")
show("∂out_h1/∂net_h1 = out_h1 (1 - out_h1)", slope_h[0], "0.241300709")
show("∂E/∂w1 = δ_h1 i1", gradient.hidden[0, 0], "0.000438568")

# %% [markdown]
# ## One update, w - ½ ∂E/∂w

# %%
print("One update, w - ½ ∂E/∂w")
new = update(weights)
printed = ["0.149780716", "0.19956143", "0.24975114", "0.29950229"]
printed += ["0.35891648", "0.408666186", "0.511301270", "0.561370121"]
for i, digits in enumerate(printed):
    show(f"w{i + 1}", new[i // 4].T.ravel()[i % 4], digits)

# %% [markdown]
# ## The error after it

# %%
print("The error after it")
show("E, all weights at once", error(new), "0.291027774")
show("E, output weights first, as printed", error(update_output_first(weights)), "0.291027924")

# %% [markdown]
# ## After 10,000 updates

# %%
print("After 10,000 updates")
at_once, output_first = after(10_000, update), after(10_000, update_output_first)
show("E, all weights at once", error(at_once), "0.00003510187783")
show("out_o1", forward(at_once)[3][0], "0.01591362044")
show("out_o2", forward(at_once)[3][1], "0.98406427351")
show("E, output weights first", error(output_first), "0.000035084786")
show("out_o1, as printed", forward(output_first)[3][0], "0.015912196")
show("out_o2, as printed", forward(output_first)[3][1], "0.984065734")
print("The slides print 0.0000351085 for the last error; ½ Σ (t - o)² of the outputs they print is 0.000035085.")
