"""The training loop: against a loop in Python, on every kind of task, and at its edges."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcbp import nets, ops, train

X = jax.random.normal(jax.random.key(0), (20, 3))
LABELS = jnp.argmax(X, -1)
TARGETS = jnp.sin(X[:, :1])


def run(task, params, y, optimizer=None, **kwargs):
    optimizer = optimizer or optax.sgd(0.1)
    return list(train.epochs(task, params, (X, y), (X, y), optimizer, key=jax.random.key(3), **kwargs))


def network(sizes):
    net = nets.mlp(sizes, ops.tanh)
    return net, net.init(jax.random.key(1), X)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1), optax.sgd(0.05, 0.9, nesterov=True), optax.adam(0.01)],
    ids=["sgd", "nesterov", "adam"],
)
def test_equals_a_loop_in_python(optimizer):
    net, params = network([3, 4, 3])
    task = train.classification(net)
    history = run(task, params, LABELS, optimizer, batch_size=6, count=2)
    assert [e.number for e in history] == [0, 1, 2]

    def plain_loss(params, x, y):
        hidden = jnp.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"][None])
        logits = hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"][None]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    memory = optimizer.init(params)
    for number in (1, 2):
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(3), number), 20)
        losses = []
        for batch in order[:18].reshape(3, 6):
            loss, gradient = jax.value_and_grad(plain_loss)(params, X[batch], LABELS[batch])
            with jax.numpy_dtype_promotion("standard"):
                updates, memory = optimizer.update(gradient, memory, params)
            params = optax.apply_updates(params, updates)
            losses.append(float(loss))
        assert history[number].loss == pytest.approx(np.mean(losses), rel=1e-12)
        for got, want in zip(jax.tree.leaves(history[number].params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)
    assert history[2].validation_loss == pytest.approx(float(plain_loss(params, X, LABELS)), rel=1e-11)


@pytest.mark.parametrize("kind", ["classification", "regression", "reconstruction"])
def test_every_task_is_learned(kind):
    sizes, y = {
        "classification": ([3, 8, 3], LABELS),
        "regression": ([3, 8, 1], TARGETS),
        "reconstruction": ([3, 2, 3], LABELS),
    }[kind]
    net, params = network(sizes)
    task = getattr(train, kind)(net)
    history = run(task, params, y, optax.adam(0.02), batch_size=5, count=60)
    assert history[-1].loss < 0.5 * history[0].loss
    assert history[-1].validation_score > max(history[0].validation_score, 0.6)
    seconds = [e.seconds for e in history]
    assert seconds == sorted(seconds)


def test_scores():
    net = nets.Net(init=None, apply=lambda params, x, *, key=None: params * x)
    scale = jnp.array(1.0)
    assert float(train.classification(net).score(scale, X, LABELS)) == 1
    assert float(train.regression(net).score(scale, X, X)) == 1
    assert float(train.regression(net).score(jnp.array(0.0), X - jnp.mean(X, 0, keepdims=True), X)) < 1e-12
    assert float(train.reconstruction(net).score(scale, X, LABELS)) == 1
    assert float(train.reconstruction(net).loss(scale, X, LABELS)) == 0


def test_parameters_are_the_callers_and_each_epochs_own():
    net, params = network([3, 3])
    before = jax.tree.map(np.array, params)
    history = run(train.classification(net), params, LABELS, batch_size=20, count=3)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    jax.tree.map(np.testing.assert_array_equal, history[0].params, before)
    kernels = [np.asarray(e.params["dense_0"]["kernel"]) for e in history]
    assert all(not np.array_equal(a, b) for a, b in pairwise(kernels))


def test_the_key_decides_the_order():
    net, params = network([3, 3])
    first, second = (run(train.classification(net), params, LABELS, batch_size=4, count=2) for _ in range(2))
    assert [e.loss for e in first] == [e.loss for e in second]


def test_batches_larger_than_the_data_are_the_data():
    net, params = network([3, 3])
    task = train.classification(net)
    all_at_once = run(task, params, LABELS, batch_size=20, count=2)
    larger = run(task, params, LABELS, batch_size=1000, count=2)
    assert [e.validation_loss for e in all_at_once] == [e.validation_loss for e in larger]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"batch_size": 0}, "got 0 and 100"), ({"count": 0}, "got 32 and 0")]
)
def test_nonsense_is_refused(arguments, message):
    net, params = network([3, 3])
    with pytest.raises(ValueError, match=message):
        run(train.classification(net), params, LABELS, **arguments)
    with pytest.raises(ValueError, match="at least one example"):
        list(train.epochs(None, params, (X[:0], X[:0]), (X, X), optax.sgd(0.1), key=jax.random.key(0)))
