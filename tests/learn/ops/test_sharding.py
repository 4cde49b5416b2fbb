"""Under a mesh with explicit axes, with the examples divided over the devices, the gradients are the same."""

import subprocess
import sys

import pytest

from tests.devices import environment

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
import funcbp as bp
from funcbp import nets, ops

net = nets.mlp([3, 4, 2], ops.tanh)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(8, 3)).astype(np.float32), np.arange(8) % 2
one_hot = np.eye(2, dtype=np.float32)[y]
params = net.init(jax.random.key(0), x)
losses = {
    "classes": lambda p, x, y, t: jnp.sum(ops.softmax_cross_entropy_with_integer_labels(net.apply(p, x), y)),
    "probabilities": lambda p, x, y, t: jnp.sum(ops.softmax_cross_entropy(net.apply(p, x), t)),
    "units": lambda p, x, y, t: jnp.sum(ops.logistic_cross_entropy(net.apply(p, x), t)),
    "squares": lambda p, x, y, t: ops.squared_error(ops.softmax(net.apply(p, x)), t, "mean"),
}
mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
for name, loss in losses.items():
    want = jax.grad(loss)(params, jnp.asarray(x), jnp.asarray(y), jnp.asarray(one_hot))
    with jax.set_mesh(mesh):
        batch = [jax.device_put(a, jax.P("batch")) for a in (x, y, one_hot)]
        assert len(batch[0].sharding.device_set) == 2
        for grad in (bp.grad, jax.grad):
            got = jax.jit(grad(loss))(jax.device_put(params, jax.P()), *batch)
            for g, w in zip(jax.tree.leaves(jax.device_get(got)), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)
    print(name)
"""


@pytest.mark.slow
def test_examples_divided_over_two_devices():
    command = [sys.executable, "-c", PROGRAM]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(2), timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["classes", "probabilities", "units", "squares"]
