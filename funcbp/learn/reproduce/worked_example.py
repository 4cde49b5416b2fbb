"""The 2-2-2 network of a much-read example, in both orders of updating and with the biases kept or learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ...autodiff.transformations import grad, vjp
from .. import nets, ops, plot
from .table import COMPUTED, READ, SECONDARY, Comparison, Picture, Reproduction

Params = dict[str, dict[str, Any]]
RATE = 0.5
NET = nets.mlp([2, 2, 2], output=ops.logistic)
AT_ONCE = "all weights at once, biases kept"
OUTPUT_FIRST = "output weights first, biases kept"


def start() -> tuple[Params, jax.Array, jax.Array]:
    """The example's weights, inputs and targets."""
    params = {
        "dense_0": {"kernel": jnp.array([[0.15, 0.25], [0.20, 0.30]]), "bias": jnp.full(2, 0.35)},
        "dense_1": {"kernel": jnp.array([[0.40, 0.50], [0.45, 0.55]]), "bias": jnp.full(2, 0.60)},
    }
    return params, jnp.array([0.05, 0.10]), jnp.array([0.01, 0.99])


def error(params: Params) -> jax.Array:
    """E = Σ ½ (t - o)²."""
    _, x, t = start()
    return ops.squared_error(NET.apply(params, x), t)


def at_once(params: Params, biases: str = "kept") -> Params:
    """Backpropagation: every weight by the gradient at the old weights; biases kept, learned, or shared by a layer."""
    gradient = grad(error)(params)
    new = {}
    for name, layer in params.items():
        ct = gradient[name]["bias"]
        ct = {"kept": jnp.zeros_like(ct), "learned": ct, "shared": jnp.full_like(ct, jnp.sum(ct))}[biases]
        new[name] = {
            "kernel": layer["kernel"] - RATE * gradient[name]["kernel"],
            "bias": layer["bias"] - RATE * ct,
        }
    return new


def output_first(params: Params) -> Params:
    """The output layer first; the hidden layer's deltas then come back through its new weights."""
    _, x, t = start()
    hidden, output = params["dense_0"], params["dense_1"]
    h, to_hidden = vjp(lambda kernel: ops.logistic(ops.dense(x, kernel, hidden["bias"])), hidden["kernel"])
    net, to_output = vjp(lambda kernel: ops.dense(h, kernel, output["bias"]), output["kernel"])
    delta = grad(lambda net: ops.squared_error(ops.logistic(net), t))(net)
    new = output["kernel"] - RATE * to_output(delta)[0]
    (h_bar,) = vjp(lambda h: ops.dense(h, new), h)[1](delta)
    kernel = hidden["kernel"] - RATE * to_hidden(h_bar)[0]
    return {"dense_0": {**hidden, "kernel": kernel}, "dense_1": {**output, "kernel": new}}


RULES: dict[str, Callable[[Params], Params]] = {
    AT_ONCE: at_once,
    OUTPUT_FIRST: output_first,
    "all weights at once, biases learned": lambda params: at_once(params, "learned"),
    "all weights at once, one bias for a layer": lambda params: at_once(params, "shared"),
}
REFERENCES = {
    AT_ONCE: (("0.291027774", COMPUTED), ("0.00003510187783", COMPUTED), ("0.01591362044, 0.98406427351", COMPUTED)),
    OUTPUT_FIRST: (("0.291027924", READ), ("0.0000351085", READ), ("0.015912196, 0.984065734", READ)),
    "all weights at once, biases learned": (
        ("0.280471447", SECONDARY),
        ("0.00000244756224", COMPUTED),
        ("0.01158752739, 0.98845893503", COMPUTED),
    ),
    "all weights at once, one bias for a layer": (
        ("0.285750887", COMPUTED),
        ("0.00000435532107", COMPUTED),
        ("0.01210215912, 0.98792838972", COMPUTED),
    ),
}
ORDER = (
    "The example's text says that weights change when all gradients are known, and prints new weights that fit; the "
    "error it prints after them, and all it prints after 10,000 updates, are those of the other order."
)
TYPO = "A misprint for 0.000035085: the error of the outputs that are printed beside it, ½ Σ (t - o)², is 0.0000350848."


def walk(rule: Callable[[Params], Params], count: int) -> tuple[Any, Any, Any]:
    """E after each of so many updates, in one compiled loop; and the outputs at the end."""
    params, x, _ = start()

    def step(params: Params, _: Any) -> tuple[Params, Any]:
        new = rule(params)
        return new, error(new)

    params, errors = jax.jit(lambda params: jax.lax.scan(step, params, length=count))(params)
    return errors, NET.apply(params, x), params


def run(quick: bool, seed: int) -> Iterator[Comparison | Picture]:
    """The rows; `seed` is not used, as nothing is drawn, and the 10,000 updates take no time worth saving."""
    with jax.enable_x64(True):
        ax = plot.new_axes()
        for name, rule in RULES.items():
            errors, outputs, _ = walk(rule, 10_000)
            after_one, at_end, printed = REFERENCES[name]
            note = ORDER if rule is output_first else ""
            yield Comparison(f"{name}: E after 1 update", *after_one, f"{errors[0]:.9f}", note=note)
            note = TYPO if rule is output_first else ""
            yield Comparison(f"{name}: E after 10,000", *at_end, f"{errors[-1]:.14f}", note=note)
            digits = 9 if rule is output_first else 11
            ours = ", ".join(f"{o:.{digits}f}" for o in outputs)
            yield Comparison(f"{name}: outputs after 10,000", *printed, ours)
            ax.loglog(range(1, 10_001), errors, label=name, linestyle="--" if rule is output_first else "-")
    ax.set(xlabel="updates", ylabel="E", title="The worked example, four ways")
    ax.legend(frameon=False)
    yield Picture("worked_example", ax.figure)


REPRODUCTION = Reproduction(
    "worked-example",
    "The 2-2-2 network of the step-by-step example, 10,000 updates",
    'M. Mazur, "A step by step backpropagation example", 2015',
    13,
    run,
)
