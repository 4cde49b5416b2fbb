"""Fingerprints of what a training depends on: short texts, the same in every process, that differ where it does."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from ...jaxpr import inside_of
from ...jaxpr.types import AnyJaxpr, PyTree, Value
from .layout import to_host

SAMPLE = 2**20  # about how many bytes of an array are looked at
ROWS = 64  # and how many examples at least


def of_arrays(tree: PyTree) -> str:
    """Types and shapes of the leaves, and a number that a sample of their rows makes."""
    leaves = jax.tree.leaves(tree)
    shown = [f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in leaves]
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    crc = zlib.crc32(" ".join([str(jax.tree.structure(tree)), *shown]).encode())
    for leaf in leaves:
        crc = zlib.crc32(to_host(_sample(leaf)).tobytes(), crc)
    return f"{' '.join(shown[:4])}{more}, {crc:08x}"


def _sample(a: np.ndarray | jax.Array) -> jax.Array:
    """Rows of an array at even distances, the first and the last among them."""
    if not a.ndim or not a.size:
        return jax.numpy.asarray(a).reshape(-1)
    rows = min(len(a), max(ROWS, SAMPLE * len(a) // max(a.nbytes, 1)))
    return jax.numpy.asarray(a)[np.linspace(0, len(a) - 1, rows).round().astype(int)]


def of_program(f: Callable[..., PyTree], *args: PyTree) -> str:
    """A number that the equations of a function on such arguments, and the constants in them, make."""
    program = jax.make_jaxpr(f)(*args)
    text = f"{program} {[of_arrays(c) for c in _constants(program) if hasattr(c, 'dtype')]}"
    return f"program {zlib.crc32(placeless(text).encode()):08x}"


def _constants(program: AnyJaxpr) -> Iterator[Value]:
    yield from getattr(program, "consts", ())
    for eqn in program.eqns:
        for inside in inside_of(eqn).programs:
            yield from _constants(inside)


def placeless(text: str) -> str:
    """A text without the places in memory of the objects it speaks of."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
