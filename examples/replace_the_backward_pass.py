"""Replace the backward pass: clip, reverse and reroute cotangents, and learn with other ways back.

The forward pass stays as it is. `Backward(edits=...)` replaces the cotangent of a named value, `Backward(rules=...)`
the rule of an operation, and `Backward(feedback=...)` sends deltas through other weights.
"""

# %%
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot

import funcbp as bp

out = Path(sys.argv[1] if sys.argv[1:] and sys.argv[1][0] != "-" else "runs/replace_the_backward_pass")
out.mkdir(parents=True, exist_ok=True)


# %%
def loss(params, x, target):
    h = bp.name(jnp.tanh(x @ params["hidden"]), "h")
    y = bp.name(h @ params["out"], "y")
    return 0.5 * jnp.mean(jnp.sum((y - target) ** 2, -1))


rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
params = {"hidden": normal(5, 20) * 0.3, "out": normal(20, 3) * 0.3}
x = normal(200, 5)
target = jnp.tanh(x @ normal(5, 8)) @ normal(8, 3)

# %% [markdown]
# Edits: functions of the cotangent, and of the cotangents of the names passed before it.

# %%
clip = bp.Backward(edits={"h": lambda ct, cts: jnp.clip(ct, -1e-3, 1e-3)})
reverse = bp.Backward(edits={"h": lambda ct, cts: -ct})
true = bp.grad(loss)(params, x, target)
np.testing.assert_allclose(reverse.grad(loss)(params, x, target)["hidden"], -true["hidden"], rtol=1e-5)
print("norm of the hidden weights' gradient:", jnp.linalg.norm(true["hidden"]))
print("with clipped deltas:", jnp.linalg.norm(clip.grad(loss)(params, x, target)["hidden"]))

# %% [markdown]
# An unknown name is an error that lists the names there are.

# %%
try:
    bp.Backward(edits={"hidden": lambda ct, cts: ct}).grad(loss)(params, x, target)
except ValueError as error:
    print(error)

# %% [markdown]
# Feedback alignment, direct feedback, and backpropagation, side by side.

# %%
random = bp.credit.feedback_alignment(jax.random.key(0), params)
SCHEMES = {
    "backpropagation": bp.Backward(),
    "feedback alignment": random,
    "direct feedback": bp.credit.direct_feedback({"h": normal(3, 20) * 0.5}, error="y"),
}
curves = {}
for name, backward in SCHEMES.items():

    def step(params, _, backward=backward):
        value, grads = backward.value_and_grad(loss)(params, x, target)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, grads), value

    curves[name] = jax.jit(lambda p, step=step: jax.lax.scan(step, p, None, length=1000)[1])(params)
    print(f"{name:20} loss {curves[name][0]:.3f} -> {curves[name][-1]:.4f}")

# %%
for leaf, found in bp.credit.alignment(loss, backward=random)(params, x, target).items():
    print(f"feedback alignment at the start, {leaf}: {found.angle:.1f} degrees from the gradient")
figure, ax = pyplot.subplots(figsize=(6, 4), layout="constrained")
for name, values in curves.items():
    ax.semilogy(values, label=name)
ax.set(xlabel="update", ylabel="loss")
ax.legend()
figure.savefig(out / "replace_the_backward_pass.png")
