"""JAX's own examples of each of its primitives, which its wheel carries, differentiated by ours and by `jax.vjp`."""

from __future__ import annotations

import importlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .report import Row
from .swap_reverse_mode import note_reverse_mode, put_in_place

STOCK_VJP = jax.vjp
# the largest error of a leaf, as a part of its largest entry; times 30 where a random matrix is decomposed or solved
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
DECOMPOSED = set("cholesky custom_linear_solve eig eigh householder_product lu qr svd triangular_solve".split())
DECOMPOSED.add("tridiagonal_solve")
# examples that bind a primitive without a parameter which it has by now, and one whose output is half undefined
INSTEAD = {
    "mul": lambda f: jnp.multiply,
    "conj": lambda f: jax.lax.conj,
    "cholesky": lambda f: lambda x: jnp.tril(f(x)),
}


class Case(NamedTuple):
    """One example, and what `jax.vjp` says of it: its value, and the cotangents of its arguments given `ct`."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    ct: Any
    out: Any
    cts: Any


def harness_suite(
    module: str = "funcbp",
    only: list[str] = (),
    per_primitive: int = 0,
    jit: bool = False,
    x64: bool = False,
    complex: bool = False,
) -> Row:
    """Differentiate JAX's examples by `jax.vjp` and by this module's `vjp`, and compare.

    An example counts where `jax.vjp` differentiates it, by all its arguments or else by one, and a cotangent is finite.
    """
    jax.config.update("jax_enable_x64", x64)
    calls: Counter[str] = Counter()
    put_in_place(importlib.import_module(module), calls)  # an example may differentiate in a function of its own
    stock_ran = note_reverse_mode()
    counted, failures = 0, {}
    for harness, case in cases(only, per_primitive, jit, x64, complex):
        counted += 1
        stock_ran.clear()
        try:
            fault = difference(case, *differentiate(jax.vjp, case.f, case.args, case.ct, jit), harness)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if stock_ran and module != "jax":
            fault = "Failed: JAX's own reverse mode ran."
        if fault:
            failures[harness.fullname] = fault
    kind = " ".join(
        ["harnesses,", "compiled" if jit else "eager", "x64" if x64 else "32 bits", "complex" if complex else ""]
    )
    return Row(kind.strip(), jax.__version__, counted, counted - len(failures), calls.total(), failures)


def cases(only: list[str], per_primitive: int, jit: bool, x64: bool, complex: bool) -> Iterator[tuple[Any, Case]]:
    """Yield JAX's examples of this kind, of each primitive so many, in an order drawn once."""
    from jax._src import test_util
    from jax._src.internal_test_util.test_harnesses import all_harnesses

    groups = defaultdict(list)
    for harness in all_harnesses:
        dtype = np.dtype(harness.dtype)
        wide = dtype.itemsize == (16 if complex else 8)
        of_kind = jnp.issubdtype(dtype, jnp.complexfloating if complex else jnp.floating) and wide == x64
        if of_kind and harness.filter(test_util.device_under_test()) and (not only or harness.group_name in only):
            groups[harness.group_name].append(harness)
    for name, group in sorted(groups.items()):
        found = 0
        for i in np.random.default_rng(zlib.crc32(name.encode())).permutation(len(group)):
            case = case_of(group[i], jit)
            found += case is not None
            if case is not None:
                yield group[i], case
            if per_primitive and found == per_primitive:
                break


def case_of(harness: Any, jit: bool) -> Case | None:
    """Differentiate an example by `jax.vjp`: by all its arguments, or by the first by which it can be."""
    rng = np.random.RandomState(zlib.crc32(harness.fullname.encode()))
    f = INSTEAD.get(harness.group_name, lambda f: f)(harness.dyn_fun)
    args = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x, harness.dyn_args_maker(rng)
    )
    leaves, tree = jax.tree.flatten(tuple(args))

    def by(chosen: list[int]) -> Callable[..., Any]:
        def of_chosen(*xs: Any) -> Any:
            found = list(leaves)
            for i, x in zip(chosen, xs, strict=True):
                found[i] = x
            return f(*tree.unflatten(found))

        return of_chosen

    real = [i for i, x in enumerate(leaves) if inexact(x)]
    if not real or not any(map(inexact, jax.tree.leaves(jax.eval_shape(by([]))))):
        return None
    for chosen in [list(range(len(leaves))), real, *([i] for i in real)]:
        xs = tuple(leaves[i] for i in chosen)
        try:
            ct = jax.tree.map(lambda y: cotangent(rng, y), jax.eval_shape(by(chosen), *xs))
            out, cts = differentiate(STOCK_VJP, by(chosen), xs, ct, jit)
        except Exception:  # JAX has no derivative by these
            continue
        if any(np.isfinite(np.asarray(c, complex)).any() for c in cts):
            return Case(by(chosen), xs, ct, out, cts)
    return None


def differentiate(
    vjp: Callable[..., Any], f: Callable[..., Any], args: Any, ct: Any, jit: bool
) -> tuple[Any, list[Any]]:
    """Compute the value of `f`, and the cotangents of its arguments but those of integers."""

    def both(*args: Any) -> tuple[Any, list[Any]]:
        out, pullback = vjp(f, *args)
        return out, [c for c in jax.tree.leaves(pullback(ct)) if c.dtype != jax.dtypes.float0]

    return (jax.jit(both) if jit else both)(*args)


def cotangent(rng: np.random.RandomState, y: Any) -> Any:
    """Draw a cotangent for an output."""
    if not inexact(y):
        return np.zeros(y.shape, jax.dtypes.float0)
    ct = rng.randn(*y.shape) + (1j * rng.randn(*y.shape) if jnp.issubdtype(y.dtype, jnp.complexfloating) else 0)
    return jnp.asarray(ct, y.dtype)


def inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x) if not hasattr(x, "dtype") else x.dtype, jnp.inexact)


def difference(case: Case, out: Any, cts: list[Any], harness: Any) -> str:
    """Say what differs from what `jax.vjp` said, if anything does."""
    if jax.tree.structure((out, cts)) != jax.tree.structure((case.out, case.cts)):
        return f"Structure: {jax.tree.structure((out, cts))} is not {jax.tree.structure((case.out, case.cts))}"
    for (path, want), got in zip(
        jax.tree.leaves_with_path((case.out, case.cts)), jax.tree.leaves((out, cts)), strict=True
    ):
        if not inexact(want):
            continue
        where = ("value", "cotangent")[path[0].idx] + jax.tree_util.keystr(path[1:])
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            return f"Type: {where} is {jax.typeof(got)}, not {jax.typeof(want)}"
        tolerance = TOLERANCE[jnp.finfo(want.dtype).dtype.name] * (30 if harness.group_name in DECOMPOSED else 1)
        got, want = np.asarray(got, complex), np.asarray(want, complex)
        other = np.isfinite(got) != np.isfinite(want)
        if other.shape == getattr(case.out, "shape", None):  # where the function is nan, its derivative is, too
            other &= ~(np.isnan(np.asarray(case.out)) & np.isnan(got))
        if other.any():
            return f"Infinity: {where} is {got[other][0]}, not {want[other][0]}"
        finite = np.isfinite(got) & np.isfinite(want)
        got, want = got[finite], want[finite]
        error = np.max(np.abs(got - want), initial=0) / max(np.max(np.abs(want), initial=0), 1e-30)
        if error > tolerance:
            return f"Number: {where} differs by {error:.2g} of its largest entry"
    return ""
