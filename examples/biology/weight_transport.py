"""Weight transport: must the way back have the same weights as the way forward?

Backpropagation sends deltas back through the transposed weights, which a neuron's outgoing synapses do not know. Here
the same network on the digits learns with other ways back: the signs of the weights alone, weights that are another
random draw (feedback alignment), and the output error sent to each layer directly. All of them learn, and the digits
are easy enough that in the end they differ by little more than chance; how far each is from the gradient, and how it
comes closer while it learns, shows in the angle.
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

SIZES, BATCH, EPOCHS, RATE = (64, 100, 100, 100, 10), 50, 20, 0.1
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
    return [layer(k, *s) for k, s in zip(jax.random.split(key, 4), itertools.pairwise(SIZES), strict=True)]


params = init(jax.random.key(0))
random = bp.credit.feedback_alignment(jax.random.key(1), params)
to_hidden = lambda i: jax.random.normal(jax.random.key(10 + i), (10, SIZES[i + 1])) * 10**-0.5
direct = bp.credit.direct_feedback({f"h{i}": to_hidden(i) for i in range(3)}, error="out")

# Each scheme: the mirror tree for these parameters, or None; and the way of going backward.
SCHEMES = {
    "backpropagation": (lambda key, params: None, bp.Backward()),
    "signs (uSF)": (lambda key, params: bp.credit.uniform_sign(params), bp.Backward()),
    "signs, sizes drawn each batch (brSF)": (bp.credit.batchwise_sign, bp.Backward()),
    "signs, fixed sizes (frSF)": (lambda key, params: bp.credit.fixed_sign(random, params), bp.Backward()),
    "feedback alignment": (lambda key, params: random, bp.Backward()),
    "direct feedback": (lambda key, params: None, direct),
}


# %%
def learn(mirrors_of, backward):
    """Test accuracy and the hidden layers' mean angle to the gradient, after each epoch."""

    def step(params, batch):
        key, x, y = batch
        mirrors = mirrors_of(key, params)
        marked = lambda p: loss(p if mirrors is None else bp.feedback(p, mirrors), x, y)
        return jax.tree.map(lambda w, g: w - RATE * g, params, backward.grad(marked)(params)), None

    def angle(key, params):
        mirrors = mirrors_of(key, params)
        if mirrors is None and not backward.edits:
            return jnp.zeros(())
        measure = bp.credit.alignment(loss, mirrors, None if mirrors is not None else backward)
        return jnp.mean(jnp.stack([p["kernel"].angle for p in measure(params, x, y)[:-1]]))

    @jax.jit
    def epoch(params, key):
        order = jax.random.permutation(key, len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        keys = jax.random.split(key, len(order))
        params, _ = jax.lax.scan(step, params, (keys, x[order], y[order]))
        accuracy = jnp.mean(jnp.argmax(forward(params, digits.x_test), -1) == digits.y_test)
        return params, (accuracy, angle(key, params))

    return jax.lax.scan(epoch, params, jax.random.split(jax.random.key(2), EPOCHS))[1]


results = {name: jax.tree.map(jax.device_get, learn(*scheme)) for name, scheme in SCHEMES.items()}
for name, (accuracy, angle) in results.items():
    angles = f"angle {angle[0]:5.1f} -> {angle[-1]:5.1f} degrees"
    print(f"{name:38} accuracy {accuracy[0]:.3f} -> {accuracy[-1]:.3f}   {angles}")

# %%
figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, (accuracy, angle) in results.items():
    left.plot(accuracy, label=name)
    right.plot(angle, label=name)
left.set(xlabel="epoch", ylabel="accuracy on the test set")
right.set(xlabel="epoch", ylabel="angle to the gradient, degrees", ylim=(-2, 95))
left.legend(fontsize=8)
figure.savefig(out / "weight_transport.png")
