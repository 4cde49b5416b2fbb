"""`fit_many`: each member learns, to the rounding, what `fit` teaches it alone, and stops on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcbp as bp
from funcbp import nets, ops
from funcbp.learn.train import stopping

X = jnp.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
DATA = X, jnp.array([[0.0], [1], [1], [0]])
NET = nets.mlp([2, 3, 1])
RATES = jnp.array([0.5, 2.0, 4.0])
KEYS = jax.random.split(jax.random.key(4), 3)


def loss(params, batch, decay=0.0):
    x, y = batch
    weights = sum(jnp.sum(layer["kernel"] ** 2) for layer in params.values())
    return ops.squared_error(NET.apply(params, x), y, "mean") + decay * weights


def init(key):
    return NET.init(key, X)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13), got, want)


@pytest.mark.slow
def test_members_are_what_fit_makes_of_them():
    """Seeds, learning rates, momentum, a number of the loss's, and one of a stopping rule's, all at once."""
    over = {
        "rate": RATES,
        "momentum": jnp.array([0.0, 0.5, 0.9]),
        "decay": jnp.array([0.0, 1e-4, 1e-3]),
        "patience": jnp.array([3, 7, 100]),
    }
    options = dict(batch_size=2, epochs=20, validation=DATA)
    many = bp.fit_many(
        loss,
        init,
        DATA,
        optimizer=lambda rate, momentum: optax.sgd(rate, momentum),
        over=over,
        key=KEYS,
        stop={
            "enough": lambda patience: stopping.StoppingRule(
                lambda: (), lambda s, seen: (s, seen.epoch >= patience.astype(seen.epoch.dtype))
            )
        },
        **options,
    )
    assert many.reason == ["enough", "enough", "epochs"] and many.epochs.tolist() == [3, 7, 20]
    assert many.history["loss"].shape == (20, 3)
    for i in range(3):
        first, order = jax.random.split(KEYS[i])
        one = bp.fit(
            lambda params, batch, i=i: loss(params, batch, over["decay"][i]),
            init(first),
            DATA,
            optimizer=optax.sgd(RATES[i], over["momentum"][i]),
            key=order,
            stop=stopping.maximum_epochs(int(over["patience"][i])),
            **options,
        )
        member = jax.tree.map(lambda a, i=i: a[i], (many.params, many.best_params))
        close(member, (one.params, one.best_params))
        assert (one.epochs, one.best_epoch) == (many.epochs[i], many.best_epoch[i])
        np.testing.assert_allclose(many.history["loss"][: one.epochs, i], one.history["loss"], rtol=1e-9)
        assert np.isnan(many.history["loss"][one.epochs :, i]).all()


def test_one_that_diverges_leaves_the_others_alone():
    square = lambda w, batch: w**2 + 0 * jnp.sum(batch)
    many = bp.fit_many(
        square,
        jnp.ones(3),
        X,
        optimizer=lambda rate: optax.sgd(rate),
        over={"rate": jnp.array([0.1, 1e200, 0.2])},
        key=jax.random.key(0),
        mode="batch",
        epochs=5,
    )
    assert many.reason == ["epochs", "diverged", "epochs"]
    np.testing.assert_allclose(many.params, [0.8**5, 1.0, 0.6**5])


def test_going_on_from_a_checkpoint(tmp_path):
    options = dict(optimizer=optax.sgd(1.0), key=KEYS, mode="batch", stop=stopping.target_error(0.12))
    whole = bp.fit_many(loss, init, DATA, epochs=200, **options)
    assert len(set(whole.epochs.tolist())) > 1
    bp.fit_many(loss, init, DATA, epochs=50, checkpoint=tmp_path / "run.npz", **options)
    resumed = bp.fit_many(loss, init, DATA, epochs=200, checkpoint=tmp_path / "run.npz", resume=True, **options)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"])
    assert resumed.reason == whole.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": {"momentum": RATES}}, "over has 'momentum', and neither the loss, nor the optimizer"),
        ({"over": {"decay": RATES[:2]}}, "of one length, and decay has 2, key has 3"),
        ({"over": {"decay": 0.5}}, "decay has 0"),
        ({"key": KEYS[0]}, "How many members there are is said by over="),
        ({"params": {"w": jnp.ones(4)}}, r"params at \['w'\] has 4, key has 3"),
        ({"mode": "on"}, "mode is one of"),
        ({"stop": lambda decay: stopping.generalization_loss(decay), "over": {"decay": RATES}}, "give validation="),
    ],
)
def test_nonsense_is_refused(options, message):
    options = {"optimizer": optax.sgd(0.1), "key": KEYS, "params": init, **options}
    with pytest.raises(ValueError, match=message):
        bp.fit_many(loss, data=DATA, **options)
    with pytest.raises(TypeError, match="or a function that returns one"):
        bp.fit_many(loss, init, DATA, optimizer=0.1, key=KEYS)
