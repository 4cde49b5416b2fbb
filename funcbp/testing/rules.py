"""Is a rule right? Its contract, claim by claim, and its numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..autodiff.arguments import as_value, numbers_of, without_aux
from ..autodiff.backward_pass import BackwardState, backward_pass
from ..autodiff.recording import record
from ..autodiff.tape import Tape
from ..autodiff.transformations import Backward, as_backward
from ..cotangents import Zero, is_differentiable, materialize
from ..jaxpr.types import Aval, Primitive, PyTree, Value
from .check import check
from .subject import first_line

__all__ = ["Claim", "check_rule", "structural_claims"]

SPECIAL = (0.0, -0.0, 1.0, -1.0, 1e-30, 30.0, -30.0, np.inf, -np.inf, np.nan)
PRECISION = 1e-9


class Claim(NamedTuple):
    """One thing a rule promises: what, whether it holds (None: does not apply), and what was seen."""

    claim: str
    holds: bool | None
    seen: str


def check_rule(
    op_or_primitive: Callable[..., PyTree] | Primitive,
    *args: Value,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    backward: Backward | None = None,
    order: int = 2,
    numeric: bool = True,
    **params: Any,
) -> list[Claim]:
    """Assert that one rule keeps its contract.

    That is: the primal is unchanged; there is one cotangent per primal, of its shape and dtype; the cotangents are
    linear in that of the output; `Zero` in gives `Zero` out; an unperturbed input costs nothing (equations are
    counted); what is kept is what is read (bytes are counted); the same under `jit`, `vmap` and `jvp`; special values
    (0, infinities, nan) give what JAX gives; and the numbers of the first and second order are right, as `check` has
    it.

    Args:
        op_or_primitive: a primitive (`jax.lax.tanh_p`) with `params` the parameters of its equation, or an operation
            (`jax.lax.tanh`, `funcbp.ops.logistic`) with `params` its keyword arguments.
        args: its operands.
        argnums: which of them it is differentiated in; all of floating-point numbers if left out.
        has_aux: whether it returns a pair (output, auxiliary data).
        backward: the way of going backward whose rule is meant, if not the default one.
        order: 2 to check the second order too, 1 for an operation that can be differentiated once.
        numeric: whether the operands are such that differences are a reference (no kinks, no infinities).
        params: see above.

    Returns:
        The claims, in the order above.

    Raises:
        AssertionError: some do not hold; the message lists all of them.
        TypeError: the first argument is neither a primitive nor a function.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp.testing import check_rule
        >>> claims = check_rule(jax.lax.tanh_p, jnp.array([0.3, -1.0]), accuracy=None)
        >>> all(c.holds is not False for c in claims)
        True
    """
    if hasattr(op_or_primitive, "bind"):
        apply = lambda *xs: op_or_primitive.bind(*xs, **params)
        name = str(op_or_primitive)
    elif callable(op_or_primitive):
        apply = lambda *xs: op_or_primitive(*xs, **params)
        name = getattr(op_or_primitive, "__name__", "operation")
    else:
        raise TypeError(f"check_rule needs a primitive or a function, and got {op_or_primitive!r}.")
    apply.__name__ = name
    chosen = range(len(args)) if argnums is None else numbers_of(apply, argnums, len(args))
    subject = _Rule(without_aux(apply) if has_aux else apply, args, as_backward(backward), chosen)
    claims: list[Claim] = []
    for claim in (
        _primal_unchanged,
        _one_cotangent_per_primal,
        _linear,
        _zero_in_zero_out,
        _unperturbed_costs_nothing,
        _keeps_what_it_reads,
        _under_jit,
        _under_vmap,
        _under_jvp,
        _special_values,
    ):
        try:
            claims.append(claim(subject))
        except Exception as error:
            claims.append(_claim(claim.__name__.strip("_").replace("_", " "), False, f"it raises {first_line(error)}"))
        if claim is _one_cotangent_per_primal and not claims[-1].holds:
            numeric = False  # and nothing else can be tried
            break
    if numeric:
        claims += _numbers(subject, order)
    failed = [c for c in claims if c.holds is False]
    if failed:
        lines = "\n".join(f"  {c.claim}: {c.seen}" for c in failed)
        raise AssertionError(f"The rule of `{name}` breaks {len(failed)} of its {len(claims)} promises:\n{lines}")
    return claims


class _Rule:
    """One operation on given operands, recorded."""

    def __init__(self, apply: Callable[..., PyTree], args: Sequence[Value], backward: Backward, chosen: Sequence[int]):
        self.apply, self.backward = apply, backward.observing(inline_calls=True)  # the rule, and not a call around it
        self.args = [as_value(x) for x in args]
        self.floats = [i for i in sorted(chosen) if is_differentiable(self.args[i])]
        self.types = [jax.typeof(x) for x in self.args]
        self.out_types = [v.aval for v in jx.trace(self.flat, self.types).outvars]
        self.differentiable = [is_differentiable(t) for t in self.out_types]

    @functools.cached_property
    def outs(self) -> list[Value]:
        return self.flat(*self.args)

    @functools.cached_property
    def cts(self) -> list[Value]:
        rng = np.random.default_rng(0)
        return [self.draw(rng, y) for y in self.outs]

    @functools.cached_property
    def others(self) -> list[Value]:
        rng = np.random.default_rng(1)
        return [self.draw(rng, y) for y in self.outs]

    def flat(self, *xs: Value) -> list[Value]:
        return jax.tree.leaves(self.apply(*xs))

    @staticmethod
    def draw(rng: np.random.Generator, y: Value) -> Value:
        if not is_differentiable(y):
            return Zero
        numbers = rng.standard_normal(np.shape(y))
        if jax.dtypes.issubdtype(y.dtype, np.complexfloating):
            numbers = numbers + 1j * rng.standard_normal(np.shape(y))
        return jnp.asarray(numbers, y.dtype)

    def record(self, args: Sequence[Value], perturbed: Sequence[bool]) -> tuple[Tape, list[Value], list[Value]]:
        tape, outs, kept, _ = record(lambda *xs: (self.flat(*xs), None), args, perturbed, self.backward.options)
        return tape, outs, kept

    def back(self, args: Sequence[Value], cts: Sequence[Value], perturbed: Sequence[bool] | None = None) -> list[Value]:
        """Cotangents of the floating-point operands that are perturbed; `Zero` where zero."""
        chosen = [i in self.floats for i in range(len(args))] if perturbed is None else list(perturbed)
        tape, _, kept = self.record(args, chosen)
        return [c for c, p in zip(self.backward_pass(tape, kept, cts), chosen, strict=True) if p]

    def backward_pass(self, tape: Tape, kept: Sequence[Value], cts: Sequence[Value]) -> list[Value]:
        return [materialize(c) for c in backward_pass(BackwardState(self.backward.options), tape, kept, cts)]

    def only(self, i: int) -> list[bool]:
        return [j == i for j in range(len(self.args))]


def _close(a: Value, b: Value, precision: float = PRECISION) -> bool:
    if (a is Zero) != (b is Zero):
        return not np.any(np.asarray(b if a is Zero else a))
    if a is Zero:
        return True
    a, b = np.asarray(a), np.asarray(b)
    coarse = max(precision, 100 * float(jnp.finfo(b.dtype).eps))
    a, b = (x.astype(np.complex128) for x in (a, b))
    size = np.max(np.abs(b), where=np.isfinite(b), initial=0.0)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=coarse, atol=coarse * size, equal_nan=True))


def _all_close(a: Sequence[Value], b: Sequence[Value]) -> bool:
    return len(a) == len(b) and all(map(_close, a, b))


def _claim(text: str, holds: bool | None, seen: str = "") -> Claim:
    return Claim(text, holds, seen)


def _primal_unchanged(rule: _Rule) -> Claim:
    _, outs, _ = rule.record(rule.args, [i in rule.floats for i in range(len(rule.args))])
    same = len(outs) == len(rule.outs) and all(
        np.array_equal(np.asarray(a), np.asarray(b), equal_nan=is_differentiable(b)) and a.dtype == b.dtype
        for a, b in zip(outs, rule.outs, strict=True)
    )
    return _claim("the primal is unchanged", same, "bit for bit" if same else "its value differs from the operation's")


def _one_cotangent_per_primal(rule: _Rule) -> Claim:
    text = "one cotangent per primal, of its shape and dtype"
    try:
        cts = rule.back(rule.args, rule.cts)
    except TypeError as error:
        return _claim(text, False, str(error))
    wrong = [
        f"operand {i} has {c.dtype}{list(c.shape)} for {rule.args[i].dtype}{list(rule.args[i].shape)}"
        for i, c in zip(rule.floats, cts, strict=True)
        if c is not Zero and (c.shape != rule.args[i].shape or c.dtype != rule.args[i].dtype)
    ]
    return _claim(text, not wrong, "; ".join(wrong))


def _linear(rule: _Rule) -> Claim:
    text = "linear in the cotangent"
    mix = [x if x is Zero else 2 * x + y for x, y in zip(rule.cts, rule.others, strict=True)]
    one, other, both = (rule.back(rule.args, c) for c in (rule.cts, rule.others, mix))
    total = [b if a is Zero else (2 * a if b is Zero else 2 * a + b) for a, b in zip(one, other, strict=True)]
    same = _all_close(both, total)
    return _claim(text, same, f"bwd(2a + b) is {'' if same else 'not '}2 bwd(a) + bwd(b)")


def _zero_in_zero_out(rule: _Rule) -> Claim:
    text = "Zero in gives Zero out"
    nothing = rule.back(rule.args, [Zero] * len(rule.outs))
    if any(c is not Zero for c in nothing):
        return _claim(text, False, "all cotangents of the outputs are Zero, and one of a primal is not")
    for i, y in enumerate(rule.outs):  # one output at a time: Zero for the others is the same as zeros
        if len(rule.outs) > 1 and is_differentiable(y):
            alone = [c if j == i else Zero for j, c in enumerate(rule.cts)]
            filled = [c if j == i or c is Zero else jnp.zeros_like(c) for j, c in enumerate(rule.cts)]
            if not _all_close(rule.back(rule.args, alone), rule.back(rule.args, filled)):
                return _claim(text, False, f"Zero and zeros for the outputs other than {i} give different cotangents")
    return _claim(text, True)


def structural_claims(f: Callable[..., PyTree], args: Sequence[Value], backward: Backward | None = None) -> list[Claim]:
    """What can be read off the programs of the two passes of an operation, without running them.

    Args:
        f: a function of `args` whose output is a pytree of arrays.
        args: its operands, arrays.
        backward: the way of going backward whose rules are meant, if not the default one.

    Returns:
        Two claims: unperturbed inputs cost nothing, and what is kept is what is read.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp.testing.rules import structural_claims
        >>> [c.holds for c in structural_claims(jnp.multiply, (jnp.ones(3), jnp.ones(3)))]
        [True, True]
    """
    rule = _Rule(f, args, as_backward(backward), range(len(args)))
    return [_unperturbed_costs_nothing(rule), _keeps_what_it_reads(rule)]


def _program(rule: _Rule, perturbed: Sequence[bool]) -> tuple[jx.Program, int, int]:
    """The backward pass as a program of (kept arrays, cotangents), how many arrays are kept, and their bytes."""
    recorded: list[Tape] = []

    def forward(*args: Any) -> list[Value]:
        tape, _, kept = rule.record(args, perturbed)
        recorded[:] = [tape]
        return kept

    kept: list[Aval] = [v.aval for v in jx.trace(forward, rule.types).outvars]
    (tape,) = recorded

    def back(*xs: Value) -> list[Value]:
        cts = iter(xs[len(kept) :])
        full = [next(cts) if d else Zero for d in rule.differentiable]
        out = rule.backward_pass(tape, xs[: len(kept)], full)
        return [c for c, p in zip(out, perturbed, strict=True) if p and c is not Zero]

    cts = [t for t, d in zip(rule.out_types, rule.differentiable, strict=True) if d]
    return jx.trace(back, [*kept, *cts]), len(kept), sum(t.size * t.dtype.itemsize for t in kept)


def _size(program: jx.Program) -> int:
    return len(program.eqns)


def _unperturbed_costs_nothing(rule: _Rule) -> Claim:
    text = "unperturbed inputs cost nothing"
    if len(rule.floats) < 2:
        return _claim(text, None, "one floating-point operand")
    wasted = []
    for i in rule.floats:
        program, _, _ = _program(rule, rule.only(i))
        needed = _size(program.pruned()[0])
        if _size(program) > needed:
            wasted.append(f"operand {i} alone takes {_size(program)} equations, of which {needed} are needed")
    return _claim(text, not wasted, "; ".join(wasted))


def _keeps_what_it_reads(rule: _Rule) -> Claim:
    text = "what is kept is what is read"
    for perturbed in [[i in rule.floats for i in range(len(rule.args))], *map(rule.only, rule.floats)]:
        program, count, size = _program(rule, perturbed)
        _, used = program.pruned()
        which = [j for j in range(count) if not used[j] and jx.aval_of(program.invars[j].aval).size]
        if which:
            of = ", ".join(str(i) for i, p in enumerate(perturbed) if p)
            seen = (
                f"of {count} arrays kept ({size} bytes) where operand {of} is perturbed, number {which} is never read"
            )
            return _claim(
                text, False, f"{seen}; save(primals, outs, perturbed, params) may choose by what is perturbed"
            )
    return _claim(text, True, f"{size} bytes")


def _under_jit(rule: _Rule) -> Claim:
    text = "the same under jit"
    eager = _filled(rule.back(rule.args, rule.cts), rule)
    compiled = jax.jit(lambda args: _filled(rule.back(args, rule.cts), rule))(rule.args)
    same = _all_close(compiled, eager)
    return _claim(text, same, "jit(bwd) equals bwd" if same else "jit(bwd) differs from bwd")


def _filled(cts: Sequence[Value], rule: _Rule) -> list[Value]:
    return [jnp.zeros_like(rule.args[i]) if c is Zero else c for i, c in zip(rule.floats, cts, strict=True)]


def _under_vmap(rule: _Rule) -> Claim:
    text = "the same under vmap"
    stacked = [jnp.stack([x, x]) for x in rule.args]
    try:
        jax.eval_shape(jax.vmap(rule.flat), *stacked)
    except Exception as error:
        return _claim(text, None, f"the operation does not map: {first_line(error)}")
    one = _filled(rule.back(rule.args, rule.cts), rule)
    mapped = jax.vmap(lambda *args: _filled(rule.back(args, rule.cts), rule))(*stacked)
    same = _all_close([m[1] for m in mapped], one)
    return _claim(text, same, "vmap(bwd) equals bwd" if same else "vmap(bwd) differs from bwd")


def _under_jvp(rule: _Rule) -> Claim:
    """⟨ū, J v⟩ = ⟨Jᵀ ū, v⟩."""
    text = "the transpose of jvp"
    rng = np.random.default_rng(1)
    primals = [rule.args[i] for i in rule.floats]
    tangents = [rule.draw(rng, x) for x in primals]
    chosen = [j for j, y in enumerate(rule.outs) if is_differentiable(y)]

    def of_floats(*xs: Value) -> list[Value]:
        full = list(rule.args)
        for i, x in zip(rule.floats, xs, strict=True):
            full[i] = x
        outs = rule.flat(*full)
        return [outs[j] for j in chosen]

    try:
        _, moved = jax.jvp(of_floats, tuple(primals), tuple(tangents))
    except Exception as error:
        return _claim(text, None, first_line(error))
    product = lambda a, b: float(np.real(np.sum(np.asarray(a, np.complex128) * np.asarray(b, np.complex128))))
    left = [product(rule.cts[j], m) for j, m in zip(chosen, moved, strict=True)]
    right = [product(c, v) for c, v in zip(rule.back(rule.args, rule.cts), tangents, strict=True) if c is not Zero]
    if not np.all(np.isfinite([*left, *right])):
        return _claim(text, None, "not finite")
    size = sum(map(abs, left)) + sum(map(abs, right))
    coarse = 1e3 * max((float(jnp.finfo(x.dtype).eps) for x in primals), default=0.0)
    lengths = [float(np.linalg.norm(np.ravel(np.asarray(v, np.complex128)))) for v in tangents]
    room = coarse * (size + sum(lengths) * 1e-3)
    return _claim(
        text, abs(sum(left) - sum(right)) <= room, f"⟨ū, J v⟩ = {sum(left):.9g}, ⟨Jᵀ ū, v⟩ = {sum(right):.9g}"
    )


def _special_values(rule: _Rule) -> Claim:
    """Real floating-point operands filled with each special value in turn: finite where JAX is, and the same there."""
    text = "special values as JAX's"
    different = []
    for i in rule.floats:
        x = rule.args[i]
        if jax.dtypes.issubdtype(x.dtype, np.complexfloating) or not x.size:
            continue
        for value in SPECIAL:
            args = list(rule.args)
            args[i] = jnp.full_like(x, value)
            try:
                _, pullback = jax.vjp(
                    lambda v, args=args, i=i: _floats(rule.flat(*args[:i], v, *args[i + 1 :])), args[i]
                )
                wanted = pullback([c for c in rule.cts if c is not Zero])[0]
            except Exception:  # JAX has no derivative to compare with
                return _claim(text, None, "jax.vjp is no witness")
            (got,) = rule.back(args, rule.cts, rule.only(i))
            got, wanted = np.asarray(jnp.zeros_like(x) if got is Zero else got), np.asarray(wanted)
            good = np.isfinite(wanted)
            if not _close(np.where(good, got, 0), np.where(good, wanted, 0)):
                different.append(f"operand {i} at {value}: {_first(got, wanted)}")
    return _claim(text, not different, "; ".join(different[:3]))


def _floats(outs: Sequence[Value]) -> list[Value]:
    return [y for y in outs if is_differentiable(y)]


def _first(got: np.ndarray, wanted: np.ndarray) -> str:
    k = int(np.argmax(np.nan_to_num(np.abs(got - wanted), nan=np.inf)))
    return f"{np.ravel(got)[k]:.6g} for JAX's {np.ravel(wanted)[k]:.6g}"


def _numbers(rule: _Rule, order: int) -> list[Claim]:
    """The first and second order against `check`'s witnesses, and the second against JAX's where both are rules."""
    report = check(rule.apply, *rule.args, argnums=rule.floats, backward=rule.backward, order=order)
    out = []
    for n in range(1, order + 1):
        wrong = [leaf for leaf in report.leaves if leaf.order == n and leaf.verdict == "wrong"]
        seen = "; ".join(f"{leaf.path}: got {leaf.got:.6g}, wanted {leaf.wanted:.6g}" for leaf in wrong)
        out.append(_claim(f"order {n} is right", not wrong, seen))
    return out
