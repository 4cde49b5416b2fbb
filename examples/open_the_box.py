"""Open the box: every value and its cotangent, by name and by line, and where a nan came from.

What `jax.grad` does between the loss and the gradient stays inside. Here both passes are looked at: as a ledger, by
name, inside a loop, and, when a number stops being finite, at the equation that made it so.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot

import funcbp as bp

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/open_the_box")
out.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# A network of eight tanh layers, run as a loop over stacked weights. `bp.name` names a value; for JAX it does nothing.


# %%
def loss(params, x, target):
    def layer(h, w):
        return bp.name(jnp.tanh(h @ w), "h"), None

    h, _ = jax.lax.scan(layer, x @ params["in"], params["blocks"])
    return jnp.mean((h @ params["out"] - target) ** 2)


rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.standard_normal(shape) * shape[-2] ** -0.5, jnp.float32)
params = {"in": normal(6, 16), "blocks": 0.5 * normal(8, 16, 16), "out": normal(16, 1)}
x, target = normal(32, 6), normal(32, 1)

# %% [markdown]
# `bp.trace` runs both passes once and keeps everything. The loop appears as one, its values stacked by step.

# %%
ledger = bp.trace(loss)(params, x, target)
print(ledger)
(out / "ledger.html").write_text(ledger.to_html())
ledger  # noqa: B018 (a notebook shows it as a page)

# %% [markdown]
# By name: the deltas of the eight layers. They shrink on their way down, since the weights were made too small.

# %%
sizes = np.linalg.norm(ledger["h"].cotangent, axis=(1, 2))
for i, size in enumerate(sizes):
    print(f"layer {i}: norm of the cotangent {size:.2e}")
assert (np.diff(sizes) > 0).all()
figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
bp.plot.gradient_flow(ledger, ax=left)
bp.plot.histograms(ledger, ax=right)
figure.savefig(out / "gradient_flow.png")

# %% [markdown]
# The same numbers inside a training loop, compiled, at hardly more than the gradient's price: `bp.cotangents`.

# %%
watched = jax.jit(bp.cotangents(loss, names=["h"], reduce=jnp.linalg.norm))
value, grads, found = watched(params, x, target)
np.testing.assert_allclose(found["h"], sizes, rtol=1e-4)
print("the same, compiled:", np.round(found["h"], 5))

# %% [markdown]
# A planted nan: the square root behind a `where` has an infinite derivative at 0, and 0 · ∞ is nan, though the value is
# fine. `bp.find_nan` replays both passes and says where, and what to do.


# %%
def planted(params, x, target):
    distance = jnp.sum((x @ params["in"]) ** 2, -1)
    length = jnp.where(distance > 0, jnp.sqrt(distance), 0.0)
    return jnp.mean((length - target[:, 0]) ** 2)


x_with_a_zero = x.at[3].set(0.0)
print("value", planted(params, x_with_a_zero, target))
print("gradient is finite:", bool(jnp.isfinite(jax.grad(planted)(params, x_with_a_zero, target)["in"]).all()))
find = bp.find_nan(planted)
print(find(params, x_with_a_zero, target))
assert jax.jit(find.whether)(params, x_with_a_zero, target)

# %% [markdown]
# What it costs, before anything is run:

# %%
print(bp.summary(loss)(params, x, target))
