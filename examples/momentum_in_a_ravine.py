"""Momentum in a ravine: why a ball rolls better than a walker.

In a ravine, steep across and almost flat along, gradient descent must take small steps, because of the steep sides, and
then hardly moves along the floor. With momentum a part of the last step is made again: across, steps cancel; along,
they add up.

    Δw(t) = -rate · ∂E/∂w + momentum · Δw(t-1)
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
from funcbp import plot

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/momentum_in_a_ravine")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


# %% [markdown]
# A ravine with curvatures 1 along and 50 across, E = ½ (w1² + 50 w2²).

# %%
CURVATURES = jnp.array([1.0, 50.0])


def error(w):
    return 0.5 * CURVATURES @ w**2


@functools.partial(jax.jit, static_argnums=(0, 2))
def path_of(optimizer, w, steps):
    """Where learning went, one update after the other."""

    def step(state, _):
        w, memory = state
        update, memory = optimizer.update(bp.grad(error)(w), memory, w)
        return (optax.apply_updates(w, update), memory), w

    return jax.lax.scan(step, (w, optimizer.init(w)), length=steps)[1]


# %% [markdown]
# The best there is can be computed here. With κ = 50, the ratio of the curvatures, gradient descent is fastest at the
# rate 2 / (λ1 + λ2), and then an update leaves (κ-1)/(κ+1) = 0.961 of the distance. With momentum ((√κ-1)/(√κ+1))²
# and the rate (2 / (√λ1 + √λ2))² it leaves (√κ-1)/(√κ+1) = 0.752, in the long run, and Nesterov's with its usual
# choice 1 - 1/√κ = 0.859.

# %%
low, high = (float(c) for c in CURVATURES)
kappa, root = high / low, (high / low) ** 0.5
best = ((root - 1) / (root + 1)) ** 2
RULES = {
    "gradient descent": optax.sgd(2 / (low + high)),
    "momentum": optax.sgd((2 / (low**0.5 + high**0.5)) ** 2, momentum=best),
    "Nesterov momentum": optax.sgd(1 / high, momentum=(root - 1) / (root + 1), nesterov=True),
}
start = jnp.array([-4.0, 0.4])
paths = {name: path_of(rule, start, 300) for name, rule in RULES.items()}

# %%
axes = plot.new_axes(13, 3.6, 3)
for ax, (name, path) in zip(axes, paths.items(), strict=True):
    plot.error_surface(error, (-4.5, 1.5), (-1.6, 1.6), path[:40], title=f"{name}, 40 updates", ax=ax)
keep(axes[0].figure, "paths")

# %% [markdown]
# The distance from the minimum over the updates: straight lines, on a logarithmic axis, whose slopes are what theory
# says. With momentum the line is only reached slowly: there the two ways in which a distance can shrink coincide,
# which brings a factor that grows with the number of updates.

# %%
distances = {name: np.linalg.norm(path, axis=1) for name, path in paths.items()}
limit = {name: np.where(d > 1e-6, d, np.nan) for name, d in distances.items()}  # float32 ends there
keep(plot.curves(limit, "updates", "distance from the minimum"), "distances")

# %%
expected = {"gradient descent": (kappa - 1) / (kappa + 1), "momentum": (root - 1) / (root + 1)}
expected["Nesterov momentum"] = 1 - 1 / root
for name, distance in distances.items():
    last = int(np.argmax(distance < 1e-5)) or len(distance) - 1
    first = last // 2
    rate = (distance[last] / distance[first]) ** (1 / (last - first))
    print(f"{name:18} an update leaves {rate:.3f} of the distance, and {expected[name]:.3f} in the long run")

# %% [markdown]
# What no momentum helps against: a rate that is too large. Gradient descent diverges across the ravine as soon as the
# rate exceeds 2 / λ2 = 0.04, whatever the floor is like.

# %%
rates = (0.02, 0.039, 0.041)
across = {f"rate {rate}": np.abs(path_of(optax.sgd(rate), start, 60)[:, 1]) for rate in rates}
keep(plot.curves(across, "updates", "distance across the ravine", "2 / λ = 0.04"), "largest_rate")
