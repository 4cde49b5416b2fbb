"""Weight transport: must the way back have the same weights as the way forward?

Backpropagation sends deltas back through the transposed weights, which a neuron's outgoing synapses do not know. Here
the same network, of five hidden layers, learns the digits with other ways back: the signs of the weights alone, weights
that are another random draw (feedback alignment), and the output error sent to each layer directly. All of them learn.
The signs are nearly as good as the weights; random weights are slower, the more so the deeper the network, since each
layer adds its own angle to the gradient. The direct way has only one random matrix between the error and any layer: its
angles are as wide, but it does not get worse with depth, and here it overtakes the layer by layer way.
"""

# %%
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from matplotlib import pyplot

import funcbp as bp

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/weight_transport")
out.mkdir(parents=True, exist_ok=True)

SIZES, BATCH, EPOCHS, RATE, TRIALS = (64, 50, 50, 50, 50, 50, 10), 50, 15, 0.05, 4
HIDDEN = len(SIZES) - 2
digits = bp.data.load("digits")
x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)


# %%
def forward(params, x):
    for i, p in enumerate(params[:-1]):
        x = bp.name(jnp.tanh(x @ p["kernel"] + p["bias"]), f"h{i}")
    return bp.name(x @ params[-1]["kernel"] + params[-1]["bias"], "out")


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()


def init(key):
    layer = lambda key, i, o: {"kernel": jax.random.normal(key, (i, o)) * i**-0.5, "bias": jnp.zeros(o)}
    return [layer(k, *s) for k, s in zip(jax.random.split(key, HIDDEN + 1), itertools.pairwise(SIZES), strict=True)]


to_hidden = lambda i: jax.random.normal(jax.random.key(10 + i), (10, SIZES[i + 1])) * 10**-0.5
direct = bp.credit.direct_feedback({f"h{i}": to_hidden(i) for i in range(HIDDEN)}, error="out")

# Each scheme: the backward pass for these parameters, given a key and random feedback weights.
SCHEMES = {
    "backpropagation": lambda key, params, random: bp.Backward(),
    "signs (uSF)": lambda key, params, random: bp.credit.uniform_sign(params),
    "signs, sizes drawn each batch (brSF)": lambda key, params, random: bp.credit.batchwise_sign(key, params),
    "signs, fixed sizes (frSF)": lambda key, params, random: bp.credit.fixed_sign(random, params),
    "feedback alignment": lambda key, params, random: bp.Backward(feedback=random),
    "direct feedback": lambda key, params, random: direct,
}


# %%
def learn(scheme, key):
    """Test accuracy and the hidden layers' mean angle to the gradient, after each epoch."""
    start, feedback, order = jax.random.split(key, 3)
    params = init(start)
    random = bp.credit.feedback_weights(feedback, params)

    def step(params, batch):
        key, x, y = batch
        grads = scheme(key, params, random).grad(loss)(params, x, y)
        return jax.tree.map(lambda w, g: w - RATE * g, params, grads), None

    def angle(key, params):
        measure = bp.credit.alignment(loss, backward=scheme(key, params, random))
        return jnp.mean(jnp.stack([p["kernel"].angle for p in measure(params, x, y)[:-1]]))

    def epoch(params, key):
        order = jax.random.permutation(key, len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        keys = jax.random.split(key, len(order))
        params, _ = jax.lax.scan(step, params, (keys, x[order], y[order]))
        accuracy = jnp.mean(jnp.argmax(forward(params, digits.x_test), -1) == digits.y_test)
        return params, (accuracy, angle(key, params))

    return jax.lax.scan(epoch, params, jax.random.split(order, EPOCHS))[1]


keys, results = jax.random.split(jax.random.key(0), TRIALS), {}
for name, scheme in SCHEMES.items():
    accuracy, angle = results[name] = jax.device_get(jax.jit(jax.vmap(lambda k, s=scheme: learn(s, k)))(keys))
    scores = [f"{accuracy[:, e].mean():.3f} (± {accuracy[:, e].std():.3f})" for e in (2, EPOCHS - 1)]
    angles = f"angle {angle[:, 0].mean():4.1f} -> {angle[:, -1].mean():4.1f} degrees"
    print(f"{name:38} accuracy after 3 epochs {scores[0]}, after {EPOCHS} {scores[1]}, {angles}")

# %%
figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, (accuracy, angle) in results.items():
    (line,) = left.plot(accuracy.mean(0), label=name)
    left.fill_between(range(EPOCHS), accuracy.min(0), accuracy.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    right.plot(angle.mean(0), label=name)
left.set(xlabel="epoch", ylabel="accuracy on the test set")
right.set(xlabel="epoch", ylabel="angle to the gradient, degrees", ylim=(-2, 95))
left.legend(fontsize=8)
figure.savefig(out / "weight_transport.png")
