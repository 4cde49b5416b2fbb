"""What a training leaves behind: parameters and measurements in a folder, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from ...inspection.files import write_atomically
from ...jaxpr.types import PyTree
from ..request import RequestError
from .records import json_line

T = TypeVar("T")


def read_description(path: Path, command: str, build: Callable[[Any], T]) -> T:
    """Read what a command has written of its run as JSON, and build from it what it describes.

    Raises:
        RequestError: it is not there, or not whole.
    """
    if not path.exists():
        raise RequestError(f"{path.parent} is not the folder of a run of `{command}`: there is no {path.name} in it.")
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{path} is damaged: it is not what `{command}` wrote.") from error


def save_params(path: str | Path, params: Mapping[str, PyTree]) -> None:
    """Write parameters to an npz file, one array per leaf, named by its path: `dense_0/kernel`.

    Types that numpy does not know, such as bfloat16, are stored as float32, which holds all their values.

    Args:
        path: where the file shall be.
        params: nested dicts of arrays; the keys are strings without a slash.

    Raises:
        ValueError: the parameters are not nested dicts with such keys.
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from funcbp import train
        >>> path = pathlib.Path(tempfile.mkdtemp(), "params.npz")
        >>> train.save_params(path, {"dense_0": {"kernel": np.ones((2, 1))}})
        >>> sorted(np.load(path))
        ['dense_0/kernel']
    """
    arrays: dict[str, Any] = {name: _storable(np.asarray(leaf)) for name, leaf in leaf_paths(params).items()}
    write_atomically(path, lambda file: np.savez(file, **arrays))


def load_params(path: str | Path) -> dict[str, PyTree]:
    """Read parameters that `save_params` wrote.

    Args:
        path: where the file is.

    Returns:
        Nested dicts of numpy arrays.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or is no such file.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from funcbp import train
        >>> path = pathlib.Path(tempfile.mkdtemp(), "params.npz")
        >>> train.save_params(path, {"dense_0": {"bias": np.zeros(1)}})
        >>> train.load_params(path)
        {'dense_0': {'bias': array([0.])}}
    """
    params: dict[str, PyTree] = {}
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # zip, zlib and numpy have many words for one thing
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RequestError(f"{path} is damaged, or is no file of parameters: it cannot be read as a whole.") from error
    for name, array in arrays.items():
        *folders, last = name.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = array
    return params


def leaf_paths(params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The leaves of nested dicts by their paths, `dense_0/kernel`.

    Args:
        params: nested dicts; the keys are strings without a slash.

    Returns:
        The leaves by their paths, in the order of the dicts.

    Raises:
        ValueError: it is something else.

    Example:
        >>> from funcbp import train
        >>> train.leaf_paths({"dense_0": {"bias": 0.5}})
        {'dense_0/bias': 0.5}
    """
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        keys = [getattr(entry, "key", None) for entry in path]
        if not keys or not all(isinstance(key, str) and "/" not in key for key in keys):
            raise ValueError(
                f"Parameters are stored as nested dicts whose keys are strings without a slash, and this leaf is at "
                f"{jax.tree_util.keystr(path) or 'the top'}."
            )
        leaves["/".join(str(key) for key in keys)] = leaf
    return leaves


def _storable(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


def write_metrics(path: str | Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write measurements as JSON lines, one object per line; what is not finite becomes null.

    Args:
        path: where the file shall be.
        records: dicts of numbers and strings.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import train
        >>> path = pathlib.Path(tempfile.mkdtemp(), "metrics.jsonl")
        >>> train.write_metrics(path, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": float("nan")}])
        >>> print(path.read_text(), end="")
        {"epoch": 1, "loss": 0.5}
        {"epoch": 2, "loss": null}
    """

    text = "".join(map(json_line, records))
    write_atomically(path, lambda file: file.write(text.encode()))
