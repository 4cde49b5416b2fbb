"""Exact derivatives on the way back: what if they are only roughly right?

A delta is multiplied by f'(net) of each neuron it goes through, exactly, and neurons differ. Here f stays tanh, and its
rule on the way back is replaced: by a constant, by a step, by a mask drawn at random once. What still learns?
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from matplotlib import pyplot

import funcbp as bp

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/inexact_derivatives")
out.mkdir(parents=True, exist_ok=True)

digits = bp.data.load("digits")
x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
mask = lambda shape: jax.random.bernoulli(jax.random.key(7), 0.5, shape[-1:]).astype(jnp.float32)


# %%
def replaced(derivative):
    """Going backward with ȳ · derivative(y) in the place of ȳ (1 - y²)."""

    def tanh_bwd(y, ct, perturbed, **params):
        return [ct * derivative(y)]

    return bp.Backward(rules={jax.lax.tanh_p: bp.rule(tanh_bwd, save=bp.rules.OUTPUT)})


WAYS = {
    "exact: 1 - y²": bp.Backward(),
    "constant: 1": replaced(jnp.ones_like),
    "step: 1 where |y| < 0.8": replaced(lambda y: (jnp.abs(y) < 0.8).astype(y.dtype)),
    "triangle: 1 - |y|": replaced(lambda y: 1 - jnp.abs(y)),
    "a fixed random mask": replaced(lambda y: jnp.broadcast_to(mask(y.shape), y.shape)),
    "the wrong sign": replaced(lambda y: -(1 - y**2)),
    "zero": replaced(jnp.zeros_like),
}


def forward(params, x):
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()


def learn(backward):
    sizes, keys = (64, 64, 64, 64, 10), jax.random.split(jax.random.key(0), 4)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    params = [(jax.random.normal(k, (i, o)) * i**-0.5, jnp.zeros(o)) for k, i, o in pairs]

    def step(params, key):
        which = jax.random.choice(key, len(y), (50,), replace=False)
        grads = backward.grad(loss)(params, x[which], y[which])
        params = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
        return params, jnp.mean(jnp.argmax(forward(params, digits.x_test), -1) == digits.y_test)

    return jax.lax.scan(step, params, jax.random.split(jax.random.key(1), 500))[1]


results = {name: jax.device_get(jax.jit(lambda b=backward: learn(b))()) for name, backward in WAYS.items()}
for name, accuracy in results.items():
    print(f"{name:26} accuracy {accuracy[-1]:.3f}")

# %%
figure, ax = pyplot.subplots(figsize=(7, 4), layout="constrained")
for name, accuracy in results.items():
    ax.plot(accuracy, label=name)
ax.set(xlabel="update", ylabel="accuracy on the test set")
ax.legend(fontsize=8)
figure.savefig(out / "inexact_derivatives.png")
