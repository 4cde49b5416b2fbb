"""Run by `test_layout.py` in a process of its own, with eight CPU devices: prints one JSON line per training."""

from __future__ import annotations

import collections
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import P

import funcbp as bp
from funcbp import nets, ops, train
from funcbp.learn.train import layout, loop

FOLDER = Path(sys.argv[1])
COLLECTIVE = r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
NET = nets.mlp([8, 16, 8], ops.tanh)
X = jax.random.normal(jax.random.key(0), (48, 8))
DATA = X, jnp.sin(X)
PARAMS = NET.init(jax.random.key(1), X)


def loss(params, batch):
    x, y = batch
    return ops.squared_error(NET.apply(params, x), y, "mean")


OPTIONS = dict(optimizer=optax.adam(0.01), batch_size=16, key=jax.random.key(2), validation=DATA)
ALONE = bp.fit(loss, PARAMS, DATA, epochs=4, **OPTIONS)


def report(name, fit, **more):
    difference = lambda a, b: float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
    kernels = [fit.params[f"dense_{i}"]["kernel"] for i in range(2)]
    losses = {name: difference(fit.history[name], ALONE.history[name]) for name in ("loss", "validation_loss")}
    params = max(jax.tree.leaves(jax.tree.map(difference, fit.params, ALONE.params)))
    shards = [kernel.addressable_shards[0].data.shape for kernel in kernels]
    print(json.dumps({"name": name, "losses": losses, "params": params, "shards": shards, **more}), flush=True)


def collectives(mesh, where):
    """In the compiled text of an epoch; and the parts of the optimiser's moments."""
    placement = layout.make_placement(mesh, where)
    learner = loop.Learner(
        loss, OPTIONS["optimizer"], "stochastic", 16, False, (), None, (), None, False, bp.Backward(), placement
    )
    state = placement.put(loop.compile_training(learner, 1, False).init(PARAMS, jax.random.key(2), {}))
    data = placement.everywhere(DATA)
    text = loop.compile_training(learner, 1, False).run.lower(state, data, None, {}, np.int32(1)).compile().as_text()
    return {
        "collectives": collections.Counter(re.findall(COLLECTIVE, text)),
        "moments": [state.memory[0].mu[name]["kernel"].addressable_shards[0].data.shape for name in PARAMS],
    }


for sizes, where in (
    ({"data": 8}, "data"),
    ({"data": 8}, "fsdp"),
    ({"data": 4, "tensor": 2}, "tensor"),
    ({"data": 4, "fsdp": 2}, {"dense_1/*": P(), "*/kernel": P(None, "fsdp")}),
):
    mesh = train.make_mesh(sizes)
    fit = bp.fit(loss, PARAMS, DATA, epochs=4, mesh=mesh, layout=where, **OPTIONS)
    report(where, fit, **collectives(mesh, where)) if isinstance(where, str) else report("patterns", fit)

# data of which every device has a part, and a checkpoint that is written on one mesh and read on another
mesh = train.make_mesh({"data": 8})
local = train.from_local(DATA, mesh)
run = dict(checkpoint=FOLDER / "run.npz", **OPTIONS)
bp.fit(loss, PARAMS, local, epochs=2, mesh=mesh, layout="fsdp", **run)
other = train.make_mesh({"data": 4, "tensor": 2})
report(
    "resumed", bp.fit(loss, PARAMS, DATA, epochs=4, mesh=other, resume=True, **run), local=str(local[0].sharding.spec)
)
orbax = dict(checkpoint=train.OrbaxCheckpoint(FOLDER / "orbax"), **OPTIONS)
bp.fit(loss, PARAMS, DATA, epochs=2, mesh=mesh, layout="fsdp", **orbax)
report("orbax", bp.fit(loss, PARAMS, DATA, epochs=4, mesh=mesh, layout="fsdp", resume=True, **orbax))

# a stream of batches, and many networks divided over the devices
places = [jax.random.permutation(jax.random.fold_in(OPTIONS["key"], epoch), 48) for epoch in (1, 2, 3, 4)]
batches = (jax.tree.map(lambda a, p=p: a[p], DATA) for order in places for p in order.reshape(3, 16))
options = {**OPTIONS, "batch_size": 32}
report("stream", bp.fit(loss, PARAMS, batches, epochs=4, updates=3, mesh=mesh, layout="data", **options))

keys = jax.random.split(jax.random.key(3), 16)
many = dict(optimizer=optax.sgd(0.1), key=keys, epochs=3)
init = lambda key: NET.init(key, X)
alone, divided = (bp.fit_many(loss, init, DATA, mesh=each, **many) for each in (None, mesh))
kernel = divided.params["dense_0"]["kernel"]
print(
    json.dumps(
        {
            "name": "many",
            "losses": {"loss": float(np.max(np.abs(alone.history["loss"] - divided.history["loss"])))},
            "params": float(jnp.max(jnp.abs(alone.params["dense_0"]["kernel"] - np.asarray(kernel)))),
            "shards": [kernel.addressable_shards[0].data.shape],
        }
    )
)
