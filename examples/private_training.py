"""Differentially private training of a network on handwritten digits.

Each update clips every example's gradient to a norm and adds noise to the sum, so that no single example shows in the
weights. funcbp does the clipping, in one forward and one backward pass. Which examples make up a batch, and what all
that noise is worth, is left to libraries that are made for it: `jax_privacy` draws the batches by Poisson sampling,
`dp_accounting` adds up the privacy that is spent, and `optax` adds the noise.

Source: M. Abadi and others, "Deep learning with differential privacy", 2016.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import data, nets, ops

try:
    import dp_accounting
    from jax_privacy import batch_selection
except ImportError:
    sys.exit('This example needs jax-privacy and dp-accounting: pip install "funcbp[privacy]".')

parser = argparse.ArgumentParser(description="Train with differential privacy.")
parser.add_argument("--updates", type=int, default=400)
parser.add_argument("--batch", type=int, default=128, help="the expected size of a batch")
parser.add_argument("--noise", type=float, default=2.0, help="standard deviation of the noise, in units of the norm")
parser.add_argument("--norm", type=float, default=1.0, help="the norm to which gradients are clipped")
options = parser.parse_args()

digits = data.load("digits")  # its scaling looks at the training images; a real release would scale by constants
images, labels = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
net = nets.mlp([64, 32, 10], activation=ops.tanh)
params = net.init(jax.random.key(0), images)


def loss(params, example):
    """The loss of one example."""
    image, label = example
    return ops.softmax_cross_entropy_with_integer_labels(net.apply(params, image), label)


# the noise on the mean gradient has the standard deviation σ C / B
deviation = options.noise * options.norm / options.batch
optimizer = optax.chain(optax.add_noise(deviation**2, 0.0, jax.random.key(1)), optax.sgd(0.1, momentum=0.9))
clipped = bp.per_example.clipped_grad(loss, options.norm, divide_by=options.batch)


@jax.jit
def update(params, state, places):
    """One update. Places that are -1 only fill up the batch, so that all batches have one size."""
    batch = images[places], labels[places]
    gradient, found = clipped(params, batch, places >= 0)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, found.clipped


rate, room = options.batch / len(images), 2 * options.batch
sampling = batch_selection.CyclicPoissonSampling(sampling_prob=rate, iterations=options.updates)
state = optimizer.init(params)
for number, chosen in enumerate(sampling.batch_iterator(len(images), rng=2)):
    places = batch_selection.pad_to_multiple_of(np.asarray(chosen), room)
    params, state, fraction = update(params, state, places)
    if (number + 1) % (options.updates // 4) == 0:
        accuracy = jnp.mean(net.apply(params, digits.x_test).argmax(-1) == digits.y_test)
        print(f"{number + 1:4} updates: {fraction:4.0%} clipped, test accuracy {accuracy:.3f}")

accountant = dp_accounting.rdp.RdpAccountant()
event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(options.noise))
accountant.compose(event, options.updates)
delta = 1e-4
print(f"({accountant.get_epsilon(delta):.2f}, {delta:g})-differentially private, by dp_accounting")
