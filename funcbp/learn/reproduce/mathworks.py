"""Which training function is fastest depends on the problem: a curve to fit, and a parity to learn."""

from __future__ import annotations

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...jaxpr.types import PyTree
from .. import data, nets, ops, optim, plot
from .table import MEMORY, NONE, Comparison, Picture, Reproduction
from .trials import Outcome, make_trial, uniform_weights

# name: (network, mean squared error to reach, the reference's time of each rule in units of the best)
PROBLEMS = {
    "SIN 1-5-1": ([1, 5, 1], 0.002, {"LM": "1.00", "RP": "4.97", "GDX": "24.29"}),
    "PARITY 3-10-10-1": ([3, 10, 10, 1], 0.001, {"LM": "3.50", "RP": "1.00", "GDX": "7.26"}),
}


def rules(net: nets.Net, x: np.ndarray, t: np.ndarray) -> dict[str, optax.GradientTransformation]:
    """The rules by the names that MATLAB has for them, without the `train`; and LM solved for the residuals."""
    residuals = lambda params, example: net.apply(params, example[0]) - example[1]
    batch = jnp.asarray(x), jnp.asarray(t)
    return {
        "LM": optim.levenberg_marquardt(residuals, 0.001, batch=batch, method="primal"),
        "LM, dual": optim.levenberg_marquardt(residuals, 0.001, batch=batch, method="dual"),
        "RP": optim.irprop_minus(0.07),
        "GDX": optim.vogl(0.01),
        "GDX, 1 - α": optim.vogl(0.001),  # the step is -(1 - α) η ∂E/∂w, with α = 0.9, but after a rejection
    }


def problem(name: str) -> tuple[nets.Net, np.ndarray, np.ndarray]:
    """A network of tanh units and a linear output unit, inputs and targets from -1 to 1."""
    sizes = PROBLEMS[name][0]
    x, t = data.sine(41) if name.startswith("SIN") else data.parity(3, inputs=(-1, 1), targets=(-1, 1))
    return nets.mlp(sizes, activation=ops.tanh), x, t


def learn(
    name: str, optimizer: optax.GradientTransformation, trials: int, most: int, seed: int
) -> tuple[Outcome, np.ndarray]:
    """Trials one after another, by one compiled program, and the seconds that each took, the fastest of three runs."""
    net, x, t = problem(name)
    goal = PROBLEMS[name][1]

    def error(params: PyTree) -> tuple[jax.Array, jax.Array]:
        value = jnp.mean((net.apply(params, x) - t) ** 2)
        return value, value <= goal

    trial = jax.jit(make_trial(error, uniform_weights(net, x, 1.0), optimizer, most))
    keys = jax.random.split(jax.random.key(seed), trials)
    jax.block_until_ready(trial(keys[0]))
    ends, seconds = [], []
    for key in keys:
        took = []
        for _ in range(3):
            begin = time.perf_counter()
            end = jax.block_until_ready(trial(key))
            took.append(time.perf_counter() - begin)
        ends.append(end)
        seconds.append(min(took))
    return jax.tree.map(lambda *a: np.stack(a), *ends), np.array(seconds)


def place_of_gdx(
    name: str, means: dict[str, float], epochs: dict[str, float], references: dict[str, str]
) -> Comparison:
    """Whether GDX is the last, in time as in the reference and in epochs, and why if it is not."""
    place = lambda of: f"{1 + sum(of[rule] < of['GDX'] for rule in references)} of {len(references)}"
    last = place({rule: float(time) for rule, time in references.items()})
    cost = means["LM"] / epochs["LM"] * epochs["RP"] / means["RP"]
    implied = float(references["LM"]) / float(references["RP"]) * epochs["RP"] / epochs["LM"]
    note = (
        f"An epoch of LM solves one equation per weight, and here takes {cost:.0f} times as long as one of RP; with as "
        f"many epochs as here, {implied:.0f} times would make the reference's ratio. Where LM is slower than GDX for "
        f"that, GDX is not the last. In units of RP's epochs, GDX needs {epochs['GDX'] / epochs['RP']:.1f}, with 1 - α "
        f"{epochs['GDX, 1 - α'] / epochs['RP']:.1f}, and the reference's ratio of times is "
        f"{float(references['GDX']) / float(references['RP']):.1f}."
    )
    ours = f"in time {place(means)}, in epochs {place(epochs)}"
    return Comparison(f"{name}, place of GDX", f"in time {last}", MEMORY, ours, note=note)


def run(quick: bool, seed: int) -> Iterator[Comparison | Picture]:
    """The rows and the picture."""
    trials, most = (3, 2000) if quick else (30, 30_000)
    axes = plot.new_axes(10, 4, 2)
    for ax, (name, (_, goal, references)) in zip(axes, PROBLEMS.items(), strict=True):
        note = (
            f"Mean time until the mean squared error is {goal:g}, in units of the fastest of those with a reference; a "
            "trial that fails counts with its time. The reference has MATLAB's rules, which solve for the weights, and "
            "its initial weights are others. The dual solves for the residuals, fewer here. `1 - α` is GDX with the "
            "gradient weighed against the momentum, as the manual's program may have it: an initial rate of 0.001."
        )
        found = {rule: learn(name, optimizer, trials, most, seed) for rule, optimizer in rules(*problem(name)).items()}
        means = {rule: seconds.mean() for rule, (_, seconds) in found.items()}
        epochs = {rule: float(np.mean(outcome.epochs)) for rule, (outcome, _) in found.items()}
        fastest = min(means[rule] for rule in references)
        for rule, (outcome, _) in found.items():
            ours = f"{means[rule] / fastest:.2f}× ({1e3 * means[rule]:.2f} ms)"
            published = (f"{references[rule]}×", MEMORY) if rule in references else ("", NONE)
            yield Comparison(f"{name}, {rule}", *published, ours, outcome.tally(), note)
            yield Comparison(f"{name}, {rule}: epochs", "", NONE, outcome.spread(), outcome.tally())
        yield place_of_gdx(name, means, epochs, references)
        ax.boxplot([1e3 * seconds for _, seconds in found.values()], tick_labels=list(found), whis=(0, 100))
        ax.set(yscale="log", ylabel="ms per trial", title=f"{name}, to {goal:g}")
    yield Picture("mathworks", axes[0].figure)


REPRODUCTION = Reproduction(
    "mathworks",
    "Levenberg-Marquardt, resilient backpropagation and adaptive gradient descent on two problems",
    'The MathWorks, "Choose a multilayer neural network training function", in the manual of its toolbox',
    23,
    run,
)
