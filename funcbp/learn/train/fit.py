"""`fit`: learning from examples, online, by the batch, or by random mini-batches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import P
from jax.sharding import Mesh

from ...autodiff.arguments import checked
from ...autodiff.transformations import Backward
from ...inspection import find_nan
from ...jaxpr.types import PyTree
from . import loop
from .checkpoint import Store, store_of
from .drive import HostConfig, TrainingOutcome, drive, stream
from .layout import Layout, make_placement
from .loop import Learner, State, Status
from .records import Log
from .setup import check, make_learner, programs_of, settings_of
from .stopping import Restart, StoppingRule


class Divergence(NamedTuple):
    """Where learning stopped being finite.

    Attributes:
        epoch: in which epoch.
        update: in which update of it, from 1; None if it was the validation loss that was not finite.
        params: the parameters before that update.
        batch: the examples of that update.
        equation: the first equation whose value or cotangent is not finite there, as `funcbp.find_nan` says it; None if
            it was the validation loss, or if loss and gradient are finite and the optimiser's step from there is not.
        finite_loss: whether the loss of that update is finite; with an equation, it is the gradient that is not.
    """

    epoch: int
    update: int | None
    params: PyTree
    batch: PyTree
    equation: str | None
    finite_loss: bool = False

    def __str__(self) -> str:
        where = f"update {self.update}" if self.update else "validation"
        text = f"learning diverged in epoch {self.epoch}, at {where}: "
        if self.update and not self.equation:
            return text + "the loss and its gradient are finite numbers, and the parameters after the update are not"
        text += (
            "the loss is finite, and its gradient is not"
            if self.finite_loss
            else "the loss is no longer a finite number"
        )
        return f"{text}; {self.equation}" if self.equation else text


class Fit(NamedTuple):
    """How learning ended. For `fit_many`, everything but `seconds` has an entry for each member.

    Attributes:
        params: the last parameters; if learning diverged, the last good ones: those before the epoch in which it did,
            or, if the loss of these was not finite, those before the epoch before.
        best_params: those with the smallest validation loss; without validation data, the last.
        history: columns of measurements, a row per epoch: `loss`, the mean of the losses before each update; after the
            epoch, and if they were asked for, `correct`, `validation_loss` and `validation_score`; and `seconds`, when
            its results were seen.
        reason: why it ended: "epochs", "data" (an iterator is used up), "interrupted" (Ctrl-C), "unwritten" (there was
            no place for the measurements, see `LogError`), "diverged", "restarts" (there are none left), or the name of
            a stopping rule.
        epochs: how many there were.
        best_epoch: the one of `best_params`.
        attempts: how many attempts there were, 1 if it was never begun again.
        seconds: how long it took.
        divergence: where it diverged, if it did.
    """

    params: PyTree
    best_params: PyTree
    history: dict[str, np.ndarray]
    reason: str | Any
    epochs: int | Any
    best_epoch: int | Any
    attempts: int | Any
    seconds: float
    divergence: Divergence | None = None

    def __repr__(self) -> str:
        """How it ended, without the arrays."""
        losses = np.asarray(self.history["loss"])
        if np.ndim(self.epochs):
            ends = ", ".join(f"{np.sum(np.asarray(self.reason) == r)} {r}" for r in dict.fromkeys(self.reason))
            return f"Fit({np.size(self.epochs)} members: {ends}; {self.seconds:.1f} s)"
        loss = f"loss {losses[0]:.4g} to {losses[-1]:.4g}" if losses.size else "no epoch"
        ends = f"reason={self.reason!r}, epochs={self.epochs}, best_epoch={self.best_epoch}"
        return f"Fit({ends}; {loss}; {self.seconds:.1f} s)"


class LogError(OSError):
    """Measurements could not be written, so learning ended, as by Ctrl-C: what was reached is kept in `fit`.

    Attributes:
        fit: how it ended, as `fit` would have returned it.
    """

    def __init__(self, why: OSError, fit: Fit, kept: bool):
        where = f" to {why.filename}" if why.filename else ""
        way = "go on from the checkpoint by resume=True (--resume)" if kept else "begin again: no checkpoint has it"
        super().__init__(
            f"The measurements could not be written{where} ({why.strerror or why}), so learning ended after epoch "
            f"{fit.epochs}. To learn further, make room and {way}."
        )
        self.fit = fit
        self.add_note("What was reached is in this exception's `fit`.")


def fit(
    loss: Callable[..., jax.Array],
    params: PyTree,
    data: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    mode: str = "stochastic",
    epochs: int = 100,
    batch_size: int = 32,
    replacement: bool = False,
    updates: int = 100,
    key: jax.Array | None = None,
    validation: PyTree | None = None,
    score: Callable[..., jax.Array] | Mapping[str, Callable[..., jax.Array]] | None = None,
    correct: Callable[..., jax.Array] | None = None,
    stop: StoppingRule | Sequence[StoppingRule] | Mapping[str, StoppingRule] = (),
    restart: Restart | None = None,
    progress: bool | Callable[..., Any] = False,
    log: Log | Sequence[Log] | None = None,
    checkpoint: str | Path | Store | None = None,
    resume: bool | str = False,
    mesh: Mesh | None = None,
    layout: str | Layout | Mapping[str, P] | None = None,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Fit:
    """Learn from examples: w ← w + step(Ē), with Ē the gradient of the loss on an example, a batch, or all of them.

    The data are on the device, and an epoch is one compiled scan. Epochs follow each other in one compiled loop, with
    validation, stopping and the choice of the best parameters in it; it returns to Python about once a second, or when
    something is to be done there. Ctrl-C ends it after the running call, and what was reached is returned; pressed
    twice, it is raised, when the checkpoint is written. While an epoch runs, the state before it is kept, to return to
    if learning diverges.

    Args:
        loss: `loss(params, batch) -> scalar`, the mean over the examples of a batch. If it has a parameter `key`, that
            is a new key for every update; for validation it is not given.
        params: a pytree of arrays; they are left as they are.
        data: the examples, a pytree of arrays with a common leading axis. Or an iterator, which may have no end: of
            examples, without the leading axis, for `"online"`; of batches for `"stochastic"`.
        optimizer: an optax transformation. Those that need more get `value`, `grad`, `value_fn`, `grad_fn`, `obj_fn`
            and `batch`. Of `optax.lookahead`, `contrib.schedule_free` and `contrib.sam`, the parameters that are
            judged, kept and returned are those meant to be used, and not those at which they learn. With
            `optax.apply_if_finite`, an update that is left out is no divergence, and its loss is not in the mean.
        mode: `"online"`: an update after every example, in the order given; `"batch"`: one after all examples;
            `"stochastic"`: one after every mini-batch, in a new random order each epoch. What remains when the batches
            are full waits for another epoch's order.
        epochs: how many at most.
        batch_size: of mini-batches; if there are fewer examples, they are the batch.
        replacement: draw mini-batches with replacement.
        updates: for an iterator: how many updates make an epoch.
        key: a typed key, for the order of the examples; `jax.random.key(0)` if not given.
        validation: examples to watch the learning by, never learned from.
        score: `score(params, validation) -> scalar`, reported as `validation_score`; or several by name:
            `{"accuracy": f}` is reported as `validation_accuracy`. One that returns an array is reported to trackers,
            and is in the history, and files leave it out.
        correct: `correct(params, data) -> booleans`, which training examples are right after the epoch; their mean is
            reported as `correct`.
        stop: rules of `funcbp.train.stopping`; by name, the name is the reason, else `stop[0]` and so on.
        restart: when to give up and begin again, with new parameters.
        progress: a progress bar by tqdm; or a class like it.
        log: where measurements go: a .jsonl or .csv file, a tracker with `log(metrics, step=)`, or several.
        checkpoint: where all is kept that decides how the training goes on: the path of an npz file, or `Checkpoint`,
            or `OrbaxCheckpoint`. Where a stream or a tracker raises an exception, what was reached is saved, too.
        resume: go on from the checkpoint, if there is one; the result is the same, to the last bit, as if it had never
            stopped. Of an iterator, what had been learned from is skipped. A checkpoint of other data (a sample of them
            is compared), another loss, optimiser or way of going backward is refused; `"anyway"` goes on from it.
        mesh: the devices, with axes out of `data`, `fsdp` and `tensor`: `train.make_mesh({"data": 4, "tensor": 2})`.
        layout: where the parameters live on it: `"data"`, `"fsdp"`, `"tensor"`, patterns of paths and their `jax.P`, or
            a function of path, shape and axes. By default the last of these that the mesh has an axis for.
        argnums: which argument of `loss`, 0 or 1, holds the parameters.
        has_aux: whether `loss` returns a pair (loss, auxiliary data); of the latter no use is made.
        backward: the way of going backward, if not the default one.

    Returns:
        How it ended: parameters, history, and why.

    Raises:
        ValueError: an argument makes no sense; the message says which.
        TypeError: the optimiser is no optax transformation, or something in `stop` is no rule.
        CheckpointError: a checkpoint cannot be read or written.
        LogError: measurements cannot be written any more; what was reached is in it, and in the checkpoint.

    Example:
        >>> import jax, jax.numpy as jnp, optax, funcbp as bp
        >>> x, y = jnp.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), jnp.array([[0.0], [1], [1], [0]])
        >>> net = bp.nets.mlp([2, 4, 1])
        >>> def loss(params, batch):
        ...     x, y = batch
        ...     return bp.ops.squared_error(net.apply(params, x), y, "mean")
        >>> xor = bp.fit(
        ...     loss, net.init(jax.random.key(1), x), (x, y), optimizer=optax.adam(0.1), mode="batch", epochs=1000,
        ...     stop={"learned": bp.train.stopping.target_error(0.01)},
        ... )
        >>> xor.reason
        'learned'
    """
    streams = hasattr(data, "__next__")
    placement = make_placement(mesh, layout)
    learner, names = make_learner(
        loss,
        optimizer,
        mode,
        streams=streams,
        batch_size=batch_size,
        replacement=replacement,
        stop=stop,
        restart=restart,
        score=score,
        correct=correct,
        validates=validation is not None,
        argnums=argnums,
        has_aux=has_aux,
        backward=backward,
        placement=placement,
    )
    if resume and checkpoint is None:
        raise ValueError("resume is from a checkpoint, and there is none: give checkpoint=.")
    if validation is not None and not all(map(np.ndim, jax.tree.leaves(validation))):
        raise ValueError(
            f"validation is of examples like data, and was {validation!r}. Divide the data first, as "
            "data[:n] and data[n:]."
        )
    check(learner, mode, data, epochs, updates)
    if placement:
        placement.check_patterns(params)
    key = jax.random.key(0) if key is None else key
    params = jax.tree.map(lambda x: jnp.asarray(checked(x)), params)
    validation = learner.put(validation)
    source: Iterator[PyTree]
    if streams:
        source = stream(data, updates, mode == "online", placement)
    else:
        source = itertools.repeat(learner.put(data))
    settings: dict[str, Any] = {}
    if checkpoint is not None:
        first = next(source, None)
        source = itertools.chain(() if first is None else [first], source)
        settings = settings_of(learner, mode, key, first, validation, updates)
        settings |= {} if first is None else programs_of(learner, params, first)
    out = drive(
        learner,
        params,
        key,
        source,
        validation,
        None,
        HostConfig(epochs, progress, log, store_of(checkpoint), resume, settings, names),
    )
    (reason,) = out.reasons
    divergence = _diagnosis(learner, out.state, out.data) if reason == "diverged" else None
    result = fit_of(learner, out, learner.judged(out.state), int, reason, divergence)
    if out.unwritten:
        raise LogError(out.unwritten, result, out.kept) from out.unwritten
    return result


def fit_of(
    learner: Learner,
    out: TrainingOutcome,
    last: PyTree,
    number: Callable[[jax.Array], Any],
    reason: str | list[str],
    divergence: Divergence | None = None,
) -> Fit:
    """How a training ended, with `last` the parameters to use; `number` makes what it counts numbers, or arrays."""
    state, validates = out.state, learner.validates
    return Fit(
        params=last,
        best_params=state.kept if validates else last,
        history=out.history,
        reason=reason,
        epochs=number(state.epoch),
        best_epoch=number(state.best_epoch if validates else state.epoch),
        attempts=number(state.attempt) + 1,
        seconds=out.seconds,
        divergence=divergence,
    )


def _diagnosis(learner: Learner, state: State, data: PyTree) -> Divergence:
    """Go through the epoch that diverged once more, up to the update where it did."""
    if int(state.code) == Status.DIVERGED_AT_ONCE:
        state = state._replace(params=state.kept)
    params, _, losses = jax.jit(functools.partial(learner.epoch, guarded=True))(state, data)
    epoch, bad = int(state.epoch) + 1, np.flatnonzero(np.isnan(losses))
    if not bad.size:
        return Divergence(epoch, None, params, None, None)
    key = jax.random.fold_in(state.key, epoch)
    items, batch_of = learner.batches(data, key)
    batch, loss = batch_of(jax.tree.map(lambda a: a[bad[0]], items)), learner.loss
    if "key" in loop.parameters(loss):
        loss = functools.partial(loss, key=jax.random.fold_in(key, bad[0]))
    found = find_nan(loss, backward=learner.backward)(params, batch)
    return Divergence(epoch, int(bad[0]) + 1, params, batch, str(found) if found else None, found.finite_value)
