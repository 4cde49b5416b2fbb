"""Two spirals, told apart by a network whose layers read all the layers below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...jaxpr.types import PyTree
from .. import data, nets, ops, optim, plot
from ..train import stopping
from .table import NONE, SECONDARY, Comparison, Picture, Reproduction
from .trials import Outcome, run_trials, uniform_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Method(NamedTuple):
    """A learning rule, what goes with it, and the reference's epochs."""

    optimizer: optax.GradientTransformation
    loss: Callable[[jax.Array, jax.Array], jax.Array]  # of the net input of the output unit, and its target
    net: nets.Net
    reach: float
    reference: str
    offset: bool = False


def network(activation: Callable[[jax.Array], jax.Array]) -> nets.Net:
    """2-5-5-5-1 with shortcut connections, 138 weights, up to the net input of its output unit."""
    return nets.shortcut_mlp([2, 5, 5, 5, 1], activation=activation)


LOGISTIC, TANH = network(lambda net: jax.nn.sigmoid(net) - 0.5), network(jnp.tanh)


def squared(net: jax.Array, t: jax.Array) -> jax.Array:
    """½ Σ (t - y)²."""
    return ops.squared_error(jax.nn.sigmoid(net), t)


def entropy(net: jax.Array, t: jax.Array) -> jax.Array:
    """The cross-entropy, whose deltas at the output are y - t."""
    return jnp.sum(ops.logistic_cross_entropy(net, t))


def hyper(net: jax.Array, t: jax.Array) -> jax.Array:
    """Fahlman's stretched error."""
    return ops.hyper_error(jax.nn.sigmoid(net), t)


QUICKPROP = optim.quickprop(0.002, 1.5, 1e-5, split_epsilon=False)
IRPROP = optim.irprop_plus(0.01, max_step_size=0.5)
METHODS = {
    "momentum, squared error": Method(optax.sgd(0.005, momentum=0.95), squared, LOGISTIC, 0.1, "20,000"),
    "momentum, cross-entropy": Method(optax.sgd(0.002, momentum=0.95), entropy, LOGISTIC, 0.1, "12,000"),
    "quickprop, hyper-error": Method(QUICKPROP, hyper, TANH, 0.3, "8,000", offset=True),
    "iRPROP+, cross-entropy": Method(IRPROP, entropy, LOGISTIC, 0.5, ""),
}


def learn(method: Method, points: int, trials: int, most: int, seed: int) -> Outcome:
    """Batch learning until all points are right by the 40-20-40 criterion."""
    x, t = (jnp.asarray(a) for a in data.two_spirals(points))

    def error(params: PyTree) -> tuple[jax.Array, jax.Array]:
        net = method.net.apply(params, x)
        return method.loss(net, t), stopping.forty_twenty_forty(jax.nn.sigmoid(net), t)

    backward = optim.sigmoid_prime_offset(0.1) if method.offset else None
    init = uniform_weights(method.net, x, method.reach)
    return run_trials(error, init, method.optimizer, seed=seed, trials=trials, most=most, backward=backward)


def run(quick: bool, seed: int) -> Iterator[Comparison | Picture]:
    """The rows and the picture."""
    points, trials, most = (16, 3, 600) if quick else (97, 8, 20_000)
    note = (
        "With which rates, weights and units is not known here; those used were chosen by trying a few. Trials that "
        f"are not solved after {most:,} epochs are given up, and are not in the mean."
    )
    found = {}
    for name, method in METHODS.items():
        found[name] = outcome = learn(method, points, trials, most, seed)
        sure = SECONDARY if method.reference else NONE
        yield Comparison(f"{name}: epochs", method.reference, sure, outcome.spread(), outcome.tally(), note)
    yield Picture("spirals", _draw(found, points))


def _draw(found: dict[str, Outcome], points: int) -> Figure:
    """What the first solved network of each rule says at every place, and the points."""
    axes = plot.new_axes(3 * len(found), 3.6, len(found))
    x, t = data.two_spirals(points)
    reach = np.linspace(-7, 7, 201)
    places = jnp.asarray(np.stack(np.meshgrid(reach, reach), -1), jnp.float32)
    for ax, (name, outcome) in zip(axes, found.items(), strict=True):
        best = int(np.argmax(outcome.solved))
        params = jax.tree.map(lambda p, best=best: p[best], outcome.params)
        says = np.asarray(jax.nn.sigmoid(METHODS[name].net.apply(params, places)))[..., 0]
        ax.imshow(says, plot.canvas.SIGNED, origin="lower", extent=(-7, 7, -7, 7), vmin=0, vmax=1, alpha=0.7)
        ax.scatter(*x.T, c=t[:, 0], cmap=plot.canvas.SIGNED, vmin=0, vmax=1, s=8, edgecolors="k", linewidths=0.3)
        after = f"{outcome.epochs[best]} epochs" if outcome.solved[best] else "not solved"
        ax.set_title(f"{name}\n{after}", fontsize=9)
        ax.set(xticks=[], yticks=[])
    return axes[0].figure


REPRODUCTION = Reproduction(
    "spirals",
    "Two spirals, 2-5-5-5-1 with shortcut connections",
    'K. Lang, M. Witbrock, "Learning to tell two spirals apart", 1988; as reported in S. Fahlman, C. Lebiere, "The '
    'cascade-correlation learning architecture", 1990',
    5,
    run,
)
