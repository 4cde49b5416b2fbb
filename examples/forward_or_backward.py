"""Forward or backward: three ways to multiply out the chain rule.

The gradient of a layered network is a chain of derivatives, one matrix per layer. However it is multiplied out, the
result is the same; the work is not. One can follow every path along which a weight reaches the error, multiply the
matrices forwards, or multiply them backwards, beginning with the error. Only the last is backpropagation.
"""

# %%
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import funcbp as bp
from funcbp import plot

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/forward_or_backward")
out.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# A network of L layers, all of the same width: y_l = tanh(y_{l-1} W_l), and E = ½ Σ (y_L - t)². How the outputs of
# layer l depend on those of the layer before is one matrix, M_l = W_l · f'(net_l), and what is wanted, for every
# layer, is
#
#     ∂E/∂y_l = M_{l+1} M_{l+2} ... M_L (y_L - t)
#
# from which the weights' gradient is one more product, ∂E/∂W_l = y'_{l-1} (∂E/∂y_l · f'(net_l)).


# %%
def error(weights, x, t):
    for w in weights:
        x = jnp.tanh(x @ w)
    return 0.5 * jnp.sum((x - t) ** 2)


class Network:
    """A network's forward pass, with what the backward pass needs, and a count of multiplications."""

    def __init__(self, depth, width, seed=0):
        rng = np.random.default_rng(seed)
        self.weights = [rng.normal(size=(width, width)) / width**0.5 for _ in range(depth)]
        self.x, self.t = rng.normal(size=width), rng.uniform(-1, 1, size=width)
        self.outputs = [self.x]
        for w in self.weights:
            self.outputs.append(np.tanh(self.outputs[-1] @ w))
        self.slopes = [1 - y**2 for y in self.outputs[1:]]
        self.steps = [w * slope for w, slope in zip(self.weights, self.slopes, strict=True)]  # the matrices M
        self.last = self.outputs[-1] - self.t
        self.multiplications = 0

    def times(self, a, b):
        """Elementwise: as many multiplications as there are results."""
        result = a * b
        self.multiplications += result.size
        return result

    def matmul(self, a, b):
        """A row times a column for each result."""
        result = a @ b
        self.multiplications += result.size * a.shape[-1]
        return result

    def weight_gradient(self, layer, y_bar):
        return self.times(self.outputs[layer][:, None], self.times(y_bar, self.slopes[layer]))


# %% [markdown]
# **Every path.** A unit reaches the error along every path through the layers above it. The products along all of
# them are made, and added up: with k layers of n units above, there are n^k from each unit.


# %%
def every_path(net, steps):
    if not steps:
        return net.last
    paths = steps[0]
    for step in steps[1:]:
        paths = net.times(paths[..., None], step)  # one more axis: the unit that a path goes through next
    return net.times(paths, net.last).sum(axis=tuple(range(1, paths.ndim)))


# %% [markdown]
# **Forwards.** The matrices are multiplied in the order of the layers: how each unit of a layer changes each unit of
# the next, of the one after that, and so on to the error. Paths are added up where they meet, so the work is no
# longer exponential. But every product is one of a matrix and a matrix, and every layer begins anew.


# %%
def forwards(net, steps):
    if not steps:
        return net.last
    effect = steps[0]
    for step in steps[1:]:
        effect = net.matmul(effect, step)
    return net.matmul(effect, net.last)


# %% [markdown]
# **Backwards.** The product begins at the error. Every step is one of a matrix and a vector, and what was computed
# for a layer is all that the layer before it needs.


# %%
def backwards(net):
    gradient, y_bar = [], net.last
    for layer in reversed(range(len(net.steps))):
        gradient.append(net.weight_gradient(layer, y_bar))
        y_bar = net.matmul(net.steps[layer], y_bar) if layer > 0 else None
    return gradient[::-1]


def layer_by_layer(y_bar):
    return lambda net: [net.weight_gradient(i, y_bar(net, net.steps[i + 1 :])) for i in range(len(net.steps))]


WAYS = {"every path": layer_by_layer(every_path), "forwards": layer_by_layer(forwards), "backwards": backwards}

# %% [markdown]
# All three are the gradient that `bp.grad` gives.

# %%
jax.config.update("jax_enable_x64", True)
net = Network(depth=5, width=4)
wanted = bp.grad(error)(net.weights, net.x, net.t)
for name, way in WAYS.items():
    furthest = max(float(np.max(np.abs(g - w))) for g, w in zip(way(net), wanted, strict=True))
    print(f"{name:10} differs from bp.grad by {furthest:.1e} at most")
    assert furthest < 1e-14

# %% [markdown]
# What they cost, multiplications and time, over depth and over width. Where there are more than a million paths from
# one unit they are not followed.


# %%
def cost(way, depth, width):
    """Multiplications and seconds, the best of a few runs."""
    best = np.inf
    for _ in range(5):
        net = Network(depth, width)
        start = time.perf_counter()
        way(net)
        best = min(best, time.perf_counter() - start)
    return net.multiplications, best


def costs(sizes):
    """By way: which size, multiplications and seconds, in rows."""
    paths = {size: size[1] ** (size[0] - 1) for size in sizes}
    followed = {name: [s for s in sizes if name != "every path" or paths[s] <= 1_000_000] for name in WAYS}
    return {name: np.array([(*s, *cost(WAYS[name], *s)) for s in followed[name]]) for name in WAYS}


over_depth = costs([(depth, 4) for depth in (2, 3, 4, 6, 8, 10, 16, 24, 32, 64)])
over_width = costs([(5, width) for width in (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)])

# %% [markdown]
# With L layers of n units, backwards takes (L-1) n² multiplications, forwards (L-1) n² + (L-1)(L-2)/2 n³, and
# following paths about n^L; and each way another L (n² + n) to make the weights' gradients. The counts are exactly
# that.

# %%
for measured in (over_depth, over_width):
    for depth, width, counted in measured["backwards"][:, :3]:
        assert counted == (depth - 1) * width**2 + depth * (width**2 + width)
    for depth, width, counted in measured["forwards"][:, :3]:
        products = (depth - 1) * width**2 + (depth - 1) * (depth - 2) / 2 * width**3
        assert counted == products + depth * (width**2 + width)

print(f"{'layers':>6} {'width':>6}" + "".join(f"{name:>16}" for name in WAYS))
for measured in (over_depth, over_width):
    counts = {name: {(d, w): c for d, w, c, _ in rows} for name, rows in measured.items()}
    for depth, width in counts["backwards"]:
        row = "".join(f"{counts[name].get((depth, width), np.nan):16,.0f}" for name in WAYS)
        print(f"{depth:6.0f} {width:6.0f}{row.replace('nan', '  -')}")


# %%
def draw(column, ylabel):
    axes = plot.new_axes(10, 4, 2)
    for ax, measured, i, title in (
        (axes[0], over_depth, 0, "4 units in each layer"),
        (axes[1], over_width, 1, "5 layers"),
    ):
        for name, rows in measured.items():
            ax.plot(rows[:, i], rows[:, column], "o-", markersize=4, label=name)
        ax.set(xscale="log", yscale="log", xlabel=("layers", "units in each layer")[i], ylabel=ylabel, title=title)
        sizes = measured["backwards"][::2, i].astype(int)
        ax.set_xticks(sizes, sizes)
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    return axes[0].figure


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


keep(draw(2, "multiplications"), "multiplications")

# %% [markdown]
# In time, small products cost little more than calling numpy; then the counts show.

# %%
keep(draw(3, "seconds"), "seconds")

# %% [markdown]
# Forward accumulation has its place: it wins where there are fewer inputs than outputs. A network that learns is the
# opposite extreme, many weights and one error, and that is why errors are propagated backwards.
