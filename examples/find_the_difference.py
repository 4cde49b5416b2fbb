"""Find the difference: two programs that should agree, and the first value and the first cotangent where they part.

A refactoring, another precision, a custom rule, a port from PyTorch: the losses differ in the third digit, and the
reason is one equation of hundreds. `bp.diff` matches the equations of both sides and names it, with what goes into it.
"""

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcbp as bp

rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(0.5 * rng.standard_normal(shape), jnp.float32)
width = 8
params = {
    "qkv": normal(width, 3 * width),
    "out": normal(width, width),
    "up": normal(width, 16),
    "down": normal(16, width),
}
x = normal(4, width)

# %% [markdown]
# A block of a transformer, of which each part can be another one.


# %%
def block(
    p, x, eps=1e-5, scale=width**-0.5, act=jax.nn.gelu, mask=None, residual=True, stop=lambda v: v, total=jnp.mean
):
    h = (x - jnp.mean(x, 1, keepdims=True)) * lax.rsqrt(jnp.var(x, 1, keepdims=True) + eps)
    q, k, v = jnp.split(bp.name(h, "normed") @ p["qkv"], 3, axis=1)
    h = bp.name(jax.nn.softmax(q @ k.T * scale, axis=1) @ stop(v), "mixed") @ p["out"]
    h = h if mask is None else h * mask
    h = x + h if residual else h
    return total(bp.name(act(h @ p["up"]) @ p["down"], "y") ** 2)


def but(**how):
    return lambda p, x: block(p, x, **how)


print(bp.diff(block, but(eps=1e-3))(params, x))

# %% [markdown]
# Ten differences, planted one at a time. Where the values agree and the gradients do not, the difference is in a
# backward rule.


# %%
@jax.custom_vjp
def tanh_with_half_a_gradient(x):
    return jnp.tanh(x)


tanh_with_half_a_gradient.defvjp(lambda x: (jnp.tanh(x), x), lambda x, ct: (0.5 * ct / jnp.cosh(x) ** 2,))
mask = lambda seed: jax.random.bernoulli(jax.random.key(seed), 0.5, x.shape).astype(jnp.float32)


def moved_at(step):
    bump = jnp.zeros(5).at[step].add(0.01)

    def run(p, x):
        body = lambda h, b: (bp.name(jnp.tanh(h @ p["out"]) + b, "h"), None)
        return jnp.sum(lax.scan(body, x, bump)[0])

    return run


planted = {
    "eps of the normalisation": (block, but(eps=1e-3)),
    "scale of the attention": (block, but(scale=1.0)),
    "another activation": (block, but(act=jax.nn.relu)),
    "gelu by tanh, and by erf": (block, but(act=lambda x: jax.nn.gelu(x, approximate=False))),
    "no residual connection": (block, but(residual=False)),
    "dropout": (block, but(mask=mask(0))),
    "another seed": (but(mask=mask(0)), but(mask=mask(1))),
    "sum and mean": (block, but(total=jnp.sum)),
    "a gradient that is stopped": (block, but(stop=lax.stop_gradient)),
    "a wrong backward rule": (but(act=jnp.tanh), but(act=tanh_with_half_a_gradient)),
    "one step of a loop": (moved_at(3), moved_at(4)),
}
for name, (f, g) in planted.items():
    found = bp.diff(f, g)(params, x)
    assert found, name
    print(f"{name}:\n  {str(found).splitlines()[0]}")

# %% [markdown]
# Programs that differ by rounding agree: another order of the same equations, or another precision.

# %%
bf16 = jnp.bfloat16
low = lambda p, x: block(jax.tree.map(lambda w: w.astype(bf16), p), x.astype(bf16)).astype(jnp.float32)
print(bp.diff(block, low)(params, x))
assert not bp.diff(block, low)(params, x)

# %% [markdown]
# The two sides may run at different times, on different machines: a trace is saved, and loaded there.

# %%
file = Path(tempfile.mkdtemp()) / "run.npz"
bp.trace(block)(params, x).save(file)
print(bp.diff(bp.Trace.load(file), bp.trace(but(scale=1.0))(params, x)).value.a.line.split(":")[-1])

# %% [markdown]
# A port from PyTorch. Hooks take the activations of the modules and their gradients; parameters are there by name, a
# `Linear`'s weight transposed. The port forgets that PyTorch's GELU is the exact one, and JAX's the approximate one.

# %%
try:
    import torch
except ImportError:
    torch = None
    print("PyTorch is not installed: pip install torch.")


def activations_and_gradients(model, loss, *inputs):
    """Run a PyTorch model forward and back, and return its modules' outputs and parameters, each with its gradient."""
    kept = {}

    def keep(name):
        def hook(module, args, out):
            out.retain_grad()
            kept[name] = out

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if not list(m.children())]
    loss(model(*inputs)).backward()
    for hook in hooks:
        hook.remove()
    arrays = {name: (out.detach().numpy(), out.grad.numpy()) for name, out in kept.items()}
    for path, p in model.named_parameters():
        module, leaf = path.rsplit(".", 1)
        linear = isinstance(model.get_submodule(module), torch.nn.Linear)
        turn = (lambda w: w.T) if linear and leaf == "weight" else (lambda w: w)
        arrays[path.replace(".", "/")] = turn(p.detach().numpy()), turn(p.grad.numpy())
    return arrays


def port(params, x, target, approximate):
    """The same model in JAX: normalise, widen, bend, narrow, and the squared error."""
    h = (x - jnp.mean(x, 1, keepdims=True)) * lax.rsqrt(jnp.var(x, 1, keepdims=True) + 1e-5)
    h = bp.name(h * params["norm"]["weight"] + params["norm"]["bias"], "norm")
    h = bp.name(h @ params["up"]["weight"] + params["up"]["bias"], "up")
    h = bp.name(jax.nn.gelu(h, approximate=approximate), "act")
    h = bp.name(h @ params["down"]["weight"] + params["down"]["bias"], "down")
    return jnp.mean((h - target) ** 2)


def compare_with_pytorch(approximate):
    """Compare the port with the model it was made of."""
    torch.manual_seed(0)
    parts = dict(
        norm=torch.nn.LayerNorm(6), up=torch.nn.Linear(6, 12), act=torch.nn.GELU(), down=torch.nn.Linear(12, 2)
    )
    model = torch.nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    x, target = torch.randn(5, 6), torch.randn(5, 2)
    arrays = activations_and_gradients(model, lambda y: ((y - target) ** 2).mean(), x)
    params = {}
    for path, (value, _) in arrays.items():
        if "/" in path:
            module, leaf = path.split("/")
            params.setdefault(module, {})[leaf] = jnp.asarray(value)
    ours = bp.trace(port, argnums=0)(params, jnp.asarray(x.numpy()), jnp.asarray(target.numpy()), approximate)
    return bp.diff(ours, arrays)


# %%
if torch is not None:
    print(compare_with_pytorch(approximate=True))
    repaired = compare_with_pytorch(approximate=False)
    print(repaired)
    assert not repaired
