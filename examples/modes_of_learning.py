"""Modes of learning: online, batch, stochastic.

When are the weights updated? After every example, in the order in which they come: online. After all of them: batch.
After a few, drawn at random: stochastic. What is said of the three can be tried.
"""

# %%
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import data, nets, ops, plot
from funcbp.learn.train import stopping

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/modes_of_learning")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


# %% [markdown]
# Digits, a network 64-16-10, five networks for each mode and each learning rate, from the same five beginnings, and
# 15 epochs of 1257 examples. For each mode the rate is used that ends with the smallest error on the validation set.

# %%
digits = data.load("digits")
net = nets.mlp([64, 16, 10], activation=ops.tanh)
training, validation = (digits.x_train, digits.y_train), (digits.x_validation, digits.y_validation)
MEMBERS, EPOCHS = 5, 15
MODES = {
    "online": ({"mode": "online"}, (0.003, 0.01, 0.03)),
    "stochastic, batches of 16": ({"mode": "stochastic", "batch_size": 16}, (0.03, 0.1, 0.3)),
    "batch": ({"mode": "batch"}, (0.3, 1.0, 3.0)),
}


def loss(params, batch):
    x, y = batch
    return jnp.mean(ops.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y))


def accuracy(params, batch):
    x, y = batch
    return jnp.mean(stopping.right_class(net.apply(params, x), y).astype(jnp.float32))


def learn(rates, epochs=EPOCHS, **options):
    """Five networks for each of these learning rates, in one program."""
    members = np.arange(MEMBERS * len(rates))
    return bp.fit_many(
        loss,
        lambda key: net.init(key, digits.x_train),
        training,
        optimizer=lambda rate: optax.sgd(rate),
        over={"rate": jnp.repeat(jnp.asarray(rates), MEMBERS)},
        key=jax.random.split(jax.random.key(0), MEMBERS)[members % MEMBERS],
        epochs=epochs,
        validation=validation,
        score={"accuracy": accuracy},
        **options,
    )


learned, best = {}, {}
for name, (options, rates) in MODES.items():
    history = {
        column: values.reshape(len(values), len(rates), -1)
        for column, values in learn(rates, **options).history.items()
        if column != "seconds"
    }
    i = int(np.argmin(np.median(history["validation_loss"][-1], axis=1)))
    best[name] = rates[i]
    learned[name] = {column: values[:, i] for column, values in history.items()}

# %%
print(f"{'':36}{'updates':>8}{'accuracy':>10}{'epochs in which the error rose':>32}")
for (name, history), (options, _) in zip(learned.items(), MODES.values(), strict=True):
    size = {"online": 1, "batch": len(digits.x_train)}.get(options["mode"], options.get("batch_size"))
    rose = np.mean(np.diff(history["validation_loss"], axis=0) > 0)
    right = np.median(history["validation_accuracy"][-1])
    print(
        f"{name}, rate {best[name]}".ljust(36)
        + f"{EPOCHS * (len(digits.x_train) // size):8}{100 * right:8.1f} %{100 * rose:30.0f} %"
    )

# %% [markdown]
# Learning that updates often is faster, by epochs: one sweep over the examples is many updates. That a batch goes
# down the more steadily is true beside random batches at a large rate; online, the best rate is small, and it is as
# steady.

# %%
axes = plot.new_axes(11, 4, 2)
for ax, column in zip(axes, ("validation_loss", "validation_accuracy"), strict=True):
    curves = {f"{name}, rate {best[name]}": history[column].T for name, history in learned.items()}
    plot.curves(curves, ylabel=column.replace("_", " "), log=column == "validation_loss", ax=ax)
keep(axes[0].figure, "modes")

# %% [markdown]
# Given 20 times as many epochs, the batch gets there too.

# %%
patient = learn([best["batch"]], 20 * EPOCHS, mode="batch")
right = np.median(patient.history["validation_accuracy"], axis=1)
print(f"batch: {100 * right[EPOCHS - 1]:.1f} % after {EPOCHS} epochs, {100 * right[-1]:.1f} % after {len(right)}")

# %% [markdown]
# Does a random order help against local minima, as is said? The exclusive or in a network 2-2-1 has flat places that
# many networks do not leave. Here it does not help: with steps of the same size, 2 along the mean of four cases or
# 1/2 along each, about as many learn in one mode as in the other. 100 networks, from the same beginnings, at most
# 2000 epochs.

# %%
x, t = data.xor()
small = nets.mlp([2, 2, 1], activation=ops.logistic, output=ops.logistic, initializer=nets.uniform(-1, 1))


def learn_xor(rate, **options):
    return bp.fit_many(
        lambda params, batch: ops.squared_error(small.apply(params, batch[0]), batch[1], "mean"),
        lambda key: small.init(key, x),
        (x, t),
        optimizer=optax.sgd(rate),
        key=jax.random.split(jax.random.key(1), 100),
        epochs=2000,
        correct=lambda params, batch: stopping.forty_twenty_forty(small.apply(params, batch[0]), batch[1]),
        stop={"learned": stopping.all_correct()},
        **options,
    )


ways = {
    "batch": {"rate": 2.0, "mode": "batch"},
    "online, always in the same order": {"rate": 0.5, "mode": "online"},
    "stochastic, in random order": {"rate": 0.5, "mode": "stochastic", "batch_size": 1},
}
print(f"{'':36}{'learned':>8}{'median epochs':>16}")
for name, options in ways.items():
    many = learn_xor(**options)
    solved = [epochs for epochs, reason in zip(many.epochs, many.reason, strict=True) if reason == "learned"]
    print(f"{name:36}{len(solved):4}/100{np.median(solved):16.0f}")

# %% [markdown]
# Online learning can follow a world that changes: the examples are a stream without an end, and after half of the
# time the digits 0 to 9 are all called by other names.


# %%
def stream(renamed_after):
    rng = np.random.default_rng(0)
    for i in itertools.count():
        j = rng.integers(len(digits.x_train))
        y = digits.y_train[j]
        yield digits.x_train[j], (y + 1) % 10 if i >= renamed_after else y


followed = bp.fit(
    loss,
    net.init(jax.random.key(0), digits.x_train),
    stream(renamed_after=6000),
    optimizer=optax.sgd(0.02),
    mode="online",
    epochs=120,
    updates=100,
)
ax = plot.new_axes()
ax.axvline(60, color="0.6", linewidth=1)
title = "A stream of digits, renamed in the middle"
keep(plot.curves({"online": followed.history["loss"]}, "hundreds of examples", "loss", title, ax=ax), "stream")
