"""Synchronised steps: must deltas arrive at once?

Backpropagation waits: nothing may change between the way forward and the way back. Here each layer's gradient arrives
k updates late, made with the weights and the inputs of then. Up to a dozen updates or so that does little harm here.
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

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/delayed_deltas")
out.mkdir(parents=True, exist_ok=True)
digits = bp.data.load("digits")
x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
DELAYS, RATES, UPDATES, LONGEST = (0, 1, 4, 16, 64), (0.03, 0.1, 0.3), 600, 64


# %%
def forward(params, x):
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()


def learn(delay, rate):
    """Gradients go into a queue; the one that is `delay` updates old comes out. The output layer has no delay."""
    sizes, keys = (64, 50, 50, 10), jax.random.split(jax.random.key(0), 3)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    params = [(jax.random.normal(k, (i, o)) * i**-0.5, jnp.zeros(o)) for k, i, o in pairs]
    queue = jax.tree.map(lambda w: jnp.zeros((LONGEST + 1, *w.shape)), params[:-1])

    def step(carry, key_and_time):
        (params, queue), (key, t) = carry, key_and_time
        which = jax.random.choice(key, len(y), (50,), replace=False)
        grads = bp.grad(loss)(params, x[which], y[which])
        queue = jax.tree.map(lambda q, g: q.at[t % (LONGEST + 1)].set(g), queue, grads[:-1])
        late = jax.tree.map(lambda q: q[(t - delay) % (LONGEST + 1)], queue)
        params = jax.tree.map(lambda w, g: w - rate * g, params, [*late, grads[-1]])
        return (params, queue), None

    steps = jax.random.split(jax.random.key(1), UPDATES), jnp.arange(UPDATES)
    params = jax.lax.scan(step, (params, queue), steps)[0][0]
    return jnp.mean(jnp.argmax(forward(params, digits.x_test), -1) == digits.y_test)


grid = jnp.asarray([(d, r) for d in DELAYS for r in RATES])
accuracy = jax.jit(lambda grid: jax.lax.map(lambda p: learn(p[0].astype(int), p[1]), grid))(grid)
accuracy = np.asarray(accuracy).reshape(len(DELAYS), len(RATES))
print("delay  " + "  ".join(f"rate {r}" for r in RATES))
for d, row in zip(DELAYS, accuracy, strict=True):
    print(f"{d:5}  " + "  ".join(f"{a:{len(f'rate {r}')}.3f}" for a, r in zip(row, RATES, strict=True)))

# %%
figure, ax = pyplot.subplots(figsize=(6, 4), layout="constrained")
for column, rate in zip(accuracy.T, RATES, strict=True):
    ax.plot([str(d) for d in DELAYS], column, "o-", label=f"learning rate {rate}")
ax.set(xlabel="delay in updates", ylabel="accuracy on the test set")
ax.legend()
figure.savefig(out / "delayed_deltas.png")
