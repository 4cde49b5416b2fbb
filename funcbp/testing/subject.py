"""What is checked: a function, which of its arguments are differentiated, and the same in real coordinates."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath, PyTreeDef

from ..autodiff.arguments import divided
from ..cotangents import float0_zeros, is_differentiable
from ..jaxpr.types import Aval, PyTree, Value
from .numerical import compiled

CHUNK = 2**20  # numbers handled at a time
UNMAPPED = 8  # cotangents pulled back where they cannot be mapped over

__all__ = ["Space", "StructureError", "Subject", "is_array", "widened"]


class StructureError(Exception):
    """The derivative under test did not return what a derivative returns; the message says what."""


def is_array(x: object) -> bool:
    """Whether JAX can differentiate with respect to this: an array or a number, and no random key."""
    try:
        dtype = jax.typeof(x).dtype
    except (TypeError, AttributeError):
        return False
    return not jax.dtypes.issubdtype(dtype, jax.dtypes.extended)


def widened(x: Value) -> Value:
    """The same numbers in float64 or complex128; what has no floating-point numbers stays as it is."""
    if not is_array(x) or not is_differentiable(jax.typeof(x)):
        return x
    x = np.asarray(x)
    kind = np.complex128 if jax.dtypes.issubdtype(x.dtype, np.complexfloating) else np.float64
    return jnp.asarray(x.astype(kind))


class Space:
    """Real coordinates of a list of real and complex arrays: a complex number has two.

    A cotangent ȳ acts on a change dy as Re(ȳ dy), JAX's convention. So a cotangent's coordinates are those of its
    conjugate.
    """

    def __init__(self, types: Sequence[Aval]):
        self.types = list(types)
        self.complex = [bool(jax.dtypes.issubdtype(t.dtype, np.complexfloating)) for t in self.types]
        self.counts = [int(np.prod(t.shape)) for t in self.types]
        ends = np.cumsum([n * (2 if c else 1) for n, c in zip(self.counts, self.complex, strict=True)]).tolist()
        self.slices = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        self.size = ends[-1] if ends else 0
        wide = any(t.dtype.itemsize // (2 if c else 1) > 4 for t, c in zip(self.types, self.complex, strict=True))
        self.dtype = np.dtype(np.float64 if wide else np.float32)

    def vector(self, arrays: Sequence[Value], conjugate: bool = False) -> jax.Array:
        """The coordinates of these arrays."""
        parts = []
        # numbers are put together by NumPy, which has nothing to compile
        xp: Any = jnp if any(isinstance(x, jax.core.Tracer) for x in arrays) else np
        for x, is_complex in zip(arrays, self.complex, strict=True):
            x = xp.asarray(x)
            real = xp.ravel(xp.real(x)).astype(self.dtype)
            parts.append(real)
            if is_complex:
                imaginary = xp.ravel(xp.imag(x)).astype(self.dtype)
                parts.append(-imaginary if conjugate else imaginary)
        return jnp.asarray(xp.concatenate(parts) if parts else xp.zeros(0, self.dtype))

    def arrays(self, vector: jax.Array, conjugate: bool = False) -> list[jax.Array]:
        """The arrays that have these coordinates."""
        out = []
        for t, where, n, is_complex in zip(self.types, self.slices, self.counts, self.complex, strict=True):
            part = vector[where]
            if is_complex:
                part = jax.lax.complex(part[:n], -part[n:] if conjugate else part[n:])
            out.append(part.astype(t.dtype).reshape(t.shape))
        return out

    def index(self, leaf: int, coordinate: int) -> tuple[int, ...]:
        """Which element of a leaf this coordinate (counted from the leaf's first) belongs to."""
        where = np.unravel_index(coordinate % max(self.counts[leaf], 1), self.types[leaf].shape)
        return tuple(int(i) for i in where)


class Subject:
    """A function, the arguments it is called with, and the leaves of those that are differentiated.

    Attributes:
        values: the arrays among the leaves of the chosen arguments.
        paths: where each is, such as `params/dense_0/kernel`.
        float_ids: which of them are floating-point.
        out_types, out_float_ids: the same of the function's output.
    """

    def __init__(
        self,
        f: Callable[..., PyTree],
        args: Sequence[PyTree],
        kwargs: dict[str, PyTree],
        argnums: Sequence[int],
        has_aux: bool,
        names: Sequence[str] | None = None,
    ):
        self.f, self.args, self.kwargs, self.has_aux = f, tuple(args), dict(kwargs), has_aux
        self.argnums, self.names = tuple(argnums), names or argument_names(f, len(args))
        leaves, self.tree = jax.tree.flatten(tuple(args[i] for i in self.argnums))
        leaves = [jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) and is_array(x) else x for x in leaves]
        self._places = [i for i, x in enumerate(leaves) if is_array(x)]
        self._leaves = leaves
        self.values = [leaves[i] for i in self._places]
        with_paths = jax.tree.leaves_with_path(tuple(args[i] for i in self.argnums))
        self.paths = [self._path(with_paths[i][0]) for i in self._places]
        self.types = [jax.typeof(jnp.asarray(v)) for v in self.values]
        self.float_ids = [i for i, t in enumerate(self.types) if is_differentiable(t)]
        self.inputs = Space([self.types[i] for i in self.float_ids])
        self.point = np.asarray(self.inputs.vector([self.values[i] for i in self.float_ids]))
        self.out_types, self.out_tree = self._types()
        self.out_float_ids = [i for i, t in enumerate(self.out_types) if is_differentiable(t)]
        self.outputs = Space([self.out_types[i] for i in self.out_float_ids])

    def _path(self, keys: KeyPath) -> str:
        argument, inside = keys[0].idx, jax.tree_util.keystr(keys[1:], simple=True, separator="/")
        if inside and len(self.argnums) == 1:
            return inside
        name = self.names[self.argnums[argument]]
        return f"{name}/{inside}" if inside else name

    def wide(self) -> Subject:
        """The same function of the same numbers in float64, to be used with 64-bit types switched on."""
        args, kwargs = jax.tree.map(widened, (self.args, self.kwargs))
        return Subject(self.f, args, kwargs, self.argnums, self.has_aux, self.names)

    # calling it

    def _types(self) -> tuple[list[Aval], PyTreeDef]:
        """The types of the outputs and their structure; running the function is put off, if it can be traced."""
        found = []

        def traced(*values: Any) -> list[Value]:
            outs, tree = self.outputs_of(self.chosen(values))
            found.append(tree)
            return outs

        self._in_one = compiled(traced)
        try:
            return self._in_one.trace(*self.values).jaxpr.out_avals, found[-1]
        except Exception:  # as it is without: it may branch in Python on values
            self.out_values, tree = self.outputs_of(self.chosen(self.values))
            return [jax.typeof(jnp.asarray(y)) for y in self.out_values], tree

    @functools.cached_property
    def out_values(self) -> list[Value]:
        """The outputs, by one program instead of one for each operation, if it can be compiled."""
        try:
            return list(self._in_one(*self.values))
        except Exception:
            return self.outputs_of(self.chosen(self.values))[0]

    @functools.cached_property
    def value(self) -> np.ndarray:
        """The coordinates of the output."""
        return np.asarray(self.outputs.vector([self.out_values[i] for i in self.out_float_ids]), np.float64)

    def chosen(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """The chosen arguments with these arrays in them; what is no array is left out (None)."""
        leaves: list[Value] = [None] * len(self._leaves)
        for place, v in zip(self._places, values, strict=True):
            leaves[place] = v
        return jax.tree.unflatten(self.tree, leaves)

    def values_of(self, chosen: tuple[PyTree, ...]) -> list[Value]:
        """The arrays among the leaves of chosen arguments like these."""
        leaves = jax.tree.leaves(chosen)
        return [leaves[i] for i in self._places]

    def function(self, *chosen: PyTree) -> PyTree:
        """The function of the chosen arguments alone: what is handed to the derivative under test."""
        leaves = list(self._leaves)
        for place, v in zip(self._places, jax.tree.leaves(chosen), strict=True):
            leaves[place] = v
        args = list(self.args)
        for i, x in zip(self.argnums, jax.tree.unflatten(self.tree, leaves), strict=True):
            args[i] = x
        return self.f(*args, **self.kwargs)

    def outputs_of(self, chosen: tuple[PyTree, ...]) -> tuple[list[Value], PyTreeDef]:
        out = self.function(*chosen)
        if self.has_aux:
            out = divided(self.f, out)[0]
        leaves, tree = jax.tree.flatten(out)
        leaves = [jnp.asarray(y) if isinstance(y, (bool, int, float, complex)) else y for y in leaves]
        for y in leaves:
            try:
                jax.typeof(y)
            except TypeError:
                raise TypeError(
                    f"{name_of(self.f)} returned {y!r} of type {type(y).__name__}, which is no array. Return arrays, "
                    "or a pair (output, aux) with has_aux=True."
                ) from None
        return leaves, tree

    def with_floats(self, floats: Sequence[Value]) -> list[Value]:
        """All arrays, with these for the floating-point ones."""
        values = list(self.values)
        for i, x in zip(self.float_ids, floats, strict=True):
            values[i] = x
        return values

    def in_coordinates(self, z: jax.Array) -> jax.Array:
        """The function from real coordinates to real coordinates."""
        outs, _ = self.outputs_of(self.chosen(self.with_floats(self.inputs.arrays(z))))
        return self.outputs.vector([outs[i] for i in self.out_float_ids])

    # differentiating it

    def pull(
        self, vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]], values: Sequence[Value]
    ) -> tuple[list[Value], Callable[..., list[Value]]]:
        """By the derivative under test: the outputs, and from floating-point cotangents to those of the arrays.

        Raises:
            StructureError: it returned something else than cotangents like the primals.
        """
        chosen = self.chosen(values)
        result = vjp(self.function, *chosen, **({"has_aux": True} if self.has_aux else {}))
        if not isinstance(result, tuple) or len(result) != (3 if self.has_aux else 2):
            wanted = "(output, pullback, aux)" if self.has_aux else "(output, pullback)"
            raise StructureError(f"vjp must return {wanted}, and returned {type(result).__name__}.")
        outs = jax.tree.leaves(result[0])
        structure = jax.tree.structure(result[0])
        if structure != self.out_tree:
            raise StructureError(f"The value has the structure {structure}, and the function's {self.out_tree}.")

        def pullback(cts: Sequence[Value]) -> list[Value]:
            full = [float0_zeros(t) for t in self.out_types]
            for i, c in zip(self.out_float_ids, cts, strict=True):
                full[i] = c
            back = result[1](jax.tree.unflatten(self.out_tree, full))
            wanted: Any = jax.tree.structure(chosen)
            if jax.tree.structure(back) != wanted:
                got = jax.tree.structure(back)
                raise StructureError(f"The cotangents have the structure {got}, and the arguments {wanted}.")
            return jax.tree.leaves(back)

        return outs, pullback

    def rows(
        self, vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]], cotangents: np.ndarray
    ) -> tuple[np.ndarray, str]:
        """Cotangents of the inputs, in coordinates, for several of the outputs, `(k, m)` to `(k, n)`.

        Compiled and mapped over the cotangents if that can be done; also why not, if it cannot. Where the pullback
        cannot be mapped, only the first few are had.
        """
        reason = ""
        back = lambda z, cts, mapped: [self._back(vjp, z, cts, mapped)]
        for mapped, whole in ((True, True), (True, False), (False, False)):
            run = compiled(back, static_argnums=2) if whole else back
            try:
                return self._chunked(run, cotangents if mapped else cotangents[:UNMAPPED], mapped)[0], reason
            except StructureError:
                raise
            except Exception as error:
                if not mapped:
                    raise
                reason = reason or first_line(error)
        raise AssertionError("unreachable")

    def rows_beside(self, vjp: Callable[..., Any], witness: Subject, cotangents: np.ndarray) -> list[np.ndarray] | None:
        """The rows by this derivative, and those of another subject by `jax.vjp`; None where it takes two programs.

        What the two have in common is compiled once.
        """

        def back(z: Any, cts: Any, mapped: bool) -> list[jax.Array]:
            return [self._back(vjp, z, cts, mapped), witness._back(jax.vjp, z, cts, mapped)]

        try:
            return self._chunked(compiled(back, static_argnums=2), cotangents, True)
        except Exception:  # one of them, and which, is found out by each alone
            return None

    def _back(self, vjp: Callable[..., Any], z: Any, cts: Any, mapped: bool) -> jax.Array:
        """The cotangents of the inputs, in coordinates, for some of the outputs."""
        _, pullback = self.pull(vjp, self.with_floats(self.inputs.arrays(z)))

        def one(c: Any) -> jax.Array:
            full = pullback(self.outputs.arrays(c, conjugate=True))
            floats = [full[i] for i in self.float_ids]
            for c, t in zip(floats, self.inputs.types, strict=True):
                if np.shape(c) != t.shape:
                    raise StructureError(f"A cotangent has the shape {np.shape(c)}, and its primal {t.shape}.")
            return self.inputs.vector(floats, conjugate=True)

        return jax.vmap(one)(cts) if mapped else jnp.stack([one(c) for c in cts])

    def _chunked(self, run: Callable[..., Any], cotangents: np.ndarray, mapped: bool) -> list[np.ndarray]:
        """What this returns for all cotangents, as many at a time as fit."""
        z, widest = jnp.asarray(self.point), max(self.outputs.size, self.inputs.size, 1)
        limit = min(len(cotangents), max(1, CHUNK // widest))
        parts = []
        for start in range(0, len(cotangents), limit):
            rest = cotangents[start : start + limit]
            padded = np.concatenate([rest, np.zeros((limit - len(rest), rest.shape[1]))])
            found = run(z, jnp.asarray(padded, self.outputs.dtype), mapped)
            parts.append([np.asarray(part, np.float64)[: len(rest)] for part in found])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


def name_of(f: object) -> str:
    return getattr(f, "__name__", None) or type(f).__name__


def argument_names(f: Callable[..., PyTree], count: int) -> list[str]:
    """What the function calls its positional arguments."""
    names: list[str] = []
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}[{i}]" for i in range(count - len(names))]
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
    return [*names, *(f"args[{i}]" for i in range(len(names), count))][:count]
