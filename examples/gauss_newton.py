"""Backpropagation and Gauss-Newton.

Backpropagation is closely related to the Gauss-Newton method: both are made of the Jacobian of the errors, one of its
transpose times the errors, the other of its square besides. Here are the two side by side, on the first problem of
Hagan and Menhaj: a 1-15-1 network learns three periods of a sine from 40 points.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import funcbp as bp
from funcbp import data, nets, ops, optim, plot

jax.config.update("jax_enable_x64", True)
out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/gauss_newton")
out.mkdir(parents=True, exist_ok=True)


def keep(figure, name):
    figure.savefig(out / f"{name}.png", dpi=120)
    return figure


x, t = (jnp.asarray(a, jnp.float64) for a in data.sine(40, periods=3, amplitude=0.25, offset=0.5))
net = nets.mlp([1, 15, 1], activation=ops.tanh)
start = net.init(jax.random.key(0), x)
spread = jax.random.uniform(jax.random.key(50), (15,), minval=-5.0, maxval=5.0)
start["dense_0"] = {"kernel": 5 * start["dense_0"]["kernel"], "bias": spread}  # kinks all over the interval


def residual(params, example):
    """e = y - t, for one example."""
    return net.apply(params, example[0]) - example[1]


def error(params):
    """E = ½ Σ e²."""
    return 0.5 * jnp.sum(jax.vmap(residual, (None, 0))(params, (x, t)) ** 2)


# %% [markdown]
# The gradient that backpropagation computes is J'e: the errors go in at the output and come out at the weights,
# multiplied by the transpose of the Jacobian J of the errors. J itself, row by row, is the same pass begun with a 1 in
# the place of each error.

# %%
flat, unravel = ravel_pytree(start)
errors = lambda w: jax.vmap(residual, (None, 0))(unravel(w), (x, t)).reshape(-1)


@jax.jit
def jacobian_and_hessian(w):
    return bp.jacrev(errors)(w), jax.vmap(lambda v: bp.hvp(lambda w: error(unravel(w)), (w,), (v,)))(jnp.eye(w.size))


jacobian, _ = jacobian_and_hessian(flat)
gradient, _ = ravel_pytree(bp.grad(error)(start))
print(f"{flat.size} weights, {len(jacobian)} errors")
print(f"largest difference between the gradient and J'e: {jnp.max(jnp.abs(gradient - jacobian.T @ errors(flat))):.1e}")

# %% [markdown]
# The Hessian of E is J'J + Σ e ∂²e: what Gauss-Newton leaves out is weighted with the errors. So J'J becomes the
# Hessian as the network learns. Gradient descent steps by -η J'e; Gauss-Newton by -(J'J)⁻¹ J'e; Levenberg-Marquardt by
# -(J'J + μ I)⁻¹ J'e, which is the one for small μ and a short step of the other for large μ.


# %%
def train(optimizer, updates):
    """The errors and the weights before each update."""

    def step(carry, _):
        params, state = carry
        update, state = optimizer.update(bp.grad(error)(params), state, params)
        return (optax.apply_updates(params, update), state), (error(params), ravel_pytree(params)[0])

    return jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=updates)[1])()


updates = 200
descents = {
    "gradient descent": train(optax.sgd(0.002), updates),
    "Gauss-Newton, damped": train(optim.gauss_newton(net.apply, ops.squared_error, 0.5, 1e-4, batch=(x, t)), updates),
    "Levenberg-Marquardt": train(optim.levenberg_marquardt(residual, batch=(x, t)), updates),
}
for name, (errors_of, _) in descents.items():
    print(f"{name:22} E = {errors_of[20]:.1e} after 20 updates, {errors_of[-1]:.1e} after {updates - 1}")

# %%
ax = plot.canvas.tidy(plot.new_axes())
for name, (errors_of, _) in descents.items():
    ax.semilogy(errors_of, label=name)
ax.set(xlabel="update", ylabel="error E", title="One Jacobian, three uses")
ax.legend()
keep(ax.figure, "error_over_updates")

# %% [markdown]
# On the way of Levenberg-Marquardt: how much of the Hessian J'J leaves out, against the error.

# %%
errors_of, weights = descents["Levenberg-Marquardt"]
apart = []
for w in weights[:60:3]:
    jacobian, hessian = jacobian_and_hessian(w)
    apart.append(jnp.linalg.norm(hessian - jacobian.T @ jacobian) / jnp.linalg.norm(hessian))
print(f"share of the Hessian that Gauss-Newton leaves out: {apart[0]:.2f} at first, {apart[-1]:.0e} at the end")

ax = plot.canvas.tidy(plot.new_axes())
ax.loglog(errors_of[:60:3], apart, "o-")
ax.set(xlabel="error E", ylabel="|Hessian - J'J| / |Hessian|", title="Gauss-Newton's matrix becomes the Hessian")
keep(ax.figure, "what_gauss_newton_leaves_out")
