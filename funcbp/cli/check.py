"""`funcbp check package.module:function --args ...`: is this function's derivative right?"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..inspection.files import write_atomically
from ..learn.request import RequestError, whole
from .parser import Parser, positive, refuse

RIGHT, WRONG = 0, 1
TYPE = re.compile(
    r"(?P<kind>(?:bfloat|float|complex|int|uint|bf|f|c|i|u)(?=\d)|bool)(?P<bits>\d*)\[(?P<shape>[\d, ]*)\]"
)
SHORT = {"bf": "bfloat", "f": "float", "c": "complex", "i": "int", "u": "uint"}  # as the tables write types


def run_check_command(argv: Sequence[str]) -> int:
    """Run `funcbp check` with these arguments and print the report.

    Args:
        argv: what comes after `check`: `package.module:function` and options. An argument of the function is a Python
            literal (`0.5`, `[[1.0, 2.0]]`), a type to be filled with random numbers (`float32[3,4]`), a `.npy` or
            `.npz` file, or `package.module:name`: a value, or a function that makes one when called.

    Returns:
        0 if the derivative is right, 1 if it is wrong, 2 if that could not be found out.

    Example:
        >>> from funcbp.cli.check import run_check_command
        >>> run_check_command(["jax.numpy:tanh", "--args", "float32[3]"])  # doctest: +SKIP
        0
    """
    try:
        request = _parser().parse_args(argv)
        f = _resolve(request.function)
        if not callable(f):
            raise RequestError(f"{request.function} is no function, but {f!r}.")
        rng = np.random.default_rng(request.seed)
        args = [_argument(text, rng) for text in request.args]
        options = dict(order=request.order, samples=request.samples, seed=request.seed, has_aux=request.has_aux)
        if request.argnums is not None:
            options["argnums"] = request.argnums
        if request.tolerance is not None:
            options["tolerance"] = request.tolerance
        if request.backward is not None:
            options["backward"] = _resolve(request.backward)
        if request.vjp is not None:
            options["vjp"] = _resolve(request.vjp)
    except RequestError as error:
        return refuse(error)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    from ..testing.check import check

    try:
        report = check(f, *args, **options)
    except Exception as error:
        give = "" if request.args else " Arguments are given by --args, such as --args float32[3,4] 0.5."
        return refuse(f"{request.function} could not be checked: {type(error).__name__}: {error}{give}")
    if request.junit is not None:
        try:
            write_atomically(request.junit, lambda file: file.write(report.to_junit().encode()))
        except OSError as error:
            return refuse(error)
    print(report.to_json() if request.json else report)
    return RIGHT if report.ok else WRONG


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="funcbp check",
        description="Check a function's derivative against differences, jax.vjp and the dot-product identity.",
    )
    parser.add_argument("function", metavar="package.module:function", help="what to differentiate")
    parser.add_argument(
        "--args",
        nargs="*",
        default=[],
        metavar="ARG",
        help="literals (0.5, [1.0, 2.0]), types to fill at random (float32[3,4]), .npy and .npz files, module:name",
    )
    parser.add_argument("--argnums", type=int, nargs="+", metavar="N", help="which (default: all with floats)")
    parser.add_argument("--order", type=int, choices=(1, 2), default=1, help="2: the gradient's derivative too")
    parser.add_argument("--samples", type=whole(2), default=2, metavar="N", help="random cotangents (default: 2)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="SEED", help="of the random numbers (default: 0)")
    parser.add_argument("--tolerance", type=positive, metavar="UNITS", help="of what the reference can tell")
    parser.add_argument("--backward", metavar="package.module:name", help="the Backward to test (default: Backward())")
    parser.add_argument("--vjp", metavar="package.module:vjp", help="anybody's reverse mode, to be tested in its place")
    parser.add_argument("--has-aux", action="store_true", help="the function returns (output, anything)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--junit", metavar="FILE", help="write the report as JUnit XML, too, for CI systems")
    return parser


def _resolve(path: str) -> Any:
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise RequestError(f"{path!r} must be written package.module:name.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise RequestError(f"{module} cannot be imported: {error}.") from error
    except Exception as error:  # of the module itself
        raise RequestError(f"{module} cannot be imported: {type(error).__name__}: {error}.") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise RequestError(f"{module} has no {name}.")
        found = getattr(found, part)
    return found


def _argument(text: str, rng: np.random.Generator) -> Any:
    match = TYPE.fullmatch(text.replace(" ", ""))
    if match:
        kind = SHORT.get(match["kind"], match["kind"])
        return _random(kind + match["bits"], [int(n) for n in match["shape"].split(",") if n], rng)
    if text.endswith((".npy", ".npz")):
        try:
            with open(text, "rb") as file:
                loaded = np.load(file)
                return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
        except Exception as error:  # zip, zlib and numpy have many words for one thing
            why = getattr(error, "strerror", None) or error
            raise RequestError(f"{text} cannot be read: {why}.") from error
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    else:
        return _arrays(value)
    if ":" in text:
        value = _resolve(text)
        try:
            return value() if inspect.isfunction(value) else value
        except Exception as error:
            raise RequestError(f"{text} made no argument: {type(error).__name__}: {error}.") from error
    raise RequestError(
        f"{text!r} is no argument: write a literal, a type such as float32[3,4], a .npy or .npz file, or "
        "package.module:name."
    )


def _arrays(value: Any) -> Any:
    """Lists of numbers as arrays; dicts and tuples stay what they are."""
    if isinstance(value, dict):
        return {k: _arrays(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_arrays, value))
    if isinstance(value, list):
        try:
            array = np.asarray(value)
        except ValueError:
            return [_arrays(v) for v in value]
        return jax.numpy.asarray(array) if array.dtype.kind in "fcib" else [_arrays(v) for v in value]
    return value


def _random(dtype: str, shape: list[int], rng: np.random.Generator) -> Any:
    try:
        kind = jax.numpy.dtype(dtype)
    except TypeError:
        raise RequestError(f"{dtype} is no type of numbers.") from None
    if kind.kind == "b":
        return jax.numpy.asarray(rng.integers(0, 2, shape), bool)
    if not jax.dtypes.issubdtype(kind, np.inexact):
        return jax.numpy.asarray(rng.integers(0, 4, shape), kind)
    numbers = rng.standard_normal(shape)
    if jax.dtypes.issubdtype(kind, np.complexfloating):
        numbers = numbers + 1j * rng.standard_normal(shape)
    return jax.numpy.asarray(numbers, kind)
