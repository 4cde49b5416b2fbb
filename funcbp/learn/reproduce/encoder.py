"""The encoder n-m-n: how many epochs each learning rule takes, and how that grows with n."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...jaxpr.types import PyTree
from .. import data, nets, ops, optim, plot
from ..train import stopping
from .table import AGREES, COMPUTED, MEMORY, Comparison, Picture, Reproduction
from .trials import Outcome, run_trials, uniform_weights

Loss = Callable[..., jax.Array]


class Setting(NamedTuple):
    """A learning rule, and the error and the initial weights that go with it."""

    optimizer: optax.GradientTransformation
    loss: Loss
    reach: float
    offset: bool = False


def learn(n: int, m: int, setting: Setting, trials: int, most: int, seed: int) -> Outcome:
    """Batch learning of the encoder n-m-n, to the 40-20-40 criterion."""
    x, t = (jnp.asarray(a) for a in data.encoder(n))
    net = nets.mlp([n, m, n], activation=jax.nn.sigmoid, output=jax.nn.sigmoid)

    def error(params: PyTree) -> tuple[jax.Array, jax.Array]:
        y = net.apply(params, x)
        return setting.loss(y, t), stopping.forty_twenty_forty(y, t)

    backward = optim.sigmoid_prime_offset(0.1) if setting.offset else None
    init = uniform_weights(net, x, setting.reach)
    return run_trials(error, init, setting.optimizer, seed=seed, trials=trials, most=most, backward=backward)


FAHLMAN = Setting(optim.quickprop(1.5, split_epsilon=False), ops.dead_zone_error, 2.0, True)
LISP = Setting(optim.quickprop(), ops.hyper_error, 2.0, True)
RULES = {
    "gradient descent, 1.7, dead zone": (
        Setting(optax.sgd(1.7), ops.dead_zone_error, 1.0),
        "129 (sd 46; 80 to 265)",
        AGREES,
    ),
    "gradient descent, 1.9": (Setting(optax.sgd(1.9), ops.squared_error, 1.0), "121 ± 30", AGREES),
    "quickprop, 1.5, μ 1.75": (FAHLMAN, "22.1 (sd 8.9; 13 to 72)", AGREES),
    "RPROP+": (Setting(optim.rprop_plus(), ops.squared_error, 1.0), "30 ± 7", AGREES),
    "RPROP-": (Setting(optim.rprop_minus(), ops.squared_error, 1.0), "25.5", COMPUTED),
    "iRPROP+": (Setting(optim.irprop_plus(), ops.squared_error, 1.0), "24.1 (sd 3.7)", COMPUTED),
    "iRPROP-": (Setting(optim.irprop_minus(), ops.squared_error, 1.0), "24.1 (sd 3.7)", COMPUTED),
}


def run_rules(quick: bool, seed: int) -> Iterator[Comparison | Picture]:
    """The encoder 10-5-10 by each rule."""
    found = {}
    for name, (setting, reference, sure) in RULES.items():
        found[name] = outcome = learn(10, 5, setting, 10 if quick else 100, 500, seed)
        whose = "Fahlman (1988)" if setting.loss is ops.dead_zone_error else "Riedmiller and Braun (1993)"
        note = f"The reference is that of {whose}." if sure == AGREES else ""
        yield Comparison(name, reference, sure, outcome.spread(), outcome.tally(), note)
    ax = plot.new_axes(8, 4.5)
    epochs = [outcome.epochs[outcome.solved] for outcome in found.values()]
    ax.boxplot(epochs, orientation="horizontal", tick_labels=list(found), whis=(0, 100))
    ax.set(xlabel="epochs until solved", title="Encoder 10-5-10: median, quartiles and range of the trials")
    ax.set_xscale("log")
    ax.set_xticks([10, 20, 50, 100, 200, 500], ["10", "20", "50", "100", "200", "500"])
    ax.minorticks_off()
    ax.invert_yaxis()
    yield Picture("encoder", ax.figure)


SIZES = {  # n: (m, trials, reference)
    4: (2, 100, "15.83"),
    8: (3, 100, "21.99"),
    16: (4, 50, "28.93"),
    32: (5, 20, "30.48"),
    64: (6, 10, "33.90"),
}


def run_sizes(quick: bool, seed: int) -> Iterator[Comparison | Picture]:
    """Encoders of growing size, by quickprop with the defaults of Fahlman's program."""
    sizes = list(SIZES)[:2] if quick else list(SIZES)
    means, deviations = [], []
    for n in sizes:
        m, trials, reference = SIZES[n]
        outcome = learn(n, m, LISP, min(trials, 10) if quick else trials, 500, seed)
        epochs = outcome.epochs[outcome.solved]
        means.append(np.mean(epochs))
        deviations.append(np.std(epochs, ddof=1))
        note = "No other computation of this one is known here." if n == 64 else ""
        yield Comparison(
            f"{n}-{m}-{n}", reference, MEMORY if n == 64 else AGREES, outcome.spread(), outcome.tally(), note
        )
    ax = plot.new_axes()
    ax.errorbar(sizes, means, deviations, marker="o", capsize=3, label="here, mean and sd")
    ax.plot(sizes, [float(SIZES[n][2]) for n in sizes], "s--", color="0.4", label="from memory, Fahlman (1988)")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{n}-{SIZES[n][0]}-{n}" for n in sizes])
    ax.set_ylim(0)
    ax.set(ylabel="epochs until solved", title="Encoders of growing size, by quickprop")
    ax.legend(frameon=False)
    yield Picture("encoder-sizes", ax.figure)


REPRODUCTION = Reproduction(
    "encoder",
    "The encoder 10-5-10 by gradient descent, quickprop and the RPROP family",
    'S. Fahlman, "An empirical study of learning speed in back-propagation networks", 1988; M. Riedmiller, H. Braun, '
    '"A direct adaptive method for faster backpropagation learning: the RPROP algorithm", 1993',
    8,
    run_rules,
)
SCALING = Reproduction(
    "encoder-sizes",
    "Encoders from 4-2-4 to 64-6-64 by quickprop",
    'S. Fahlman, "An empirical study of learning speed in back-propagation networks", 1988',
    6,
    run_sizes,
)
