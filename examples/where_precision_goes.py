"""Where precision goes: thirteen losses of digits, each found at its equation, with what to do about it.

A gradient in bfloat16, a loss whose last six digits are noise, weights that stop moving although the loss does not:
what is wrong is one equation among hundreds. `bp.precision` runs both passes beside a float64 shadow of the same
program, and says for each equation what came in, what it rounded away itself, and how much of that is felt in the
value or the gradient.
"""

# %%
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcbp as bp

bf16, f16, f32, fp8 = jnp.bfloat16, jnp.float16, jnp.float32, jnp.float8_e4m3fn
rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), f32)

# %% [markdown]
# One number first. For x = 0.001 the cosine is 0.9999995, of which float32 keeps seven digits, and `1 - cos x` takes
# the first six of them away. The columns are ulps of the result's type: what the operands had lost, what became of
# that in the result, what the equation itself rounded away, and both together.

# %%
loss = lambda x: jnp.sum(1 - jnp.cos(x))
found = bp.precision(loss)(jnp.float32(0.001))
print(found)
print()
print(found.worst(1)[0])
print("the value's relative error:", f"{found.value_error:.1e}")

# %% [markdown]
# Now programs with a planted loss. In each the first sentence names the equation that was planted: its operation,
# whether it is in the backward pass, its line, and the remedy where one is known.


# %%
def variance(x):
    return jnp.mean(x**2) - jnp.mean(x) ** 2


def softmax_without_shift(x):
    e = jnp.exp(x)
    return -jnp.log(e[0] / jnp.sum(e))


def log_of_softmax(x):
    return -jnp.log(jax.nn.softmax(x)[0])


def running_sum(start, terms):
    return lax.scan(lambda c, x: (c + x, None), start, terms)[0].astype(f32)


def scaled_too_small(w, x):
    return jnp.mean((x @ w).astype(f32) ** 2) * 1e-7


def through_eight_bits(x, w):
    return jnp.sum((x.astype(fp8).astype(f32) * w) ** 2)


# name: (loss, arguments, the operation in which digits were planted to be lost)
planted = {
    "one-pass variance": (variance, [1000 + 0.1 * normal(100)], "sub"),
    "softmax without shift": (softmax_without_shift, [jnp.array([1.0, 100.0, 3.0])], "exp"),
    "logarithm of a softmax": (log_of_softmax, [jnp.array([1.0, -3.0, 120.0])], "exp"),
    "running sum in bfloat16": (running_sum, [bf16(0), jnp.full(300, 1, bf16)], "add"),
    "running sum beside a large one": (running_sum, [f32(1e6), jnp.full(60, 0.02, f32)], "add"),
    "loss scaled too small": (
        scaled_too_small,
        [normal(3, 2).astype(f16), normal(4, 3).astype(f16)],
        "convert_element_type",
    ),
    "1 - cos x": (lambda x: jnp.sum(1 - jnp.cos(x)), [jnp.array([1e-3, 2e-3])], "sub"),
    "exp(x) - 1": (lambda x: jnp.sum(jnp.exp(x) - 1), [jnp.array([1e-5, 2e-5])], "sub"),
    "log(1 + x)": (lambda x: jnp.sum(jnp.log(1 + x)), [jnp.array([1e-6, 3e-6])], "log"),
    "difference of roots": (lambda x: jnp.sum(jnp.sqrt(x + 1) - jnp.sqrt(x)), [jnp.array([1e5, 3e5])], "sub"),
    "tanh far out": (lambda x: jnp.sum(jnp.tanh(x)), [jnp.array([9.0, 9.5])], "tanh"),
    "overflow in float16": (
        lambda x: jnp.sum((x * x).astype(f32)) * 1e-3,
        [jnp.array([300.0, 1.0], f16)],
        "mul",
    ),
    "a cast to eight bits": (through_eight_bits, [normal(6), normal(6)], "convert_element_type"),
}
for name, (f, args, operation) in planted.items():
    said = next(s for s in bp.precision(f)(*args).worst(2) if f"`{operation}`" in s)
    print(f"{name}:\n  {said}")

# %% [markdown]
# The first program with the remedy it was given: nothing is left to be said.

# %%
repaired = bp.precision(lambda x: jnp.mean((x - jnp.mean(x)) ** 2))(planted["one-pass variance"][1][0])
print(repaired.worst(), f"{repaired.value_error:.1e}")
assert not repaired.worst()

# %% [markdown]
# A transformer's block in bfloat16, run as a loop: each step is measured by itself, going forward and going back.


# %%
def transformer(params, tokens):
    params = jax.tree.map(lambda w: w.astype(bf16), params)

    def block(x, p):
        h = bp.name(x, "stream")
        h = (h - jnp.mean(h, -1, keepdims=True)) * lax.rsqrt(jnp.var(h, -1, keepdims=True) + bf16(1e-5))
        q, k, v = jnp.split(h @ p["qkv"], 3, -1)
        x = x + jax.nn.softmax(q @ k.T, -1) @ v @ p["out"]
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], None

    x, _ = lax.scan(block, params["embedding"][tokens], params["blocks"])
    logits = (x @ params["embedding"].T).astype(f32)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], 1))


width, depth = 8, 3
blocks = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 16), "down": (16, width)}
params = {
    "embedding": 0.3 * normal(11, width),
    "blocks": {k: 0.3 * normal(depth, *shape) for k, shape in blocks.items()},
}
tokens = jnp.arange(6)
in_bf16 = bp.precision(transformer)(params, tokens)
for said in in_bf16.worst(3):
    print("-", said)
stream = in_bf16["stream"]
for (step,), error in zip(stream.steps, stream.ulps(stream.total), strict=True):
    print(f"block {step}: the stream is off by {error:.2f} ulps of {stream.dtype}")
print({path: f"{error:.1%}" for path, error in in_bf16.gradient_errors.items()})

# %% [markdown]
# Inside a training loop, compiled, for a look at every hundredth update: the errors of the named values and of their
# cotangents, one for each step of the loop.

# %%
errors = jax.jit(bp.precision(transformer).errors)(params, tokens)["stream"]
print("values:    ", np.round(errors.value, 2))
print("cotangents:", np.round(errors.cotangent, 2))
assert errors.value.shape == (depth,)
