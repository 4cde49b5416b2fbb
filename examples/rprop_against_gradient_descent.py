"""RPROP against gradient descent: the sign is enough.

Gradient descent multiplies the gradient by a learning rate, and somebody has to choose it. RPROP looks only at the
signs: every weight has a step of its own, which grows by 1.2 while the sign of its derivative stays the same, and is
halved when it changes. No learning rate is to be chosen.
"""

# %%
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import data, nets, ops, plot

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/rprop_against_gradient_descent")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


# %% [markdown]
# The encoder 10-5-10: say which of ten units is on, through five hidden ones. It is learned when every output is on
# its side: below 0.4 where the target is 0, above 0.6 where it is 1. All ten examples make one update.

# %%
x, t = (jnp.asarray(a) for a in data.encoder(10))
net = nets.mlp([10, 5, 10], activation=ops.logistic, output=ops.logistic, initializer=nets.uniform(-1, 1))
SEEDS, EPOCHS = 50, 500


def error(params):
    y = net.apply(params, x)
    return ops.squared_error(y, t), jnp.all(jnp.abs(t - y) < 0.4)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, None, 0))
def learn(rule, number, key):
    """The errors over the epochs, until it is learned, and how many epochs that took; nan if it never was."""
    optimizer = rule(number)

    def epoch(state, _):
        params, memory = state
        (e, right), gradient = bp.value_and_grad(error, has_aux=True)(params)
        updates, memory = optimizer.update(gradient, memory, params)
        return (optax.apply_updates(params, updates), memory), (e, right)

    params = net.init(key, x)
    _, (errors, right) = jax.lax.scan(epoch, (params, optimizer.init(params)), length=EPOCHS)
    last = jnp.where(jnp.any(right), jnp.argmax(right), EPOCHS)
    return errors[jnp.minimum(jnp.arange(EPOCHS), last)], jnp.where(last < EPOCHS, last, jnp.nan)


keys = jax.random.split(jax.random.key(0), SEEDS)

# %% [markdown]
# Fifty networks each, from the same fifty beginnings. A curve stays where it is when its network has learned.

# %%
runs = {f"gradient descent, rate {rate}": learn(optax.sgd, rate, keys) for rate in (0.1, 0.5, 1.7)}
runs["RPROP, first step 0.1"] = learn(optax.rprop, 0.1, keys)
keep(plot.curves({name: errors for name, (errors, _) in runs.items()}, ylabel="error E"), "errors")

# %%
print(f"{'':32}{'learned':>8}{'median':>8}{'10 %':>6}{'90 %':>6}   epochs")
for name, (_, epochs) in runs.items():
    solved = epochs[jnp.isfinite(epochs)]
    quantiles = np.percentile(solved, [50, 10, 90]) if len(solved) else [np.nan] * 3
    print(f"{name:32}{len(solved):5}/{SEEDS}" + "{:8.0f}{:6.0f}{:6.0f}".format(*quantiles))

# %% [markdown]
# How much does the number matter that has to be chosen, the learning rate or the size of the first step? Over a range
# of a thousand to one:

# %%
numbers = np.geomspace(0.01, 10, 10)
axes = plot.new_axes(10, 4, 2)
for name, rule in (("gradient descent: learning rate", optax.sgd), ("RPROP: first step", optax.rprop)):
    epochs = np.array([learn(rule, number, keys)[1] for number in numbers])
    solved = np.isfinite(epochs)
    enough = solved.mean(1) > 0.5
    low, middle, high = np.percentile(np.where(solved, epochs, EPOCHS), [10, 50, 90], axis=1)
    (line,) = axes[0].plot(numbers[enough], middle[enough], "o-", markersize=4, label=name)
    axes[0].fill_between(numbers[enough], low[enough], high[enough], color=line.get_color(), alpha=0.2, linewidth=0)
    axes[1].plot(numbers, 100 * solved.mean(1), "o-", markersize=4, color=line.get_color(), label=name)
axes[0].set(
    xscale="log", yscale="log", ylabel="epochs until learned", title="Where most were learned: median, 80 % of runs"
)
axes[1].set(xscale="log", ylabel=f"% learned in {EPOCHS} epochs", title="How many were learned")
for ax in axes:
    ax.set_xlabel("learning rate, or first step")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
keep(axes[0].figure, "choice")
