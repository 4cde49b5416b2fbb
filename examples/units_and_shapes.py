"""Units and shapes: swish, mish and Gaussian units, shortcut connections, and the on-neuron.

For backpropagation it does not matter what a unit computes, as long as its derivative can be had, nor which units it
reads, as long as there is no circle. What changes is what can be learned, and how fast.
"""

# %%
import operator
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import data, nets, ops, optim, plot, reproduce
from funcbp.learn.train import stopping

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/units_and_shapes")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


# %% [markdown]
# The units beside the logistic one, and their derivatives, which the backward pass multiplies by. The logistic's is at
# most ¼, so that deltas shrink from layer to layer; swish's and mish's are about 1 over half of the axis, and a little
# more than 1 in places.

# %%
UNITS = {"logistic": ops.logistic, "swish": ops.swish, "mish": ops.mish, "Gaussian": ops.gaussian}
net_input = jnp.linspace(-5, 5, 2001)
axes = plot.new_axes(11, 3.5, 2)
print(f"{'':10}{'smallest value':>22}{'smallest slope':>16}{'largest slope':>15}")
for name, unit in UNITS.items():
    value, slope = jax.vmap(bp.value_and_grad(unit))(net_input)
    lowest = int(jnp.argmin(value))
    at = f"{float(value[lowest]):.3f} at {float(net_input[lowest]):.2f}"
    print(f"{name:10}{at:>22}{float(slope.min()):16.3f}{float(slope.max()):15.3f}")
    axes[0].plot(net_input, value, label=name)
    axes[1].plot(net_input, slope, label=name)
axes[0].set(xlabel="net input", ylim=(-0.5, 2), title="output")
axes[1].set(xlabel="net input", title="derivative")
for ax in axes:
    ax.grid(alpha=0.3)
axes[0].legend(frameon=False)
keep(axes[0].figure, "units")

# %% [markdown]
# Exclusive or, 2-2-1 with a logistic output unit, a hundred networks for each kind of unit, by RPROP from weights
# within ±1. Learned is an error of at most 0.04, with which no output is further than 0.29 from its target.


# %%
def learn(net, problem, members, epochs):
    """Many networks at once: their parameters at the end, and their errors, shape (networks, epochs)."""
    (x, t), rule = problem, optim.irprop_minus(0.05)
    error = lambda params: ops.squared_error(net.apply(params, x), t)

    def epoch(state, _):
        params, memory = state
        value, gradient = bp.value_and_grad(error)(params)
        update, memory = rule.update(gradient, memory, params)
        return (optax.apply_updates(params, update), memory), value

    def one(key):
        params = reproduce.uniform_weights(net, x, 1.0)(key)
        (params, _), errors = jax.lax.scan(epoch, (params, rule.init(params)), length=epochs)
        return params, errors

    return jax.vmap(one)(jax.random.split(jax.random.key(0), members))


def chosen(which):
    """The unit of this number, so that all kinds learn in one program."""
    return lambda z: jax.lax.switch(which, list(UNITS.values()), z)


xor, spirals = (tuple(jnp.asarray(a) for a in problem) for problem in (data.xor(), data.two_spirals()))
every = lambda which: learn(nets.mlp([2, 2, 1], chosen(which), ops.logistic), xor, 100, 300)[1]
alone = nets.mlp([2, 1], output=ops.gaussian)
alone_params, alone_errors = learn(alone, xor, 100, 300)
names = [*(f"2-2-1, {name}" for name in UNITS), "2-1, a Gaussian unit"]
for name, errors in zip(names, [*jax.jit(jax.vmap(every))(jnp.arange(len(UNITS))), alone_errors], strict=True):
    done = np.asarray(errors) <= 0.04
    epochs = done.argmax(1)[done.any(1)]
    print(f"{name:22} {len(epochs):3} of {len(done)} learned, in {np.median(epochs):.0f} epochs (median)")

# %% [markdown]
# The last of them has no hidden layer at all. A Gaussian unit is on where its net input is near 0 and off on both
# sides, which is what exclusive or asks for: a strip.

# %%
solved = jax.tree.map(lambda a: a[alone_errors[:, -1].argmin()], alone_params)
keep(plot.decision_boundaries(alone.apply, {"a Gaussian unit by itself": solved}, *xor), "one_gaussian_unit")

# %% [markdown]
# Shortcut connections: every layer reads all layers below. On two spirals, 2-5-5-5-1 with shortcuts, which has 138
# weights, against 2-7-7-7-1 without, which has 141; eight networks each, 500 epochs.

# %%
shapes = {
    "layers, tanh": nets.mlp([2, 7, 7, 7, 1], ops.tanh, ops.logistic),
    "shortcuts, tanh": nets.shortcut_mlp([2, 5, 5, 5, 1], ops.tanh, ops.logistic),
    "shortcuts, Gaussian": nets.shortcut_mlp([2, 5, 5, 5, 1], ops.gaussian, ops.logistic),
}
best = {}
for name, net in shapes.items():
    params, _ = learn(net, spirals, 8, 500)
    said = jax.vmap(lambda params, net=net: net.apply(params, spirals[0]))(params)
    right = 100 * np.mean(stopping.forty_twenty_forty(said, spirals[1][None]), axis=1)
    best[f"{name}, {right.max():.0f} %"] = net, jax.tree.map(operator.itemgetter(int(right.argmax())), params)
    print(f"{name:20} right: {np.median(right):.0f} % (median), {right.min():.0f} to {right.max():.0f} %")

# %%
axes = plot.new_axes(9, 3.2, 3)
for ax, (title, (net, params)) in zip(axes, best.items(), strict=True):
    plot.decision_boundaries(net.apply, {title: params}, *spirals, axes=ax)
keep(axes[0].figure, "spirals")

# %% [markdown]
# The on-neuron is a unit that always says 1. A bias is the weight from it, and is learned as any weight is: the same
# network with `bias=True`, and without biases but with an on-neuron in each layer.

# %%
with_bias = nets.mlp([2, 3, 1], ops.tanh)
params = with_bias.init(jax.random.key(1), xor[0])


def through_on_neurons(kernels, x):
    """Two layers without biases; to what each reads, a 1 is added."""
    on = jnp.ones((len(x), 1))
    hidden = jnp.tanh(jnp.concatenate([x, on], 1) @ kernels[0])
    return jnp.concatenate([hidden, on], 1) @ kernels[1]


kernels = [jnp.concatenate([layer["kernel"], layer["bias"][None]]) for layer in params.values()]
of_biases = bp.grad(lambda p: ops.squared_error(with_bias.apply(p, xor[0]), xor[1]))(params)
of_weights = bp.grad(lambda k: ops.squared_error(through_on_neurons(k, xor[0]), xor[1]))(kernels)
for layer, of_kernel in zip(of_biases.values(), of_weights, strict=True):
    print(f"gradient of the bias {layer['bias']}, of the weight from the on-neuron {of_kernel[-1]}")
    assert np.allclose(layer["bias"], of_kernel[-1], atol=1e-6)
