"""An autoencoder on digits: learning without a teacher.

The target is the input itself. A narrow layer in the middle makes that a task: 64 pixels have to pass through 2 units,
or 8, and what passes is what the digits have in common.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import data, nets, ops, plot

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/autoencoder_on_digits")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


digits = data.load("digits")
x, x_test = jnp.asarray(digits.x_train), jnp.asarray(digits.x_test)

# %% [markdown]
# A network 64-32-n-32-64, with n units in the middle.


# %%
def network(n):
    return nets.autoencoder([64, 32, n], activation=jnp.tanh)


def learn(n):
    net, key = network(n), jax.random.key(n)
    return bp.fit(
        lambda params, batch: ops.squared_error(net.apply(params, batch), batch, "mean"),
        net.init(key, x),
        x,
        optimizer=optax.adam(3e-3),
        epochs=50,
        key=key,
    )


# %% [markdown]
# How well can it be done? Of the networks with linear units the best is known: it projects onto the first n principal
# components. The network is not linear, and should be better. The measure is the part of the variance of the test
# digits that is given back.


# %%
def given_back(images):
    return 1 - float(jnp.sum((x_test - images) ** 2) / jnp.sum((x_test - jnp.mean(x_test, 0)) ** 2))


mean = np.mean(x, axis=0)
components = np.linalg.svd(x - mean, full_matrices=False)[2]
trained, errors, middles = {}, {}, (2, 4, 8)
print("units in the middle   network   principal components")
for n in middles:
    learned = learn(n)
    trained[n], errors[f"{n} units"] = learned.params, learned.history["loss"]
    linear = mean + (x_test - mean) @ components[:n].T @ components[:n]
    print(f"{n:19} {100 * given_back(network(n).apply(trained[n], x_test)):7.1f} % {100 * given_back(linear):20.1f} %")

# %%
keep(plot.curves(errors, ylabel="error E", title="64-32-n-32-64"), "errors")

# %% [markdown]
# What passes through 8 units, and what passes through 2: the worst of the test digits.

# %%
worst = {n: np.asarray(network(n).apply(trained[n], x_test)) for n in (8, 2)}
keep(plot.reconstructions(x_test, worst[8], digits.image_shape), "through_8_units")

# %%
keep(plot.reconstructions(x_test, worst[2], digits.image_shape), "through_2_units")

# %% [markdown]
# Two units can be drawn as a plane. No class was told; that the digits lie in groups is what the network found.


# %%
def code(params, x):
    """The outputs of the two units in the middle."""
    for name in ("dense_0", "dense_1"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return x


plane = np.asarray(code(trained[2], x_test))
ax = plot.new_axes(6.5, 5)
dots = ax.scatter(*plane.T, c=digits.y_test, cmap="tab10", vmin=-0.5, vmax=9.5, s=16)
ax.figure.colorbar(dots, ax=ax, ticks=range(10), label="digit")
ax.set(xlabel="first unit in the middle", ylabel="second unit", title="The test digits, as two numbers each")
keep(ax.figure, "plane")

# %% [markdown]
# The weights of the first layer, as images: what each of its 32 units looks for.

# %%
keep(plot.weights(trained[8]["dense_0"]["kernel"], digits.image_shape), "weights")
