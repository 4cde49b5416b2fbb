"""The contract of a rule, the families that keep the table short, and the table.

A rule is a pair you can print:

    fwd(*primals, **params) -> (outs, res)
    bwd(res, ct, perturbed, **params) -> one cotangent per primal

`fwd` runs the primitive and keeps the residuals `res`: any pytree; arrays in it are kept for the backward pass, the
rest (types, numbers, names) is written into the program. Left out, it is "bind, and keep `save`", where `save` is
`INPUTS`, `OUTPUT`, `TYPES`, `NOTHING`, or a function `save(primals, outs, perturbed, params)` that chooses among them.
Where both are given, `save(primals, res, perturbed, params)` says what of `res` is needed for these perturbed primals.

`bwd` gets the residuals, the cotangent of the output (a list of cotangents, `Zero` where zero, for a primitive with
several outputs) and which primals are perturbed, and returns a cotangent per primal: an array of the primal's shape and
dtype, `Zero`, or `None` where no derivative exists. What it returns for an unperturbed primal is dropped, so it need
not be computed.

Cotangents follow JAX's convention for complex numbers: `bwd` is the transpose of the derivative, without conjugation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ..cotangents import Factored, Product, Zero, unbroadcast
from ..jaxpr import aval_of, current_source, public_names

__all__ = [
    "INPUTS",
    "NAMED",
    "NOTHING",
    "OUTPUT",
    "REFUSED",
    "TABLE",
    "TYPES",
    "MissingRuleError",
    "Rule",
    "coverage",
    "def_bilinear",
    "def_body",
    "def_control",
    "def_elementwise",
    "def_linear",
    "def_named",
    "def_nondiff",
    "def_refused",
    "def_rule",
    "def_tangent",
    "def_zero",
    "rule",
]


class MissingRuleError(NotImplementedError):
    """An equation must be differentiated and nobody has written its rule."""

    def __init__(self, message: str, located: bool = True):
        super().__init__(message)
        self.located = located


Save = Callable[[Sequence[Any], Any, Sequence[bool], dict[str, Any]], Any]


def INPUTS(primals: Sequence[Any], outs: Any, perturbed: Sequence[bool], params: dict[str, Any]) -> Any:
    """Keep the primals."""
    return tuple(primals)


def OUTPUT(primals: Sequence[Any], outs: Any, perturbed: Sequence[bool], params: dict[str, Any]) -> Any:
    """Keep the output."""
    return outs


def TYPES(primals: Sequence[Any], outs: Any, perturbed: Sequence[bool], params: dict[str, Any]) -> Any:
    """Keep the primals' shapes and dtypes, and no numbers."""
    return tuple(jax.typeof(x) for x in primals)


def NOTHING(primals: Sequence[Any], outs: Any, perturbed: Sequence[bool], params: dict[str, Any]) -> Any:
    """Keep nothing."""
    return ()


@dataclass(frozen=True, eq=False)
class Rule:
    """How one operation is differentiated. See the module's docstring for the contract.

    `kind` is `"rule"`, `"linear"` (linear in the first operand, and keeps no numbers), `"zero"` (differentiable,
    derivative zero almost everywhere), `"nondiff"` (no output has a derivative), `"tangent"` (`fwd(primals, tangents,
    **params) -> (outs, tangents of the outs)` is linear in the tangents, and is transposed by the walk), `"control"`
    (the rule differentiates programs: `fwd(walker, perturbed, *primals, **params)` also returns which outputs are
    differentiable, and `bwd` gets the walk first), `"step"` (the output is a boolean, and has a cotangent all the same:
    a number, where the boolean becomes one), `"passed"` (no derivative goes through it, and it was written down to be
    looked at), or `"missing"` (`bwd` is absent, and `message(where)` says so when it turns out to be needed).

    `body(params)`, where given, is a function to run through the recording in the primitive's place;
    `instead(walker, params)` is such a function where that pays, and None where it does not. `factors`, where given, is
    `bwd` with products left to be carried out (`Factored`), for a walk that asks for them. `isometric` says of a linear
    rule that it only moves numbers to other places.
    """

    bwd: Callable[..., Sequence[Any]] | None = None
    fwd: Callable[..., tuple[Any, ...]] | None = None
    save: Save | None = None  # INPUTS, where there is no fwd
    kind: str = "rule"
    body: Callable[[dict[str, Any]], Callable[..., Any]] | None = None
    message: Callable[[str], str] | None = None
    factors: Callable[..., Sequence[Any]] | None = None
    isometric: bool = False
    instead: Callable[[Any, dict[str, Any]], Callable[..., Any] | None] | None = None

    @property
    def name(self) -> str:
        return getattr(self.bwd, "__name__", self.kind)


TABLE: dict[Any, Rule] = {}
BILINEAR: set[Any] = set()  # the primitives linear in each of two operands


def rule(
    bwd: Callable[..., Sequence[Any]], fwd: Callable[..., tuple[Any, Any]] | None = None, save: Save | None = None
) -> Rule:
    """A rule of your own, for `Backward(rules={primitive: rule(...)})`.

    Args:
        bwd: `bwd(res, ct, perturbed, **params)`, one cotangent per primal.
        fwd: `fwd(*primals, **params) -> (outs, res)`; left out, the primitive is run and `save` is kept.
        save: what to keep where `fwd` is left out: `INPUTS` (if left out too), `OUTPUT`, `TYPES`, `NOTHING` or a
            function.

    Example:
        >>> import jax, funcbp as bp
        >>> straight_through = bp.rule(lambda res, ct, perturbed, **params: (ct,), save=bp.rules.NOTHING)
        >>> bp.Backward(rules={jax.lax.sign_p: straight_through}).grad(jax.numpy.sign)(0.3)
        Array(1., dtype=float32, weak_type=True)
    """
    return Rule(bwd, fwd, save)


def def_rule(
    primitive: Any,
    bwd: Callable[..., Sequence[Any]],
    fwd: Any = None,
    save: Save | None = None,
    factors: Any = None,
) -> None:
    """Enter a rule in the table. A primitive that this JAX does not have is passed as None and skipped."""
    if primitive is not None:
        TABLE[primitive] = Rule(bwd, fwd, save, factors=factors)


def def_control(primitive: Any, fwd: Callable[..., Any], bwd: Callable[..., Any], instead: Any = None) -> None:
    """A rule that differentiates the programs inside an operation, by the walker it is given."""
    if primitive is not None:
        TABLE[primitive] = Rule(bwd, fwd, kind="control", instead=instead)


def def_tangent(primitive: Any, tangent: Callable[..., Any]) -> None:
    """A rule written along a direction: `tangent(primals, tangents, **params) -> (outs, tangents of the outs)`.

    It is linear in the tangents (None for an unperturbed primal, and for an output without one); the walk transposes
    it.
    """
    if primitive is not None:
        TABLE[primitive] = Rule(fwd=tangent, kind="tangent")


NAMED: dict[str, Callable[..., Any]] = {}


def def_named(name: str, tangent: Callable[..., Any]) -> None:
    """A rule that stands in front of the `custom_jvp` rule of a function of JAX's own, with this name.

    `tangent(primals, tangents) -> tangent of the output`, for real numbers; None is the tangent of an unperturbed
    primal.
    """
    NAMED[name] = tangent


REFUSED: dict[str, str] = {}


def def_refused(reason: str, *names: str) -> None:
    """Primitives, by name, that have no derivative here, and why."""
    REFUSED.update(dict.fromkeys(names, reason))


def def_body(primitive: Any, body: Callable[[dict[str, Any]], Callable[..., Any]]) -> None:
    """An operation that is differentiated as the program `body(params)`, which is run in its place."""
    if primitive is not None:
        TABLE[primitive] = Rule(kind="body", body=body)


def def_zero(*primitives: Any) -> None:
    """Operations with a floating-point output whose derivative is zero almost everywhere, or is defined as zero."""
    for p in primitives:
        if p is not None:
            TABLE[p] = Rule(kind="zero")


def def_nondiff(*primitives: Any) -> None:
    """Operations whose outputs are integers, booleans or keys: no cotangent exists."""
    for p in primitives:
        if p is not None:
            TABLE[p] = Rule(kind="nondiff")


def def_elementwise(primitive: Any, *partials: Any, save: Save = INPUTS) -> None:
    """An elementwise operation by its partial derivatives: x̄ᵢ = z̄ · ∂z/∂xᵢ, summed back over broadcast axes.

    Each of `partials` is a function of what `save` keeps (the primals, or the output), or None where no derivative
    exists.
    """
    if primitive is None:
        return

    def bwd(res: Any, ct: Any, perturbed: Sequence[bool], **params: Any) -> list[Any]:
        types, saved = res
        args = saved if isinstance(saved, tuple) else (saved,)
        return [
            unbroadcast(ct * partial(*args, **params), x) if p and partial is not None else None
            for partial, p, x in zip(partials, perturbed, types, strict=True)
        ]

    def keep(primals: Any, outs: Any, perturbed: Any, params: Any) -> Any:
        return TYPES(primals, outs, perturbed, params), save(primals, outs, perturbed, params)

    bwd.__name__ = f"{primitive}_bwd"
    def_rule(primitive, bwd, save=keep)


def def_linear(primitive: Any, transpose: Callable[..., Any], isometric: bool = False) -> None:
    """An operation linear in its first operand: x̄ = transpose(z̄, type of x, **params). Keeps no numbers.

    `isometric`: whether x̄ has the numbers of z̄, in other places (and perhaps rounded), and zeros elsewhere.
    """
    if primitive is None:
        return

    def bwd(types: Any, ct: Any, perturbed: Sequence[bool], **params: Any) -> list[Any]:
        return [transpose(ct, types[0], **params), *(None for _ in types[1:])]

    bwd.__name__ = f"{primitive}_bwd"
    TABLE[primitive] = Rule(bwd, save=TYPES, kind="linear", isometric=isometric)


def def_bilinear(primitive: Any, left: Callable[..., Any], right: Callable[..., Any], factored: bool = True) -> None:
    """An operation linear in each of two operands: x̄ = left(z̄, y, type of x), ȳ = right(z̄, x, type of y).

    An operand is kept only where the other one is perturbed. The cotangents are handed on as `Factored` products, to be
    carried out when somebody needs the array, or, with `factored=False`, as arrays.
    """

    def keep(primals: Any, outs: Any, perturbed: Any, params: Any) -> Any:
        x, y = primals
        return (x if perturbed[1] else jax.typeof(x), y if perturbed[0] else jax.typeof(y))

    def bwd(res: Any, ct: Any, perturbed: Sequence[bool], **params: Any) -> list[Any]:
        x, y = res
        if not factored:
            return [
                left(ct, y, x, **params) if perturbed[0] else Zero,
                right(ct, x, y, **params) if perturbed[1] else Zero,
            ]
        if ct.size == 0:
            return [Zero, Zero]
        source = current_source()
        product = lambda rule, other, aval: Factored(
            [Product(ct, other, rule, aval, params, (), source)], Zero, aval.shape, aval.dtype
        )
        return [
            product(left, y, aval_of(x)) if perturbed[0] else Zero,
            product(right, x, aval_of(y)) if perturbed[1] else Zero,
        ]

    bwd.__name__ = f"{primitive}_bwd"
    def_rule(primitive, bwd, save=keep)
    BILINEAR.add(primitive)


def coverage(borrow: bool = False) -> dict[str, str]:
    """The table: each primitive's name and how it is accounted for.

    Args:
        borrow: whether to list, as `"borrowed"`, the public primitives that have no entry and would be differentiated
        by
            JAX under `on_missing="jax"`.

    Returns:
        A dict from primitive name to `"hand-written"`, `"zero"`, `"non-differentiable"`, `"the function's own"` or
        `"refused: "` and the reason, in alphabetical order.

    Example:
        >>> import funcbp as bp
        >>> bp.coverage()["tanh"], bp.coverage()["floor"], bp.coverage()["eq"]
        ('hand-written', 'zero', 'non-differentiable')
    """
    words = {"zero": "zero", "nondiff": "non-differentiable"}
    own = dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "the function's own")
    known = own | {p.name: words.get(r.kind, "hand-written") for p, r in TABLE.items() if r.message is None}
    known |= {p.name: f"refused: {r.message('it')}" for p, r in TABLE.items() if r.message is not None}
    missing = {name: f"refused: {why}" for name, why in REFUSED.items()}
    if borrow:
        missing = dict.fromkeys({*missing, *public_names()}, "borrowed")
    return dict(sorted((missing | known).items()))
