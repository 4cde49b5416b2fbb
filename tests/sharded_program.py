"""Run by `test_sharding.py` in a process of its own, with eight CPU devices: prints one JSON line per layout."""

from __future__ import annotations

import collections
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import AxisType

import funcbp as bp

rng = np.random.default_rng(0)
draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 4

MLP = {"in": draw(16, 32), "bias": draw(32), "out": draw(32, 8)}
BLOCK = {"q": draw(16, 4, 8), "k": draw(16, 4, 8), "v": draw(16, 4, 8), "o": draw(4, 8, 16)}
# where the parameters live, and the inputs; over a mesh of 4 x 2 devices, axes "data" and "model"
LAYOUTS = {
    ("mlp", "data parallel"): ({"in": P(), "bias": P(), "out": P()}, P("data")),
    ("mlp", "fully sharded"): ({"in": P("data"), "bias": P("data"), "out": P("data")}, P("data")),
    ("mlp", "tensor parallel"): ({"in": P(None, "model"), "bias": P("model"), "out": P("model")}, P("data")),
    ("block", "data parallel"): ({n: P() for n in "qkvo"}, P("data")),
    ("block", "fully sharded"): ({n: P(None, None, "data") if n == "o" else P("data") for n in "qkvo"}, P("data")),
    ("block", "tensor parallel"): ({n: P("model") if n == "o" else P(None, "model") for n in "qkvo"}, P("data")),
}


def mlp(p, x, explicit):
    if (
        explicit and "data" in jax.typeof(p["in"]).sharding.spec
    ):  # fully sharded weights are gathered where they are used
        p = jax.tree.map(lambda w: jax.sharding.reshard(w, P()), p)
    h = jax.nn.relu(x @ p["in"] + p["bias"][None])
    y = jnp.einsum("bh,ho->bo", h, p["out"], out_sharding=P("data") if explicit else None)
    return jnp.mean(y**2)


def block(p, x, explicit):
    q, k, v = (jnp.einsum("btd,dhk->bhtk", x, p[n]) for n in "qkv")
    a = jax.nn.softmax(jnp.einsum("bhtk,bhsk->bhts", q, k), -1)
    o = jnp.einsum("bhts,bhsk->bhtk", a, v)
    y = x + jnp.einsum("bhtk,hkd->btd", o, p["o"], out_sharding=P("data") if explicit else None)
    return jnp.mean(jax.nn.gelu(y) ** 2)


MODELS = {"mlp": (mlp, MLP, draw(16, 16)), "block": (block, BLOCK, draw(8, 8, 16))}
COLLECTIVE = r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def collectives(compiled):
    return collections.Counter(re.findall(COLLECTIVE, compiled.as_text()))


def largest_difference(a, b):
    leaf = lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y))) / np.max(np.abs(np.asarray(y))))
    return max(jax.tree.leaves(jax.tree.map(leaf, a, b)))


# a compiled function with shardings of its own keeps them
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
placed = dict(in_shardings=jax.NamedSharding(mesh, P("data")), out_shardings=jax.NamedSharding(mesh, P()))
f = jax.jit(lambda x: jnp.sin(x) * x, **placed)
for g in (bp.grad(lambda x: f(x).sum()), jax.jit(bp.grad(lambda x: f(x).sum()))):
    assert largest_difference(g(jnp.arange(1.0, 9.0)), jax.grad(lambda x: f(x).sum())(jnp.arange(1.0, 9.0))) <= 1e-6

for explicit in (False, True):
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    for (name, layout), (specs, inputs) in LAYOUTS.items():
        model, params, x = MODELS[name]
        alone = jax.grad(lambda p, x, model=model: model(p, x, False))(params, x)
        with jax.set_mesh(mesh):
            loss = lambda p, x, model=model, explicit=explicit: model(p, x, explicit)
            put = lambda v, spec, mesh=mesh: jax.device_put(v, jax.NamedSharding(mesh, spec))
            args = jax.tree.map(put, params, specs), put(x, inputs)
            ours, theirs = (jax.jit(t.grad(loss)).lower(*args).compile() for t in (bp, jax))
            types = [jax.tree.map(lambda t: str(jax.typeof(t)), jax.eval_shape(t.grad(loss), *args)) for t in (bp, jax)]
            print(
                json.dumps(
                    {
                        "layout": f"{name}, {layout}, {'explicit' if explicit else 'auto'}",
                        "against one device": largest_difference(ours(*args), alone),
                        "eager": largest_difference(bp.grad(loss)(*args), alone),
                        "same types": types[0] == types[1],
                        "collectives": collectives(ours),
                        "jax's": collectives(theirs),
                    }
                ),
                flush=True,
            )
