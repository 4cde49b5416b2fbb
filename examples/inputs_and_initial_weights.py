"""Inputs and initial weights: where learning begins decides how fast it goes.

Backpropagation does not require inputs of one scale, nor initial weights of the right width. It is only that the
error surface becomes a ravine, that units saturate, that deltas die out. And that it depends on the error measure.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from sklearn.datasets import load_digits, load_iris, load_wine

import funcbp as bp
from funcbp import data, nets, ops, plot
from funcbp.learn.train import stopping

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/inputs_and_initial_weights")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


# %% [markdown]
# Normalisation of the inputs, each to mean 0 and deviation 1. Of the wines, one input is a proline content of about 750
# and another a hue of about 1; the irises are measured in centimetres, all four; the digits' pixels are all from 0 to
# 16. One layer with softmax outputs, batch learning, 100 epochs from weights of 0, at the best of 22 rates up to 10.


# %%
def descents(x, y, rates):
    """The errors over 100 epochs for each rate, shape (rates, epochs)."""
    with_on = jnp.concatenate([x, jnp.ones((len(x), 1))], 1)
    error = lambda w: jnp.mean(ops.softmax_cross_entropy_with_integer_labels(with_on @ w, y))

    def learn(rate):
        step = lambda w, _: (w - rate * bp.grad(error)(w), error(w))
        return jax.lax.scan(step, jnp.zeros((with_on.shape[1], int(y.max()) + 1)), length=100)[1]

    return np.asarray(jax.vmap(learn)(rates))


rates, curves = jnp.geomspace(1e-6, 10, 22), {}
print(f"{'':22}{'best rate':>10}{'error after 100 epochs':>24}")
for name, load in (("wine", load_wine), ("iris", load_iris), ("digits", load_digits)):
    x, y = load(return_X_y=True)
    x, y = x[:300], jnp.asarray(y[:300])
    for how, inputs in (("as they are", x), ("normalised", data.standardize(x)(x))):
        errors = descents(jnp.asarray(inputs, jnp.float32), y, rates)
        best = int(np.nanargmin(errors[:, -1]))
        curves[f"{name}, {how}"] = errors[best]
        print(f"{f'{name}, {how}':22}{float(rates[best]):10.0e}{errors[best, -1]:24.1e}")
keep(plot.curves(curves, ylabel="error, at the best rate"), "normalisation")

# %% [markdown]
# Where the scales differ by a thousand, normalisation is the difference between learning and not; it helps the irises,
# whose inputs are far from 0; the digits, whose pixels share a scale, learn no faster with it.
#
# Initial weights. Five logistic layers on digits, before anything is learned. Saturated is a unit within 1 % of 0 or 1.

# %%
digits = data.load("digits")
x, y = jnp.asarray(digits.x_train[:400]), jnp.asarray(digits.y_train[:400])
deep = {
    "from 0 to 1": nets.uniform(0, 1),
    "within ±0.1": nets.uniform(-0.1, 0.1),
    "Xavier's": nets.xavier_uniform,
}
axes = plot.new_axes(14, 3.6, 3)
print(f"{'weights':14}{'5th layer: mean, spread over inputs':>36}{'gradient, first / last layer':>32}")
for ax, (name, initializer) in zip(axes, deep.items(), strict=True):
    net = nets.mlp([64, 30, 30, 30, 30, 30, 10], jax.nn.sigmoid, initializer=initializer)

    def error(params, net=net):
        return jnp.mean(ops.softmax_cross_entropy_with_integer_labels(net.apply(params, x[:100]), y[:100]))

    trace = bp.trace(error)(net.init(jax.random.key(0), x))
    plot.saturation(trace, ax)
    ax.set_title(f"weights {name}")
    top = np.asarray([row.value for row in trace.rows if row.primitive == "logistic"][-1])
    kernels = [row.cotangent for row in trace.inputs if row.cotangent.ndim == 2]
    first, last = (np.sqrt(np.mean(kernels[i] ** 2)) for i in (0, -1))
    print(f"{name:14}{top.mean():25.2f}, {top.std(0).mean():9.1e}{first / last:32.1e}")
keep(axes[0].figure, "saturation")

# %% [markdown]
# With weights from 0 to 1 every unit is driven to 1 and says nothing of the input; with small ones every unit of the
# fifth layer is near ½, whatever the input: not saturated, and as mute. Xavier's are hundreds of times better, and
# still the first layer learns a thousand times more slowly than the last: the logistic's slope is at most ¼, where
# their derivation counts on 1.
#
# Which error, for which unit? Glorot and Bengio compared the squared error with the cross-entropy, both after softmax,
# and logistic, tanh and softsign units. Reduced: 64-15-15-15-10 with Xavier's weights, 400 digits, 15 epochs, eight
# networks each; the rate is the best of four on the validation set. Whether two errors differ is asked of the
# Mann-Whitney test.

# %%
UNITS = {"logistic": jax.nn.sigmoid, "tanh": jnp.tanh, "softsign": jax.nn.soft_sign}
ERRORS = ("squared error", "cross-entropy")
RATES, SEEDS, EPOCHS, SIZE = jnp.array([0.3, 1.0, 3.0, 10.0]), 8, 15, 25
order = jnp.asarray(np.stack([np.random.default_rng(i).permutation(400) for i in range(EPOCHS)]).reshape(-1, SIZE))
watched, unseen = (
    (jnp.asarray(a), jnp.asarray(b))
    for a, b in ((digits.x_validation, digits.y_validation), (digits.x_test, digits.y_test))
)


def learn(unit, squared, rate, key):
    """One network: the share that is wrong of the watched and of the unseen digits."""
    activation = lambda z: jax.lax.switch(unit, list(UNITS.values()), z)
    net = nets.mlp([64, 15, 15, 15, 10], activation)

    def error(params, batch):
        logits, t = net.apply(params, x[batch]), y[batch]
        square = ops.squared_error(jax.nn.softmax(logits), jax.nn.one_hot(t, 10), "mean")
        return jnp.where(squared, square, jnp.mean(ops.softmax_cross_entropy_with_integer_labels(logits, t)))

    def step(params, batch):
        return jax.tree.map(lambda w, g: w - rate * g, params, bp.grad(error)(params, batch)), None

    params = jax.lax.scan(step, net.init(key, x), order)[0]
    wrong = lambda part: 1 - jnp.mean(stopping.right_class(net.apply(params, part[0]), part[1]).astype(jnp.float32))
    return wrong(watched), wrong(unseen)


everything = jax.vmap(learn, (None, None, None, 0))
for axis in (2, 1, 0):
    everything = jax.vmap(everything, tuple(0 if i == axis else None for i in range(4)))
keys = jax.random.split(jax.random.key(1), SEEDS)
of_watched, of_unseen = map(np.asarray, jax.jit(everything)(jnp.arange(3), jnp.array([True, False]), RATES, keys))
axes, found = plot.new_axes(8, 3.6), {}
p_of = lambda a, b: scipy.stats.mannwhitneyu(a, b).pvalue
print(f"{'':10}{'squared error: wrong':>26}{'cross-entropy: wrong':>26}{'p':>9}")
for i, unit in enumerate(UNITS):
    cells = []
    for j, colour in enumerate((plot.TRAINING, plot.VALIDATION)):
        best = int(np.argmin(of_watched[i, j].mean(-1)))
        wrong = found[unit, j] = 100 * of_unseen[i, j, best]
        cells.append(f"{wrong.mean():.1f} % (sd {wrong.std(ddof=1):.1f}), rate {RATES[best]:g}")
        axes.plot(
            np.full(SEEDS, i + 0.2 * j - 0.1), wrong, "o", color=colour, alpha=0.6, label=ERRORS[j] if not i else None
        )
    print(f"{unit:10}{cells[0]:>26}{cells[1]:>26}{p_of(found[unit, 0], found[unit, 1]):9.4f}")
print(f"logistic against tanh, with the cross-entropy: p = {p_of(found['logistic', 1], found['tanh', 1]):.4f}")
axes.set(yscale="log", ylabel="% wrong of unseen digits", xticks=range(3), xticklabels=list(UNITS))
axes.legend(frameon=False)
axes.grid(alpha=0.3)
keep(axes.figure, "units_and_errors")

# %% [markdown]
# The squared error asks for a rate three times as large; with it, no difference between the errors can be told here.
# That of the units can.
