"""What is found by looking, as data: JSON text, an npz file without pickle, and a data frame."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._version import __version__
from .files import write_atomically
from .rows import Row
from .statistics import Statistics

__all__ = ["Stored", "to_columns"]

FORMAT = 1
PLAIN = (type(None), bool, int, str)  # what JSON has


class ArrayType(NamedTuple):
    """The type of a value of which no numbers were kept."""

    dtype: str
    shape: tuple[int, ...]


class Stored:
    """What can be written into a file or as JSON, and read again. A subclass says which of its attributes make it."""

    _what: ClassVar[str]
    _parts: ClassVar[Mapping[str, type | None]]  # the constructor's arguments; of what is a list of rows, their type

    def save(self, path: str | Path) -> None:
        """Write everything into an npz file, without pickle: to be looked at elsewhere, or compared with another run.

        Args:
            path: of the file.

        Raises:
            TypeError: the value, or its auxiliary data, has something else in it than arrays, numbers and strings in
                dicts, lists and tuples.
            OSError: the file cannot be written.

        Example:
            >>> import pathlib, tempfile, jax.numpy as jnp, funcbp as bp
            >>> path = pathlib.Path(tempfile.mkdtemp(), "run.npz")
            >>> bp.trace(lambda x: jnp.sum(jnp.sin(x)))(jnp.ones(3)).save(path)
            >>> [row.primitive for row in bp.Trace.load(path)]
            ['sin', 'reduce_sum']
        """
        arrays: list[Any] = []  # `about` is what JSON can say; the arrays are numbered

        def numbered(x: np.ndarray) -> int:
            # types that numpy does not know, such as bfloat16, as their bytes
            arrays.append(x if x.dtype.isbuiltin == 1 else np.ascontiguousarray(x)[..., None].view(np.uint8))
            return len(arrays) - 1

        about = json.dumps(_written(self, numbered), allow_nan=False)
        named = dict(zip(map(str, range(len(arrays))), arrays, strict=True))
        write_atomically(path, lambda file: np.savez(file, about=np.array(about), **named))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` has written, by this version of funcbp or an older one; arrays come back as NumPy's.

        Args:
            path: of the file.

        Raises:
            ValueError: it is something else, is damaged, or was written by a newer version.
            OSError: the file cannot be read.
        """
        with open(path, "rb") as raw:
            try:
                with np.load(raw, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
                about = json.loads(str(arrays["about"]))
            except Exception as error:  # zip, zlib and numpy have many words for one thing
                raise ValueError(f"{path} is no {cls._what} that funcbp has saved, or is damaged.") from error

        def at(index: int, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
            x = arrays[str(index)]
            return (x if dtype.isbuiltin == 1 else x.view(dtype)).reshape(shape)

        try:
            return _read(cls, about, at)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no {cls._what} that funcbp has saved, or is damaged ({error!r}).") from error

    def to_json(self) -> str:
        """Write everything as JSON: the rows' attributes by name, an array as its type, shape and list of numbers.

        What is as by default in a row is left out. A nan or an infinity is written as a string.
        """
        return json.dumps(_written(self, _numbers), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` has written; arrays come back as NumPy's, to the last bit.

        Raises:
            ValueError: it is something else, or was written by a newer version.
        """
        try:
            return _read(cls, json.loads(text), _from_numbers)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"This text is no {cls._what} that funcbp has written ({error!r}).") from error


def _numbers(x: np.ndarray) -> list[Any]:
    if np.iscomplexobj(x):
        x = np.stack([x.real, x.imag], -1)
    known = x.astype(np.float64) if jax.dtypes.issubdtype(x.dtype, np.floating) else x
    known = known.astype(np.int64) if known.dtype.kind == "V" else known  # int4 and the like
    return [v if not isinstance(v, float) or math.isfinite(v) else str(v) for v in known.ravel().tolist()]


def _from_numbers(numbers: list[Any], dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    if not jax.dtypes.issubdtype(dtype, np.inexact):
        return np.array(numbers, np.uint64 if dtype == np.uint64 else None).astype(dtype).reshape(shape)
    numbers = list(map(float, numbers))
    if np.issubdtype(dtype, np.complexfloating):
        return np.array(numbers).view(np.complex128).astype(dtype).reshape(shape)
    return np.array(numbers).astype(dtype).reshape(shape)


Put = Callable[[np.ndarray], Any]
Get = Callable[[Any, np.dtype, Sequence[int]], np.ndarray]
S = TypeVar("S", bound=Stored)


def _written(whole: Stored, put: Put) -> dict[str, Any]:
    about: dict[str, Any] = {"what": f"funcbp {whole._what}", "format": FORMAT}
    about |= {"funcbp": __version__, "jax": jax.__version__}
    for name, row in whole._parts.items():
        x = getattr(whole, name)
        if row is not None:
            about[name] = [_row_written(r, put) for r in x]
        else:
            about[name] = list(x) if isinstance(x, tuple) and name == "outputs" else _value_written(x, put)
    return about


def _read(kind: type[S], about: Any, get: Get) -> S:
    if about["what"] != f"funcbp {kind._what}":
        raise ValueError(f"This is a {about['what']}, and no {kind._what}.")
    if about["format"] > FORMAT:
        raise ValueError(
            f"This {kind._what} was written by funcbp {about['funcbp']} in format {about['format']}; this version, "
            f"{__version__}, reads {FORMAT}."
        )
    found: dict[str, Any] = {}
    for name, row in kind._parts.items():
        x = about[name]
        if row is not None:
            found[name] = [_row_read(r, get, row) for r in x]
        else:
            found[name] = tuple(x) if name == "outputs" else _value_read(x, get)
    return kind(**found)


def _row_written(row: Any, put: Put) -> dict[str, Any]:
    """The fields of a row that are not as by default; types are left out where the values say them."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(row):
        x = getattr(row, f.name)
        if f.name == "types":
            x = None if x is row.values else [[str(t.dtype), list(t.shape)] for t in x]
        elif isinstance(x, tuple):
            x = [_value_written(v, put) for v in x]
        else:
            x = _value_written(x, put)
        if f.default is dataclasses.MISSING or x != (list(f.default) if isinstance(x, list) else f.default):
            out[f.name] = x
    if isinstance(row, Row) and row.types is row.values:
        out["types"] = None
    return out


def _row_read(data: Mapping[str, Any], get: Get, kind: type) -> Any:
    fields: dict[str, Any] = {
        name: tuple(_value_read(v, get) for v in x) if isinstance(x, list) and name != "types" else _value_read(x, get)
        for name, x in data.items()
        if name != "types"
    }
    if kind is Row:
        types = data.get("types", ())
        fields["types"] = (
            fields.get("values", ()) if types is None else tuple(ArrayType(d, tuple(shape)) for d, shape in types)
        )
    return kind(**fields)


def _value_written(x: Any, put: Put) -> Any:
    """A pytree of arrays, numbers and strings, as JSON knows it: what it has not is a dict with one key."""
    match x:
        case _ if isinstance(x, PLAIN):
            return x
        case float():
            return x if math.isfinite(x) else {"float": str(x)}
        case complex():
            return {"complex": [_value_written(x.real, put), _value_written(x.imag, put)]}
        case dict():
            return {"dict": [[_value_written(k, put), _value_written(v, put)] for k, v in x.items()]}
        case list() | tuple() | frozenset() if type(x) in (list, tuple, frozenset):
            return {type(x).__name__: [_value_written(v, put) for v in (sorted(x) if type(x) is frozenset else x)]}
        case np.dtype():
            return {"dtype": str(x)}
        case jax.Array() if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return {"key": str(jax.random.key_impl(x)), "data": _value_written(jax.random.key_data(x), put)}
        case np.ndarray() | np.generic() | jax.Array():
            x = np.asarray(x)
            if x.dtype == jax.dtypes.float0:
                return {"array": "float0", "shape": list(x.shape)}
            return {"array": str(x.dtype), "shape": list(x.shape), "numbers": put(x)}
        case _:
            raise TypeError(
                f"The value holds a {type(x).__name__}, which cannot be written; arrays, numbers and strings "
                "in dicts, lists and tuples can. Let the function return those as auxiliary data."
            )


def _value_read(x: Any, get: Get) -> Any:
    if not isinstance(x, dict):
        return x
    match next(iter(x)):
        case "float":
            return float(x["float"])
        case "complex":
            return complex(*(_value_read(v, get) for v in x["complex"]))
        case "dict":
            return {_value_read(k, get): _value_read(v, get) for k, v in x["dict"]}
        case "list":
            return [_value_read(v, get) for v in x["list"]]
        case "tuple":
            return tuple(_value_read(v, get) for v in x["tuple"])
        case "frozenset":
            return frozenset(_value_read(v, get) for v in x["frozenset"])
        case "dtype":
            return jnp.dtype(x["dtype"])
        case "key":
            return jax.random.wrap_key_data(jnp.asarray(_value_read(x["data"], get)), impl=x["key"])
        case _:
            if x["array"] == "float0":
                return np.zeros(x["shape"], jax.dtypes.float0)
            return get(x["numbers"], jnp.dtype(x["array"]), x["shape"])


# --- data frames ------------------------------------------------------------------------------------------------------

OF_ROWS = ("primitive", "name", "kind", "rule", "scope", "line", "number", "depth", "taken")
OF_STATISTICS = tuple(name for name in Statistics._fields if name not in ("shape", "dtype"))


def to_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The columns of a data frame: what rows say of themselves, and the statistics of value and cotangent."""
    columns: dict[str, list[Any]] = {"equation": [r.index for r in rows], "type": [r.shape for r in rows]}
    columns |= {name: [getattr(r, name) for r in rows] for name in OF_ROWS}
    for part in ("value", "cotangent"):
        of = [getattr(r, f"of_{part}") for r in rows]
        columns |= {f"{part}_{name}": [None if s is None else getattr(s, name) for s in of] for name in OF_STATISTICS}
    return columns
