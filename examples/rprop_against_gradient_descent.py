"""RPROP against gradient descent: the sign is enough.

Gradient descent multiplies the gradient by a learning rate, and somebody has to choose it. RPROP looks only at the
signs: every weight has a step of its own, which grows by 1.2 while the sign of its derivative stays the same, and is
halved when it changes. No learning rate is to be chosen. The variant is iRprop−, which leaves a weight alone for one
update when its sign has changed.
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
from funcbp.learn.train import stopping

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


def error(params, batch):
    x, t = batch
    return ops.squared_error(net.apply(params, x), t)


def correct(params, batch):
    x, t = batch
    return stopping.forty_twenty_forty(net.apply(params, x), t)


def learn(rule, numbers):
    """Fifty networks for each of these learning rates, or first steps, until they have learned, in one program."""
    members = np.arange(SEEDS * len(numbers))
    return bp.fit_many(
        error,
        lambda key: net.init(key, x),
        (x, t),
        optimizer=lambda number: rule(number),
        over={"number": jnp.repeat(jnp.asarray(numbers), SEEDS)},
        key=jax.random.split(jax.random.key(0), SEEDS)[members % SEEDS],
        mode="batch",
        epochs=EPOCHS,
        correct=correct,
        stop={"learned": stopping.all_correct()},
    )


def by_number(many, numbers):
    """The errors, and how many epochs each took, nan for those that did not learn; by number, then by member."""
    learned = np.array([reason == "learned" for reason in many.reason])
    epochs = np.where(learned, many.epochs, np.nan)
    return many.history["loss"].T.reshape(len(numbers), SEEDS, -1), epochs.reshape(len(numbers), SEEDS)


# %% [markdown]
# Fifty networks each, from the same fifty beginnings. A curve stays where it is when its network has learned.

# %%
rates = (0.1, 0.5, 1.7)
descent, rprop = by_number(learn(optax.sgd, rates), rates), by_number(learn(bp.optim.irprop_minus, [0.1]), [0.1])
runs = {
    f"gradient descent, rate {rate}": (errors, epochs) for rate, errors, epochs in zip(rates, *descent, strict=True)
}
runs["RPROP, first step 0.1"] = rprop[0][0], rprop[1][0]
keep(plot.curves({name: errors for name, (errors, _) in runs.items()}, ylabel="error E"), "errors")

# %%
print(f"{'':32}{'learned':>8}{'median':>8}{'10 %':>6}{'90 %':>6}   epochs")
for name, (_, epochs) in runs.items():
    solved = epochs[np.isfinite(epochs)]
    quantiles = np.percentile(solved, [50, 10, 90]) if len(solved) else [np.nan] * 3
    print(f"{name:32}{len(solved):5}/{SEEDS}" + "{:8.0f}{:6.0f}{:6.0f}".format(*quantiles))

# %% [markdown]
# How much does the number matter that has to be chosen, the learning rate or the size of the first step? Over a range
# of a thousand to one:

# %%
numbers = np.geomspace(0.01, 10, 10)
axes = plot.new_axes(12, 4, 2)
for name, rule in (("gradient descent: learning rate", optax.sgd), ("RPROP: first step", bp.optim.irprop_minus)):
    epochs = by_number(learn(rule, numbers), numbers)[1]
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
axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
keep(axes[0].figure, "choice")
