"""The table of rules, and the families of declarations that keep it short."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.typing import ArrayLike

from ..cotangents import Cotangent, Factored, Moves, Product, Zero, unbroadcast
from ..jaxpr import ACCESSES, authors_primitives, aval_of, current_source, public_names
from ..jaxpr.types import Aval, Primitive, PyTree, Value
from .contract import INPUTS, TYPES, Save
from .kinds import AuthorsRule, BodyRule, ControlRule, LinearRule, NonDifferentiableRule, Rule, TangentRule, ZeroRule
from .options import Options
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
    "enter_later",
    "linear_rule",
    "rule",
]

TABLE: dict[Primitive | Any, Rule] = {}


def rule(
    bwd: Callable[..., Sequence[Cotangent]],
    fwd: Callable[..., tuple[Value, PyTree]] | None = None,
    save: Save | None = None,
) -> Rule:
    """Make a rule of your own, for `Backward(rules={primitive: rule(...)})`.

    Args:
        bwd: `bwd(res, ct, perturbed, **params)`, one cotangent per primal.
        fwd: `fwd(*primals, **params) -> (outs, res)`; left out, the primitive is run and `save` is kept.
        save: what to keep where `fwd` is left out: `INPUTS` (if left out too), `OUTPUT`, `TYPES`, `NOTHING` or a
            function.

    Returns:
        The rule; `print` shows both halves.

    Raises:
        TypeError: one of them is not a function.

    Example:
        >>> import jax, funcbp as bp
        >>> straight_through = bp.rule(lambda res, ct, perturbed, **params: (ct,), save=bp.rules.NOTHING)
        >>> bp.Backward(rules={jax.lax.sign_p: straight_through}).grad(jax.numpy.sign)(0.3)
        Array(1., dtype=float32, weak_type=True)
    """
    for name, value in (("bwd", bwd), ("fwd", fwd), ("save", save)):
        if not callable(value) and (value is not None or name == "bwd"):
            raise TypeError(f"A rule's {name} is a function, and was {value!r}.")
    try:
        inspect.signature(bwd).bind(None, None, ())
    except TypeError as error:
        raise TypeError(
            f"A rule's bwd is called as bwd(res, ct, perturbed, **params), and this one is not: {error}."
        ) from None
    except ValueError:
        pass  # a function of C, whose arguments are not known
    return Rule(bwd, fwd, save)


# --- rules as values --------------------------------------------------------------------------------------------------


def elementwise_rule(
    *partials: Callable[..., ArrayLike] | None, save: Save = INPUTS, name: str = "elementwise"
) -> Rule:
    """Make a rule for an elementwise operation by its partial derivatives, x̄ᵢ = z̄ · ∂z/∂xᵢ, summed back if broadcast.

    Args:
        *partials: for each operand a function of what `save` keeps (the primals, or the output), or None where no
            derivative exists.
        save: what to keep.
        name: of the operation, for tracebacks and name scopes.

    Returns:
        The rule, for `Backward(rules=)`. Its cotangents have the shapes of the operands.

    Example:
        >>> import jax, funcbp as bp
        >>> smooth = bp.rules.elementwise_rule(lambda x, **_: 1 / (1 + x**2))
        >>> bp.Backward(rules={jax.lax.sign_p: smooth}).grad(jax.numpy.sign)(1.0)
        Array(0.5, dtype=float32, weak_type=True)
    """

    def bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
        types, saved = res
        args = saved if isinstance(saved, tuple) else (saved,)
        return [
            unbroadcast(_scaled(ct, partial(*args, **params)), x) if p and partial is not None else None
            for partial, p, x in zip(partials, perturbed, types, strict=True)
        ]

    def keep(primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
        return TYPES(primals, outs, perturbed, params), save(primals, outs, perturbed, params)

    bwd.__name__, keep.__name__ = f"{name}_bwd", getattr(save, "__name__", "save")
    return Rule(bwd, save=keep)


def _scaled(ct: jax.Array, slope: ArrayLike) -> jax.Array:
    """Multiply a cotangent by a slope, without promotion where they are alike: with 64 bits, it may widen weak ones."""
    alike = isinstance(slope, jax.Array) and slope.dtype == ct.dtype and slope.shape == ct.shape
    return lax.mul(ct, slope) if alike else ct * slope


def linear_rule(transpose: Callable[..., jax.Array], moves: Moves = Moves.NOT, name: str = "linear") -> LinearRule:
    """Make a rule for an operation linear in its first operand: x̄ = transpose(z̄, type of x). It keeps no numbers.

    Args:
        transpose: the transposed map, which gets the operation's parameters by name.
        moves: how the operation moves numbers, if that is all it does.
        name: of the operation, for tracebacks and name scopes.

    Returns:
        The rule, for `Backward(rules=)`. Operands beside the first one have no derivative.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> halved = bp.rules.linear_rule(lambda ct, x, *, dimensions: jax.lax.rev(ct, dimensions) / 2)
        >>> bp.Backward(rules={jax.lax.rev_p: halved}).grad(lambda x: jnp.flip(x)[0])(jnp.ones(2))
        Array([0. , 0.5], dtype=float32)
    """

    def bwd(types: Sequence[Aval], ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
        return [transpose(ct, types[0], **params), *(None for _ in types[1:])]

    bwd.__name__ = f"{name}_bwd"
    return LinearRule(bwd, save=TYPES, moves=moves)


def bilinear_rule(
    left: Callable[..., jax.Array], right: Callable[..., jax.Array], factored: bool = True, name: str = "bilinear"
) -> Rule:
    """Make a rule for an operation linear in each operand: x̄ = left(z̄, y, type of x), ȳ = right(z̄, x, type of y).

    An operand is kept only where the other one is perturbed.

    Args:
        left: the cotangent of the first operand, x; it gets the operation's parameters by name, as `right` does.
        right: that of the second, y.
        factored: whether they are handed on as `Factored` products, to be contracted when somebody needs the array,
            or as arrays.
        name: of the operation, for tracebacks and name scopes.

    Returns:
        The rule, for `Backward(rules=)`.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> straight = bp.rules.bilinear_rule(lambda ct, y, x, **_: ct, lambda ct, x, y, **_: ct, factored=False)
        >>> bp.Backward(rules={jax.lax.mul_p: straight}).grad(lambda x: x * jnp.float32(3))(jnp.float32(2))
        Array(1., dtype=float32)
    """

    def other_operands(
        primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
    ) -> PyTree:
        x, y = primals
        return (x if perturbed[1] else jax.typeof(x), y if perturbed[0] else jax.typeof(y))

    def bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
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


def enter(primitive: Primitive | None, rule: Rule, traits: Traits | None = None, family: Traits = UNKNOWN) -> None:
    """Enter a rule of any kind in the table, and what is known of its primitive."""
    if primitive is not None:
        TABLE[primitive] = rule
        describe(primitive, traits, family)


def def_rule(
    primitive: Primitive | None,
    bwd: Callable[..., Sequence[Cotangent]],
    fwd: Callable[..., tuple[Value, PyTree]] | None = None,
    save: Save | None = None,
    factors: Callable[..., Sequence[Cotangent]] | None = None,
    traits: Traits | None = None,
) -> None:
    """Enter a rule as a pair, see `contract.py`. Of its primitive nothing is assumed.

    Args:
        primitive: the one it is for, or None, which is skipped: one that this JAX does not have.
        bwd, fwd, save: as in `rule`.
        factors: the cotangent of an operand as a product, where the rule can give it.
        traits: what else is known of the primitive: `bp.rules.Traits`.

    Example:
        >>> import jax, funcbp as bp
        >>> twice_p = jax.extend.core.Primitive("twice_of_doc")
        >>> _ = twice_p.def_impl(lambda x: 2 * x), twice_p.def_abstract_eval(lambda x: x)
        >>> bp.rules.def_rule(twice_p, lambda res, ct, perturbed: [2 * ct], save=bp.rules.NOTHING)
        >>> bp.grad(twice_p.bind)(1.0)
        Array(2., dtype=float32, weak_type=True)
    """
    enter(primitive, Rule(bwd, fwd, save, factors=factors), traits)


def def_control(
    primitive: Primitive | None,
    fwd: Callable[..., tuple[Value, PyTree, Sequence[bool]]],
    bwd: Callable[..., Sequence[Cotangent]] | None,
    instead: Callable[[Options, dict[str, Any]], Callable[..., PyTree] | None] | None = None,
    mark_inside: Callable[[dict[str, Any], Sequence[bool]], tuple[Sequence[bool], dict[str, Any]]] | None = None,
    reaches: Callable[..., Sequence[bool]] | None = None,
    message: Callable[[str], str] | None = None,
    traits: Traits | None = None,
) -> None:
    """Enter a rule that differentiates the programs inside an operation, by the options it is given.

    Args:
        primitive: a loop, a branch, a call.
        fwd: `(primals, perturbed, options, **params) -> (outs, res, perturbed outs)`.
        bwd: `(state, res, ct, perturbed, **params)`, one cotangent per primal.
        instead: `(options, params)`, a function that is recorded in the operation's place, or None.
        mark_inside: how feedback weights of operands are handed to the program inside.
        reaches: which primals cotangents of given outputs come back to.
        message: why it has no derivative, in words, for one that has none.
        traits: what else is known of the primitive.

    `funcbp/control_flow/cond.py` is the shortest one there is.
    """
    rule = ControlRule(bwd, fwd, message=message, instead=instead, mark_inside=mark_inside, reaches=reaches)
    enter(primitive, rule, traits)


def def_tangent(
    primitive: Primitive | None, tangent: Callable[..., tuple[Value, Value]], traits: Traits | None = None
) -> None:
    """Enter a rule written along a direction: `tangent(primals, tangents, **params) -> (outs, tangents of the outs)`.

    It is linear in the tangents (None for an unperturbed primal, and for an output without one); the backward pass
    transposes it.

    Args:
        primitive: the one it is for, or None, which is skipped.
        tangent: the rule.
        traits: what else is known of the primitive.

    Example:
        >>> import jax, funcbp as bp
        >>> square_p = jax.extend.core.Primitive("square_of_doc")
        >>> _ = square_p.def_impl(lambda x: x * x), square_p.def_abstract_eval(lambda x: x)
        >>> bp.rules.def_tangent(square_p, lambda primals, tangents: (primals[0] ** 2, 2 * primals[0] * tangents[0]))
        >>> bp.grad(square_p.bind)(3.0)
        Array(6., dtype=float32, weak_type=True)
    """
    enter(primitive, TangentRule(fwd=tangent), traits)


def def_body(
    primitive: Primitive | None, body: Callable[[dict[str, Any]], Callable[..., PyTree]], traits: Traits | None = None
) -> None:
    """Enter an operation that is differentiated as the program `body(params)`, which is run in its place.

    Args:
        primitive: the one it is for, or None, which is skipped.
        body: from the equation's parameters, the function of its operands that says what it computes.
        traits: what else is known of the primitive.

    Example:
        >>> import jax, funcbp as bp
        >>> cube_p = jax.extend.core.Primitive("cube_of_doc")
        >>> _ = cube_p.def_impl(lambda x: x**3), cube_p.def_abstract_eval(lambda x: x)
        >>> bp.rules.def_body(cube_p, lambda params: lambda x: x**3)
        >>> bp.grad(cube_p.bind)(2.0)
        Array(12., dtype=float32, weak_type=True)
    """
    enter(primitive, BodyRule(body=body), traits)


def def_zero(*primitives: Primitive | None, traits: Traits | None = None) -> None:
    """Enter operations with a floating-point output whose derivative is zero almost everywhere, or defined as zero.

    Args:
        *primitives: of JAX or of your own; those that are None are skipped.
        traits: what else is known of them.

    Example:
        >>> import funcbp as bp
        >>> bp.coverage()["round"]
        'zero'
    """
    for p in primitives:
        enter(p, ZeroRule(), traits)


def def_nondiff(*primitives: Primitive | None, traits: Traits | None = None) -> None:
    """Enter operations whose outputs are integers, booleans or keys: no cotangent exists.

    Args:
        *primitives: of JAX or of your own; those that are None are skipped.
        traits: what else is known of them.

    Example:
        >>> import funcbp as bp
        >>> bp.coverage()["argmax"]
        'non-differentiable'
    """
    for p in primitives:
        enter(p, NonDifferentiableRule(), traits)


def def_elementwise(
    primitive: Primitive | None,
    *partials: Callable[..., ArrayLike] | None,
    save: Save = INPUTS,
    traits: Traits | None = None,
) -> None:
    """Enter an elementwise operation by its partial derivatives. It is cheap and repeatable.

    Args:
        primitive: the one it is for, or None, which is skipped.
        *partials: as in `elementwise_rule`.
        save: what they are functions of.
        traits: what else is known of the primitive.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> bell_p = jax.extend.core.Primitive("bell_of_doc")
        >>> _ = bell_p.def_impl(lambda x: jnp.exp(-x * x)), bell_p.def_abstract_eval(lambda x: x)
        >>> bp.rules.def_elementwise(bell_p, lambda x: -2 * x * jnp.exp(-x * x))
        >>> f"{bp.grad(bell_p.bind)(1.0):.4f}"
        '-0.7358'
    """
    enter(primitive, elementwise_rule(*partials, save=save, name=f"{primitive}"), traits, ELEMENTWISE)


def def_linear(
    primitive: Primitive | None,
    transpose: Callable[..., jax.Array],
    moves: Moves = Moves.NOT,
    traits: Traits | None = None,
) -> None:
    """Enter an operation linear in its first operand. It is repeatable, and cheap if it moves numbers.

    Args:
        primitive: the one it is for, or None, which is skipped.
        transpose, moves: as in `linear_rule`.
        traits: what else is known of the primitive.

    Example:
        >>> import jax, funcbp as bp
        >>> third_p = jax.extend.core.Primitive("third_of_doc")
        >>> _ = third_p.def_impl(lambda x: x / 3), third_p.def_abstract_eval(lambda x: x)
        >>> bp.rules.def_linear(third_p, lambda ct, x: ct / 3)
        >>> f"{bp.grad(third_p.bind)(1.0):.4f}"
        '0.3333'
    """
    described = lambda t: t.but(linear=(0,), moves=moves)
    family = described(STRUCTURAL if moves else DEAR)
    enter(primitive, linear_rule(transpose, moves, f"{primitive}"), traits and described(traits), family)


def def_bilinear(
    primitive: Primitive | None,
    left: Callable[..., jax.Array],
    right: Callable[..., jax.Array],
    factored: bool = True,
    traits: Traits | None = None,
) -> None:
    """Enter an operation linear in each of two operands. It is repeatable.

    Args:
        primitive: the one it is for, or None, which is skipped.
        left, right, factored: as in `bilinear_rule`.
        traits: what else is known of the primitive.

    Example:
        >>> import jax, funcbp as bp
        >>> times_p = jax.extend.core.Primitive("times_of_doc")
        >>> _ = times_p.def_impl(lambda x, y: x * y), times_p.def_abstract_eval(lambda x, y: x)
        >>> bp.rules.def_bilinear(times_p, lambda ct, y, x: ct * y, lambda ct, x, y: ct * x)
        >>> bp.grad(lambda x: times_p.bind(x, x))(3.0)
        Array(6., dtype=float32, weak_type=True)
    """
    described = lambda t: t.but(linear=(0, 1))
    enter(
        primitive, bilinear_rule(left, right, factored, f"{primitive}"), traits and described(traits), described(DEAR)
    )


NAMED: dict[str, Rule] = {}


def def_named(name: str, rule: Rule) -> None:
    """Enter a rule that stands in front of the `custom_jvp` rule of a function of JAX's own, with this name.

    Args:
        name: of the function.
        rule: for real numbers.
    """
    NAMED[name] = rule


LATER = {"jax.experimental.sparse": ".sparse", "jax.experimental.multihost_utils": ".multihost"}


def enter_later() -> None:
    """Enter the rules of those modules of JAX that it does not import by itself, and that somebody has imported."""
    for module in LATER.keys() & sys.modules.keys():
        importlib.import_module(LATER[module], __package__)


UNSUPPORTED: dict[str, str] = {}


def def_unsupported(reason: str, *names: str) -> None:
    """Enter primitives that have no derivative here, and why.

    Args:
        reason: a clause that ends the sentence "NAME is refused: ".
        *names: of the primitives.

    Example:
        >>> import funcbp as bp
        >>> bp.coverage()["pmax"].split(":")[0]
        'refused'
    """
    UNSUPPORTED.update(dict.fromkeys(names, reason))


def coverage(*, borrow: bool = False) -> dict[str, str]:
    """The table: each primitive's name and how it is accounted for.

    Args:
        borrow: whether to list, as `"borrowed"`, the public primitives that have no entry and would be differentiated
            by JAX under `on_missing="jax"`.

    Returns:
        A dict from primitive name to `"hand-written"`, `"zero"`, `"non-differentiable"`, `"the function's own"`,
        `"its author's"` (of a primitive that JAX does not define: the rules registered with JAX), `"discharged"` (of
        mutable references: it becomes operations on values) or `"refused: "` and the reason, in alphabetical order.

    Example:
        >>> import funcbp as bp
        >>> bp.coverage()["tanh"], bp.coverage()["floor"], bp.coverage()["eq"]
        ('hand-written', 'zero', 'non-differentiable')
    """
    enter_later()
    own = dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "the function's own")
    own |= dict.fromkeys(ACCESSES, "discharged")
    known = own | {p.name: r.how for p, r in TABLE.items() if r.message is None}
    known |= {p.name: f"refused: {r.message('it')}" for p, r in TABLE.items() if r.message is not None}
    known = dict.fromkeys((p.name for p in authors_primitives()), AuthorsRule.how) | known
    missing = {name: f"refused: {why}" for name, why in UNSUPPORTED.items()}
    if borrow:
        missing = dict.fromkeys({*missing, *public_names()}, "borrowed")
    return dict(sorted((missing | known).items()))
