"""The error surface: parabola, bowl, ravines and valleys.

Learning is going downhill. On what landscape? It begins with one linear unit, where everything can be seen, and goes on
to a network, whose landscape has too many dimensions to be seen but can be cut.
"""

# %%
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import funcbp as bp
from funcbp import data, nets, ops, plot

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/error_surface")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


@functools.partial(jax.jit, static_argnums=(0, 3))
def descend(error, w, rate, steps):
    """Gradient descent: where it went, one step after the other."""

    def step(w, _):
        return jax.tree.map(lambda w, g: w - rate * g, w, bp.grad(error)(w)), w

    return jax.lax.scan(step, w, length=steps)[1]


# %% [markdown]
# A unit with two inputs and a linear output, y = x1 w1 + x2 w2.

# %%
keep(plot.network([jnp.array([[0.9], [-0.4]])], title="A linear unit"), "unit")

# %% [markdown]
# One training case, the inputs (1, 1) and the target 0. Over the output y, the error E = (t - y)² is a parabola,
# whose minimum touches the axis.

# %%
outputs = descend(lambda y: (0.0 - y) ** 2, 1.0, 0.2, 8)
keep(plot.error_curve(lambda y: (0.0 - y) ** 2, -1.2, 1.2, outputs, "output y", "One training case"), "parabola")

# %% [markdown]
# Over the two weights it is a surface. For this one case it is a trough: every pair of weights with w1 + w2 = 0 makes
# no error, and descent ends at the nearest of them.

# %%
x, t = jnp.array([1.0, 1.0]), 0.0


def error_of_one(w):
    return (t - x @ w) ** 2


start = jnp.array([0.9, 0.4])
path = descend(error_of_one, start, 0.1, 10)
keep(plot.error_surface(error_of_one, path=path, title="One training case: a trough"), "trough")

# %% [markdown]
# With more cases, whose inputs point in different directions, it becomes a bowl with one lowest point.

# %%
xs, ts = jnp.array([[1.0, 1.0], [1.0, -0.5], [-0.3, 1.0]]), jnp.array([0.0, 0.3, -0.2])


def error_of_all(w):
    return jnp.mean((ts - xs @ w) ** 2)


path = descend(error_of_all, start, 0.2, 25)
keep(plot.error_surface(error_of_all, path=path, title="Three training cases: a bowl"), "bowl")

# %%
keep(plot.error_surface(error_of_all, path=path, title="The same from above", ax=plot.new_axes()), "bowl_from_above")


# %% [markdown]
# A bowl has one minimum, and whoever goes downhill arrives. Where there are several, the place where one begins
# decides: gradient descent finds a local minimum, which need not be the global one.


# %%
def hills(w):
    return 1.5 + jnp.sin(3 * w) + 0.3 * (w - 1) ** 2


axes = plot.new_axes(9, 3.5, 2)
for ax, begin in zip(axes, (-1.0, 0.8), strict=True):
    plot.error_curve(hills, -2.2, 3.2, descend(hills, begin, 0.05, 25), title=f"Begun at {begin}", ax=ax)
keep(axes[0].figure, "local_minimum")

# %% [markdown]
# Now a network, 2-4-1, that learns the exclusive or: 17 weights, so the surface lies in 18 dimensions.

# %%
inputs, targets = (jnp.asarray(a) for a in data.xor())
net = nets.mlp([2, 4, 1], activation=jnp.tanh, output=ops.logistic)
params = net.init(jax.random.key(2), inputs)


def error(params):
    return ops.squared_error(net.apply(params, inputs), targets, "mean")


path = descend(error, params, 1.0, 1000)
at = lambda step: jax.tree.map(lambda leaf: leaf[step], path)
stages = {f"after {step} updates, E = {error(at(step)):.4f}": at(step) for step in (0, 100, 200, 999)}
keep(plot.decision_boundaries(net.apply, stages, inputs, targets), "boundaries")

# %% [markdown]
# What can be drawn is a slice: the error on a plane through the weights where learning ended. In random directions,
# each unit's part of them as long as its weights ("filter normalisation"), one sees how wide the valley is; the path
# is drawn where it comes closest to the plane, which is not close. In the two directions in which the path went
# furthest, one sees it walk.

# %%
end, steps = at(999), jax.tree.map(lambda leaf: leaf[::25], path)
axes = plot.new_axes(11, 4.5, 2)
slices = {
    "Random directions": plot.random_directions(end, key=jax.random.key(0)),
    "The directions of the path": plot.principal_directions(steps),
}
for ax, (title, directions) in zip(axes, slices.items(), strict=True):
    plot.loss_slice(error, end, directions, path=steps, title=title, ax=ax)
keep(axes[0].figure, "slices")

# %%
directions = slices["The directions of the path"]
landscape = plot.loss_slice(error, end, directions, path=steps, ax=plot.new_axes(6, 5, projection="3d"))
keep(landscape, "landscape")

# %% [markdown]
# And the network that was found, with its weights on its edges.

# %%
keep(plot.network(end, title="Exclusive or"), "network")
