"""The loop itself: epochs of learning as one compiled program, for one network or for many.

A `Learner` says how one network learns: `epoch` is a sweep of updates, `advance` is an epoch with everything that is
decided after it (validation, the best parameters, divergence, stopping, starting again), and `run` is as many epochs as
are asked for, until everybody has stopped. All of it is pure, and all that decides how the training goes on is in a
`State`; so the same state goes on in the same way wherever the calls, and the checkpoints, were between the epochs.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ...autodiff.transformations import Backward
from ...jaxpr.types import PyTree, T
from . import optimizer as optimizers
from .layout import Placement
from .stopping import EpochMetrics, Restart, StoppingRule

MODES = ("online", "batch", "stochastic")
RESTARTS = 0  # the number folded into the key for restarts; the epochs' numbers begin at 1


class Status(enum.IntEnum):
    """Whether a training goes on, or why it ended, as `State.code` has it: stopping rule i says `STOPPED + i`."""

    RUNNING = 0
    DIVERGED = 1
    DIVERGED_AT_ONCE = 2  # in the first update of an epoch, so the parameters before that were bad already
    OUT_OF_RESTARTS = 3
    STOPPED = 4


class State(NamedTuple):
    """All that decides how a training goes on.

    Attributes:
        params: the parameters.
        memory: the optimiser's state.
        key: from which every order, and every key of the loss, is derived by the number of the epoch.
        epoch: how many epochs there were.
        code: its `Status`.
        kept: with validation data, the parameters with the smallest validation loss; without, those before the last
            epoch, whose loss is known to be finite.
        best_loss: that smallest loss.
        best_epoch: when it was.
        rules: the states of the stopping rules, and of the rule for starting again.
        attempt: how often it has begun again.
        began: the epoch in which this attempt began.
    """

    params: PyTree
    memory: PyTree
    key: jax.Array
    epoch: jax.Array
    code: jax.Array
    kept: PyTree
    best_loss: jax.Array
    best_epoch: jax.Array
    rules: PyTree
    attempt: jax.Array
    began: jax.Array


@dataclasses.dataclass(frozen=True)
class Learner:
    """How one network learns; see `fit` for what the fields mean."""

    loss: Callable[..., jax.Array]
    optimizer: Any
    mode: str
    batch_size: int
    replacement: bool
    rules: tuple[StoppingRule, ...]
    restart: Restart | None
    scores: tuple[tuple[str, Callable[..., jax.Array]], ...]
    correct: Callable[..., jax.Array] | None
    validates: bool
    backward: Backward
    placement: Placement | None

    def bind(self, member: Mapping[str, jax.Array]) -> Learner:
        """The learner of one member: functions that name some of its hyperparameters get them."""
        if not member:
            return self
        rules = [rule if isinstance(rule, StoppingRule) else rule(**named(rule, member)) for rule in self.rules]
        optimizer = self.optimizer
        if not isinstance(optimizer, optax.GradientTransformation):
            optimizer = optimizers.as_transformation(optimizer(**named(optimizer, member)))
        given = named(self.loss, member)
        loss = functools.partial(self.loss, **given) if given else self.loss
        return dataclasses.replace(self, loss=loss, optimizer=optimizer, rules=tuple(rules))

    @property
    def columns(self) -> tuple[str, ...]:
        """What is reported after every epoch, in this order."""
        judged = ["validation_loss", *(name for name, _ in self.scores)] if self.validates else []
        return "loss", *(["correct"] if self.correct else []), *judged

    def put(self, data: PyTree) -> PyTree:
        """Data as arrays, whole on every device of the mesh, if there is one."""
        return self.placement.everywhere(data) if self.placement else jax.tree.map(jnp.asarray, data)

    # --- an epoch -----------------------------------------------------------------------------------------------------

    def init(self, params: PyTree, key: jax.Array) -> State:
        """The state before the first epoch."""
        number = jnp.zeros((), jnp.int32)
        infinity = jnp.asarray(jnp.inf, jnp.result_type(float))
        rules = tuple(rule.init() for rule in (*self.rules, *([self.restart.when] if self.restart else [])))
        return State(
            params=params,
            memory=optimizers.init(self.optimizer, params),
            key=key,
            epoch=number,
            code=number,
            kept=params,
            best_loss=infinity,
            best_epoch=number,
            rules=rules,
            attempt=number,
            began=number,
        )

    def update(self, params: PyTree, memory: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, jax.Array]:
        """One update: w ← w + step(Ē), and the loss before it."""
        loss, grads = self.backward.value_and_grad(self.on_batch(batch, key))(params)
        updates, memory = self.step(grads, memory, params, loss, batch, key)
        return optax.apply_updates(params, updates), memory, loss

    def on_batch(self, batch: PyTree, key: jax.Array) -> Callable[[PyTree], jax.Array]:
        """The loss on a batch, as a function of the parameters."""
        if "key" in parameters(self.loss):
            return lambda params: self.loss(params, batch, key=key)
        return lambda params: self.loss(params, batch)

    def step(
        self, grads: PyTree, memory: PyTree, params: PyTree, loss: jax.Array, batch: PyTree, key: jax.Array
    ) -> tuple[PyTree, PyTree]:
        """The optimiser's step, and its new state."""
        loss_of = self.on_batch(batch, key)
        carried = self.backward.attach(loss_of)
        known = {
            "value": loss,
            "grad": grads,
            # line searches hand this one what they have no use for, by name
            "value_fn": lambda params, batch=None, grad_fn=None, obj_fn=None: carried(params),
            "grad_fn": lambda params, number=None: self.backward.grad(loss_of)(params),  # sam counts its steps
            "obj_fn": carried,
            "batch": batch,
        }
        return optimizers.update(self.optimizer, grads, memory, params, known)

    def judged(self, state: State) -> PyTree:
        """The parameters that the optimiser means to be used; where it diverged at once, those it had before."""
        meant = optimizers.judged(state.params, state.memory)
        return _where(state.code == Status.DIVERGED_AT_ONCE, state.params, meant)

    def batches(self, data: PyTree, key: jax.Array) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        """What an epoch scans over, and the batch that belongs to each item of it."""
        if self.mode == "stream":
            return data, self._spread
        n = count_examples(data)
        if self.mode == "batch":
            return jax.tree.map(lambda a: a[None], data), self._spread
        size = min(self.batch_size, n)
        if self.mode == "online":
            whole = lambda a: a[: n // size * size].reshape(n // size, size, *a.shape[1:])
            return jax.tree.map(whole, data), self._spread
        if self.replacement:
            order = jax.random.randint(key, (n // size, size), 0, n)
        else:
            order = jax.random.permutation(key, n)[: n // size * size].reshape(n // size, size)
        return order, lambda places: self._spread(jax.tree.map(lambda a: a[places], data))

    def _spread(self, batch: PyTree) -> PyTree:
        return batch if self.placement is None else self.placement.spread(batch)

    def epoch(self, state: State, data: PyTree, guarded: bool = False) -> tuple[PyTree, PyTree, jax.Array]:
        """A sweep of updates: parameters, the optimiser's state, and the loss before each update.

        A guarded one stands still, with nan for a loss, where an update is not finite.
        """
        key = jax.random.fold_in(state.key, state.epoch + 1)
        items, batch_of = self.batches(data, key)

        def one_update(carry: PyTree, item: PyTree) -> PyTree:
            params, memory, number = carry
            *new, loss = self.update(params, memory, batch_of(item), jax.random.fold_in(key, number))
            if guarded:
                good = is_finite(new[0] if optimizers.tolerant(memory) else (new[0], loss))
                new, loss = _where(good, new, [params, memory]), jnp.where(good, loss, jnp.nan)
            return (*new, number + 1), loss

        (params, memory, _), losses = lax.scan(
            one_update, (state.params, state.memory, jnp.zeros((), jnp.int32)), items
        )
        return params, memory, losses

    def advance(
        self, state: State, data: PyTree, validation: PyTree | None, alone: bool = True
    ) -> tuple[State, dict[str, jax.Array]]:
        """An epoch and all that follows from it: the new state, and what there is to report.

        What diverges stays as it was before that epoch. With others beside it, what has stopped stays as it was.
        """
        params, memory, losses = self.epoch(state, data)
        lenient, number = optimizers.tolerant(memory), state.epoch + 1
        loss = jnp.mean(losses, where=jnp.isfinite(losses)) if lenient else jnp.mean(losses)
        row, meant = {"loss": loss}, optimizers.judged(params, memory)
        if self.correct:
            row["correct"] = jnp.mean(self.correct(meant, data), dtype=jnp.result_type(float))
        if self.validates:
            row["validation_loss"] = self.loss(meant, validation)
        for name, score in self.scores:
            row[name] = score(meant, validation)
        good = is_finite((params, row.get("validation_loss"), None if lenient else loss))
        running = jnp.asarray(True) if alone else state.code == Status.RUNNING

        new, gives_up = self._obey_rules(state, row)
        new = self._keep(new._replace(params=params, memory=memory, epoch=number), meant, state, row)
        new = _where(running & good, new, state)
        new = new._replace(code=jnp.where(running & ~good, Status.DIVERGED, new.code))
        if not self.validates and not lenient:
            at_once = running & ~jnp.isfinite(losses[0])
            swapped = new._replace(
                params=state.kept, kept=state.params, code=jnp.full_like(new.code, Status.DIVERGED_AT_ONCE)
            )
            new = _where(at_once, swapped, new)
        if self.restart:
            new = self._start_again(new, state, running & (~good | (gives_up & (new.code == Status.RUNNING))))
        return new, row if alone else {k: jnp.where(running, v, jnp.nan) for k, v in row.items()}

    def _obey_rules(self, state: State, row: Mapping[str, jax.Array]) -> tuple[State, jax.Array]:
        """What the rules say after an epoch: the new state's rules and code, and whether to begin again."""
        known = {name: row[name] for name in ("loss", "validation_loss", "correct") if name in row}
        seen = EpochMetrics(state.epoch + 1 - state.began, **known)
        rules = (*self.rules, *([self.restart.when] if self.restart else []))
        pairs = [rule.update(memory, seen) for rule, memory in zip(rules, state.rules, strict=True)]
        code = jnp.full_like(state.code, Status.RUNNING)
        for i in reversed(range(len(self.rules))):  # the first that stops is the reason
            code = jnp.where(pairs[i][1], jnp.full_like(code, Status.STOPPED + i), code)
        gives_up = pairs[-1][1] if self.restart else jnp.asarray(False)
        return state._replace(rules=tuple(memory for memory, _ in pairs), code=code), gives_up

    def _keep(self, new: State, meant: PyTree, state: State, row: Mapping[str, jax.Array]) -> State:
        """Which parameters are kept beside the new ones."""
        if not self.validates:
            return new._replace(kept=state.params)
        loss = row["validation_loss"].astype(state.best_loss.dtype)
        old = state.kept, state.best_loss, state.best_epoch
        kept, loss, epoch = _where(loss < state.best_loss, (meant, loss, new.epoch), old)
        return new._replace(kept=kept, best_loss=loss, best_epoch=epoch)

    def _start_again(self, new: State, state: State, wanted: jax.Array) -> State:
        """A new attempt, if one is wanted and there are any left; an epoch in which it diverged counts, too."""
        restart = self.restart
        assert restart is not None
        allowed = state.attempt < restart.at_most

        def fresh() -> State:
            key = jax.random.fold_in(jax.random.fold_in(state.key, RESTARTS), state.attempt + 1)
            like = lambda a, b: jnp.asarray(a, b.dtype)
            begun = self.init(jax.tree.map(like, restart.init(key), state.params), state.key)
            epoch = state.epoch + 1
            begun = begun._replace(epoch=epoch, began=epoch, attempt=state.attempt + 1)
            best = {name: getattr(new, name) for name in ("kept", "best_loss", "best_epoch")}
            return begun._replace(**best) if self.validates else begun

        out_of_attempts = new._replace(
            code=jnp.where(wanted & (new.code == Status.RUNNING), Status.OUT_OF_RESTARTS, new.code)
        )
        return lax.cond(wanted & allowed, fresh, lambda: out_of_attempts)


# --- many epochs ------------------------------------------------------------------------------------------------------


class CompiledTraining(NamedTuple):
    """The compiled halves of a training.

    Attributes:
        init: `init(params, key, members) -> state`, in memory of its own.
        run: `run(state, data, validation, members, count) -> (state, rows, epochs)`: `count` epochs, or fewer if
            nobody goes on; the state is donated, and the rows have room for `limit` epochs.
    """

    init: Callable[..., State]
    run: Callable[..., PyTree]


@functools.lru_cache(maxsize=16)  # a training that is repeated is compiled once; the bound lets go of what is forgotten
def compile_training(learner: Learner, limit: int, many: bool) -> CompiledTraining:
    """Compile a learner's training; of many, mapped over the leading axes of the state and of `members`."""

    def one_init(params: PyTree, key: jax.Array, member: Mapping[str, jax.Array]) -> State:
        return own_copy(learner.bind(member).init(params, key))

    def one_epoch(state: State, data: PyTree, validation: PyTree | None, member: Mapping[str, jax.Array]) -> PyTree:
        return learner.bind(member).advance(state, data, validation, alone=not many)

    init = jax.vmap(one_init) if many else one_init
    advance = jax.vmap(one_epoch, in_axes=(0, None, None, 0)) if many else one_epoch
    placed = learner.placement.constrain if learner.placement else lambda state: state

    def run(
        state: State, data: PyTree, validation: PyTree | None, members: Mapping[str, jax.Array], count: jax.Array
    ) -> PyTree:
        shapes = jax.eval_shape(advance, state, data, validation, members)[1]
        rows = jax.tree.map(lambda s: jnp.zeros((limit, *s.shape), s.dtype), shapes)

        def goes_on(carry: PyTree) -> jax.Array:
            state, _, done = carry
            return (done < count) & jnp.any(state.code == Status.RUNNING)

        def body(carry: PyTree) -> PyTree:
            state, rows, done = carry
            state, row = advance(placed(state), data, validation, members)
            rows = jax.tree.map(lambda column, value: column.at[done].set(value), rows, row)
            return placed(state), rows, done + 1

        state, rows, done = lax.while_loop(goes_on, body, (state, rows, jnp.zeros((), jnp.int32)))
        return placed(state), rows, done

    return CompiledTraining(jax.jit(init), jax.jit(run, donate_argnums=0))


# --- small things -----------------------------------------------------------------------------------------------------


def count_examples(data: PyTree) -> int:
    """The length of the leading axis of a batch."""
    return jax.tree.leaves(data)[0].shape[0]


def count_updates(learner: Learner, data: PyTree) -> int:
    """How many updates an epoch has."""
    n = count_examples(data)
    return 1 if learner.mode == "batch" else n // min(learner.batch_size, n)


def is_finite(tree: PyTree) -> jax.Array:
    """Whether all numbers in a pytree are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves], jnp.asarray(True))


def own_copy(tree: PyTree) -> PyTree:
    """Arrays of our own, to be donated, without weak types."""
    fresh = lambda a: jnp.copy(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.array(a, a.dtype, copy=True)
    return jax.tree.map(lambda a: fresh(jnp.asarray(a)), tree)


def parameters(f: Callable[..., object]) -> tuple[str, ...]:
    """The names of a function's parameters, as far as they can be known."""
    try:
        return tuple(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        return ()


def named(f: Callable[..., object], values: Mapping[str, T]) -> dict[str, T]:
    """Those of the values that a function has a parameter for."""
    return {name: value for name, value in values.items() if name in parameters(f)}


def count_numbers(tree: PyTree) -> int:
    """How many numbers a pytree of arrays holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _where(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), new, old)
