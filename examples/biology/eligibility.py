"""Timing: a recurrent spiking network that learns while it runs, by eligibility traces.

Backpropagation through time goes back over all steps once the sequence is over. A synapse knows its own past only: in
e-prop it keeps a trace of how its activity has led to the neuron's state, and the weight changes when an error arrives,
trace times error, step by step. What is left out is the way back through the other neurons' spikes. In the backward
pass that is one edit: the spikes that go to other neurons, named here, let nothing through to the step before. The
trace is then what the rest of the pass computes; below it is also kept forward in time, as a synapse would, and is the
same. (At this learning rate the exact way back through 100 steps of surrogate slopes is the less steady teacher of the
two.)

Source: G. Bellec, F. Scherr, A. Subramoney, E. Hajek, D. Salaj, R. Legenstein, W. Maass, "A solution to the learning
dilemma for recurrent networks of spiking neurons" (2020).
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

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/eligibility")
out.mkdir(parents=True, exist_ok=True)
STEPS, INPUTS, UNITS, DECAY = 100, 20, 60, 0.9
surrogate = bp.credit.triangular(1.0)


# %%
def run(params, spikes_in):
    """Leaky units with recurrent connections; the read-out is a leaky sum of their spikes."""

    def step(state, x):
        v, z, y = state
        v = DECAY * v + x @ params["in"] + bp.name(z, "to others") @ params["recurrent"] - jax.lax.stop_gradient(z)
        z = (v > 1.0).astype(v.dtype)
        y = DECAY * y + z @ params["out"]
        return (v, z, y), (z, y, v)

    return jax.lax.scan(step, (jnp.zeros(UNITS), jnp.zeros(UNITS), jnp.zeros(1)), spikes_in)[1]


def loss(params, spikes_in, target):
    return 0.5 * jnp.sum((run(params, spikes_in)[1][:, 0] - target) ** 2)


rng = np.random.default_rng(0)
spikes_in = jnp.asarray(rng.random((STEPS, INPUTS)) < 0.1, jnp.float32)
t = np.arange(STEPS) / STEPS
target = jnp.asarray(np.sin(2 * np.pi * t) + 0.5 * np.sin(4 * np.pi * t + 1), jnp.float32)
kernel = lambda i, o, size: jnp.asarray(rng.normal(size=(i, o)) * size * i**-0.5, jnp.float32)
start = {"in": kernel(INPUTS, UNITS, 2.0), "recurrent": kernel(UNITS, UNITS, 0.7), "out": kernel(UNITS, 1, 0.3)}

through_time = bp.credit.spikes(surrogate)
local = through_time | bp.Backward(edits={"to others": lambda ct, cts: jnp.zeros_like(ct)})


# %%
def by_traces(params, spikes_in, target):
    """The same forward in time: ē is each synapse's trace, filtered once more as the read-out filters the spikes."""
    z, y, v = run(params, spikes_in)
    before = jnp.concatenate([jnp.zeros((1, UNITS)), z[:-1]])
    error = jnp.zeros(1)

    def step(carry, now):
        trace, filtered, grad = carry
        came_in, h, err = now
        trace = DECAY * trace + came_in[:, None]  # what has come in over the synapse, as the potential remembers it
        filtered = DECAY * filtered + h[None] * trace
        return (trace, filtered, grad + filtered * (err * params["out"][:, 0])[None]), None

    def traces(came_in):
        zeros = jnp.zeros((came_in.shape[1], UNITS))
        now = came_in, surrogate(v - 1.0), (y[:, 0] - target)[:, None] + error
        return jax.lax.scan(step, (zeros, zeros, zeros), now)[0][2]

    return traces(spikes_in), traces(before)


by_pass = local.grad(loss)(start, spikes_in, target)
by_hand = by_traces(start, spikes_in, target)
for name, trace in zip(("in", "recurrent"), by_hand, strict=True):
    gap = float(jnp.max(jnp.abs(by_pass[name] - trace)) / jnp.max(jnp.abs(trace)))
    print(f"{name}: the pass with the edit and the traces differ by {gap:.1e}")
    assert gap < 1e-4


# %%
def learn(backward, trained, updates=400):
    optimiser = optax.adam(5e-3)

    def step(carry, _):
        params, state = carry
        value, grads = backward.value_and_grad(loss)(params, spikes_in, target)
        grads = {k: g if k in trained else jnp.zeros_like(g) for k, g in grads.items()}
        updates, state = optimiser.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (start, optimiser.init(start)), None, length=updates)


WAYS = {
    "backpropagation through time": (through_time, ("in", "recurrent", "out")),
    "eligibility traces": (local, ("in", "recurrent", "out")),
    "the read-out alone": (local, ("out",)),
}
results = {name: jax.jit(lambda b=b, w=w: learn(b, w))() for name, (b, w) in WAYS.items()}
for name, (_, values) in results.items():
    print(f"{name:30} loss {values[0]:.2f} -> {values[-20:].mean():.3f}")

# %%
figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, ((params, _), values) in results.items():
    left.semilogy(values, label=name)
    right.plot(run(params, spikes_in)[1], label=name)
left.set(xlabel="update", ylabel="loss")
left.legend()
right.plot(target, "k:", label="target")
right.set(xlabel="step", ylabel="read-out")
figure.savefig(out / "eligibility.png")

# %% [markdown]
# Spike-timing-dependent plasticity. In experiments on single synapses, one spike that comes in and one of the neuron
# behind it suffice, with no error in sight: the synapse becomes stronger if the incoming one was first, weaker if it
# was second, and the less the more time lies between them. Two traces do it. That of what has come in, read when the
# neuron fires, is the trace of above: how the potential at that moment depends on the weight, which a backward pass
# says too. That of the neuron's own spikes, read when one comes in, is no derivative of the potential: what has not
# come in yet cannot have moved it. This half is a rule, and 0.6, by how much it is weaker, a choice.
#
# Source: G. Bi, M. Poo, "Synaptic modifications in cultured hippocampal neurons" (1998), for the experiment.

# %%
lags = jnp.arange(-40, 41)


def pair(lag):
    """A spike that comes in at step 50 and one of the neuron `lag` steps later."""
    return jnp.zeros(STEPS).at[50].set(1), jnp.zeros(STEPS).at[50 + lag].set(1)


def timed(lag):
    """How such a pair changes the weight: what strengthens it, and what weakens it."""

    def step(traces, now):
        came_in, fired = now
        of_input, of_neuron = DECAY * traces[0] + came_in, DECAY * traces[1]
        return (of_input, of_neuron + fired), (of_input * fired, -0.6 * of_neuron * came_in)

    return jax.tree.map(jnp.sum, jax.lax.scan(step, (0.0, 0.0), pair(lag))[1])


def potential(weight, lag):
    """The potential at the moment at which the neuron fires."""
    came_in, fired = pair(lag)
    return jax.lax.scan(lambda v, x: (DECAY * v + weight * x, DECAY * v + weight * x), 0.0, came_in)[1] @ fired


stronger, weaker = jax.vmap(timed)(lags)
derivative = jax.vmap(bp.grad(potential), (None, 0))(0.5, lags)
print(f"the half that strengthens and the derivative differ by {float(jnp.abs(stronger - derivative).max()):.0e}")
print(f"half as much after {np.log(2) / -np.log(DECAY):.1f} steps")
figure, ax = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(lags, stronger + weaker, label="change of the weight")
ax.plot(lags, derivative, "--", label="derivative of the potential")
ax.axhline(0, color="gray", linewidth=0.8)
ax.set(xlabel="steps from the incoming spike to the neuron's own")
ax.legend()
figure.savefig(out / "timing.png")
