"""Through time: a multistage control problem solved by its adjoints, and a time-delay network on a chaotic series.

Before it taught networks, the recursion from the last layer to the first was found in control theory. A process goes
through stages, a control acts in each, and the adjoint says of each stage what a change of its state would cost in the
end. A layer is a stage whose control is its weights.

Sources: H. Kelley, "Gradient theory of optimal flight paths" (1960); A. Bryson, "A gradient method for optimizing
multi-stage allocation processes" (1961); S. Dreyfus, "The numerical solution of variational problems" (1962); E. Wan,
"Time series prediction by using a connectionist network with internal delay lines" (1993).
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import nets, ops, optim, plot

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/through_time")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


jax.config.update("jax_enable_x64", True)


# %% [markdown]
# Swing a pendulum up by a motor that is too weak to lift it: 80 stages of 0.05 s, the state is the angle from hanging
# down and its speed, the control the motor's torque. What it costs: a little for torque, and in the end much for being
# anywhere else than at rest on top.

# %%
STAGES, DT = 80, 0.05
REST = jnp.zeros(2)


def stage(state, torque):
    angle, speed = state
    speed = speed + DT * (-9.81 * jnp.sin(angle) + torque)
    return jnp.array([angle + DT * speed, speed])


def effort(torque):
    return 0.5 * 0.02 * DT * torque**2


def final(state):
    return 0.5 * (5 * (state[0] - jnp.pi) ** 2 + state[1] ** 2)


def states_of(controls, start=REST):
    """The states from the first to the last, shape (stages + 1, 2)."""
    end, before = jax.lax.scan(lambda state, u: (stage(state, u), state), start, controls)
    return jnp.concatenate([before, end[None]])


def cost(controls, start=REST):
    return final(states_of(controls, start)[-1]) + jnp.sum(effort(controls))


# %% [markdown]
# The adjoint recursion, by hand. λ begins as the derivative of the final cost, and goes back through the stages by the
# transpose of each one's derivative, λ_t = (∂f/∂x)' λ_{t+1}; on the way it meets each control,
# ∂J/∂u_t = ∂effort/∂u + (∂f/∂u)' λ_{t+1}.


# %%
def by_adjoints(controls):
    states = states_of(controls)
    angle, speed = states[-1]
    adjoint = jnp.array([5 * (angle - jnp.pi), speed])

    def back(adjoint, now):
        (angle, _), u = now
        pull = -9.81 * DT * jnp.cos(angle)  # ∂ speed / ∂ angle, and through it DT of that for the next angle
        to_state = jnp.array([[1 + DT * pull, DT], [pull, 1.0]])
        to_control = jnp.array([DT * DT, DT])
        return to_state.T @ adjoint, (0.02 * DT * u + to_control @ adjoint, adjoint)

    first, (gradient, later) = jax.lax.scan(back, adjoint, (states[:-1], controls), reverse=True)
    return gradient, jnp.concatenate([first[None], later])


controls = jnp.asarray(np.random.default_rng(0).normal(size=STAGES))
gradient, adjoints = by_adjoints(controls)
gap = float(jnp.max(jnp.abs(bp.grad(cost)(controls) - gradient)) / jnp.max(jnp.abs(gradient)))
print(f"bp.grad and the recursion by hand differ by {gap:.0e}")
assert gap < 1e-6

# %% [markdown]
# Dreyfus's view. λ is the derivative of the cost-to-go, what is still to be paid from a state on. A stage needs nothing
# but its own derivative and the λ of the next one, as a layer needs the deltas of the next one; and what the last step
# back arrives at is the derivative by the state in which all begins.

# %%
print(f"first adjoint {adjoints[0]}, derivative by the first state {bp.grad(cost, argnums=1)(controls, REST)}")

# %% [markdown]
# Descent, by RPROP, from almost no torque.


# %%
def descend(objective, start, updates):
    """Where RPROP led to, and what the objective was on the way."""
    rule = optim.irprop_minus(0.01)

    def step(state, _):
        w, memory = state
        value, gradient = bp.value_and_grad(objective)(w)
        update, memory = rule.update(gradient, memory, w)
        return (optax.apply_updates(w, update), memory), value

    (w, _), values = jax.lax.scan(step, (start, rule.init(start)), length=updates)
    return w, values


found, costs = descend(cost, 0.1 * controls, 800)
angle, speed = states_of(found)[-1]
print(
    f"cost {costs[0]:.1f} -> {costs[-1]:.2f}; in the end {float(jnp.degrees(angle)):.1f}° at {float(speed):.2f} rad/s"
)
print(f"largest torque {float(jnp.abs(found).max()):.1f}; to hold the pendulum level takes 9.81")

# %%
axes = plot.new_axes(13, 3.4, 3)
time = DT * np.arange(STAGES + 1)
axes[0].plot(time, jnp.degrees(states_of(found)[:, 0]), label="angle, degrees")
axes[0].axhline(180, color="gray", linestyle=":")
axes[1].plot(time[:-1], found, label="torque", color="tab:orange")
axes[2].plot(time, by_adjoints(found)[1], label=["λ of the angle", "λ of the speed"])
for ax in axes:
    ax.set(xlabel="time, s")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
keep(axes[0].figure, "pendulum")

# %% [markdown]
# A network with delays. Wan's has a filter of a few taps in the place of each weight, so that a unit sees the last
# values of those below it, and was the best at predicting a laser's pulses. Here the series is Mackey and Glass's,
# chaotic, every sixth step of it, and the network 1-10-1 with 6 taps in the first layer and 4 in the second: it sees 9
# values and says the next.


# %%
def mackey_glass(count, every=6, delay=17):
    """x(t+1) = 0.9 x(t) + 0.2 x(t-17) / (1 + x(t-17)^10), every sixth value, after the beginning."""
    xs = list(0.9 + 0.2 * np.random.default_rng(0).random(delay + 1))
    for _ in range(every * count + 500):
        xs.append(0.9 * xs[-1] + 0.2 * xs[-1 - delay] / (1 + xs[-1 - delay] ** 10))
    return np.array(xs[-every * count :: every])


def filters(layer, signal):
    """A layer of filters: the kernel has shape (taps, in, out), the signal (time, in); without the first steps."""
    taps, times = len(layer["kernel"]), len(signal) - len(layer["kernel"]) + 1
    return sum(signal[k : k + times] @ layer["kernel"][k] for k in range(taps)) + layer["bias"]


def predict(params, signal):
    """The next value, for each moment at which nine are known; shape (time, 1)."""
    return filters(params[1], jnp.tanh(filters(params[0], signal)))


series = jnp.asarray(mackey_glass(700)[:, None] - 0.9)
SEEN, TRAINED = 9, 500
known, following = series[: TRAINED - 1], series[SEEN:TRAINED]
shapes, keys = [(6, 1, 10), (4, 10, 1)], jax.random.split(jax.random.key(0))
begin = [
    {"kernel": nets.xavier_uniform(k, s, float), "bias": jnp.zeros(s[-1])} for k, s in zip(keys, shapes, strict=True)
]
network, errors = descend(lambda p: ops.squared_error(predict(p, known), following, "mean"), begin, 2000)

windows = lambda signal: np.c_[
    np.lib.stride_tricks.sliding_window_view(np.ravel(signal), SEEN), np.ones(len(signal) - SEEN + 1)
]
linear = np.linalg.lstsq(windows(known), following, rcond=None)[0]
ways = {
    "the network": lambda signal: predict(network, signal),
    "the best linear filter": lambda signal: windows(signal) @ linear,
    "the last value": lambda signal: signal[SEEN - 1 :],
}
new, spread = series[TRAINED - SEEN :], float(series.std())
print("error of the next of 200 new values, root mean square, in standard deviations of the series")
for name, way in ways.items():
    print(f"{name:24}{np.sqrt(np.mean((way(new[:-1]) - new[SEEN:]) ** 2)) / spread:8.3f}")

# %% [markdown]
# Fed with what it says itself, with no look at the series any more, a good predictor stays with it for a while, until
# chaos has made of a small error a large one.

# %%
ax = plot.new_axes(11, 3.4)
ax.plot(new[SEEN : SEEN + 60], "k:", label="series")
for name in list(ways)[:2]:
    said = np.asarray(new[:SEEN])
    for _ in range(60):
        said = np.concatenate([said, ways[name](said[-SEEN:])])
    off = np.abs(said[SEEN:] - new[SEEN : SEEN + 60]) > 0.5 * spread
    ax.plot(said[SEEN:], label=name)
    print(f"{name} stays within half a standard deviation for {int(np.argmax(off)) if off.any() else 60} steps")
ax.set(xlabel="steps", ylabel="x - 0.9")
ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
keep(ax.figure, "series")
