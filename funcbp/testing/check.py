"""Is a derivative right? Leaf by leaf, against three witnesses."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import backward
from ..cotangents import is_differentiable
from . import consistency
from .judge import Judgement, Witnesses, judge_leaf
from .numerical import STEP, Evaluator
from .programs import Frozen, blame, casts, program_of, stops_gradients
from .report import Finding, LeafReport, Report
from .subject import Space, StructureError, Subject, first_line, is_array, name_of

__all__ = ["assert_gradients", "check"]

FULL = 10_000  # up to this many entries, the whole Jacobian is compared
FULL_LOOPING = 512  # and up to this many where the function is evaluated one value at a time
TOLERANCE = 20.0
WIDE_STEP = 2.0**-4  # where the function cannot be evaluated in float64


def check(
    f: Callable[..., Any],
    *args: Any,
    wrt: int | Sequence[int] | None = None,
    order: int = 1,
    samples: int = 2,
    vjp: Callable[..., Any] = backward.vjp,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    complex_step: bool = False,
    has_aux: bool = False,
    **kwargs: Any,
) -> Report:
    """Check a derivative, leaf by leaf, in float64 whatever the inputs.

    The witnesses: the dot-product identity ⟨ū, J v⟩ = ⟨Jᵀ ū, v⟩, J v by `jax.jvp`; the slopes of the function, by
    central differences extrapolated to step 0, with their own error estimate; and `jax.vjp`, element by element. An
    entry of Jᵀ ū is right if

        |got - slope| <= tolerance · max(the slope's error estimate, a few ulps of the leaf's largest element).

    The whole Jacobian is compared where it has at most 10,000 entries; beyond that, each leaf has `samples` random
    directions of its own, and every element is compared with `jax.vjp`'s.

    Args:
        f: a function of `args` and `kwargs`; its output is a pytree of real, complex or integer arrays of any shape.
        args: pytrees of arrays; other leaves (functions, strings) are held fixed.
        wrt: which positional arguments to differentiate with respect to; all that have floating-point leaves if None.
        order: 1 to check the gradient, 2 to check the gradient's own derivative too.
        samples: how many random cotangents (and directions of each leaf), at least 1.
        vjp: the derivative under test, called as `jax.vjp` is: funcbp's, another `Backward`'s, JAX's, yours. A function
            that carries its derivative with it (`jax.custom_vjp`) is tested by any of them.
        seed: of the random numbers.
        tolerance: in units of what the reference can tell, see above.
        complex_step: whether to compute the complex step too. It is shown and never decides: it is silently wrong where
            `f` takes an absolute value or a conjugate.
        has_aux: whether `f` returns a pair (output, auxiliary data).
        kwargs: passed to `f`, not differentiated.

    Returns:
        A `Report`; `report.ok` says whether anything is wrong, `print(report)` shows the table.

    Raises:
        TypeError, ValueError: what was asked for makes no sense; the message says why. What `f` or `vjp` raise is not
            caught.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> from funcbp.testing import check
        >>> loss = lambda params, x: jnp.mean(jnp.tanh(x @ params["kernel"]) ** 2)
        >>> report = check(loss, {"kernel": jnp.ones((3, 2)) / 4}, jnp.ones((5, 3)), wrt=0)
        >>> [(leaf.path, leaf.verdict) for leaf in report.leaves]
        [('kernel', 'ok')]

    Source: C. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982, for the extrapolated differences.
    """
    numbers = _checked_arguments(f, args, wrt, order, samples, tolerance)
    subject = Subject(f, args, kwargs, numbers, has_aux)
    rng = np.random.default_rng(seed)
    notes: list[str] = []
    if not subject.float_ids:
        raise ValueError("There is nothing to differentiate: no argument has a floating-point leaf.")
    if not subject.out_float_ids:
        notes.append("The function has no floating-point output: every derivative is zero.")
    random = _cotangents(rng, samples, subject.outputs.size)

    findings, eager = _consistency(subject, vjp, random[0])
    if eager is None:
        leaves = [_blank(subject, i, "wrong", findings[-1].result) for i in range(len(subject.float_ids))]
        return Report(name_of(f), tuple(leaves), tuple(findings), tuple(notes), "", seed, samples, "not compared")

    jax_cts = eager if vjp is jax.vjp else _or_none(lambda: _native(subject, jax.vjp, random[0]), notes, "jax.vjp")
    findings += consistency.types(subject, eager, jax_cts)

    with double_precision():
        wide, program = _widen(subject, notes)
        resolution, narrow = _precision(wide, subject, program, notes)
        stops = stops_gradients(program) if program is not None else []
        leaves, mode, got, by_jax = _examine(
            wide, subject, vjp, jax.vjp, random, rng, tolerance, resolution, narrow, program, stops, notes, complex_step
        )
        leaves = [
            _with_own_error(
                leaf, i, wide, subject, eager, jax_cts, got if by_jax is None or leaf.verdict == "ok" else by_jax
            )
            for i, leaf in enumerate(leaves)
        ]
        if order == 2:
            leaves += _second_order(wide, vjp, random[:1], samples, rng, tolerance, resolution, narrow, notes)
        culprit = ""
        if any(leaf.verdict == "wrong" for leaf in leaves):
            culprit = blame(program, wide, vjp, seed)
    return Report(name_of(f), tuple(leaves), tuple(findings), tuple(dict.fromkeys(notes)), culprit, seed, samples, mode)


def assert_gradients(f: Callable[..., Any], *args: Any, **options: Any) -> Report:
    """Raise an AssertionError with the table of `check` if a derivative is wrong.

    Args:
        f, args, options: as in `check`.

    Returns:
        The report, if nothing is wrong.

    Raises:
        AssertionError: something is wrong; the message is the report.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp.testing import assert_gradients
        >>> assert_gradients(jnp.sin, 0.3).ok
        True
    """
    report = check(f, *args, **options)
    if not report.ok:
        raise AssertionError(f"\n{report}")
    return report


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """64-bit types on, so that the reference is in float64; mixing them with what `f` holds in float32 is allowed."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.debug_nans(False), jax.debug_infs(False):
        yield


def _checked_arguments(
    f: Any, args: tuple[Any, ...], wrt: int | Sequence[int] | None, order: int, samples: int, tolerance: float
) -> list[int]:
    if not callable(f):
        raise TypeError(f"check needs a function to differentiate, and got {f!r} of type {type(f).__name__}.")
    if order not in (1, 2):
        raise ValueError(f"order is 1 or 2, and was {order!r}.")
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples is a whole number of at least 1, and was {samples!r}.")
    if not tolerance > 0:
        raise ValueError(f"tolerance is a positive number of units, and was {tolerance!r}.")
    has_floats = lambda x: any(
        is_array(v) and is_differentiable(jax.typeof(jnp.asarray(v))) for v in jax.tree.leaves(x)
    )
    if wrt is None:
        return [i for i, x in enumerate(args) if has_floats(x)]
    try:
        numbers = [operator.index(i) for i in ([wrt] if not isinstance(wrt, Sequence) else wrt)]  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"wrt is the number of a positional argument, or several, and was {wrt!r}.") from None
    for i in numbers:
        if not -len(args) <= i < len(args):
            raise ValueError(f"wrt={wrt!r} asks for positional argument {i}, and there are {len(args)}.")
    return [i % len(args) for i in numbers]


def _cotangents(rng: Any, samples: int, size: int) -> np.ndarray:
    """Random multiples of 1/8 between 1/2 and 1, of both signs: exact in every dtype, and none of them small."""
    return rng.integers(4, 9, (samples, size)) / 8 * rng.choice([-1.0, 1.0], (samples, size))


def _or_none(compute: Callable[[], Any], notes: list[str], who: str) -> Any:
    """What this computes, or None with a note if that witness cannot be had."""
    try:
        return compute()
    except Exception as error:
        notes.append(f"{who} is no witness here: {first_line(error)}")
        return None


def _native(subject: Subject, vjp: Callable[..., Any], ct: np.ndarray) -> list[Any]:
    return consistency.native_cotangents(subject, vjp, subject.values, ct)[1]


def _consistency(subject: Subject, vjp: Callable[..., Any], ct: np.ndarray) -> tuple[list[Finding], list[Any] | None]:
    try:
        findings, outs, eager = consistency.self_agreement(subject, vjp, ct)
    except StructureError as error:
        return [Finding("structure", str(error), False)], None
    return [consistency.agreement(outs, subject), *findings], eager


def _blank(subject: Subject, i: int, verdict: str, note: str = "") -> LeafReport:
    t = subject.inputs.types[i]
    return LeafReport(subject.paths[subject.float_ids[i]], t.shape, str(t.dtype), verdict, note=note)


# --- the float64 reference --------------------------------------------------------------------------------------------


def _widen(subject: Subject, notes: list[str]) -> tuple[Subject, Any]:
    """The subject in float64, or as it is where it cannot be run so; and its program."""
    try:
        wide = subject.wide()
        if len(wide.out_values) != len(subject.out_values):
            raise TypeError("it returns something else in float64")
    except Exception as error:
        notes.append(
            f"The function cannot be run in float64 ({first_line(error)}), so the reference has the precision of the "
            "inputs. Let the dtypes inside follow the inputs' to have it checked properly."
        )
        wide = subject
    return wide, program_of(wide)


def _precision(wide: Subject, subject: Subject, program: Any, notes: list[str]) -> tuple[float, bool]:
    """The precision the function computes in, and whether it is less than double."""
    types = [*wide.inputs.types, *wide.outputs.types]
    resolution = max((float(jnp.finfo(t.dtype).eps) for t in types), default=0.0)
    places: list[str] = []
    if program is not None and wide is not subject:
        places, inside = casts(program)
        resolution = max(resolution, inside)
    elif program is not None:
        places, inside = casts(program)
        resolution = max(resolution, inside) if wide.inputs.dtype == np.float64 else resolution
    for place in places:
        notes.append(f"{place}: differences cannot see through that")
    return resolution, resolution > 1e-10


def _examine(
    wide: Subject,
    subject: Subject,
    vjp: Callable[..., Any],
    jax_vjp: Callable[..., Any],
    random: np.ndarray,
    rng: Any,
    tolerance: float,
    resolution: float,
    narrow: bool,
    program: Any,
    stops: Sequence[str],
    notes: list[str],
    complex_step: bool,
    jax_subject: Subject | None = None,
    order: int = 1,
) -> tuple[list[LeafReport], str, np.ndarray, np.ndarray | None]:
    n, m = wide.inputs.size, wide.outputs.size
    step = STEP if wide.inputs.dtype == np.float64 else WIDE_STEP
    evaluator = Evaluator(wide.in_coordinates, wide.point, resolution, step)
    full = n * m <= FULL and n > 0 and m > 0
    if full and program is None:
        full = n * m <= FULL_LOOPING
    cotangents = np.concatenate([random, np.eye(m)]) if full else random
    got, reason = wide.rows(vjp, cotangents)
    if reason:
        notes.append(f"The pullback was run without jit: {reason}")
    if len(got) < len(cotangents):
        cotangents = cotangents[: len(got)] if len(got) <= len(random) else random
        got = got[: len(cotangents)]
    if jax_subject is None and vjp is jax_vjp:
        by_jax = got
    else:
        by_jax = _or_none(lambda: (jax_subject or wide).rows(jax_vjp, cotangents)[0][: len(got)], notes, "jax.vjp")
    if by_jax is not None and len(by_jax) < len(got):
        by_jax = None
    dots = _or_none(lambda: _dot_products(wide, random, got, rng), notes, "jax.jvp")
    frozen = None
    if stops and program is not None:
        with contextlib.suppress(Exception):  # where it cannot be had, JAX says what is stopped
            frozen = Evaluator(Frozen(program, wide), wide.point, resolution, step)
            if not frozen.f.stopped:  # type: ignore[attr-defined]
                frozen = None
    witnesses = Witnesses(
        wide,
        evaluator,
        frozen,
        cotangents,
        min(len(random), len(cotangents)),
        got,
        by_jax,
        dots,
        bool(stops),
        narrow,
        tolerance,
        full,
        rng,
    )
    steps = _complex_steps(wide, random, got, notes) if complex_step else None
    leaves = []
    for i in range(len(wide.inputs.types)):
        j = judge_leaf(witnesses, i)
        leaves.append(_leaf_report(subject, i, j, dots, steps, stops, order))
    mode = "whole Jacobian" if full else "random directions"
    return leaves, mode, got, by_jax


def _leaf_report(
    subject: Subject,
    i: int,
    j: Judgement,
    dots: list[float] | None,
    steps: list[float] | None,
    stops: Sequence[str],
    order: int,
) -> LeafReport:
    t = subject.inputs.types[i]
    ulps = None
    if j.got is not None and j.wanted is not None and j.size and np.isfinite(j.got) and np.isfinite(j.wanted):
        ulps = abs(j.got - j.wanted) / (float(jnp.finfo(t.dtype).eps) * j.size)
    note = j.note
    if j.verdict == "stopped gradient":
        note = f"differences see what stop_gradient hides, at {', '.join(stops)}"
    return LeafReport(
        path=subject.paths[subject.float_ids[i]],
        shape=tuple(t.shape),
        dtype=str(t.dtype),
        verdict=j.verdict,
        order=order,
        error=j.error,
        reference_error=j.reference_error,
        worst=None if j.coordinate is None else subject.inputs.index(i, j.coordinate),
        got=j.got,
        wanted=j.wanted,
        ulps=ulps,
        against_jax=j.against_jax,
        dot=None if dots is None else dots[i],
        complex_step=None if steps is None else steps[i],
        note=note,
    )


def _dot_products(wide: Subject, random: np.ndarray, got: np.ndarray, rng: Any) -> list[float]:
    """For each leaf, how far ⟨ū, J v⟩ = ⟨Jᵀ ū, v⟩ is from holding, relative to the terms' length."""
    count = min(len(random), len(got))
    leaves = len(wide.inputs.types)
    directions = np.zeros((leaves, count, wide.inputs.size))
    for i, where in enumerate(wide.inputs.slices):
        directions[i, :, where] = rng.standard_normal((count, where.stop - where.start))
    if not wide.inputs.size:
        return [0.0] * leaves
    z = jnp.asarray(wide.point)

    def forward(d: Any) -> jax.Array:
        return jax.jvp(wide.in_coordinates, (z,), (d,))[1]

    flat = jnp.asarray(directions.reshape(-1, wide.inputs.size), wide.inputs.dtype)
    try:
        moved = jax.jit(jax.vmap(forward))(flat)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        moved = jnp.stack([forward(d) for d in flat])
    moved = np.asarray(moved, np.float64).reshape(leaves, count, -1)
    out = []
    with np.errstate(all="ignore"):
        for i in range(leaves):
            left = np.sum(moved[i] * random[:count], 1)
            terms = got[:count] * directions[i]
            size = np.maximum(np.linalg.norm(terms, axis=1), np.abs(left))
            off = np.abs(left - terms.sum(1))
            relative = np.where(off > 0, off / np.where(size > 0, size, 1.0), 0.0)
            out.append(float(np.max(np.nan_to_num(relative, nan=np.inf), initial=0.0)))
    return out


def _complex_steps(wide: Subject, random: np.ndarray, got: np.ndarray, notes: list[str]) -> list[float] | None:
    """For each leaf, how far Im f(x + i h v) / h is from ⟨Jᵀ ū, v⟩, relative; real functions only."""
    if any(wide.inputs.complex) or any(wide.outputs.complex):
        notes.append("The complex step needs real inputs and outputs.")
        return None
    h = 1e-20
    out = []

    def along(v: np.ndarray) -> np.ndarray:
        types = [jax.ShapeDtypeStruct(t.shape, np.complex128) for t in wide.inputs.types]
        z = np.concatenate([wide.point, h * v])
        parts = [jnp.asarray(z[: len(v)][s] + 1j * z[len(v) :][s]) for s in wide.inputs.slices]
        floats = [p.reshape(t.shape) for p, t in zip(parts, types, strict=True)]
        outs, _ = wide._outputs(wide.chosen(wide.with_floats(floats)))
        ys = [jnp.ravel(jnp.imag(jnp.asarray(outs[i]))) for i in wide.out_float_ids]
        return np.asarray(jnp.concatenate(ys), np.float64) / h

    try:
        for where in wide.inputs.slices:
            v = np.zeros(wide.inputs.size)
            v[where] = 1.0
            terms = got[0] * v
            off = abs(float(np.sum(along(v) * random[0])) - float(terms.sum()))
            out.append(off / max(float(np.linalg.norm(terms)), 1e-300))
    except Exception as error:
        notes.append(f"The complex step cannot be had here: {first_line(error)}")
        return None
    return out


def _with_own_error(
    leaf: LeafReport,
    i: int,
    wide: Subject,
    subject: Subject,
    eager: list[Any],
    jax_cts: list[Any] | None,
    reference: np.ndarray,
) -> LeafReport:
    """Our error and JAX's in the leaf's own dtype, against the float64 cotangent, side by side."""
    t = subject.inputs.types[i]
    where = subject.float_ids[i]
    if wide is subject or not len(reference) or np.shape(eager[where]) != t.shape:
        return leaf
    conjugated = Space([jax.typeof(x) for x in wide.inputs.arrays(wide.point)]).arrays(reference[0], conjugate=True)
    wanted = np.asarray(conjugated[i])
    own = consistency.in_ulps(eager[where], wanted, t.dtype)
    theirs = None if jax_cts is None else consistency.in_ulps(jax_cts[where], wanted, t.dtype)
    verdict, note = leaf.verdict, leaf.note
    coarse = float(jnp.finfo(t.dtype).eps)
    if verdict == "ok" and own * coarse > 0.05 and theirs is not None and own > 100 * max(theirs, 1.0):
        verdict = "wrong"
        note = f"right in float64, and {own * coarse:.2g} of its largest element off in {t.dtype}; JAX's is not"
    return LeafReport(**{**leaf.__dict__, "own_ulps": own, "jax_ulps": theirs, "verdict": verdict, "note": note})


# --- second order -----------------------------------------------------------------------------------------------------


def _second_order(
    wide: Subject,
    vjp: Callable[..., Any],
    ct: np.ndarray,
    samples: int,
    rng: Any,
    tolerance: float,
    resolution: float,
    narrow: bool,
    notes: list[str],
) -> list[LeafReport]:
    """The gradient as a function of the same arguments, checked like any other."""

    def gradient(by: Callable[..., Any]) -> Callable[..., list[Any]]:
        def cotangents(*args: Any, **kwargs: Any) -> list[Any]:
            chosen = tuple(args[i] for i in wide.wrt)
            inner = Subject.__new__(Subject)
            inner.__dict__.update(wide.__dict__)
            inner.args = args
            values = [jax.tree.leaves(chosen)[i] for i in wide._places]
            _, pullback = inner.pull(by, values)
            full = pullback(wide.outputs.arrays(jnp.asarray(ct[0], wide.outputs.dtype), conjugate=True))
            return [full[i] for i in wide.float_ids]

        return cotangents

    make = lambda by: Subject(gradient(by), wide.args, wide.kwargs, wide.wrt, False, wide.names)
    ours = make(vjp)
    theirs = None if vjp is jax.vjp else _or_none(lambda: make(jax.vjp), notes, "jax.vjp, twice,")
    random = _cotangents(rng, samples, ours.outputs.size)
    program = program_of(ours)
    stops = stops_gradients(program) if program is not None else []
    return _examine(
        ours, ours, vjp, jax.vjp, random, rng, tolerance, resolution, narrow, program, stops, notes, False, theirs, 2
    )[0]
