"""The loop outside: calls of the compiled loop, and what is done between them.

Everything that happens per epoch is compiled (`loop.py`). Between the calls there are the progress bar, the trackers,
the checkpoint and Ctrl-C; so a small problem is one call, and a large one is calls of about a second.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import NamedSharding

from ...jaxpr.types import PyTree
from . import loop
from .checkpoint import CheckpointError, Saved, Store
from .layout import Placement, batch_spec, to_host
from .loop import Learner, State, Status
from .records import Log, progress_bar, trackers

ROWS = 16384  # the most epochs that are in one call
FLOPS_PER_CALL = 2e9  # what the first call may take, roughly: about a second on a slow core
UPDATE_OVERHEAD = 1e4  # what an update takes beside its arithmetic, in the same unit
SECONDS_PER_CALL, SECONDS_PER_SHOW, SECONDS_PER_SAVE = 1.0, 0.2, 30.0


class TrainingOutcome(NamedTuple):
    """Where a training, or many, have got to.

    Attributes:
        state: the last state.
        history: columns of measurements, an array with a row per epoch.
        reasons: why it ended, one for each member.
        seconds: how long it took.
        data: what the last epoch learned from.
        unwritten: why measurements could not be written, on the process that writes them.
        kept: whether there is a checkpoint of it.
    """

    state: State
    history: dict[str, np.ndarray]
    reasons: list[str]
    seconds: float
    data: PyTree
    unwritten: OSError | None
    kept: bool


class HostConfig(NamedTuple):
    """What is done between the calls, as it is given to `fit`."""

    epochs: int
    progress: bool | Callable[..., Any]
    log: Log | Sequence[Log] | None
    store: Store | None
    resume: bool | str
    settings: dict[str, Any]
    names: tuple[str, ...]


def drive(
    learner: Learner,
    params: PyTree,
    key: jax.Array,
    data: Iterable[PyTree],
    validation: PyTree | None,
    members: Mapping[str, jax.Array] | None,
    config: HostConfig,
) -> TrainingOutcome:
    """Train until everybody has stopped, the epochs or the data are used up, or Ctrl-C is pressed.

    `data` yields what each call learns from. With `members`, everything has a leading axis.
    """
    many, streams = members is not None, learner.mode == "stream"
    members = members or {}
    start = time.perf_counter()
    compiled = loop.compile_training(learner, 1 if streams else min(config.epochs, ROWS), many)
    state = compiled.init(params, key, members)
    if learner.placement:
        state = learner.placement.put(state)
    with sole_user(config.store):
        known = (*learner.columns, "seconds")
        checkpointer = Checkpointer(config.store, config.settings, known, len(config.names))
        state, columns = checkpointer.begin(state, config.resume)
        past = _rows(_joined(columns))
        done, spent = len(past), past[-1]["seconds"] if past else 0.0
        sizer = ChunkSizer(SECONDS_PER_SHOW if config.progress else SECONDS_PER_CALL)
        feed, batch, ended, whole = iter(data), None, "epochs", True
        first = jax.process_index() == 0

        def save() -> None:
            if whole:  # and not in the middle of a call, which has taken the state's memory
                checkpointer.save(state, columns, done)

        with (
            interruptible() as interrupted,
            trackers(config.log if first else None, past) as recorder,
            progress_bar(config.progress if first else False, config.epochs, done) as show,
            kept_if_raised(save),
        ):
            if streams:  # what has been learned from is skipped
                collections.deque(itertools.islice(feed, done), maxlen=0)
            while done < config.epochs and np.any(to_host(state.code) == Status.RUNNING):
                full = recorder.unwritten is not None
                unwritten, halt, due, count = agree(full, interrupted(), checkpointer.is_due(done), sizer.count)
                if due:
                    checkpointer.save(state, columns, done)
                if unwritten or halt:
                    ended = "unwritten" if unwritten else "interrupted"
                    break
                if (batch := next(feed, None)) is None:
                    ended = "data"
                    break
                count = 1 if streams else count or sizer.guess(learner, state.params, batch)
                count = checkpointer.limit(min(count, config.epochs - done, ROWS), done)
                begun, whole = time.perf_counter(), False
                state, rows, ran = compiled.run(state, batch, validation, members, np.int32(count))
                epochs = int(to_host(ran))
                if not many and int(to_host(state.code)) in (Status.DIVERGED, Status.DIVERGED_AT_ONCE):
                    epochs -= 1
                sizer.adjust(epochs, time.perf_counter() - begun)
                column = {name: to_host(rows[name])[:epochs] for name in learner.columns}
                column["seconds"] = np.full(epochs, time.perf_counter() - start + spent)
                columns.append(column)
                done, whole = done + epochs, True
                new = [] if many else _rows(column)
                for epoch, row in enumerate(new, done - epochs + 1):
                    recorder.log(epoch, row)
                show(epochs, new[-1] if new else {})
            try:
                checkpointer.save(state, columns, done)
            except CheckpointError:
                if not recorder.unwritten:  # which is the reason for this, too, and what was reached is returned
                    raise
        reasons = [_reason(code, ended, config.names) for code in np.atleast_1d(to_host(state.code))]
        kept = checkpointer.has(done)
        seconds = time.perf_counter() - start
        return TrainingOutcome(state, _joined(columns), reasons, seconds, batch, recorder.unwritten, kept)


class Checkpointer:
    """The checkpoint: what to begin with, and when it is written."""

    def __init__(self, store: Store | None, settings: Mapping[str, object], columns: tuple[str, ...], stops: int):
        self.store, self.settings, self.columns, self.stops = store, settings, columns, stops
        self._saved, self._saved_at = -1, time.perf_counter()

    def begin(self, state: State, resume: bool | str) -> tuple[State, list[dict[str, np.ndarray]]]:
        """The state to begin with, to be donated, and the history so far."""
        if self.store is None:
            return state, []
        if not agree(self.store.exists())[0]:
            self.save(state, [], 0)  # a place that cannot be written to shall be noticed now
            return state, []
        if not resume:
            raise CheckpointError(
                "There is a checkpoint already, and it would be lost: go on from it by resume=True, or move it away."
            )
        settings = {} if resume == "anyway" else self.settings
        saved = self.store.load(Saved(state, dict.fromkeys(self.columns, np.zeros(0)), settings))
        assert saved is not None
        self._check(saved)
        self._saved = int(np.max(to_host(saved.state.epoch)))
        state = loop.own_copy(saved.state)
        # what diverged may be tried again, with a smaller learning rate
        diverged = (state.code == Status.DIVERGED) | (state.code == Status.DIVERGED_AT_ONCE)
        state = state._replace(code=jnp.where(diverged, Status.RUNNING, state.code))
        return state, [dict(saved.history)] if saved.history else []

    def _check(self, saved: Saved) -> None:
        """Raise if the state is none that training leads to, or the history is not its own: the file was edited."""
        code, epoch, history = to_host(saved.state.code), to_host(saved.state.epoch), saved.history
        ranks = [history[name].ndim == 1 + rank for name, rank in (("loss", code.ndim), ("seconds", 0)) if history]
        rows = len(history["loss"]) if history and all(ranks) else 0
        known = np.all((code >= 0) & (code < Status.STOPPED + self.stops)) and np.all(epoch >= 0)
        if not (known and all(ranks) and (rows >= np.max(epoch) if code.ndim else rows == epoch)):
            raise CheckpointError(
                f"The checkpoint was changed by somebody, or is damaged: its state is of epoch {np.max(epoch)} with "
                f"the code {np.max(code)}, which does not go with the {rows} rows of its history."
            )

    def limit(self, count: int, done: int) -> int:
        """How many of the next epochs are before a checkpoint."""
        every = self.store.every if self.store else None
        return min(count, every - done % every) if every else count

    def is_due(self, done: int) -> bool:
        """Whether a checkpoint is due after so many epochs."""
        if self.store is None or done == self._saved:
            return False
        if self.store.every:
            return done % self.store.every == 0
        return time.perf_counter() - self._saved_at > SECONDS_PER_SAVE

    def has(self, done: int) -> bool:
        """Whether what was reached after so many epochs is written."""
        return self.store is not None and done == self._saved

    def save(self, state: State, columns: list[dict[str, np.ndarray]], done: int) -> None:
        """Write it, if it is not there already."""
        if self.store and done != self._saved:
            self.store.save(Saved(state, _joined(columns), self.settings))
            self._saved, self._saved_at = done, time.perf_counter()


def _rows(columns: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
    names = list(columns)
    return [dict(zip(names, map(_number, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def _number(value: Any) -> Any:
    return value.item() if value.ndim == 0 else value  # of many members, a row has an array


def _joined(columns: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([each[name] for each in columns]) for name in (columns[0] if columns else ())}


def _reason(code: int, ended: str, names: tuple[str, ...]) -> str:
    if code >= Status.STOPPED:
        return names[code - Status.STOPPED]
    return {
        Status.RUNNING: ended,
        Status.DIVERGED: "diverged",
        Status.DIVERGED_AT_ONCE: "diverged",
        Status.OUT_OF_RESTARTS: "restarts",
    }[Status(code)]


# --- how long a call is -----------------------------------------------------------------------------------------------


class ChunkSizer:
    """How many epochs a call has: as many as take about `seconds`, by a guess first, and then as measured."""

    def __init__(self, seconds: float):
        self.seconds, self.count, self._calls = seconds, 0, 0

    def guess(self, learner: Learner, params: PyTree, data: PyTree) -> int:
        """Before the first call: how many, by what an epoch will take."""
        if not self.count:
            work = 6.0 * loop.count_numbers(params) * loop.count_examples(data)
            work += UPDATE_OVERHEAD * loop.count_updates(learner, data)
            self.count = max(1, int(FLOPS_PER_CALL * self.seconds / work))
        return self.count

    def adjust(self, epochs: int, seconds: float) -> None:
        """After a call. The first one was compiled, too, and says nothing."""
        self._calls += 1
        if self._calls > 1 and epochs:
            self.count = min(max(int(epochs * self.seconds / seconds), 1), 4 * self.count, ROWS)


# --- what the data are ------------------------------------------------------------------------------------------------


def stream(items: Iterator[PyTree], updates: int, online: bool, placement: Placement | None) -> Iterator[PyTree]:
    """From an iterator of examples, or of batches: the batches of an epoch together, shape (updates, batch, ...).

    Nothing is read ahead of the epoch. Where the shape changes, and where the data end, an epoch is shorter.

    Raises:
        ValueError: an item is None, holds something that is no array of numbers, or is not built as the first one is.
    """
    lead = (lambda a: np.asarray(a)[None]) if online else np.asarray
    shape = lambda item: tuple((a.shape, a.dtype) for a in jax.tree.leaves(item))
    arrays = (jax.tree.map(lead, item) for item in _of_one_structure(items))
    for _, alike in itertools.groupby(_numbers(arrays), shape):
        while chunk := list(itertools.islice(alike, updates)):
            stacked = jax.tree.map(lambda *parts: np.stack(parts), *chunk)
            if placement is None:
                yield jax.tree.map(jnp.asarray, stacked)
            else:
                sharding = NamedSharding(placement.mesh, P(None, *batch_spec(placement.mesh)))
                put = functools.partial(jax.make_array_from_process_local_data, sharding)
                yield jax.tree.map(put, stacked)


def _numbers(items: Iterator[PyTree]) -> Iterator[PyTree]:
    for number, item in enumerate(items, 1):
        for leaf in jax.tree.leaves(item):
            if not leaf.ndim:
                raise ValueError(
                    f"Item {number} of the iterator holds {leaf!s} without a leading axis of examples. Lists of "
                    'numbers are made arrays by numpy.asarray; of single examples learn with mode="online".'
                )
            if leaf.dtype.kind in "OSUMm":
                raise ValueError(f"Item {number} of the iterator holds {leaf.flat[0]!r}, which is no number.")
        yield item


def _of_one_structure(items: Iterator[PyTree]) -> Iterator[PyTree]:
    first: PyTree = None
    for number, item in enumerate(items, 1):
        structure: Any = jax.tree.structure(item)
        if not structure.num_leaves:
            raise ValueError(f"Item {number} of the iterator is {item!r}, and should be examples to learn from.")
        first = first or structure
        if structure != first:
            raise ValueError(
                f"Item {number} of the iterator has the structure {structure}, and the first one has {first}: a "
                "network learns from items of one structure."
            )
        yield item


# --- processes, exceptions, and Ctrl-C --------------------------------------------------------------------------------


def agree(*values: int) -> list[int]:
    """Of several processes, what the first one has decided: they must make the same calls."""
    if jax.process_count() == 1:
        return list(values)
    from jax.experimental import multihost_utils

    return [int(value) for value in multihost_utils.broadcast_one_to_all(np.array(values, np.int32))]


@contextlib.contextmanager
def sole_user(store: Store | None) -> Iterator[None]:
    """Hold the lock of a checkpoint, which of several processes the first one takes for all of them."""
    refused: CheckpointError | None = None
    with contextlib.ExitStack() as stack:
        if store and not jax.process_index():
            try:
                stack.enter_context(store.claim())
            except CheckpointError as error:
                refused = error
        if store and agree(refused is not None)[0]:
            raise refused or CheckpointError("The first process could not take the checkpoint.")
        yield


@contextlib.contextmanager
def kept_if_raised(save: Callable[[], object]) -> Iterator[None]:
    """Save what was reached where an exception ends the training: of a stream, a tracker, a progress bar."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:  # Ctrl-C for the second time, and the end of the process, too
        if jax.process_count() == 1:  # the others do not know of it, and saving needs them
            try:
                save()
            except CheckpointError as lost:
                error.add_note(str(lost))
        raise


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, as a function; pressed a second time, it interrupts as ever.

    So it never falls between a call, which takes the state's memory, and the taking of its result.
    """
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
