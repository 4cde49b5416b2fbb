"""When to stop: each rule against a plain Python account of it, inside compiled loops, and member by member."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcbp.learn.train import stopping
from funcbp.learn.train.stopping import EpochMetrics

# a training that goes well, overfits from epoch 12 on, and comes to rest
TRAINING = 0.02 + 0.98 * 0.9 ** np.arange(60.0)
VALIDATION = np.where(np.arange(60) < 12, 1.0 - 0.05 * np.arange(60), 0.4 + 0.01 * (np.arange(60) - 11)) + 0.05
CORRECT = np.minimum(np.arange(60) / 40, 1.0)


def stops(rule, training=TRAINING, validation=VALIDATION, correct=CORRECT, first=1):
    """The epoch at which a rule stops a recorded training, in one compiled scan; None if it does not."""

    def step(state, seen):
        return rule.update(state, seen)

    epochs = jnp.arange(len(training), dtype=jnp.int32)
    seen = EpochMetrics(epochs, jnp.asarray(training), jnp.asarray(validation), jnp.asarray(correct))
    seen = jax.tree.map(lambda a: a[first:], seen)
    state, stop = jax.jit(lambda seen: jax.lax.scan(step, rule.init(), seen))(seen)
    assert stop.dtype == bool and stop.shape == epochs[first:].shape
    like = rule.init()
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(lambda a: (a.shape, a.dtype), like)
    return int(epochs[first:][np.argmax(stop)]) if np.any(stop) else None


def gl(t):
    return 100 * (VALIDATION[t] / VALIDATION[1 : t + 1].min() - 1)


def progress(t, k):
    strip = TRAINING[t - k + 1 : t + 1]
    return 1000 * (strip.sum() / (k * strip.min()) - 1)


def first(condition, among=range(1, 60)):
    return next(t for t in among if condition(t))


def test_thresholds():
    assert stops(stopping.maximum_epochs(17)) == 17
    assert stops(stopping.target_error(0.5)) == first(lambda t: TRAINING[t] <= 0.5)
    assert stops(stopping.target_error(0.5, of="validation_loss")) == first(lambda t: VALIDATION[t] <= 0.5)
    assert stops(stopping.target_error(0.01)) is None
    assert stops(stopping.all_correct()) == 40
    assert stops(stopping.all_correct(0.5)) == 20


def test_all_correct_although_the_mean_is_rounded():
    """In float32, the mean of 194 ones can be less than 1; one wrong among a million is still seen."""
    means = np.array([0.5, 1 - 1e-6, 1 - 2.0**-23], np.float32)
    assert stops(stopping.all_correct(), TRAINING[:3], VALIDATION[:3], means, first=0) == 2


def test_unknown_never_stops():
    unknown = np.full(60, np.nan)
    for rule in (stopping.all_correct(), stopping.target_error(1.0, of="validation_loss"), stopping.up_strips(1)):
        assert stops(rule, validation=unknown, correct=unknown) is None
    for rule in (stopping.generalization_loss(0.0), stopping.progress_quotient(0.0)):
        assert stops(rule, validation=unknown, correct=unknown) is None


def test_one_bad_validation_is_passed_over():
    dented = VALIDATION.copy()
    dented[5] = np.nan
    assert stops(stopping.generalization_loss(5.0), validation=dented) == stops(stopping.generalization_loss(5.0))


@pytest.mark.parametrize("alpha", [1.0, 5.0, 20.0])
def test_generalization_loss(alpha):
    assert stops(stopping.generalization_loss(alpha)) == first(lambda t: gl(t) > alpha)


@pytest.mark.parametrize(("alpha", "strip"), [(0.02, 5), (0.1, 5), (0.1, 4)])
def test_progress_quotient(alpha, strip):
    expected = first(lambda t: gl(t) / progress(t, strip) > alpha, range(strip, 60, strip))
    assert stops(stopping.progress_quotient(alpha, strip)) == expected
    assert stops(stopping.progress_quotient(alpha, strip), first=0) == expected  # seeing epoch 0 changes nothing


def test_progress_quotient_without_any_progress():
    assert stops(stopping.progress_quotient(1.0), training=np.ones(60)) == 15  # the first strip's end after the best


def test_low_progress():
    bound = 100.0
    expected = first(lambda t: progress(t, 5) < bound, range(5, 60, 5))
    assert stops(stopping.low_progress(bound)) == stops(stopping.low_progress(bound), first=0) == expected
    assert stops(stopping.low_progress(), training=np.ones(60)) == 5


@pytest.mark.parametrize(("count", "strip"), [(1, 5), (2, 5), (3, 5), (2, 3)])
def test_up_strips(count, strip):
    ups, expected = 0, None
    for t in range(2 * strip, 60, strip):
        ups = ups + 1 if VALIDATION[t] > VALIDATION[t - strip] else 0
        if ups == count:
            expected = t
            break
    assert stops(stopping.up_strips(count, strip)) == expected


def test_up_strips_must_be_successive():
    zigzag = np.where(np.arange(60) // 5 % 2, 1.0, 2.0)
    assert stops(stopping.up_strips(2), validation=zigzag) is None


def test_a_level_strip_breaks_the_succession():
    validation = np.array([1.0, 1.1, 1.1, 1.2, 1.3])
    level, rising = validation[:4], validation
    assert stops(stopping.up_strips(2, strip=1), level, level, level, first=0) is None
    assert stops(stopping.up_strips(2, strip=1), rising, rising, rising, first=0) == 4


def test_plateau():
    flat = np.concatenate([[3.0, 2.0, 1.0], np.full(20, 0.99995), [0.5], np.full(9, 0.5)])
    rest = np.zeros(len(flat))
    assert stops(stopping.plateau(5), flat, rest, rest, first=0) == 7
    assert stops(stopping.plateau(21, 1e-3), flat, rest, rest, first=0) is None
    assert stops(stopping.plateau(5, least=1e-6), flat, rest, rest, first=0) == 8  # 0.99995 counts as better
    below = -flat[::-1]  # a loss below zero, going down
    assert stops(stopping.plateau(9), below, rest, rest, first=0) == 9


def test_adaptive_patience_waits_longer_for_slow_learning():
    quick = np.concatenate([np.linspace(2, 1, 11), np.ones(50)])
    slow = np.concatenate([np.linspace(2, 1, 21), np.ones(50)])
    rest, rule = np.zeros(71), stopping.adaptive_patience(factor=1.5, at_least=3)
    assert stops(rule, quick, rest[:61], rest[:61], first=0) == 10 + 15
    assert stops(rule, slow, rest, rest, first=0) == 20 + 30
    assert stops(stopping.adaptive_patience(1.0, at_least=7), np.ones(60), first=0) == 7


def test_the_first_of_several():
    rule = stopping.any_of(stopping.all_correct(), stopping.generalization_loss(5.0), stopping.maximum_epochs(55))
    assert stops(rule) == stops(stopping.generalization_loss(5.0))
    nested = stopping.any_of(stopping.any_of(stopping.maximum_epochs(9)), stopping.all_correct())
    assert stops(nested) == 9


def test_each_member_stops_on_its_own():
    """In a while loop under vmap, with the bound as a hyperparameter."""

    def epochs(error):
        rule = stopping.any_of(stopping.target_error(error), stopping.plateau(30))

        def step(carry):
            epoch, loss, state, _ = carry
            epoch, loss = epoch + 1, loss * 0.9
            return epoch, loss, *rule.update(state, EpochMetrics(epoch, loss))

        start = jnp.int32(0), jnp.float32(1), rule.init(), jnp.array(False)
        return jax.lax.while_loop(lambda carry: ~carry[-1], step, start)[0]

    bounds = jnp.array([0.5, 0.1, 0.01], jnp.float32)
    expected = [int(np.ceil(np.log(b) / np.log(0.9))) for b in bounds]
    assert jax.jit(jax.vmap(epochs))(bounds).tolist() == expected


def test_a_state_goes_on_where_it_was():
    rule = stopping.any_of(stopping.progress_quotient(0.1), stopping.up_strips(2), stopping.plateau(20))
    state, saved = rule.init(), None
    for t in range(1, 60):
        state, stop = rule.update(state, EpochMetrics(t, TRAINING[t], VALIDATION[t]))
        if t == 8:
            saved = jax.tree.map(np.asarray, state)
        if stop:
            break
    again = jax.tree.map(jnp.asarray, saved)
    for s in range(9, t + 1):
        again, stopped = rule.update(again, EpochMetrics(s, TRAINING[s], VALIDATION[s]))
        assert bool(stopped) == (s == t)


def test_criteria():
    t = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    y = jnp.array([[0.61, 0.39], [0.59, 0.1], [0.9, 0.41], [0.2, 0.9]])
    assert stopping.forty_twenty_forty(y, t).tolist() == [True, False, False, True]
    assert stopping.forty_twenty_forty(y - 0.5, t - 0.5, -0.5, 0.5).tolist() == [True, False, False, True]
    assert stopping.forty_twenty_forty(2 * y - 1, 2 * t - 1, -1.0, 1.0).tolist() == [True, False, False, True]
    assert stopping.right_class(y, jnp.array([0, 1, 0, 1])).tolist() == [True, False, True, True]
    assert stopping.right_class(y, t).tolist() == [True, True, True, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stopping.any_of(), "any_of needs at least one rule"),
        (lambda: stopping.all_correct(1.5), "all_correct needs a fraction above 0 and at most 1, and got 1.5"),
        (lambda: stopping.target_error(0.1, of="score"), "target_error watches .* and not 'score'"),
        (lambda: stopping.plateau(0), "plateau counts epochs from 1, and got 0"),
        (lambda: stopping.adaptive_patience(factor=0), "adaptive_patience needs a positive factor, and got 0"),
        (lambda: stopping.up_strips(0), "up_strips counts epochs from 1, and got 0"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
