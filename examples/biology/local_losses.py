"""Targets at the last layer only: what if every layer has a target of its own?

Backpropagation knows the target at the output alone, and tells all layers from there. Beside it, layers that each have
a small read-out and a loss of their own: going backward, the named value between two layers lets nothing through
(an edit that makes its cotangent zero), so no delta crosses from one layer to the one below.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from matplotlib import pyplot

import funcbp as bp

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/local_losses")
out.mkdir(parents=True, exist_ok=True)
digits = bp.data.load("digits")
x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
LAYERS, UNITS, UPDATES = 4, 50, 600


# %%
def read_outs(params, x):
    """What each layer's own read-out says."""
    said = []
    for i, p in enumerate(params):
        x = jnp.tanh(bp.name(x, f"into{i}") @ p["kernel"] + p["bias"])
        said.append(x @ p["read"])
    return jnp.stack(said)


def loss(params, x, y, layers):
    """The sum of these layers' cross entropies."""
    said = read_outs(params, x)
    each = optax.softmax_cross_entropy_with_integer_labels(said, jnp.broadcast_to(y, said.shape[:-1])).mean(1)
    return jnp.sum(each * layers)


only_last = jnp.zeros(LAYERS).at[-1].set(1.0)
closed = bp.Backward(edits={f"into{i}": lambda ct, cts: jnp.zeros_like(ct) for i in range(1, LAYERS)})
WAYS = {
    "target at the last layer, backpropagation": (bp.Backward(), only_last),
    "a target at each layer, nothing between layers": (closed, jnp.ones(LAYERS)),
    "a target at each layer, and backpropagation": (bp.Backward(), jnp.ones(LAYERS)),
    "target at the last layer, nothing between layers": (closed, only_last),
}


def learn(backward, layers):
    keys = jax.random.split(jax.random.key(0), LAYERS)
    kernel = lambda key, i: jax.random.normal(key, (i, UNITS)) * i**-0.5
    params = [
        {"kernel": kernel(k, UNITS if i else 64), "bias": jnp.zeros(UNITS), "read": jnp.zeros((UNITS, 10))}
        for i, k in enumerate(keys)
    ]

    def step(params, key):
        which = jax.random.choice(key, len(y), (50,), replace=False)
        grads = backward.grad(loss)(params, x[which], y[which], layers)
        params = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
        return params, jnp.mean(jnp.argmax(read_outs(params, digits.x_test), -1) == digits.y_test, -1)

    return jax.lax.scan(step, params, jax.random.split(jax.random.key(1), UPDATES))[1]


results = {name: jax.device_get(jax.jit(lambda b=b, w=w: learn(b, w))()) for name, (b, w) in WAYS.items()}
for name, accuracy in results.items():
    print(f"{name:50} accuracy of each layer's read-out: {'  '.join(f'{a:.3f}' for a in accuracy[-1])}")

# %%
figure, ax = pyplot.subplots(figsize=(7, 4), layout="constrained")
for name, accuracy in results.items():
    ax.plot(accuracy[:, -1], label=name)
ax.set(xlabel="update", ylabel="accuracy of the last layer on the test set")
ax.legend(fontsize=8)
figure.savefig(out / "local_losses.png")
