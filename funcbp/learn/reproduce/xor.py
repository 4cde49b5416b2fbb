"""XOR with two hidden units, where some attempts end in a local minimum, and one begins again."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ...jaxpr.types import PyTree
from .. import data, nets, ops, optim, plot
from ..train import stopping
from .table import AGREES, Comparison, Picture, Reproduction
from .trials import Outcome, run_trials, uniform_weights

RESTART = 40


def learn(trials: int, most: int, seed: int) -> Outcome:
    """XOR 2-2-1 by quickprop: units from -½ to ½, ε = 4 divided by the inputs of a unit, μ = 2.25, hyper-error."""
    x, t = (jnp.asarray(a) for a in data.xor(inputs=(-0.5, 0.5), targets=(-0.5, 0.5)))
    activation = lambda net: jax.nn.sigmoid(net) - 0.5
    net = nets.mlp([2, 2, 1], activation=activation, output=activation)

    def error(params: PyTree) -> tuple[jax.Array, jax.Array]:
        # the unit that biases come from is an input like the others, and its value is ½
        halved = {name: {**layer, "bias": 0.5 * layer["bias"]} for name, layer in params.items()}
        y = net.apply(halved, x)
        return ops.hyper_error(y, t), stopping.forty_twenty_forty(y, t, -0.5, 0.5)

    return run_trials(
        error,
        uniform_weights(net, x, 1.0),
        optim.quickprop(4.0, mu=2.25),
        seed=seed,
        trials=trials,
        most=most,
        restart_at=RESTART,
        backward=optim.sigmoid_prime_offset(0.1),
    )


def run(quick: bool, seed: int) -> Iterator[Comparison | Picture]:
    """The rows and the picture."""
    outcome = learn(20 if quick else 100, 1000, seed)
    note = "Epochs of attempts that were given up are counted. Restarts per 100 trials."
    yield Comparison(
        "epochs until solved", "24.22 (sd 16.3; 10 to 66)", AGREES, outcome.spread(), outcome.tally(), note
    )
    restarts = 100 * np.sum(outcome.restarts) / len(outcome.restarts)
    yield Comparison(f"restarts, at {RESTART} epochs", "14", AGREES, f"{restarts:.0f}", outcome.tally(), note)
    ax = plot.new_axes()
    epochs = outcome.epochs[outcome.solved]
    ax.hist(epochs, bins=range(0, int(max(epochs, default=1)) + 5, 4))
    for attempt in range(RESTART, int(max(epochs, default=1)), RESTART):
        ax.axvline(attempt, color="0.4", linestyle="--", label="begin again" if attempt == RESTART else None)
    ax.set(xlabel="epochs until solved", ylabel="trials", title="XOR 2-2-1 by quickprop, with restarts")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    yield Picture("xor", ax.figure)


REPRODUCTION = Reproduction(
    "xor",
    "XOR 2-2-1 by quickprop, beginning again where it gets stuck",
    'S. Fahlman, "An empirical study of learning speed in back-propagation networks", 1988',
    3,
    run,
)
