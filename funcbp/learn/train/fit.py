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

from ...autodiff.arguments import checked, parameters_first, without_aux
from ...autodiff.transformations import Backward, as_backward
from ...inspection import find_nan
from ...jaxpr.types import PyTree
from . import fingerprint, loop
from . import optimizer as optimizers
from .checkpoint import Store, store_of
from .drive import HostConfig, drive, stream
from .layout import Layout, Placement, make_placement
from .loop import MODES, Learner, State, Status
from .records import Log
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
    loss = parameters_first(without_aux(loss) if has_aux else loss, argnums)
    streams = hasattr(data, "__next__")
    optimizer = optimizers.as_transformation(optimizer)
    rules, names = rules_of(stop)
    placement = make_placement(mesh, layout)
    learner = Learner(
        loss,
        optimizer,
        "stream" if streams else mode,
        1 if mode == "online" else batch_size,
        replacement,
        rules,
        restart,
        scores_of(score),
        correct,
        validation is not None,
        as_backward(backward),
        placement,
    )
    if resume and checkpoint is None:
        raise ValueError("resume is from a checkpoint, and there is none: give checkpoint=.")
    if validation is not None and not all(map(np.ndim, jax.tree.leaves(validation))):
        raise ValueError(
            f"validation is of examples like data, and was {validation!r}. Divide the data first, as "
            "data[:n] and data[n:]."
        )
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer is an optax transformation, such as optax.sgd(0.1), and was {optimizer!r}.")
    check(learner, mode, data, epochs, updates)
    if placement:
        placement.check_patterns(params)
    put = placement.everywhere if placement else functools.partial(jax.tree.map, jnp.asarray)
    key = jax.random.key(0) if key is None else key
    params = jax.tree.map(lambda x: jnp.asarray(checked(x)), params)
    validation = put(validation) if validation is not None else None
    source: Iterator[PyTree]
    if streams:
        source = stream(data, updates, mode == "online", placement)
    else:
        source = itertools.repeat(put(data))
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
    state, (reason,) = out.state, out.reasons
    last = learner.judged(state)
    result = Fit(
        last,
        last if validation is None else state.kept,
        out.history,
        reason,
        int(state.epoch),
        int(state.epoch if validation is None else state.best_epoch),
        int(state.attempt) + 1,
        out.seconds,
        _diagnosis(learner, state, out.data) if reason == "diverged" else None,
    )
    if out.unwritten:
        raise LogError(out.unwritten, result, out.kept) from out.unwritten
    return result


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


# --- what is asked for ------------------------------------------------------------------------------------------------


def rules_of(stop: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """The stopping rules, and what they are called."""
    if isinstance(stop, Mapping):
        return tuple(stop.values()), tuple(stop)
    rules = tuple(stop) if isinstance(stop, list | tuple) and not isinstance(stop, StoppingRule) else (stop,)
    return rules, tuple(f"stop[{i}]" for i in range(len(rules)))


def scores_of(score: Any) -> tuple[tuple[str, Any], ...]:
    """The scores, by the names of their columns."""
    scores = score if isinstance(score, Mapping) else {} if score is None else {"score": score}
    return tuple((f"validation_{name}", f) for name, f in scores.items())


def settings_of(
    learner: Learner, mode: str, key: jax.Array, data: PyTree, validation: PyTree | None, updates: int
) -> dict[str, Any]:
    """What the course of a training depends on, beside what the state shows; a checkpoint must agree."""
    settings: dict[str, Any] = {"mode": mode, "key": fingerprint.of_arrays(key)}
    if validation is not None:
        settings["validation"] = fingerprint.of_arrays(validation)
    if learner.mode == "stream":
        return {**settings, "updates": updates}
    settings |= {"batch_size": learner.batch_size, "replacement": learner.replacement}
    return {**settings, "data": fingerprint.of_arrays(data)}


def programs_of(learner: Learner, params: PyTree, data: PyTree) -> dict[str, str]:
    """Fingerprints of what is computed in an update: the loss, how it goes backward, and the optimiser's step."""
    key = jax.random.key(0)

    def batch_of(data: PyTree) -> PyTree:
        items, batch_of = learner.batches(data, key)
        return batch_of(jax.tree.map(lambda a: a[0], items))

    batch = jax.eval_shape(batch_of, data)
    memory = jax.eval_shape(functools.partial(optimizers.init, learner.optimizer), params)
    loss = lambda params, batch: learner.on_batch(batch, key)(params)
    value = jax.eval_shape(loss, params, batch)
    return {
        "loss": fingerprint.of_program(loss, params, batch),
        "optimizer": fingerprint.of_program(
            lambda g, m, w, e, b: learner.step(g, m, w, e, b, key), params, memory, params, value, batch
        ),
        "backward": fingerprint.placeless(repr(learner.backward)),
    }


def check(learner: Learner, mode: str, data: PyTree, epochs: int, updates: int) -> None:
    """Raise if what is asked for makes no sense."""
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(map(repr, MODES))}, and was {mode!r}.")
    for name, value in (("epochs", epochs), ("batch_size", learner.batch_size), ("updates", updates)):
        if not value >= 1:
            raise ValueError(f"{name} is at least 1, and was {value}.")
        if not float(value).is_integer():
            raise ValueError(f"{name} is a whole number, and was {value}.")
    if learner.replacement and mode != "stochastic":
        raise ValueError(f'replacement=True is for mode="stochastic": in mode={mode!r} no example is drawn.')
    if learner.scores and not learner.validates:
        raise ValueError("score is of the validation examples, and there are none: give validation=.")
    _check_rules(learner)
    if learner.mode == "stream":
        if mode == "batch":
            raise ValueError('mode="batch" needs all examples at once, and an iterator does not give them.')
        if learner.correct:
            raise ValueError("correct is of all training examples, and an iterator does not give them.")
        return
    for leaf in jax.tree.leaves(data):
        if hasattr(leaf, "__iter__") and not hasattr(leaf, "shape"):
            raise ValueError(
                f"data holds a {type(leaf).__name__}, which is no array. A loader of batches is given as an iterator, "
                "iter(loader)."
            )
    leaves = [np.shape(leaf) for leaf in jax.tree.leaves(data)]
    lengths = sorted({shape[0] if shape else -1 for shape in leaves})
    if len(lengths) != 1 or lengths == [-1]:
        raise ValueError(
            f"The examples are a pytree of arrays with a common leading axis, and the shapes are "
            f"{', '.join(map(str, leaves)) or 'none at all'}."
        )
    if lengths == [0]:
        raise ValueError("Learning needs at least one example, and the leading axis has length 0.")
    if isinstance(learner.placement, Placement):
        learner.placement.check_batch(lengths[0] if mode == "batch" else min(learner.batch_size, lengths[0]))


def _check_rules(learner: Learner) -> None:
    """Raise if something is no rule, or a rule judges by what will not be known."""
    known = {"epoch", "loss", *learner.columns}
    for rule in (*learner.rules, *([learner.restart.when] if learner.restart else [])):
        if not isinstance(rule, StoppingRule):
            raise TypeError(f"stop is of rules such as train.stopping.target_error(0.01), and {rule!r} is none.")
        for name in rule.needs:
            if name not in known:
                what, argument = _GIVEN.get(name, (f"{name!r}, which nothing reports", "another rule"))
                raise ValueError(f"A rule of stop or restart judges by {what}: give {argument}.")


_GIVEN = {
    "validation_loss": ("the validation loss, and there are no validation examples", "validation="),
    "correct": ("which training examples are right, and nothing says so", "correct="),
}
