"""Why a hidden layer: what one unit cannot tell, and what linear layers cannot add.

A perceptron divides the plane by a straight line, and exclusive or needs two. More layers help only if there is
something between them that is not linear: without it, several layers are one.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import plot

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/why_a_hidden_layer")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


# %% [markdown]
# Rosenblatt's perceptron: a unit that is 1 where its net input is positive, and a rule that moves the weights by
# rate · (t - y) · x. The bias is the weight from a unit that is always on, the on-neuron: an input of 1.

# %%
x, xor = (np.asarray(a) for a in bp.data.xor())
t, OR = xor[:, 0] > 0.5, x.max(1) > 0.5
with_on = np.concatenate([x, np.ones((4, 1))], 1)


def perceptron(t, epochs=60):
    """How many of the four examples are wrong in each epoch, and the weights at the end."""
    w, wrong = np.zeros(3), []
    for _ in range(epochs):
        mistakes = 0
        for row, target in zip(with_on, t, strict=True):
            error = float(target) - float(row @ w > 0)
            w += 0.1 * error * row
            mistakes += error != 0
        wrong.append(mistakes)
    return np.array(wrong), w


(or_wrong, _), (xor_wrong, w_xor) = perceptron(OR), perceptron(t)
keep(plot.curves({"or": or_wrong, "exclusive or": xor_wrong}, "epochs", "examples that are wrong"), "perceptron")

# %%
print(f"or: no mistake from epoch {int(np.argmax(or_wrong == 0)) + 1} on")
print(f"exclusive or: after {len(xor_wrong)} epochs still {int(xor_wrong[-1])} of 4, each time one comes")

# %% [markdown]
# Three linear layers, 2-8-8-1, trained by backpropagation, beside one layer. The best that a plane can do is ½ for
# every example; the product of the three matrices is that plane, found by a longer way.


# %%
def trained(sizes, activation, seed=0, epochs=300):
    net = bp.nets.mlp(sizes, activation)
    loss = lambda params, batch: bp.ops.squared_error(net.apply(params, batch[0]), batch[1], "mean")
    start = net.init(jax.random.key(seed), x)
    data = jnp.asarray(x, jnp.float32), jnp.asarray(xor, jnp.float32)
    return net, bp.fit(loss, start, data, optimizer=optax.adam(0.02), mode="batch", epochs=epochs)


nets = {
    "one linear layer": trained([2, 1], bp.ops.identity),
    "three linear layers": trained([2, 8, 8, 1], bp.ops.identity),
    "a hidden layer of tanh": trained([2, 8, 1], bp.ops.tanh),
}
losses = {name: fit.history["loss"] for name, (_, fit) in nets.items()}
keep(plot.curves(losses, "epochs", "error"), "errors")

# %%
w = nets["three linear layers"][1].params
product = w["dense_0"]["kernel"] @ w["dense_1"]["kernel"] @ w["dense_2"]["kernel"]
print(f"the product of the three layers: {np.round(np.asarray(product).ravel(), 3) + 0.0}")
for name, (net, fit) in nets.items():
    said = np.asarray(net.apply(fit.params, jnp.asarray(x, jnp.float32))).ravel()
    print(f"{name:24} {np.round(said, 2) + 0.0}, error {fit.history['loss'][-1]:.4f}")

# %% [markdown]
# What they say of the plane. The perceptron's line is where it stopped, and goes on wandering; the linear layers say ½
# everywhere, which is white, and have no line at all.

# %%
stages = {"a perceptron": None, **{name: fit.params for name, (_, fit) in nets.items()}}


def predict(params, plane):
    if params is None:
        return (plane @ w_xor[:2] + w_xor[2] > 0).astype(float)
    net = next(net for net, fit in nets.values() if fit.params is params)
    return np.round(net.apply(params, plane), 3)  # a plane that is flat but for rounding shall have no line


keep(plot.decision_boundaries(predict, stages, x, t), "planes")
