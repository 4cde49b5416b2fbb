"""Optax's wrappers in `fit`: what they are handed, and which parameters are judged and returned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import funcbp as bp

X = np.array([1.0, 2.0, 3.0])


def error(w, batch):
    return jnp.mean((w - batch) ** 2) / 2  # its gradient is w - 2


def lookahead(updates):
    fast = slow = 0.0
    for t in range(1, updates + 1):
        fast -= 0.1 * (fast - 2)
        if t % 3 == 0:
            fast = slow = slow + 0.5 * (fast - slow)
    return slow


def sam(updates):
    w = 0.0
    for _ in range(updates // 2):  # uphill, and from where it was by the gradient there
        w -= 0.1 * (w + 0.3 * (w - 2) - 2)
    return w


def schedule_free(updates):
    x = y = z = 0.0
    for t in range(1, updates + 1):
        z -= 0.1 * (y - 2)
        x += (z - x) / t
        y = 0.9 * x + 0.1 * z
    return x


STEP, UP = optax.sgd(0.1), optax.sgd(0.3)
WRAPPERS = {
    "lookahead": (optax.lookahead(STEP, 3, 0.5), lookahead),
    "lookahead in a chain": (optax.chain(optax.clip(100.0), optax.lookahead(STEP, 3, 0.5)), lookahead),
    "sam": (contrib.sam(STEP, UP), sam),
    "sam in a chain": (optax.chain(optax.clip(100.0), contrib.sam(STEP, UP)), sam),
    "sam, opaque": (contrib.sam(STEP, UP, opaque_mode=True), lambda updates: sam(2 * updates)),
    "schedule-free": (contrib.schedule_free(STEP, 0.1), schedule_free),
    "masked": (optax.masked(contrib.schedule_free(STEP, 0.1), True), schedule_free),
}


@pytest.mark.parametrize(("optimizer", "by_hand"), WRAPPERS.values(), ids=WRAPPERS)
def test_what_is_judged_and_returned_are_the_parameters_to_use(optimizer, by_hand):
    fit = bp.fit(error, jnp.array(0.0), X, optimizer=optimizer, mode="batch", epochs=5, validation=X)
    want = [by_hand(n) for n in range(1, 6)]
    np.testing.assert_allclose(fit.history["validation_loss"], [error(w, X) for w in want], rtol=1e-6)
    np.testing.assert_allclose([fit.params, fit.best_params], want[-1], rtol=1e-6)


def test_sophia_is_handed_the_loss():
    optimizer, w = contrib.sophia(0.1), jnp.array(0.0)
    state = optimizer.init(w)
    for _ in range(3):
        with jax.numpy_dtype_promotion("standard"):
            step, state = optimizer.update(w - 2, state, w, obj_fn=lambda w: (w - 2) ** 2 / 2)
        w += step
    fit = bp.fit(error, jnp.array(0.0), X, optimizer=optimizer, mode="batch", epochs=3)
    np.testing.assert_allclose(fit.params, w, rtol=1e-6)


def test_a_lookahead_resumes_and_is_one_of_many(tmp_path):
    make = lambda rate: optax.lookahead(optax.sgd(rate), 3, 0.5)
    options = dict(mode="batch", checkpoint=tmp_path / "run.npz", resume=True)
    optimizer = make(0.1)
    for epochs in (4, 7):
        fit = bp.fit(error, jnp.array(0.0), X, optimizer=optimizer, epochs=epochs, **options)
    np.testing.assert_allclose(fit.params, lookahead(7), rtol=1e-12)
    rates, key = jnp.array([0.1, 0.2]), jax.random.key(0)
    draw = lambda key: jnp.array(0.0)
    many = bp.fit_many(error, draw, X, optimizer=make, over={"rate": rates}, key=key, mode="batch", epochs=5)
    np.testing.assert_allclose(many.params[0], lookahead(5), rtol=1e-12)


def test_an_optimiser_gets_all_it_takes_and_its_own_mistakes_are_raised():
    """Also behind a chain, whose signature does not say what those in it take."""
    taken = []

    def some(updates, state, params=None, *, value, batch):
        taken.append((value.shape, batch.shape))
        return updates, state

    def mistaken(updates, state, params=None, **known):
        return jax.tree.map(lambda g: (lambda g: g)(g, value=1), updates), state

    def chained(update):
        one = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
        return optax.chain(optax.clip(100.0), one, STEP)

    bp.fit(error, jnp.array(0.0), X, optimizer=chained(some), mode="batch", epochs=1)
    assert set(taken) == {((), (3,))}
    with pytest.raises(TypeError, match="unexpected keyword argument 'value'"):
        bp.fit(error, jnp.array(0.0), X, optimizer=chained(mistaken), mode="batch", epochs=1)


@pytest.mark.parametrize(
    ("optimizer", "kind", "message"),
    [
        (optax.chain(STEP, optax.monitor({"norm": optax.tree.norm})), TypeError, "optax.monitor, which a compiled"),
        (
            contrib.differentially_private_aggregate(1.0, 0.1, key=jax.random.key(0)),
            TypeError,
            r"step has the shape \(\)",
        ),
        (optax.apply_if_finite(optax.lookahead(STEP, 3, 0.5), 1), TypeError, "structure"),
        (optax.chain(contrib.sam(STEP, UP), contrib.reduce_on_plateau()), TypeError, "missing .* 'value'"),
    ],
    ids=["monitor", "dpsgd", "lookahead inside", "one refuses what the other needs"],
)
def test_what_cannot_work_is_refused_with_the_way(optimizer, kind, message):
    with pytest.raises(kind, match=message) as raised:
        bp.fit(lambda w, batch: error(w[0], batch), jnp.zeros(2), X, optimizer=optimizer, mode="batch")
    notes = " ".join(raised.value.__notes__)
    assert "optax.lookahead goes around other wrappers" in notes and "contrib.dpsgd" in notes
    assert ("A part of the optimizer does not take value, grad, value_fn, obj_fn, batch" in notes) == (
        "'value'" in message
    )
