"""Where learning ends: local minima and restarts, the analytic solution, early stopping, and forgetting.

Going downhill ends where the ground is flat. That may be too high up, a local minimum; it may be where the training
set is learned, noise and all; and it is where the present task ends, whatever was learned before.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import data, nets, ops, plot, reproduce
from funcbp.learn.train import stopping

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/where_learning_ends")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


# %% [markdown]
# One linear unit and the squared error: the gradient is zero where X'X w = X't, a system of equations. Descent at the
# rate 1 / λmax comes to the same weights, and the error that is left shrinks, in the end, by (1 - λmin / λmax)² with
# each update. With a layer of nonlinear units there is no such system, and descent goes on as before.

# %%
rng = np.random.default_rng(0)
x = jnp.asarray(
    np.c_[rng.normal(size=(50, 2)) @ [[1.0, 0.8], [0.0, 0.6]], np.ones(50)], jnp.float32
)  # and the on-neuron
t = x @ jnp.array([1.0, -2.0, 0.5]) + 0.1 * jnp.asarray(rng.normal(size=50), jnp.float32)
error = lambda w: 0.5 * jnp.sum((t - x @ w) ** 2)
solution = jnp.linalg.solve(x.T @ x, x.T @ t)
eigenvalues = jnp.linalg.eigvalsh(x.T @ x)
walk = jax.lax.scan(lambda w, _: (w - bp.grad(error)(w) / eigenvalues[-1], w), jnp.zeros(3), length=120)[1]
left = np.asarray(jax.vmap(error)(walk) - error(solution))
newton = -jnp.linalg.solve(bp.hessian(error)(jnp.zeros(3)), bp.grad(error)(jnp.zeros(3)))
print(f"by the equations {solution}, by 120 updates {walk[-1]}, and by one step of Newton's from 0 {newton}")
print(f"each update leaves {left[21] / left[20]:.3f} of the error above the minimum", end="")
print(f", and {float((1 - eigenvalues[0] / eigenvalues[-1]) ** 2):.3f} is expected")

# %% [markdown]
# Local minima. Exclusive or with two hidden logistic units, 200 networks from weights within ±1, by RPROP. Where an
# attempt has not succeeded after 100 epochs, it is given up, and another begins from new weights.

# %%
xor_x, xor_t = (jnp.asarray(a) for a in data.xor())
net = nets.mlp([2, 2, 1], ops.logistic, ops.logistic)


def judged(params):
    y = net.apply(params, xor_x)
    return ops.squared_error(y, xor_t), stopping.forty_twenty_forty(y, xor_t)


start = reproduce.uniform_weights(net, xor_x, 1.0)
end = reproduce.run_trials(judged, start, bp.optim.irprop_minus(), seed=0, trials=200, most=2000, restart_at=100)
first = end.epochs[end.solved & (end.restarts == 0)]
print(f"at the first attempt {len(first)} of 200 learned, half of them in {np.median(first):.0f} epochs")
print(f"with restarts {end.tally()}, in {np.mean(end.epochs):.0f} epochs on average, those in vain included")

# %% [markdown]
# That is what helps in practice. A stopping criterion that guarantees the global minimum, which one of our sources has
# heard of, we have not found.
#
# Overfitting: 1-30-1, a sine through noise, 15 examples to learn from and as many to watch, twenty networks. Early
# stopping keeps the weights that were best on the examples it watches. Prechelt's rule stops when the error there is
# 5 % above the best so far. What either has won is seen by the sine itself.


# %%
def noisy(seed, count, noise=0.4):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (count, 1))
    return jnp.asarray(x, jnp.float32), jnp.asarray(np.sin(np.pi * x) + noise * rng.normal(size=x.shape), jnp.float32)


def steep(key, shape, dtype):
    """Units that turn steeply, and weak weights from them: enough to draw any curve."""
    return nets.uniform(-5, 5)(key, shape, dtype) * (1.0 if shape[0] == 1 else 0.1)


training, watched, sine = noisy(0, 15), noisy(1, 15), noisy(2, 1000, noise=0.0)
wide = nets.mlp([1, 30, 1], ops.tanh, initializer=steep)
mean_error = lambda params, batch: ops.squared_error(wide.apply(params, batch[0]), batch[1], "mean")
many = bp.fit_many(
    mean_error,
    lambda key: wide.init(key, training[0]),
    training,
    optimizer=optax.adam(0.01),
    key=jax.random.split(jax.random.key(0), 20),
    mode="batch",
    epochs=1000,
    validation=watched,
)
losses = {"training": many.history["loss"].T, "watched": many.history["validation_loss"].T}
keep(plot.curves(losses, ylabel="error"), "overfitting")

# %%
rule, stops = stopping.generalization_loss(5.0), []
for member in losses["watched"]:
    state = rule.init()
    for epoch, value in enumerate(member):
        state, stop = rule.update(state, stopping.EpochMetrics(epoch, 0.0, value))
        if stop:
            break
    stops.append(epoch)
from_sine = lambda params: np.asarray(jax.vmap(lambda p: mean_error(p, sine))(params))
best, after = from_sine(many.best_params), from_sine(many.params)
print(f"from the sine, best on the watched (epoch {np.median(many.best_epoch):.0f}): error {np.median(best):.3f}")
print(f"after 1000 epochs: {np.median(after):.3f}; the best were better in {np.sum(best < after)} of {len(best)}")
print(f"Prechelt's rule would have stopped at epoch {np.median(stops):.0f} ({min(stops)} to {max(stops)})")

# %% [markdown]
# The rule takes the wobbles of the first epochs for the end. Where an error goes up and down, keeping the best weights
# costs nothing and needs no such judgement.
#
# Catastrophic interference. The sums with one, 1 + 1 to 9 + 1 and 1 + 9, are learned, and then the sums with two.
# Nothing in the second task asks for the first, and the same weights carry both. Rehearsal: while the second is
# learned, all of the first, or four of them, are repeated. The two sums that are in both tasks are not counted.

# %%
pairs = [(a, b) for a in range(1, 10) for b in range(1, 10) if 1 in (a, b) or 2 in (a, b)]
ones, twos = (np.array([n in pair for pair in pairs]) for n in (1, 2))
sums_x = jnp.asarray([[*np.eye(9)[a - 1], *np.eye(9)[b - 1]] for a, b in pairs], jnp.float32)
sums_t = jnp.asarray([a + b - 2 for a, b in pairs])
four = np.isin(np.arange(len(pairs)), np.flatnonzero(ones & ~twos)[::4])
SECOND = {"the second alone": twos, "with four of the first": twos | four, "with all of the first": twos | ones}
adder = nets.mlp([18, 30, 10], ops.logistic)
rule = optax.sgd(1.0, momentum=0.9)


def taught(key, then, epochs=150):
    """What is right of the first task and of the second, epoch by epoch: the first is taught, and `then`."""

    def epoch(state, examples):
        params, memory = state

        def loss(params):
            said = adder.apply(params, sums_x)
            errors = ops.softmax_cross_entropy_with_integer_labels(said, sums_t)
            return jnp.sum(examples * errors) / jnp.sum(examples), stopping.right_class(said, sums_t)

        gradient, right = bp.grad(loss, has_aux=True)(params)
        update, memory = rule.update(gradient, memory)
        return (optax.apply_updates(params, update), memory), [
            jnp.mean(right[only]) for only in (ones & ~twos, twos & ~ones)
        ]

    taught = jnp.concatenate([jnp.tile(phase, (epochs, 1)) for phase in (jnp.asarray(ones, jnp.float32), then)])
    params = adder.init(key, sums_x)
    return jax.lax.scan(epoch, (params, rule.init(params)), taught)[1]


phases = jnp.asarray(np.stack(list(SECOND.values())), jnp.float32)
networks = jax.random.split(jax.random.key(0), 20)
first, second = jax.jit(jax.vmap(jax.vmap(taught, (0, None)), (None, 0)))(networks, phases)
axes = plot.new_axes(12, 3.6, 2)
for ax, what, known in zip(axes, ("first", "second"), (first, second), strict=True):
    shares = {name: 100 * share for name, share in zip(SECOND, known, strict=True)}
    plot.curves(shares, ylabel=f"% right of the {what} task", log=False, ax=ax)
axes[0].get_legend().remove()
axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
keep(axes[0].figure, "forgetting")

# %%
print(f"before the second task {100 * first[:, :, 149].mean():.0f} % of the first are right; after it")
for name, a, b in zip(SECOND, 100 * first[:, :, -1], 100 * second[:, :, -1], strict=True):
    print(f"{name:24}{a.mean():4.0f} % of the first ({a.min():.0f} to {a.max():.0f}), {b.mean():.0f} % of the second")

# %% [markdown]
# What is rehearsed is kept, and nothing else: four of the 15 are 27 %.
