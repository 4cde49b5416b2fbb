"""Feedback alignment on a linear task: the weights come to match a random feedback.

A network of 30 inputs, 20 hidden and 10 output units, all linear, learns a linear map T, one example at a time. Its
hidden units get their deltas through a fixed random matrix B instead of through the output weights W. At first these
deltas have nothing to do with the gradient; but the hidden weights they teach make W come round, until B e points
roughly where W' e does.

Source: T. P. Lillicrap, D. Cownden, D. B. Tweed, C. J. Akerman, "Random synaptic feedback weights support error
backpropagation for deep learning" (2016): T uniform in [-1, 1], W uniform in [-0.01, 0.01], B uniform in [-0.5, 0.5].
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib import pyplot

import funcbp as bp

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/linear_task")
out.mkdir(parents=True, exist_ok=True)

RUNS, SAMPLES, RATE = 20, 2000, 0.005


# %%
def loss(weights, x, target):
    return 0.5 * jnp.sum((x @ weights[0] @ weights[1] - target) ** 2)


def learn(key, random_feedback):
    """One run: at each sample the normalised error, and the angle between the hidden deltas and the gradient's."""
    keys = jax.random.split(key, 5)
    uniform = lambda key, shape, size: jax.random.uniform(key, shape, minval=-size, maxval=size)
    target = uniform(keys[0], (30, 10), 1.0)
    weights = uniform(keys[1], (30, 20), 0.01), uniform(keys[2], (20, 10), 0.01)
    random = bp.Backward(feedback=(None, uniform(keys[3], (20, 10), 0.5)))
    backward = random if random_feedback else bp.Backward()
    measure = bp.credit.alignment(loss, backward=random)

    def step(weights, x):
        angle = measure(weights, x, x @ target)[0].angle
        grads = backward.grad(loss)(weights, x, x @ target)
        weights = jax.tree.map(lambda w, g: w - RATE * g, weights, grads)
        error = jnp.sum((weights[0] @ weights[1] - target) ** 2) / jnp.sum(target**2)
        return weights, (error, angle)

    return jax.lax.scan(step, weights, jax.random.normal(keys[4], (SAMPLES, 30)))[1]


keys = jax.random.split(jax.random.key(0), RUNS)
error, angle = jax.jit(jax.vmap(lambda key: learn(key, True)))(keys)
error_bp, _ = jax.jit(jax.vmap(lambda key: learn(key, False)))(keys)
print("sample  error, feedback alignment  error, backpropagation  angle in degrees")
for n in (1, 100, 300, 500, 1000, 2000):
    print(f"{n:6}  {error[:, n - 1].mean():25.2e}  {error_bp[:, n - 1].mean():22.2e}  {angle[:, n - 1].mean():16.1f}")
assert angle[:, 100].mean() < 45
assert 20 < angle[:, -100:].mean() < 32
assert error[:, -1].mean() < 1e-6

# %%
figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.semilogy(error.mean(0), label="feedback alignment")
left.semilogy(error_bp.mean(0), label="backpropagation")
left.set(xlabel="sample", ylabel="normalised error")
left.legend()
right.plot(angle.T, color="tab:blue", alpha=0.15)
right.plot(angle.mean(0), color="tab:blue")
right.axhline(45, color="gray", linestyle=":")
right.set(xlabel="sample", ylabel="angle to the gradient, degrees", ylim=(0, 100))
figure.savefig(out / "linear_task.png")
