"""When to stop, and when to start again: rules as pure values that a compiled loop can carry.

A rule is a pair of functions, `init() -> state` and `update(state, seen) -> (state, stop)`. The state is a pytree of
arrays whose types do not change and `stop` is a boolean array, so a rule goes through `jit`, `vmap`, `lax.scan` and
`lax.while_loop` with the rest of the loop; under `vmap`, every member has its own state and stops on its own. Rules
judge what the loop has seen; the loop keeps the best parameters. `any_of` puts rules together.

No rule here, or anywhere, guarantees that the minimum found is a global one. What helps in practice is to start again
from other weights: see `Restart`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree
from ..optim import base

LOSSES = ("loss", "validation_loss")


class EpochMetrics(NamedTuple):
    """What a loop knows after an epoch; every field is a scalar, and nan where it is unknown.

    Attributes:
        epoch: how many epochs there were; 0 is the network before it learned.
        loss: on the training set.
        validation_loss: on the validation set.
        correct: the fraction of the training examples that the task's criterion calls right, from 0 to 1.
    """

    epoch: ArrayLike
    loss: ArrayLike
    validation_loss: ArrayLike = float("nan")
    correct: ArrayLike = float("nan")


class StoppingRule(NamedTuple):
    """When to stop, as a pair of pure functions.

    Attributes:
        init: `init() -> state`, a pytree of arrays.
        update: `update(state, seen) -> (state, stop)`: called once per epoch with an `EpochMetrics`, in order.
        needs: the fields of `EpochMetrics` that it judges by; a loop that does not know one of them refuses the rule,
            which would otherwise never stop, or stop for no reason.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.target_error(0.1)
        >>> state, stop = rule.update(rule.init(), stopping.EpochMetrics(epoch=7, loss=0.05))
        >>> bool(stop)
        True
    """

    init: Callable[[], PyTree]
    update: Callable[[PyTree, EpochMetrics], tuple[PyTree, jax.Array]]
    needs: tuple[str, ...] = ("loss",)


class Restart(NamedTuple):
    """When to give an attempt up, and how to begin another: the way out of local minima and plateaus.

    An attempt that `when` stops before the goal is reached is thrown away; the next one begins with `init(key)`, a new
    key each time, with fresh states of optimiser and rules. The epochs of all attempts count, so the cost of failures
    stays visible. There is no guarantee that any attempt succeeds.

    Attributes:
        when: a rule that stops an attempt which is getting nowhere, such as `maximum_epochs(40)` or `plateau(100)`.
        init: `init(key) -> params`.
        at_most: how many times to begin again.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import nets
        >>> from funcbp.learn.train import stopping
        >>> net = nets.mlp([2, 2, 1])
        >>> restart = stopping.Restart(
        ...     stopping.maximum_epochs(40), lambda key: net.init(key, jnp.zeros(2)), at_most=10
        ... )
        >>> restart.init(jax.random.key(1))["dense_0"]["kernel"].shape
        (2, 2)

    References:
        S. Fahlman, "An empirical study of learning speed in back-propagation networks", 1988 (the restart method).
    """

    when: StoppingRule
    init: Callable[[jax.Array], PyTree]
    at_most: int = 10


# --- which examples are right -----------------------------------------------------------------------------------------


def forty_twenty_forty(predictions: jax.Array, targets: jax.Array, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Which examples are right by the 40-20-40 criterion: every output within 40 % of the range from its target.

    An output unit says "low" in the lowest 40 % of its range, "high" in the highest 40 %, and nothing in between.

    Args:
        predictions: y, shape (batch..., units).
        targets: t, of that shape, each `low` or `high`.
        low: the target that means no.
        high: the target that means yes.

    Returns:
        A boolean array of shape (batch...); its mean is the fraction that `all_correct` asks for.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp.learn.train import stopping
        >>> stopping.forty_twenty_forty(jnp.array([[0.7, 0.1], [0.5, 0.1]]), jnp.array([[1.0, 0.0], [1.0, 0.0]]))
        Array([ True, False], dtype=bool)

    References:
        S. Fahlman, "An empirical study of learning speed in back-propagation networks", 1988.
    """
    return jnp.all(jnp.abs(predictions - targets) < 0.4 * (high - low), axis=-1)


def right_class(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Which examples are right by the largest output.

    Args:
        predictions: y, shape (batch..., classes).
        targets: the numbers of the classes, shape (batch...), or a one-hot code of the predictions' shape.

    Returns:
        A boolean array of shape (batch...).

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp.learn.train import stopping
        >>> stopping.right_class(jnp.array([[0.7, 0.1], [0.5, 0.1]]), jnp.array([0, 1]))
        Array([ True, False], dtype=bool)
    """
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    classes = jnp.argmax(targets, -1) if targets.ndim == predictions.ndim else targets
    return jnp.argmax(predictions, -1).astype(classes.dtype) == classes


# --- rules ------------------------------------------------------------------------------------------------------------


def any_of(*rules: StoppingRule) -> StoppingRule:
    """Stop as soon as one of these rules says so.

    Args:
        rules: one or more.

    Returns:
        The rule, for `stop=` of `fit`.

    Raises:
        ValueError: there is none; a loop without an end is not meant.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.any_of(stopping.all_correct(), stopping.maximum_epochs(100))
        >>> bool(rule.update(rule.init(), stopping.EpochMetrics(epoch=100, loss=1.0))[1])
        True
    """
    if not rules:
        raise ValueError("any_of needs at least one rule.")

    def update(states: tuple[PyTree, ...], seen: EpochMetrics) -> tuple[tuple[PyTree, ...], jax.Array]:
        pairs = [rule.update(state, seen) for rule, state in zip(rules, states, strict=True)]
        stops = jnp.stack([stop for _, stop in pairs])
        return tuple(state for state, _ in pairs), jnp.any(stops, axis=0)

    needs = tuple(dict.fromkeys(name for rule in rules for name in rule.needs))
    return StoppingRule(lambda: tuple(rule.init() for rule in rules), update, needs)


def all_correct(fraction: float = 1.0) -> StoppingRule:
    """Stop when all training examples are right, or a fraction of them.

    What "right" means is the task's criterion: `forty_twenty_forty`, `right_class`, or a function of your own. The
    fraction is compared up to two units of float32 in its last place, as the mean of ones, which is a sum times a
    rounded 1/n, need not be 1: so one wrong example is told apart among up to four million.

    Args:
        fraction: how many, from 0 to 1.

    Returns:
        The rule, for `stop=` of `fit`.

    Raises:
        ValueError: the fraction is not above 0 and at most 1.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.all_correct(0.9)
        >>> bool(rule.update(rule.init(), stopping.EpochMetrics(epoch=3, loss=0.2, correct=0.95))[1])
        True
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"all_correct needs a fraction above 0 and at most 1, and got {fraction}.")
    slack = 2 * float(jnp.finfo(jnp.float32).eps)
    return _stateless(lambda seen: base.scalar(seen.correct) >= base.scalar(fraction) - slack, "correct")


def target_error(error: float, of: str = "loss") -> StoppingRule:
    """Stop when the loss is small enough.

    Args:
        error: stop at this loss or below.
        of: `"loss"` or `"validation_loss"`.

    Returns:
        The rule, for `stop=` of `fit`.

    Raises:
        ValueError: `of` is neither.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.target_error(0.1)
        >>> bool(rule.update(rule.init(), stopping.EpochMetrics(epoch=3, loss=0.05))[1])
        True
    """
    _check_loss("target_error", of)
    return _stateless(lambda seen: base.scalar(getattr(seen, of)) <= base.scalar(error), of)


def maximum_epochs(count: int) -> StoppingRule:
    """Stop after so many epochs.

    Args:
        count: at least 1.

    Returns:
        The rule, for `stop=` of `fit`.

    Raises:
        ValueError: it is less than 1.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.maximum_epochs(100)
        >>> bool(rule.update(rule.init(), stopping.EpochMetrics(epoch=100, loss=0.05))[1])
        True
    """
    _check_count("maximum_epochs", count)
    return _stateless(lambda seen: _epoch(seen) >= count, "epoch")


def plateau(patience: int, least: float = 1e-4, of: str = "loss") -> StoppingRule:
    """Stop when the loss has not become smaller by a fraction `least` of the best for `patience` epochs.

    Args:
        patience: how many epochs without improvement.
        least: what counts as improvement, E < E_best (1 - least).
        of: `"loss"` or `"validation_loss"`.

    Returns:
        The rule, for `stop=` of `fit`.

    Raises:
        ValueError: `patience` is less than 1, or `of` is neither.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.plateau(2)
        >>> state, stops = rule.init(), []
        >>> for epoch, loss in enumerate([1.0, 0.5, 0.5, 0.5]):
        ...     state, stop = rule.update(state, stopping.EpochMetrics(epoch, loss))
        ...     stops.append(bool(stop))
        >>> stops
        [False, False, False, True]
    """
    _check_count("plateau", patience)
    _check_loss("plateau", of)

    def update(state: PyTree, seen: EpochMetrics) -> tuple[PyTree, jax.Array]:
        state = _last_improvement(state, seen, of, least)
        return state, _epoch(seen) - state[1] >= patience

    return StoppingRule(_no_improvement_yet, update, (of,))


def adaptive_patience(factor: float = 2.0, at_least: int = 10, least: float = 1e-2, of: str = "loss") -> StoppingRule:
    """Stop when the loss has not improved for `factor` times as long as it took to get there: a rule of our own.

    With t* the epoch of the last improvement by a fraction `least`, stop at the first t with
    t - t* ≥ max(at_least, factor · t*): learning that has been slow to improve is given longer. The "adaptive stopping
    criterion" of Lalis, Gerardo and Byun (2014), after which one would look here, could not be obtained; this is not
    it, and neither this rule nor any other guarantees that a global minimum is reached.

    Args:
        factor: how much longer to wait than it took.
        at_least: wait this many epochs in any case.
        least: what counts as improvement, E < E_best (1 - least).
        of: `"loss"` or `"validation_loss"`.

    Returns:
        The rule, for `stop=` of `fit`.

    Raises:
        ValueError: `at_least` is less than 1, `factor` is not positive, or `of` is neither.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.adaptive_patience(factor=1.0, at_least=1)
        >>> state, stops = rule.init(), []
        >>> for epoch, loss in enumerate([1.0, 0.9, 0.8, 0.8, 0.8]):
        ...     state, stop = rule.update(state, stopping.EpochMetrics(epoch, loss))
        ...     stops.append(bool(stop))
        >>> stops
        [False, False, False, False, True]
    """
    _check_count("adaptive_patience", at_least)
    _check_loss("adaptive_patience", of)
    if not factor > 0:
        raise ValueError(f"adaptive_patience needs a positive factor, and got {factor}.")

    def update(state: PyTree, seen: EpochMetrics) -> tuple[PyTree, jax.Array]:
        state = _last_improvement(state, seen, of, least)
        waited, last = _epoch(seen) - state[1], base.scalar(state[1])
        return state, base.scalar(waited) >= jnp.maximum(base.scalar(at_least), base.scalar(factor) * last)

    return StoppingRule(_no_improvement_yet, update, (of,))


# --- Prechelt's rules: the validation error against the best so far, and the progress of training ---------------------


def generalization_loss(alpha: float = 5.0) -> StoppingRule:
    """Prechelt's GL_α: stop when the validation error is α per cent above the best so far.

    GL(t) = 100 (E_va(t) / E_opt(t) - 1), with E_opt(t) = min_{t' ≤ t} E_va(t'); stop at the first t with GL(t) > α.

    Args:
        alpha: per cent.

    Returns:
        The rule, for `stop=` of `fit`.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.generalization_loss(5.0)
        >>> state, _ = rule.update(rule.init(), stopping.EpochMetrics(epoch=1, loss=0.5, validation_loss=1.0))
        >>> bool(rule.update(state, stopping.EpochMetrics(epoch=2, loss=0.4, validation_loss=1.06))[1])
        True

    References:
        L. Prechelt, "Early stopping - but when?", 1998.
    """

    def update(best: jax.Array, seen: EpochMetrics) -> tuple[jax.Array, jax.Array]:
        best = _smaller(best, seen.validation_loss)
        return best, _generalization_loss(best, seen) > base.scalar(alpha)

    return StoppingRule(_infinity, update, ("validation_loss",))


def progress_quotient(alpha: float = 1.0, strip: int = 5) -> StoppingRule:
    """Prechelt's PQ_α: stop when the generalisation loss outweighs the progress that training still makes.

    At the end of each strip of k epochs, with P_k(t) = 1000 (Σ_strip E_tr / (k min_strip E_tr) - 1): stop at the first
    such t with GL(t) / P_k(t) > α.

    Args:
        alpha: the bound of the quotient.
        strip: k, how many epochs are in a strip.

    Returns:
        The rule, for `stop=` of `fit`.

    Raises:
        ValueError: `strip` is less than 1.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.progress_quotient(1.0, strip=1)  # strips of one epoch make no progress
        >>> state, _ = rule.update(rule.init(), stopping.EpochMetrics(epoch=1, loss=0.5, validation_loss=1.0))
        >>> bool(rule.update(state, stopping.EpochMetrics(epoch=2, loss=0.4, validation_loss=1.06))[1])
        True

    References:
        L. Prechelt, "Early stopping - but when?", 1998.
    """
    _check_count("progress_quotient", strip)

    def update(state: PyTree, seen: EpochMetrics) -> tuple[PyTree, jax.Array]:
        best, training = state
        best = _smaller(best, seen.validation_loss)
        training, end, progress = _training_progress(training, seen, strip)
        # GL > α P, not GL / P > α: a strip without any progress has P = 0
        return (best, training), end & (_generalization_loss(best, seen) > base.scalar(alpha) * progress)

    return StoppingRule(lambda: (_infinity(), _new_strip()), update, ("loss", "validation_loss"))


def low_progress(below: float = 0.1, strip: int = 5) -> StoppingRule:
    """Prechelt's stop for training that has come to rest: P_k(t) < 0.1 at the end of a strip of k epochs.

    P_k(t) = 1000 (Σ_strip E_tr / (k min_strip E_tr) - 1). He used it together with the others.

    Args:
        below: the bound of P_k.
        strip: k, how many epochs are in a strip.

    Returns:
        The rule, for `stop=` of `fit`.

    Raises:
        ValueError: `strip` is less than 1.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.low_progress(strip=2)
        >>> state, stops = rule.init(), []
        >>> for epoch, loss in enumerate([0.9, 0.5, 0.5, 0.5], 1):
        ...     state, stop = rule.update(state, stopping.EpochMetrics(epoch, loss))
        ...     stops.append(bool(stop))
        >>> stops
        [False, False, False, True]

    References:
        L. Prechelt, "Early stopping - but when?", 1998.
    """
    _check_count("low_progress", strip)

    def update(state: PyTree, seen: EpochMetrics) -> tuple[PyTree, jax.Array]:
        state, end, progress = _training_progress(state, seen, strip)
        return state, end & (progress < base.scalar(below))

    return StoppingRule(_new_strip, update)


def up_strips(count: int = 2, strip: int = 5) -> StoppingRule:
    """Prechelt's UP_s: stop when the validation error went up in s successive strips.

    At the end of each strip of k epochs it is compared with the end of the strip before, E_va(t) > E_va(t - k).

    Args:
        count: s, how many strips.
        strip: k, how many epochs are in a strip.

    Returns:
        The rule, for `stop=` of `fit`.

    Raises:
        ValueError: one of them is less than 1.

    Example:
        >>> from funcbp.learn.train import stopping
        >>> rule = stopping.up_strips(2, strip=1)
        >>> state, stops = rule.init(), []
        >>> for epoch, loss in enumerate([1.0, 0.5, 0.6, 0.7], 1):
        ...     state, stop = rule.update(state, stopping.EpochMetrics(epoch, 0.1, validation_loss=loss))
        ...     stops.append(bool(stop))
        >>> stops
        [False, False, False, True]

    References:
        L. Prechelt, "Early stopping - but when?", 1998.
    """
    _check_count("up_strips", count)
    _check_count("up_strips", strip)

    def update(state: PyTree, seen: EpochMetrics) -> tuple[PyTree, jax.Array]:
        before, ups = state
        now, end = base.scalar(seen.validation_loss), _epoch(seen) % strip == 0
        ups = jnp.where(end, jnp.where(now > before, ups + 1, 0), ups)
        return (jnp.where(end, now, before), ups), end & (ups >= count)

    return StoppingRule(lambda: (_infinity(), jnp.zeros((), jnp.int32)), update, ("validation_loss",))


# --- what they share --------------------------------------------------------------------------------------------------


def _epoch(seen: EpochMetrics) -> jax.Array:
    return jnp.asarray(seen.epoch).astype(jnp.int32)


def _infinity() -> jax.Array:
    return base.scalar(jnp.inf)


def _smaller(best: jax.Array, loss: ArrayLike) -> jax.Array:
    """The smaller of two losses; one that is not a number changes nothing."""
    return jnp.fmin(best, base.scalar(loss))


def _generalization_loss(best: jax.Array, seen: EpochMetrics) -> jax.Array:
    return 100 * (base.scalar(seen.validation_loss) / best - 1)


def _stateless(stop: Callable[[EpochMetrics], jax.Array], need: str) -> StoppingRule:
    return StoppingRule(lambda: (), lambda state, seen: (state, stop(seen)), (need,))


def _no_improvement_yet() -> tuple[jax.Array, jax.Array]:
    """The best loss, and its epoch."""
    return _infinity(), jnp.zeros((), jnp.int32)


def _last_improvement(state: PyTree, seen: EpochMetrics, of: str, least: float) -> tuple[jax.Array, jax.Array]:
    best, epoch = state
    loss = base.scalar(getattr(seen, of))
    # for losses below 0, such as log-likelihoods, too
    better = loss < jnp.where(jnp.isinf(best), best, best - base.scalar(least) * jnp.abs(best))
    return jnp.where(better, loss, best), jnp.where(better, _epoch(seen), epoch)


def _new_strip() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sum and minimum of the training errors of a strip, and how many there were."""
    return jnp.zeros_like(_infinity()), _infinity(), jnp.zeros((), jnp.int32)


def _training_progress(state: PyTree, seen: EpochMetrics, strip: int) -> tuple[PyTree, jax.Array, jax.Array]:
    """The strip with this epoch in it, whether it is a whole strip's end, and P_k there."""
    total, smallest, count = state
    total, smallest, count = total + base.scalar(seen.loss), _smaller(smallest, seen.loss), count + 1
    last = _epoch(seen) % strip == 0
    progress = 1000 * (total / (strip * smallest) - 1)
    fresh = _new_strip()
    state = tuple(jnp.where(last, new, old) for new, old in zip(fresh, (total, smallest, count), strict=True))
    return state, last & (count == strip), progress


def _check_count(name: str, count: int) -> None:
    if not isinstance(count, jax.core.Tracer) and count < 1:
        raise ValueError(f"{name} counts epochs from 1, and got {count}.")


def _check_loss(name: str, of: str) -> None:
    if of not in LOSSES:
        raise ValueError(f'{name} watches "loss" or "validation_loss", and not {of!r}.')
