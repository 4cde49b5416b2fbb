"""The table of rules, and the families of declarations that keep it short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..cotangents import Factored, Moves, Product, Zero, unbroadcast
from ..jaxpr import ACCESSES, authors_primitives, aval_of, current_source, public_names
from .contract import INPUTS, TYPES, Save
from .kinds import AuthorsRule, BodyRule, ControlRule, LinearRule, NonDifferentiableRule, Rule, TangentRule, ZeroRule
from .traits import DEAR, ELEMENTWISE, STRUCTURAL, UNKNOWN, Traits, describe

__all__ = [
    "NAMED",
    "TABLE",
    "UNSUPPORTED",
    "bilinear_rule",
    "coverage",
    "def_bilinear",
    "def_body",
    "def_control",
    "def_elementwise",
    "def_linear",
    "def_named",
    "def_nondiff",
    "def_rule",
    "def_tangent",
    "def_unsupported",
    "def_zero",
    "elementwise_rule",
    "enter",
    "linear_rule",
    "rule",
]

TABLE: dict[Any, Rule] = {}


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
    for name, value in (("bwd", bwd), ("fwd", fwd), ("save", save)):
        if not callable(value) and (value is not None or name == "bwd"):
            raise TypeError(f"A rule's {name} is a function, and was {value!r}.")
    return Rule(bwd, fwd, save)


# --- rules as values --------------------------------------------------------------------------------------------------


def elementwise_rule(*partials: Any, save: Save = INPUTS, name: str = "elementwise") -> Rule:
    """A rule for an elementwise operation by its partial derivatives: x̄ᵢ = z̄ · ∂z/∂xᵢ, summed back over broadcast axes.

    Args:
        *partials: for each operand a function of what `save` keeps (the primals, or the output), or None where no
            derivative exists.
        save: what to keep.
        name: of the operation, for tracebacks and name scopes.

    Example:
        >>> import jax, funcbp as bp
        >>> smooth = bp.rules.elementwise_rule(lambda x, **_: 1 / (1 + x**2))
        >>> bp.Backward(rules={jax.lax.sign_p: smooth}).grad(jax.numpy.sign)(1.0)
        Array(0.5, dtype=float32, weak_type=True)
    """

    def bwd(res: Any, ct: Any, perturbed: Sequence[bool], **params: Any) -> list[Any]:
        types, saved = res
        args = saved if isinstance(saved, tuple) else (saved,)
        return [
            unbroadcast(ct * partial(*args, **params), x) if p and partial is not None else None
            for partial, p, x in zip(partials, perturbed, types, strict=True)
        ]

    def keep(primals: Any, outs: Any, perturbed: Any, params: Any) -> Any:
        return TYPES(primals, outs, perturbed, params), save(primals, outs, perturbed, params)

    bwd.__name__, keep.__name__ = f"{name}_bwd", getattr(save, "__name__", "save")
    return Rule(bwd, save=keep)


def linear_rule(transpose: Callable[..., Any], moves: Moves = Moves.NOT, name: str = "linear") -> Rule:
    """A rule for an operation linear in its first operand: x̄ = transpose(z̄, type of x, **params). Keeps no numbers.

    Args:
        transpose: the transposed map.
        moves: how the operation moves numbers, if that is all it does.
        name: of the operation, for tracebacks and name scopes.
    """

    def bwd(types: Any, ct: Any, perturbed: Sequence[bool], **params: Any) -> list[Any]:
        return [transpose(ct, types[0], **params), *(None for _ in types[1:])]

    bwd.__name__ = f"{name}_bwd"
    return LinearRule(bwd, save=TYPES, moves=moves)


def bilinear_rule(
    left: Callable[..., Any], right: Callable[..., Any], factored: bool = True, name: str = "bilinear"
) -> Rule:
    """A rule for an operation linear in each of two operands: x̄ = left(z̄, y, type of x), ȳ = right(z̄, x, type of y).

    An operand is kept only where the other one is perturbed.

    Args:
        left, right: the cotangents of the operands.
        factored: whether they are handed on as `Factored` products, to be contracted when somebody needs the array,
            or as arrays.
        name: of the operation, for tracebacks and name scopes.
    """

    def other_operands(primals: Any, outs: Any, perturbed: Any, params: Any) -> Any:
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

    bwd.__name__ = f"{name}_bwd"
    return Rule(bwd, save=other_operands)


# --- entries of the table ---------------------------------------------------------------------------------------------

# All skip a primitive that is None, which is one that this JAX does not have. `traits` says what else is known of the
# primitive (see `traits.py`); left out, it is what holds for its family, or what was said of it before.


def enter(primitive: Any, rule: Rule, traits: Traits | None = None, family: Traits = UNKNOWN) -> None:
    """Enter a rule of any kind in the table, and what is known of its primitive."""
    if primitive is not None:
        TABLE[primitive] = rule
        describe(primitive, traits, family)


def def_rule(
    primitive: Any,
    bwd: Callable[..., Sequence[Any]],
    fwd: Any = None,
    save: Save | None = None,
    factors: Any = None,
    traits: Traits | None = None,
) -> None:
    """A rule as a pair, see `contract.py`. Of its primitive nothing is assumed."""
    enter(primitive, Rule(bwd, fwd, save, factors=factors), traits)


def def_control(
    primitive: Any,
    fwd: Callable[..., Any],
    bwd: Callable[..., Any] | None,
    instead: Any = None,
    mark_inside: Any = None,
    reaches: Any = None,
    message: Callable[[str], str] | None = None,
    traits: Traits | None = None,
) -> None:
    """A rule that differentiates the programs inside an operation, by the options it is given."""
    rule = ControlRule(bwd, fwd, message=message, instead=instead, mark_inside=mark_inside, reaches=reaches)
    enter(primitive, rule, traits)


def def_tangent(primitive: Any, tangent: Callable[..., Any], traits: Traits | None = None) -> None:
    """A rule written along a direction: `tangent(primals, tangents, **params) -> (outs, tangents of the outs)`.

    It is linear in the tangents (None for an unperturbed primal, and for an output without one); the backward pass
    transposes it.
    """
    enter(primitive, TangentRule(fwd=tangent), traits)


def def_body(
    primitive: Any, body: Callable[[dict[str, Any]], Callable[..., Any]], traits: Traits | None = None
) -> None:
    """An operation that is differentiated as the program `body(params)`, which is run in its place."""
    enter(primitive, BodyRule(body=body), traits)


def def_zero(*primitives: Any, traits: Traits | None = None) -> None:
    """Operations with a floating-point output whose derivative is zero almost everywhere, or is defined as zero."""
    for p in primitives:
        enter(p, ZeroRule(), traits)


def def_nondiff(*primitives: Any, traits: Traits | None = None) -> None:
    """Operations whose outputs are integers, booleans or keys: no cotangent exists."""
    for p in primitives:
        enter(p, NonDifferentiableRule(), traits)


def def_elementwise(primitive: Any, *partials: Any, save: Save = INPUTS, traits: Traits | None = None) -> None:
    """An elementwise operation by its partial derivatives, see `elementwise_rule`. It is cheap and repeatable."""
    enter(primitive, elementwise_rule(*partials, save=save, name=f"{primitive}"), traits, ELEMENTWISE)


def def_linear(
    primitive: Any, transpose: Callable[..., Any], moves: Moves = Moves.NOT, traits: Traits | None = None
) -> None:
    """An operation linear in its first operand, see `linear_rule`. It is repeatable, and cheap if it moves numbers."""
    described = lambda t: t.but(linear=(0,), moves=moves)
    family = described(STRUCTURAL if moves else DEAR)
    enter(primitive, linear_rule(transpose, moves, f"{primitive}"), traits and described(traits), family)


def def_bilinear(
    primitive: Any,
    left: Callable[..., Any],
    right: Callable[..., Any],
    factored: bool = True,
    traits: Traits | None = None,
) -> None:
    """An operation linear in each of two operands, see `bilinear_rule`. It is repeatable."""
    described = lambda t: t.but(linear=(0, 1))
    enter(
        primitive, bilinear_rule(left, right, factored, f"{primitive}"), traits and described(traits), described(DEAR)
    )


NAMED: dict[str, Callable[..., Any]] = {}


def def_named(name: str, tangent: Callable[..., Any]) -> None:
    """A rule that stands in front of the `custom_jvp` rule of a function of JAX's own, with this name.

    `tangent(primals, tangents) -> tangent of the output`, for real numbers; None is the tangent of an unperturbed
    primal.
    """
    NAMED[name] = tangent


UNSUPPORTED: dict[str, str] = {}


def def_unsupported(reason: str, *names: str) -> None:
    """Primitives, by name, that have no derivative here, and why."""
    UNSUPPORTED.update(dict.fromkeys(names, reason))


def coverage(borrow: bool = False) -> dict[str, str]:
    """The table: each primitive's name and how it is accounted for.

    Args:
        borrow: whether to list, as `"borrowed"`, the public primitives that have no entry and would be differentiated
        by
            JAX under `on_missing="jax"`.

    Returns:
        A dict from primitive name to `"hand-written"`, `"zero"`, `"non-differentiable"`, `"the function's own"`,
        `"its author's"` (of a primitive that JAX does not define: the rules registered with JAX), `"discharged"` (of
        mutable references: it becomes operations on values) or `"refused: "` and the reason, in alphabetical order.

    Example:
        >>> import funcbp as bp
        >>> bp.coverage()["tanh"], bp.coverage()["floor"], bp.coverage()["eq"]
        ('hand-written', 'zero', 'non-differentiable')
    """
    own = dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "the function's own")
    own |= dict.fromkeys(ACCESSES, "discharged")
    known = own | {p.name: r.how for p, r in TABLE.items() if r.message is None}
    known |= {p.name: f"refused: {r.message('it')}" for p, r in TABLE.items() if r.message is not None}
    known = dict.fromkeys((p.name for p in authors_primitives()), AuthorsRule.how) | known
    missing = {name: f"refused: {why}" for name, why in UNSUPPORTED.items()}
    if borrow:
        missing = dict.fromkeys({*missing, *public_names()}, "borrowed")
    return dict(sorted((missing | known).items()))
