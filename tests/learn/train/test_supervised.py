"""Every kind of task: what is learned, and how it is judged."""

import jax
import jax.numpy as jnp
import optax
import pytest

import funcbp as bp
from funcbp import nets, ops, train

X = jax.random.normal(jax.random.key(0), (20, 3))
LABELS = jnp.argmax(X, -1)
TARGETS = jnp.sin(X[:, :1])


def network(sizes):
    net = nets.mlp(sizes, ops.tanh)
    return net, net.init(jax.random.key(1), X)


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("kind", ["classification", "regression", "reconstruction"])
def test_every_task_is_learned(kind):
    sizes, y = {
        "classification": ([3, 8, 3], LABELS),
        "regression": ([3, 8, 1], TARGETS),
        "reconstruction": ([3, 2, 3], LABELS),
    }[kind]
    net, params = network(sizes)
    task = getattr(train, kind)(net)
    fit = bp.fit(
        lambda params, batch: task.loss(params, *batch),
        params,
        (X, y),
        optimizer=optax.adam(0.02),
        batch_size=5,
        epochs=60,
        validation=(X, y),
        score=lambda params, batch: task.score(params, *batch),
    )
    assert fit.history["loss"][-1] < 0.5 * fit.history["loss"][0]
    assert fit.history["validation_score"][-1] > max(fit.history["validation_score"][0], 0.6)


def test_scores():
    net = nets.Net(init=None, apply=lambda params, x, *, key=None: params * x)
    scale = jnp.array(1.0)
    assert float(train.classification(net).score(scale, X, LABELS)) == 1
    assert float(train.regression(net).score(scale, X, X)) == 1
    means = jnp.array([[0.0, 5.0, -3.0]])  # of each column: who predicts these explains nothing
    centred = X - jnp.mean(X, 0, keepdims=True)
    assert abs(float(train.regression(net).score(scale, 0 * X + means, centred + means))) < 1e-5
    assert float(train.reconstruction(net).score(scale, X, LABELS)) == 1
    assert float(train.reconstruction(net).loss(scale, X, LABELS)) == 0
