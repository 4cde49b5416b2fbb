"""Rates in a ravine: six rules that choose the learning rate themselves, quickprop, and two conventions of momentum.

At a rate that is a little too large, gradient descent oscillates from one wall of a ravine to the other. Rules with a
variable learning rate see that, by the error or by the signs of the derivatives, and become slower or faster, all
weights together or each on its own.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import optim, plot

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/rates_in_a_ravine")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


# %% [markdown]
# A ravine with curvatures 1 and 50, once along the axes and once turned by 30°, so that both weights are in both
# directions. Every rule begins at the rate 0.0399; the largest that plain descent survives is 2 / 50 = 0.04, and the
# best is 2 / (1 + 50). Vogl's rule has momentum; SuperSAB's is left out here, to compare the rates alone.


# %%
def ravine(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    along, across = jnp.array([c, s], jnp.float32), jnp.array([-s, c], jnp.float32)
    return lambda w: 0.5 * ((w @ along) ** 2 + 50 * (w @ across) ** 2), -4 * along + 0.4 * across


RATE, STEPS = 0.0399, 400
RULES = {  # with the evaluations of the error that an update takes; the gradient is one
    "gradient descent": (optax.sgd(RATE), 1),
    "  at the best rate": (optax.sgd(2 / 51), 1),
    "bold driver": (optim.bold_driver(RATE), 1),
    "Vogl": (optim.vogl(RATE), 1),
    "Salomon": (optim.salomon(RATE), 3),
    "Silva, Almeida": (optim.silva_almeida(RATE), 1),
    "delta-bar-delta": (optim.delta_bar_delta(RATE), 1),
    "SuperSAB": (optim.super_sab(RATE, momentum=0.0), 1),
    "quickprop": (optim.quickprop(RATE, decay=0.0, split_epsilon=False), 1),
}


def path_of(rule, error, w):
    """Where learning went, one update after the other."""
    rule = optax.with_extra_args_support(rule)

    def step(state, _):
        w, memory = state
        value, gradient = bp.value_and_grad(error)(w)
        update, memory = rule.update(gradient, memory, w, value=value, value_fn=error)
        return (optax.apply_updates(w, update), memory), w

    return jax.lax.scan(step, (w, rule.init(w)), length=STEPS)[1]


ERRORS = {degrees: ravine(degrees) for degrees in (0, 30)}
paths = {(name, d): path_of(rule, *ERRORS[d]) for name, (rule, _) in RULES.items() for d in ERRORS}

# %%
axes = plot.new_axes(17, 3.2, 4)
shown = ("gradient descent", "bold driver", "delta-bar-delta", "quickprop")
for ax, name in zip(axes, shown, strict=True):
    plot.error_surface(
        ERRORS[30][0], (-4.5, 1.5), (-2.6, 1.6), paths[name, 30][:40], title=f"{name}, 40 updates", ax=ax
    )
keep(axes[0].figure, "paths")

# %% [markdown]
# How many evaluations of the error until it is 10⁻⁶ of what it was, and stays below? Salomon's rule looks at two
# points before every step, which counts.


# %%
def updates_of(error, path):
    """After how many updates the error stays below 10⁻⁶ of what it was, and the errors."""
    heights = np.asarray(jax.vmap(error)(path))
    above = np.flatnonzero(~(heights <= 1e-6 * heights[0]))
    return (int(above[-1]) + 1 if above[-1] + 1 < len(heights) else None), heights


print(f"{'':20}{'along the axes':>16}{'turned by 30°':>16}")
for name, (_, cost) in RULES.items():
    needed = [updates_of(ERRORS[d][0], paths[name, d])[0] for d in ERRORS]
    print(f"{name:20}" + "".join(f"{n * cost if n else 'not reached':>16}" for n in needed))

# %%
axes = plot.new_axes(12, 4, 2)
for ax, d in zip(axes, ERRORS, strict=True):
    names = [name for name in RULES if name not in ("Salomon", "Vogl")]
    curves = {name.strip(): np.maximum(updates_of(ERRORS[d][0], paths[name, d])[1][:200], 1e-8) for name in names}
    plot.curves(curves, "updates", "error", f"turned by {d}°" if d else "along the axes", ax=ax)
axes[0].get_legend().remove()
keep(axes[0].figure, "errors")

# %% [markdown]
# Where the ravine lies along the axes, a rate for each weight is worth much, and quickprop, whose parabola is the error
# itself there, the most. Turned, each weight's derivative mixes both directions, and most of that is gone. The bold
# driver saves the search for a rate, and is no faster than the best one; Salomon's rule pays for its looking. What is
# fast in both is Vogl's momentum.
#
# Momentum has two conventions. One adds a part of the last change to the step, Δw(t) = -η g + α Δw(t-1), and is
# `optax.sgd`. The other weighs one against the other, Δw(t) = -(1 - α) η g + α Δw(t-1), and is `optim.inertia`: with
# α = 0 the change depends on the gradient alone, with α = 1 on the last change alone, and nothing ever moves. With
# η / (1 - α) in the place of η the second is the first.

# %%
error, start = ERRORS[0]
gap = jnp.abs(path_of(optax.sgd(0.004, momentum=0.9), error, start) - path_of(optim.inertia(0.04, 0.9), error, start))
print(f"sgd(0.004, momentum=0.9) and inertia(0.04, momentum=0.9): the paths differ by {float(gap.max()):.0e}")
print(f"{'momentum':>8}{'added':>20}{'weighed':>20}   updates at the rate 0.02")
alphas = jnp.array([0.0, 0.5, 0.7, 0.9, 0.99, 1.0])
ways = [lambda a: optax.sgd(0.02, momentum=a), lambda a: optim.inertia(0.02, momentum=a)]
for alpha, *walked in zip(
    alphas, *(jax.vmap(lambda a, w=w: path_of(w(a), error, start))(alphas) for w in ways), strict=True
):
    cells = [str(n) if n else f"error {h[-1]:.2g} left" for n, h in (updates_of(error, path) for path in walked)]
    print(f"{alpha:8.2f}{cells[0]:>20}{cells[1]:>20}")
