"""Through time: a control problem of 1960 solved by the adjoint recursion, and a time-delay network on a chaotic series.

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
from funcbp import ops, plot

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/through_time")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


# %% [markdown]
# Swing a pendulum up by a motor that is too weak to lift it: 80 stages of 0.05 s, the state is the angle from hanging
# down and its speed, the control the motor's torque. What it costs: a little for torque, and in the end much for being
# anywhere else than at rest on top.

# %%
STAGES, DT = 80, 0.05


def stage(state, torque):
    angle, speed = state
    speed = speed + DT * (-9.81 * jnp.sin(angle) + torque)
    return jnp.array([angle + DT * speed, speed])


def effort(torque):
    return 0.5 * 0.02 * DT * torque**2


def final(state):
    return 0.5 * (5 * (state[0] - jnp.pi) ** 2 + state[1] ** 2)


def states_of(controls, start=jnp.zeros(2)):
    """The states from the first to the last, shape (stages + 1, 2)."""
    end, before = jax.lax.scan(lambda state, u: (stage(state, u), state), start, controls)
    return jnp.concatenate([before, end[None]])


def cost(controls, start=jnp.zeros(2)):
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


def gap(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


jax.config.update("jax_enable_x64", True)
controls = jnp.asarray(np.random.default_rng(0).normal(size=STAGES))
gradient, adjoints = by_adjoints(controls)
print(f"bp.grad and the recursion by hand differ by {gap(bp.grad(cost)(controls), gradient):.0e}")

# %% [markdown]
# Dreyfus's view. λ is the derivative of the cost-to-go, what is still to be paid from a state on, and the chain rule
# from one stage to the next is all that is needed: so, the derivative by where it begins is the first adjoint. A stage
# needs nothing but its own derivative and the adjoint of the next one, as a layer needs the deltas of the next one.

# %%
print(f"cost-to-go by the first state: {bp.grad(cost, argnums=1)(controls, jnp.zeros(2))}, first adjoint {adjoints[0]}")
assert gap(bp.grad(cost)(controls), gradient) < 1e-6
