"""Is a derivative right? Leaf by leaf, against three witnesses."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..autodiff.arguments import check_concrete, numbers_of
from ..autodiff.transformations import Backward, as_backward
from ..cotangents import is_differentiable
from ..jaxpr import Program
from ..jaxpr.types import PyTree, Value
from ..rules.fallback import BorrowedRuleWarning
from . import consistency
from .judge import Judgement, judge_leaf
from .programs import blame, casts, draws_random_numbers, has_own_rule, has_own_rules, program_of, spoiler
from .report import Finding, LeafReport, Report
from .subject import StructureError, Subject, first_line, is_array, name_of
from .witnesses import Setting, Witnesses, gather, or_none, random_cotangents

__all__ = ["assert_gradients", "check"]

TOLERANCE = 20.0
FAR_OFF = 0.05  # of a leaf's largest element
OTHER_DRAWS = (
    "The function draws random numbers. In float64, in which it is checked, it draws others (a dropout has another "
    "mask), so its errors in its own type are not known."
)


def check(
    f: Callable[..., PyTree],
    *args: PyTree,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    backward: Backward | None = None,
    vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]] | None = None,
    order: int = 1,
    samples: int = 2,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    complex_step: bool = False,
    **kwargs: PyTree,
) -> Report:
    """Check a derivative, leaf by leaf, in float64 whatever the inputs.

    The witnesses: the dot-product identity ⟨ū, J v⟩ = ⟨Jᵀ ū, v⟩, J v by `jax.jvp`; the slopes of the function, by
    central differences extrapolated to step 0, with their own error estimate; and `jax.vjp`, element by element. An
    entry of Jᵀ ū is right if

        `|got - slope| <= tolerance` · max(the slope's error estimate, a few ulps of the leaf's largest element).

    The whole Jacobian is compared where it has at most 10,000 entries and takes few operations; beyond that, each leaf
    has `samples` random directions of its own, and every element is compared with `jax.vjp`'s.

    Args:
        f: a function of `args` and `kwargs`; its output is a pytree of real, complex or integer arrays of any shape.
        args: pytrees of arrays; other leaves (functions, strings) are held fixed.
        argnums: which positional arguments to differentiate with respect to; all that have floating-point leaves if
            None.
        has_aux: whether `f` returns a pair (output, auxiliary data).
        backward: the way of going backward under test, if not the default one.
        vjp: in its place anybody's reverse mode, called as `jax.vjp` is: JAX's, yours. A function that carries its
            derivative with it (`jax.custom_vjp`) is tested by any of them.
        order: 1 to check the gradient, 2 to check the gradient's own derivative too.
        samples: how many random cotangents (and directions of each leaf), at least 2.
        seed: of the random numbers.
        tolerance: in units of what the reference can tell, see above.
        complex_step: whether to compute the complex step too. It is shown and never decides: it is silently wrong where
            `f` takes an absolute value or a conjugate.
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
        >>> report = check(loss, {"kernel": jnp.ones((3, 2)) / 4}, jnp.ones((5, 3)), argnums=0)
        >>> [(leaf.path, leaf.verdict) for leaf in report.leaves]
        [('kernel', 'ok')]

    References:
        C. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982, for the extrapolated differences.
    """
    check_concrete("check(f, *args)", (args, kwargs), "Call it outside: it compiles f itself, and compares.")
    numbers = _checked_arguments(f, args, argnums, order, samples, tolerance)
    vjp = derivative_of(backward, vjp)
    with borrowed_rules() as borrowed:
        report = _check(Subject(f, args, kwargs, numbers, has_aux), order, samples, vjp, seed, tolerance, complex_step)
    return replace(report, notes=(*report.notes, *borrowed))


def _check(
    subject: Subject,
    order: int,
    samples: int,
    vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]],
    seed: int,
    tolerance: float,
    complex_step: bool,
) -> Report:
    rng = np.random.default_rng(seed)
    notes: list[str] = []
    f = subject.f
    if not subject.float_ids:
        raise ValueError("There is nothing to differentiate: no argument has a floating-point leaf.")
    if not subject.out_float_ids:
        notes.append("The function has no floating-point output: every derivative is zero.")
    random = random_cotangents(rng, samples, subject.outputs.size)

    def not_compared(leaves: list[LeafReport]) -> Report:
        return Report(name_of(f), tuple(leaves), tuple(findings), tuple(notes), "", seed, samples, "not compared")

    findings, eager, jax_cts = _consistency(subject, vjp, random[0])
    if eager is None:
        return not_compared([_blank(subject, i, "wrong", findings[-1].result) for i in range(len(subject.float_ids))])
    if vjp is jax.vjp:
        jax_cts = eager
    elif jax_cts is None:
        jax_cts = or_none(lambda: _native(subject, jax.vjp, random[0]), notes, "jax.vjp")
    findings += consistency.types(subject, eager, jax_cts)
    shapes = [np.shape(eager[i]) == subject.types[i].shape for i in subject.float_ids]
    if not all(shapes):
        said = [("not informative", "") if s else ("wrong", "its cotangent has another shape") for s in shapes]
        return not_compared([_blank(subject, i, *words) for i, words in enumerate(said)])

    with double_precision():
        wide, program = _widen(subject, notes)
    with double_precision(wide is not subject):
        program = program_of(subject) if wide is subject else program
        resolution = _precision(wide, program, notes)
        setting = Setting(vjp, samples, tolerance, rng, complex_step, resolution, notes)
        w = gather(wide, setting, random, program, wide)
        leaves = [_leaf_report(subject, i, judge_leaf(w, i), w, 1) for i in range(len(wide.inputs.types))]
        own = [_with_own_error(leaf, i, w, subject, eager, jax_cts) for i, leaf in enumerate(leaves)]
        if any(map(_both_far_off, own)) and program is not None and draws_random_numbers(program):
            notes.append(OTHER_DRAWS)
        else:
            leaves = own
        blamed = wide
        if order == 2:
            second, gradient = _second_order(wide, setting, random[0])
            blamed = wide if any(leaf.verdict == "wrong" for leaf in leaves) else gradient
            leaves += second
        leaves, culprit = _with_culprit(leaves, w, program, blamed, vjp, seed)
    unique, mode = tuple(dict.fromkeys(notes)), "whole Jacobian" if w.full else "random directions"
    return Report(name_of(f), tuple(leaves), tuple(findings), unique, culprit, seed, samples, mode)


def _with_culprit(
    leaves: list[LeafReport],
    w: Witnesses,
    program: Program | None,
    blamed: Subject,
    vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]],
    seed: int,
) -> tuple[list[LeafReport], str]:
    """The equation whose rule is wrong, if one is, and the leaves, of which those that it spoils are wrong.

    A rule may spoil leaves that are judged otherwise: by making what is finite infinite or nan, or where JAX is the
    only witness of what is stopped and has the same rule. `blamed` is what the wrong leaves are the derivative of.
    """
    wide, culprit = w.subject, ""
    spoiled = [leaf.verdict == "not finite" and leaf.wanted is not None and np.isfinite(leaf.wanted) for leaf in leaves]
    if any(spoiled):
        culprit = spoiler(wide, vjp, seed)
    stopped = [leaf.verdict == "stopped gradient" for leaf in leaves]
    if any(stopped) and w.frozen() is None and program is not None and has_own_rules(program):
        wrong = spoiler(wide, vjp, seed, has_own_rule)
        culprit = culprit or wrong
        spoiled = [a or (b and bool(wrong)) for a, b in zip(spoiled, stopped, strict=True)]
    if culprit:
        pairs = zip(leaves, spoiled, strict=True)
        return [replace(leaf, verdict="wrong", note="") if s else leaf for leaf, s in pairs], culprit
    if any(leaf.verdict == "wrong" for leaf in leaves):
        culprit = blame(blamed, vjp, seed)
    return leaves, culprit


def assert_gradients(f: Callable[..., PyTree], *args: PyTree, **options: Any) -> Report:
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
    __tracebackhide__ = True  # pytest shows the test's line
    report = check(f, *args, **options)
    if not report.ok:
        raise AssertionError(f"\n{report}")
    return report


@contextlib.contextmanager
def double_precision(wide: bool = True) -> Iterator[None]:
    """64-bit types on, so that the reference is in float64; mixing them with what `f` holds in float32 is allowed. They
    are left as they are if not `wide`: for what cannot be run so.
    """
    types = jax.enable_x64(True) if wide else contextlib.nullcontext()
    with types, jax.numpy_dtype_promotion("standard"), jax.debug_nans(False), jax.debug_infs(False):
        yield


@contextlib.contextmanager
def borrowed_rules() -> Iterator[list[str]]:
    """What is said of rules that are borrowed from JAX meanwhile, each once; it becomes a note of the report."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BorrowedRuleWarning)
        yield said
    for w in caught:
        if not issubclass(w.category, BorrowedRuleWarning):
            warnings.showwarning(w.message, w.category, w.filename, w.lineno)
        elif str(w.message) not in said:
            said.append(str(w.message))


def derivative_of(
    backward: Backward | None, vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]] | None
) -> Callable[..., tuple[PyTree, Callable[..., PyTree]]]:
    """The reverse mode under test, called as `jax.vjp` is."""
    if backward is not None and vjp is not None:
        raise TypeError("check takes backward=, a funcbp.Backward, or vjp=, anybody's reverse mode: one of the two.")
    if vjp is not None and not callable(vjp):
        raise TypeError(f"vjp= is a function that is called as jax.vjp is, and was {vjp!r}.")
    return vjp or as_backward(backward).vjp


def _checked_arguments(
    f: Callable[..., PyTree],
    args: tuple[PyTree, ...],
    argnums: int | Sequence[int] | None,
    order: int,
    samples: int,
    tolerance: float,
) -> list[int]:
    if not callable(f):
        raise TypeError(f"check needs a function to differentiate, and got {f!r} of type {type(f).__name__}.")
    if not args and not _takes_none(f):
        raise TypeError(f"check(f, *args) takes the arguments of f beside it, and {name_of(f)} was given none.")
    if order not in (1, 2):
        raise ValueError(f"order is 1 or 2, and was {order!r}.")
    if not isinstance(samples, int) or samples < 2:
        raise ValueError(f"samples is a whole number of at least 2, and was {samples!r}.")
    if not tolerance > 0:
        raise ValueError(f"tolerance is a positive number of units, and was {tolerance!r}.")
    has_floats = lambda x: any(
        is_array(v) and is_differentiable(jax.typeof(jnp.asarray(v))) for v in jax.tree.leaves(x)
    )
    return [i for i, x in enumerate(args) if has_floats(x)] if argnums is None else numbers_of(f, argnums, len(args))


def _takes_none(f: Callable[..., PyTree]) -> bool:
    """Tell whether a function can be called without positional arguments, as far as is known."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return True
    return not any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _native(subject: Subject, vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]], ct: np.ndarray) -> list[Value]:
    return consistency.native_cotangents(subject, vjp, subject.values, ct)[1]


def _consistency(
    subject: Subject, vjp: Callable[..., Any], ct: np.ndarray
) -> tuple[list[Finding], list[Any] | None, list[Any] | None]:
    program = program_of(subject)
    precision = 0.0 if program is None else casts(program)[1]
    try:
        findings, outs, eager, by_jax = consistency.self_agreement(subject, vjp, ct, precision)
    except StructureError as error:
        return [Finding("structure", str(error), False)], None, None
    return [consistency.agreement(outs, subject), *findings], eager, by_jax


def _blank(subject: Subject, i: int, verdict: str, note: str = "") -> LeafReport:
    t = subject.inputs.types[i]
    return LeafReport(subject.paths[subject.float_ids[i]], t.shape, str(t.dtype), verdict, note=note)


# --- the float64 reference --------------------------------------------------------------------------------------------


def _widen(subject: Subject, notes: list[str]) -> tuple[Subject, Program | None]:
    """The subject in float64, or as it is where it cannot be run so; and its program."""
    try:
        wide = subject.wide()
        if len(wide.out_values) != len(subject.out_types):
            raise TypeError("it returns something else in float64")
    except Exception as error:
        notes.append(
            f"The function cannot be run in float64 ({first_line(error)}), so the reference has the precision of the "
            "inputs. Let the dtypes inside follow the inputs' to have it checked properly."
        )
        wide = subject
    return wide, program_of(wide)


def _precision(wide: Subject, program: Program | None, notes: list[str]) -> float:
    """The precision the function computes in, with a note for each cast that makes it less than the inputs'."""
    types = [*wide.inputs.types, *wide.outputs.types]
    resolution = max((float(jnp.finfo(t.dtype).eps) for t in types), default=0.0)
    if program is None:
        return resolution
    places, inside = casts(program)
    notes += [f"{place}: differences cannot see through that" for place in places]
    return max(resolution, inside)


def _leaf_report(subject: Subject, i: int, j: Judgement, w: Witnesses, order: int) -> LeafReport:
    t = subject.inputs.types[i]
    ulps = None
    if j.got is not None and j.wanted is not None and j.size and np.isfinite(j.got) and np.isfinite(j.wanted):
        ulps = abs(j.got - j.wanted) / (float(jnp.finfo(t.dtype).eps) * j.size)
    note = j.note
    if j.verdict == "stopped gradient":
        note = f"differences see what stop_gradient hides, at {', '.join(w.stops)}"
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
        dot=None if w.dots is None else w.dots[i],
        complex_step=None if w.complex_steps is None else w.complex_steps[i],
        note=note,
    )


def _with_own_error(
    leaf: LeafReport, i: int, w: Witnesses, subject: Subject, eager: list[Value], jax_cts: list[Value] | None
) -> LeafReport:
    """Our error and JAX's in the leaf's own dtype, against the float64 cotangent, side by side."""
    t, where = subject.inputs.types[i], subject.float_ids[i]
    if w.subject is subject or np.shape(eager[where]) != t.shape:
        return leaf
    reference = w.got if w.jax is None or leaf.verdict == "ok" else w.jax
    wanted = np.asarray(w.subject.inputs.arrays(reference[0], conjugate=True)[i])
    own = consistency.in_ulps(eager[where], wanted, t.dtype)
    theirs = None if jax_cts is None else consistency.in_ulps(jax_cts[where], wanted, t.dtype)
    verdict, note, coarse = leaf.verdict, leaf.note, float(jnp.finfo(t.dtype).eps)
    if verdict == "ok" and own * coarse > FAR_OFF and theirs is not None and own > 100 * max(theirs, 1.0):
        verdict = "wrong"
        note = f"right in float64, and {own * coarse:.2g} of its largest element off in {t.dtype}; JAX's is not"
    return replace(leaf, own_ulps=own, jax_ulps=theirs, verdict=verdict, note=note)


def _both_far_off(leaf: LeafReport) -> bool:
    """Whether our derivative and JAX's, in the leaf's own dtype, are alike those of another function."""
    own, jax_own, coarse = leaf.own_ulps, leaf.jax_ulps, float(jnp.finfo(leaf.dtype).eps)
    if own is None or jax_own is None:
        return False
    return own * coarse > FAR_OFF and abs(own - jax_own) < coarse**0.5 * own


# --- second order -----------------------------------------------------------------------------------------------------


def _second_order(wide: Subject, setting: Setting, ct: np.ndarray) -> tuple[list[LeafReport], Subject]:
    """Check the gradient as a function of the same arguments, like any other; also that function."""

    def gradient(by: Callable[..., tuple[PyTree, Callable[..., PyTree]]]) -> Subject:
        def cotangents(*args: PyTree, **kwargs: PyTree) -> list[Value]:
            values = wide.values_of(tuple(args[i] for i in wide.argnums))
            _, pullback = wide.pull(by, values)
            full = pullback(wide.outputs.arrays(jnp.asarray(ct, wide.outputs.dtype), conjugate=True))
            return [full[i] for i in wide.float_ids]

        return Subject(cotangents, wide.args, wide.kwargs, wide.argnums, False, wide.names)

    ours = gradient(setting.vjp)
    theirs = ours
    if setting.vjp is not jax.vjp:
        theirs = or_none(lambda: gradient(jax.vjp), setting.notes, "jax.vjp, twice,")
    random = random_cotangents(setting.rng, setting.samples, ours.outputs.size)
    w = gather(ours, replace(setting, complex_step=False), random, program_of(ours), theirs)
    return [_leaf_report(ours, i, judge_leaf(w, i), w, 2) for i in range(len(ours.inputs.types))], ours
