"""The loop that the trials go through: when a trial counts as solved, what restarts cost, and whose gradient it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import reproduce


def countdown(params):
    """An error whose gradient is 1, and which is right when the weight has come down to 0."""
    return jnp.sum(params), params <= 0


def run(starts, most, restart_at=None, optimizer=None, error=countdown):
    starts = jnp.asarray(starts, float)
    init = lambda key: starts[jax.random.randint(key, (1,), 0, len(starts))]
    return reproduce.run_trials(
        error, init, optimizer or optax.sgd(1.0), seed=0, trials=12, most=most, restart_at=restart_at
    )


def test_solved_after_so_many_updates():
    outcome = run([3.0], 10)
    assert outcome.solved.all() and (outcome.epochs == 3).all() and (outcome.restarts == 0).all()
    assert (outcome.params == 0).all()  # judged before an update, so the last parameters are those that were right
    assert run([0.0], 10).epochs.tolist() == [0] * 12
    assert outcome.tally() == "12 of 12" and outcome.spread().startswith("3.0 (sd 0.0; 3 to 3")


def test_given_up():
    outcome = run([30.0], 10)
    assert not outcome.solved.any() and (outcome.epochs == 10).all() and (outcome.params == 20).all()
    assert outcome.tally() == "0 of 12" and outcome.spread() == "none solved"


def test_trials_end_on_their_own():
    outcome = run([2.0, 7.0, 30.0], 10)
    assert set(outcome.epochs.tolist()) == {2, 7, 10}
    np.testing.assert_array_equal(outcome.solved, outcome.epochs < 10)


def test_epochs_of_attempts_that_were_given_up_count():
    """30 is hopeless within 4 updates, 2 is not: n restarts cost 4 n updates."""
    outcome = run([2.0, 30.0, 30.0], 1000, restart_at=4)
    assert outcome.solved.all() and outcome.restarts.max() > 1
    np.testing.assert_array_equal(outcome.epochs, 4 * outcome.restarts + 2)


def test_a_new_attempt_has_a_fresh_memory():
    """With momentum kept from the last attempt, 3 would be reached in one update."""
    outcome = run([3.0, 300.0], 1000, restart_at=6, optimizer=optax.sgd(1.0, momentum=1.0))
    np.testing.assert_array_equal(outcome.epochs, 6 * outcome.restarts + 2)  # 1 + 2 ≥ 3


def test_the_gradient_is_that_of_the_given_way():
    flat = bp.Backward(rules={jax.lax.sin_p: bp.rule(lambda res, ct, perturbed, **_: (ct * 2,))})
    outcome = reproduce.run_trials(
        lambda p: (jnp.sum(jnp.sin(p)), p <= 0),
        lambda key: jnp.ones(1),
        optax.sgd(0.25),
        seed=0,
        trials=2,
        most=9,
        backward=flat,
    )
    assert (outcome.epochs == 2).all()
