"""Checkpoints: all that decides how a training goes on, in one file that is whole or not there.

A checkpoint is an npz file. Beside the leaves of the state (parameters, the optimiser's state, key, epoch, best
parameters, stopping rules), named by their paths, and the history, it holds `about`: a JSON text that says what wrote
it, what settings the course of the training depends on, and the type of every leaf. numpy's zip format has a checksum
for each array, so damage is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..._version import __version__
from ...inspection.files import unfinished, write_atomically
from ...jaxpr import extras
from ...jaxpr.types import PyTree, Value
from .layout import is_key, leaves_of, path_of, to_host, to_sharding

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or used; the message says which, why, and what to do."""


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: a pytree of arrays.
        history: columns of numbers, a row per epoch.
        settings: what the course of the training depends on, as values that JSON knows; in what is given to `load`, an
            empty mapping asks for whatever training is there.
    """

    state: PyTree
    history: Mapping[str, np.ndarray]
    settings: Mapping[str, object]


class Store(Protocol):
    """Where checkpoints are kept; `save` is called after `every` epochs, or about every half minute if that is None."""

    every: int | None

    def claim(self) -> contextlib.AbstractContextManager[None]:
        """Keep other trainings away from it while this one runs."""

    def exists(self) -> bool:
        """Whether there is anything to load."""

    def save(self, saved: Saved) -> None:
        """Keep this, instead of what was there."""

    def load(self, like: Saved) -> Saved | None:
        """What was kept last, with the structure, types and places of `like`; None if there is nothing."""


class Checkpoint:
    """Checkpoints in one npz file; the one before is kept beside it, as `NAME.previous`.

    A file is written beside its place, flushed to the disk, and moved there: whenever the process or the machine stops,
    a whole file is there. Where several processes train together, the first one writes, and all of them read. A second
    training with the same file is refused for as long as the first one runs.

    Args:
        path: of the file.
        every: after how many epochs it is written; None: about every half minute. It is always written before the
            first epoch, so that a place that cannot be written to is noticed, and at the end.

    Raises:
        ValueError: `every` is less than 1.

    Example:
        >>> import pathlib, tempfile, jax.numpy as jnp
        >>> from funcbp import train
        >>> checkpoint = train.Checkpoint(pathlib.Path(tempfile.mkdtemp(), "run.npz"))
        >>> checkpoint.load(train.Saved({"w": jnp.zeros(2)}, {}, {})) is None
        True
        >>> checkpoint.save(train.Saved({"w": jnp.ones(2)}, {}, {}))
        >>> checkpoint.load(train.Saved({"w": jnp.zeros(2)}, {}, {})).state["w"]
        Array([1., 1.], dtype=float32)
    """

    def __init__(self, path: str | Path, every: int | None = None):
        _check_every(every)
        self.path, self.every = Path(path), every

    @property
    def previous(self) -> Path:
        """Where the checkpoint before the last one is."""
        return self._place.with_name(self._place.name + ".previous")

    @property
    def _place(self) -> Path:
        """The file itself, where `path` is a link to it."""
        return self.path.resolve() if self.path.is_symlink() else self.path

    def claim(self) -> contextlib.AbstractContextManager[None]:
        """Hold the file's lock.

        Raises:
            CheckpointError: another training holds it, there is no such folder, or `path` is one.
        """
        if self.path.is_dir():
            raise CheckpointError(f"{self.path} is a folder, and a checkpoint is a file: name one in it.")
        return claimed(self.path)

    def exists(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def save(self, saved: Saved) -> None:
        """Write the file.

        Args:
            saved: what to keep.

        Raises:
            CheckpointError: it cannot be written; then the file that was there is as it was.
        """
        host = {
            path_of(path): to_host(leaf) for path, leaf in leaves_of(saved.state)
        }  # on every process: parts are exchanged
        if jax.process_index():
            return
        arrays: dict[str, Any] = {f"state/{name}": _storable(a) for name, a in host.items()}
        arrays |= {f"history/{name}": column for name, column in saved.history.items()}
        arrays["about"] = np.array(json.dumps(_about(saved)))
        try:
            for left in os.listdir(self._place.parent):
                if left.startswith(unfinished(self._place)):  # by a process that was killed as it wrote
                    self._place.with_name(left).unlink(missing_ok=True)
            write_atomically(self._place, lambda file: np.savez(file, **arrays), keep=self.previous)
        except OSError as error:
            raise CheckpointError(_not_written(self.path, error)) from error

    def load(self, like: Saved) -> Saved | None:
        """Read the file.

        Args:
            like: a state with the structure, types and places that the training has, and its settings.

        Returns:
            What was saved; None if there is no file.

        Raises:
            CheckpointError: it cannot be read, it is no checkpoint, it is damaged, or it is of another training.
        """
        try:
            with open(self.path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                if not isinstance(file, np.lib.npyio.NpzFile) or "about" not in file.files:
                    raise CheckpointError(f"{self.path} is not a checkpoint of funcbp.")
                contents = {name: file[name] for name in file.files}
            about = json.loads(str(contents.pop("about")))
        except FileNotFoundError:
            return None
        except CheckpointError:
            raise
        except OSError as error:
            if error.errno is not None:
                raise CheckpointError(f"{self.path} cannot be read: {error.strerror}.") from error
            raise CheckpointError(self._damaged()) from error
        except Exception as error:  # zip, zlib and numpy have many words for one thing
            raise CheckpointError(self._damaged()) from error
        try:
            return self._restore(contents, about, like)
        except CheckpointError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a whole npz file with other things in it
            raise CheckpointError(self._damaged()) from error

    def _restore(self, contents: Mapping[str, np.ndarray], about: Mapping[str, Any], like: Saved) -> Saved:
        check_about(str(self.path), about, like)
        names = [name.removeprefix("history/") for name in contents if name.startswith("history/")]
        _check_columns(str(self.path), names, like)
        parts: dict[str, dict[str, np.ndarray]] = {"state": {}, "history": {}}
        for name, array in contents.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = array
        if len({column.shape[0] for column in parts["history"].values()}) > 1:
            raise ValueError("the columns of the history are not equally long")
        if any(column.dtype.kind not in "iuf" for column in parts["history"].values()):
            raise ValueError("the history holds something that is no number")
        state = jax.tree.map_with_path(lambda path, leaf: _restored(parts["state"][path_of(path)], leaf), like.state)
        return Saved(state, parts["history"], about["settings"])

    def _damaged(self) -> str:
        whole = f" The one before it is {self.previous}." if self.previous.exists() else ""
        return f"{self.path} is damaged, or is not a checkpoint: it cannot be read as a whole.{whole}"


class OrbaxCheckpoint:
    """Checkpoints in a folder, written by orbax-checkpoint: each process writes its part of a state that is divided.

    Args:
        folder: where they are kept; the last two are.
        every: after how many epochs one is written; None: about every half minute. One is always written at the end.

    Raises:
        ImportError: orbax-checkpoint is not installed.
        ValueError: `every` is less than 1.

    Example:
        >>> import tempfile
        >>> from funcbp import train
        >>> train.OrbaxCheckpoint(tempfile.mkdtemp()).exists()
        False
    """

    def __init__(self, folder: str | Path, every: int | None = None):
        _check_every(every)
        self._orbax = extras.load("orbax.checkpoint", "This kind of checkpoint needs")
        self.folder, self.every = Path(folder).absolute(), every

    def _manager(self) -> Any:
        options = self._orbax.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        return self._orbax.CheckpointManager(self.folder, options=options)

    def claim(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder's lock.

        Raises:
            CheckpointError: another training holds it, or the folder cannot be made.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(_not_written(self.folder, error)) from error
        return claimed(self.folder)

    def exists(self) -> bool:
        """Whether there is a checkpoint in the folder."""
        if not self.folder.exists():
            return False
        with self._manager() as manager:
            return manager.latest_step() is not None

    def save(self, saved: Saved) -> None:
        """Write a checkpoint into the folder.

        Args:
            saved: what to keep.

        Raises:
            CheckpointError: it cannot be written.
        """
        args = self._orbax.args
        about = _about(saved) | {"history": {name: column.tolist() for name, column in saved.history.items()}}
        items = args.Composite(state=args.StandardSave(_plain(saved.state)), about=args.JsonSave(about))
        try:
            with self._manager() as manager:
                manager.save((manager.latest_step() or 0) + 1, args=items)
        except OSError as error:
            raise CheckpointError(_not_written(self.folder, error)) from error

    def load(self, like: Saved) -> Saved | None:
        """Read the last checkpoint of the folder.

        Args:
            like: a state with the structure, types and places that the training has, and its settings.

        Returns:
            What was saved; None if there is nothing.

        Raises:
            CheckpointError: it is damaged, or it is of another training.
        """
        args = self._orbax.args
        plain = _plain(like.state)
        try:
            with self._manager() as manager:
                if manager.latest_step() is None:
                    return None
                about = manager.restore(manager.latest_step(), args=args.Composite(about=args.JsonRestore()))["about"]
                check_about(str(self.folder), about, like)
                history = {name: np.asarray(column, float) for name, column in about["history"].items()}
                _check_columns(str(self.folder), list(history), like)
                items = args.Composite(state=args.StandardRestore(jax.tree.map(_abstract, plain)))
                state = manager.restore(manager.latest_step(), args=items)["state"]
        except CheckpointError:
            raise
        except Exception as error:  # orbax and tensorstore have many words for one thing
            raise CheckpointError(f"The last checkpoint in {self.folder} cannot be read: {error}") from error
        wrap = lambda a, leaf: jax.random.wrap_key_data(a, impl=jax.random.key_impl(leaf)) if is_key(leaf) else a
        return Saved(jax.tree.map(wrap, state, like.state), history, about["settings"])


def store_of(checkpoint: str | Path | Store | None) -> Store | None:
    """A checkpoint as it is given to `fit`: the path of an npz file, or a store."""
    return Checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint


# --- what is in it ----------------------------------------------------------------------------------------------------


def check_about(where: str, about: Mapping[str, Any], like: Saved) -> None:
    """Raise if a checkpoint is of a newer format, or of a training with another state or other settings."""
    if about.get("what") != "funcbp checkpoint":
        raise CheckpointError(f"{where} is not a checkpoint of funcbp.")
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"{where} was written by funcbp {about['funcbp']} in format {about['format']}; this version reads {FORMAT}."
        )
    _check_types(where, about["types"], like.state)
    for name, value in like.settings.items():
        if about["settings"].get(name) != value:
            another = "" if about["jax"] == jax.__version__ else f" (It was written with jax {about['jax']}.)"
            raise CheckpointError(
                f"{where} is of another training: its {name} is {about['settings'].get(name)!r}, and this one's is "
                f"{value!r}.{another} To go on from it anyway, say so: resume='anyway' (--resume-anyway)."
            )


def _about(saved: Saved) -> dict[str, Any]:
    versions = {"funcbp": __version__, "jax": jax.__version__}
    held = {"settings": dict(saved.settings), "types": _types_of(saved.state)}
    return {"what": "funcbp checkpoint", "format": FORMAT, **versions, **held}


def _check_types(where: str, types: Mapping[str, str], state: PyTree) -> None:
    wanted = _types_of(state)
    for name in [*wanted, *types]:
        if wanted.get(name) != types.get(name):
            raise CheckpointError(
                f"{where} is of another training: its {name} is {types.get(name, 'not there')}, and this one's is "
                f"{wanted.get(name, 'not there')}."
            )


def _check_columns(where: str, names: list[str], like: Saved) -> None:
    if names and set(names) != set(like.history):
        raise CheckpointError(
            f"{where} is of another training: its history has the columns {', '.join(names)}, and this one's "
            f"{', '.join(like.history) or 'has none'}."
        )


def _types_of(state: PyTree) -> dict[str, str]:
    return {path_of(path): _type_of(leaf) for path, leaf in leaves_of(state)}


def _type_of(leaf: Value) -> str:
    dtype = f"key<{jax.random.key_impl(leaf)}>" if is_key(leaf) else str(leaf.dtype)
    return f"{dtype}[{','.join(map(str, leaf.shape))}]"


def _storable(array: np.ndarray) -> np.ndarray:
    """Types that numpy does not know, such as bfloat16, as their bytes."""
    return array if array.dtype.isbuiltin == 1 else np.ascontiguousarray(array)[..., None].view(np.uint8)


def _restored(array: np.ndarray, like: PyTree) -> PyTree:
    sharding = getattr(like, "sharding", None)
    if is_key(like):
        restored = jax.random.wrap_key_data(_put(array, sharding), impl=jax.random.key_impl(like))
    else:
        restored = _put(array if np.dtype(like.dtype).isbuiltin == 1 else array.view(like.dtype)[..., 0], sharding)
    if _type_of(restored) != _type_of(like):
        raise ValueError("an array is not of the type that is written beside it")
    return restored


def _put(array: np.ndarray, sharding: jax.sharding.Sharding | Any) -> jax.Array:
    alone = sharding is None or len(sharding.device_set) == 1
    return jnp.asarray(array) if alone else to_sharding(array, sharding)


def _plain(state: PyTree) -> PyTree:
    """A state as a list of arrays without keys, for orbax."""
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, state)


def _abstract(a: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)


# --- files ------------------------------------------------------------------------------------------------------------

_held: set[tuple[int, Path]] = set()  # what this process has locked: the system's locks are the process's, not a call's


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the lock of what is kept at `path`: the system's, which ends with the process, however that ends.

    What is locked is an empty file beside it, taken away at the end; one that a killed process left is not locked. On
    systems that have no such locks there is none.
    """
    try:
        fcntl: ModuleType = importlib.import_module("fcntl")
    except ImportError:  # Windows
        yield
        return
    place = path.resolve()
    lock = place.with_name(f".{place.name}.funcbp-lock")
    mine = os.getpid(), lock
    if mine in _held:
        raise CheckpointError(_in_use(path))
    try:
        handle = _locked(fcntl, lock)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN) and lock.exists():
            raise CheckpointError(_in_use(path)) from error
        raise CheckpointError(_not_written(path, error)) from error
    _held.add(mine)
    try:
        yield
    finally:
        _held.discard(mine)
        lock.unlink(missing_ok=True)  # before it is let go: whoever has opened it sees that it is gone
        os.close(handle)


def _locked(fcntl: ModuleType, lock: Path) -> int:
    """The open file at `lock`, locked."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                    raise
                return handle
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was taken away by the one that held it


def _in_use(path: Path) -> str:
    return f"Another training is running with {path}: wait until it has ended, or give this one a file of its own."


def _not_written(path: Path, error: OSError) -> str:
    return f"The checkpoint {path} could not be written: {error.strerror or error}. What was there is as it was."


def _check_every(every: int | None) -> None:
    if every is not None and every < 1:
        raise ValueError(f"A checkpoint is written after 1 epoch or more, and every={every} was given.")
