"""Run by `test_layout.py` as two processes with two CPU devices each: `python processes_program.py ADDRESS PROCESS`.

Each process has half of the data. What they learn together is compared with what each would learn alone from all of it.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import train
from funcbp.learn.train.layout import to_host

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
rng = np.random.default_rng(0)
X = rng.normal(size=(24, 4)).astype(np.float32)
PARAMS = {"w": np.ones((4, 2), np.float32)}
OPTIONS = dict(optimizer=optax.sgd(0.1), batch_size=8, key=jax.random.key(1), epochs=3)
loss = lambda params, x: jnp.mean(jnp.square(jnp.tanh(x @ params["w"]) - x[:, :2]))

mesh = train.make_mesh({"data": 4})
half = slice(12 * jax.process_index(), 12 * (jax.process_index() + 1))
alone = bp.fit(loss, PARAMS, X, **OPTIONS)
together = bp.fit(loss, PARAMS, train.from_local(X[half], mesh), mesh=mesh, layout="fsdp", **OPTIONS)
batches = X.reshape(3, 8, 4)
mine = batches[:, 4 * jax.process_index() : 4 * (jax.process_index() + 1)]
in_order = bp.fit(loss, PARAMS, iter(batches), updates=1, **OPTIONS)
streamed = bp.fit(loss, PARAMS, iter(mine), updates=1, mesh=mesh, **OPTIONS)
for name, fit, want in (("from_local", together, alone), ("stream", streamed, in_order)):
    shard = fit.params["w"].addressable_shards[0].data.shape
    difference = float(np.max(np.abs(to_host(fit.params["w"]) - np.asarray(want.params["w"]))))
    losses = float(np.max(np.abs(fit.history["loss"] - want.history["loss"])))
    print(json.dumps({"name": name, "shard": shard, "params": difference, "losses": losses}), flush=True)
