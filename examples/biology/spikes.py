"""Spikes instead of continuous values: learning through a step that has no derivative.

Neurons send spikes: a unit fires where its potential is above the threshold, z = (v > 1). The derivative of that is
zero almost everywhere, so nothing is learned, unless the way back pretends that the step is a slope. The model below
says `v > 1` and stays as it is; the surrogate is a rule that is given to the backward pass.

Two tasks: the digits, shown as a constant current over 20 steps to few hidden units; and whether two pulses, some
steps apart, came over the same one of eight channels, which no single step can tell: a unit has to remember the first.
Without a surrogate only the read-out learns. That costs much on the digits, and on the pulses it is right in two cases
of three, where guessing is right in one of two; so, nearly, is the boxcar, which is zero far from the threshold.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot

import funcbp as bp

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/spikes")
out.mkdir(parents=True, exist_ok=True)

STEPS, DECAY = 20, 0.9


# %%
def spiking(params, currents):
    """Two layers of leaky units over time; the outputs are the mean potentials of units that do not fire."""

    def step(state, x):
        v, out = state
        z = (v > 1.0).astype(x.dtype)
        v = DECAY * v * (1 - z) + x @ params["in"] + params["bias"]
        out = DECAY * out + z @ params["out"]
        return (v, out), (z, out)

    batch = currents.shape[1]
    start = jnp.zeros((batch, params["in"].shape[1])), jnp.zeros((batch, params["out"].shape[1]))
    _, (z, out) = jax.lax.scan(step, start, currents)
    return out.mean(0), z


def loss(params, currents, y):
    return optax.softmax_cross_entropy_with_integer_labels(spiking(params, currents)[0], y).mean()


def learn(backward, params, currents, y, updates, rate):
    optimiser = optax.adam(rate)

    def step(carry, key):
        params, state = carry
        which = jax.random.choice(key, len(y), (64,), replace=False)
        grads = backward.grad(loss)(params, currents[:, which], y[which])
        updates, state = optimiser.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), updates)
    return jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]


def init(key, inputs, hidden, outputs, gain):
    a, b = jax.random.split(key)
    kernel = lambda key, i, o: jax.random.normal(key, (i, o)) * gain * i**-0.5
    return {"in": kernel(a, inputs, hidden), "bias": jnp.full(hidden, 0.1), "out": kernel(b, hidden, outputs)}


accuracy = lambda params, currents, y: jnp.mean(jnp.argmax(spiking(params, currents)[0], -1) == y)
WAYS = {
    "no surrogate": bp.Backward(),
    "boxcar": bp.credit.spikes(bp.credit.boxcar(1.0)),
    "fast sigmoid": bp.credit.spikes(bp.credit.fast_sigmoid(5.0)),
    "arctan": bp.credit.spikes(bp.credit.arctan(2.0)),
}

# %%
digits = bp.data.load("digits")
steady = lambda x: jnp.broadcast_to(jnp.asarray(x), (STEPS, *x.shape))
x, x_test = steady(digits.x_train), steady(digits.x_test)
found = {}
for name, backward in WAYS.items():
    learned = jax.jit(lambda p, b=backward: learn(b, p, x, jnp.asarray(digits.y_train), 400, 5e-3))
    params = learned(init(jax.random.key(0), 64, 20, 10, 0.7))
    found[name] = accuracy(params, x_test, digits.y_test), spiking(params, x_test)[1]
    print(f"digits, {name:13} accuracy {found[name][0]:.3f}, {float(found[name][1].mean()):.1%} of the units fire")

# %%
CASES, TRAINING, CHANNELS = 600, 400, 8
rng, case = np.random.default_rng(0), np.arange(CASES)
first = rng.integers(1, 9, CASES)  # the step of the first pulse; the other comes 4 to 9 steps later
second, channel, same = first + rng.integers(4, 10, CASES), rng.integers(0, CHANNELS, CASES), rng.random(CASES) < 0.5
other = np.where(same, channel, (channel + rng.integers(1, CHANNELS, CASES)) % CHANNELS)
trains, y = np.zeros((STEPS, CASES, CHANNELS), np.float32), jnp.asarray(same, jnp.int32)
trains[first, case, channel] = trains[second, case, other] = 1.5
seen, unseen = jnp.asarray(trains[:, :TRAINING]), jnp.asarray(trains[:, TRAINING:])


def remembers(backward, key):
    """Accuracy on cases not learned from, of a network that begins at this key."""
    params = learn(backward, init(key, CHANNELS, 12, 2, 1.5), seen, y[:TRAINING], 800, 1e-2)
    return accuracy(params, unseen, y[TRAINING:])


for name, backward in WAYS.items():
    found_by = jax.jit(jax.vmap(lambda key, b=backward: remembers(b, key)))(jax.random.split(jax.random.key(0), 4))
    least, most = found_by.min(), found_by.max()
    print(f"same channel, {name:13} accuracy {found_by.mean():.3f} (four networks: {least:.3f} to {most:.3f})")

# %%
figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
u = jnp.linspace(-2, 2, 401)
for h, label in ((bp.credit.boxcar(1.0), "boxcar"), (bp.credit.fast_sigmoid(5.0), "fast sigmoid"),
                 (bp.credit.arctan(2.0), "arctan"), (bp.credit.multi_gaussian(2.0), "multi-Gaussian")):  # fmt: skip
    left.plot(u, h(u), label=label)
left.set(xlabel="potential above the threshold", ylabel="surrogate derivative")
left.legend()
right.imshow(found["fast sigmoid"][1][:, 0].T, aspect="auto", cmap="gray_r", interpolation="nearest")
right.set(xlabel="step", ylabel="hidden unit", title="spikes at one digit")
figure.savefig(out / "spikes.png")
