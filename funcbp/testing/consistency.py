"""A derivative against itself: eager, compiled, mapped, called again; and the types of what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from ..cotangents import is_differentiable
from ..jaxpr.types import PyTree, Value
from .numerical import compiled
from .report import Finding
from .subject import Subject, first_line

__all__ = ["agreement", "in_ulps", "native_cotangents", "self_agreement", "types"]

LOOSE = 0.5  # two ways of running one derivative differ if this power of their precision is exceeded

Cotangents = list[Any]


def native_cotangents(
    subject: Subject, vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]], values: Sequence[Value], ct: np.ndarray
) -> tuple[Cotangents, Cotangents]:
    """Outputs and cotangents of all arrays in their own dtypes, for one cotangent given by its coordinates."""
    outs, pullback = subject.pull(vjp, values)
    return outs, pullback(subject.outputs.arrays(jnp.asarray(ct, subject.outputs.dtype), conjugate=True))


def in_ulps(got: ArrayLike, wanted: ArrayLike, dtype: DTypeLike) -> float:
    """The largest difference, in units in the last place of the largest element that is wanted."""
    got, wanted = (np.asarray(a).astype(np.complex128) for a in (got, wanted))
    finite = np.isfinite(wanted)
    if not np.array_equal(np.isfinite(got), finite):
        return np.inf
    if not finite.any():
        return 0.0
    with np.errstate(all="ignore"):
        off = np.max(np.abs(got - wanted), where=finite, initial=0.0)
    size = np.max(np.abs(wanted), where=finite, initial=0.0)
    if off == 0:
        return 0.0
    info = jnp.finfo(dtype)
    return float(off / max(float(info.eps) * size, float(info.smallest_subnormal)))


def _distance(a: Cotangents, b: Cotangents, floor: Sequence[float], precision: float) -> tuple[bool, float, bool, bool]:
    """Whether two lists of arrays are equal bit by bit, their distance in ulps, whether that is close, and whether
    there are arrays of which it says nothing, since they are zero but for rounding.

    `floor`: for each, a difference that rounding may well make; `precision`: what the function computes in, if that is
    less than its inputs'.
    """
    same, ulps, close, zeros = True, 0.0, True, False
    for x, y, least in zip(a, b, floor, strict=True):
        if np.shape(x) != np.shape(y):
            return False, np.inf, False, False
        if not is_differentiable(y):
            continue
        x, y = np.asarray(x), np.asarray(y)
        same &= np.array_equal(x, y, equal_nan=True)
        distance = in_ulps(x, y, y.dtype)
        with np.errstate(all="ignore"):
            off = np.abs(x.astype(np.complex128) - y.astype(np.complex128))
        eps = float(jnp.finfo(y.dtype).eps)
        if distance * eps > max(eps, precision) ** LOOSE and np.all(off <= least):
            zeros = True
        else:
            ulps = max(ulps, distance)
            close &= distance * eps <= max(eps, precision) ** LOOSE
    return same, ulps, close, zeros


def _compared(
    name: str, a: Cotangents, b: Cotangents, floor: Sequence[float] | None = None, precision: float = 0.0
) -> Finding:
    same, ulps, close, zeros = _distance(a, b, floor or [0.0] * len(b), precision)
    apart = f"within {ulps:.3g} ulp" + (", but for leaves that are zero but for rounding" if zeros else "")
    return Finding(name, "bit for bit" if same else apart, close)


def self_agreement(
    subject: Subject, vjp: Callable[..., Any], ct: np.ndarray, precision: float = 0.0
) -> tuple[list[Finding], Cotangents, Cotangents, Cotangents | None]:
    """The derivative run in several ways, in the inputs' own dtypes.

    `precision` is what the function computes in somewhere, if less than the inputs': XLA may round there or not.

    Returns:
        The findings, the outputs and cotangents of the first, eager run, and those by `jax.vjp` (None in the place of
        what is not floating-point) if they could be had by the same program as the compiled ones.
    """
    values = [jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in subject.values]
    run = lambda *vs: native_cotangents(subject, vjp, vs, ct)
    outs, eager = run(*values)
    floats = lambda cts: [cts[i] for i in subject.float_ids]
    own, floor = floats(eager), _floor(subject, outs)
    again = _compared("called again", floats(run(*values)[1]), own, floor)
    if not again.ok:  # then nothing that follows compares like with like
        why = "other numbers each time: it draws without a key, or remembers something"
        again = replace(again, result=f"{again.result}; {why}")
    findings = [again]
    by_jax = None
    try:
        alone = lambda *vs: floats(run(*vs)[1])
        try:  # what the two have in common is compiled once
            theirs = lambda *vs: floats(native_cotangents(subject, jax.vjp, vs, ct)[1])
            value = lambda *vs: subject.outputs_of(subject.chosen(vs))[0]
            all_three = compiled(lambda *vs: (alone(*vs), theirs(*vs), value(*vs)))
            in_one, found, subject.out_values = all_three(*values)
            by_jax = [None] * len(subject.values)
            for i, c in zip(subject.float_ids, found, strict=True):
                by_jax[i] = c
        except Exception:
            in_one = compiled(alone)(*values)
        findings.append(_compared("jit equals eager", in_one, own, floor, precision))
    except Exception as error:
        findings.append(Finding("jit equals eager", f"does not apply: {first_line(error)}"))

    def twice(f: Callable[..., Any]) -> Callable[..., Any]:  # stacked and taken apart inside, in the same program
        return lambda *vs: [y[1] for y in jax.vmap(f)(*(jnp.stack([v] * 2) for v in vs))]

    try:
        mapped = compiled(twice(lambda *vs: floats(run(*vs)[1])))(*values)
        findings.append(_compared("vmap equals a loop", mapped, own, floor, precision))
    except Exception as error:
        what = f"the function maps, its derivative raises {first_line(error)}", False
        try:
            jax.eval_shape(twice(lambda *vs: subject.outputs_of(subject.chosen(vs))[0]), *values)
        except Exception as error:
            what = f"does not apply: {first_line(error)}", True
        findings.append(Finding("vmap equals a loop", *what))
    return findings, outs, eager, by_jax


def _floor(subject: Subject, outs: Cotangents) -> list[float]:
    """For each floating-point input, what a few roundings of the output are as a slope: 64 eps |f| / |x|.

    An input of zeros, as biases begin, does not say how large it is: in its place there are all inputs together.
    """
    with np.errstate(all="ignore"):
        size = sum(float(np.sum(np.abs(np.asarray(outs[i]).astype(np.complex128)))) for i in subject.out_float_ids)
    typical = lambda x: np.sqrt(np.mean(np.square(x.astype(np.float64)))) if x.size else 0.0
    floors = []
    for t, where in zip(subject.inputs.types, subject.inputs.slices, strict=True):
        scale = typical(subject.point[where]) or typical(subject.point) or 1.0
        floors.append(64 * float(jnp.finfo(t.dtype).eps) * size / scale if np.isfinite(size) else 0.0)
    return floors


def agreement(outs: Cotangents, subject: Subject) -> Finding:
    """The value that comes with the derivative is the function's: compiled, or as it is where that rounds otherwise."""
    if len(outs) != len(subject.out_types):
        return Finding("value", f"{len(outs)} outputs, and the function has {len(subject.out_types)}", False)
    floats = lambda values: [values[i] for i in subject.out_float_ids]
    found = _compared("value equals the function's", floats(outs), floats(subject.out_values))
    if found.ok:
        return found
    return _compared(
        "value equals the function's", floats(outs), floats(subject.outputs_of(subject.chosen(subject.values))[0])
    )


def types(subject: Subject, cts: Cotangents, jax_cts: Cotangents | None) -> list[Finding]:
    """Cotangents have the shapes and dtypes of their primals, float0 for integers, and JAX's weak types."""
    wrong, weak = [], []
    for i, (path, t, c) in enumerate(zip(subject.paths, subject.types, cts, strict=True)):
        dtype = t.dtype if is_differentiable(t) else jax.dtypes.float0
        got = getattr(c, "dtype", None)
        if got != dtype or np.shape(c) != t.shape:
            name = "float0" if dtype == jax.dtypes.float0 else dtype
            wrong.append(f"{path} is {got}{list(np.shape(c))}, must be {name}{list(t.shape)}")
        elif jax_cts is not None and is_differentiable(t):
            ours, theirs = (getattr(jax.typeof(x), "weak_type", False) for x in (c, jax_cts[i]))
            if ours != theirs:
                weak.append(f"{path} is {'weak' if ours else 'strong'}, JAX's is not")
    integers = len(subject.types) - len(subject.float_ids)
    right = "like the primals" + (f", float0 for {integers} integer leaves" if integers else "")
    findings = [Finding("shapes, dtypes, structure", "; ".join(wrong) or right, not wrong)]
    if jax_cts is not None:
        findings.append(Finding("weak types", "; ".join(weak) or "like jax.vjp's"))
    return findings
