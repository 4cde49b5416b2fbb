"""What is known of a primitive beside its derivative, in one place: the `def_*` line of a primitive gives both.

Who plans, counts, searches or explains asks `traits_of(primitive)`, and keeps no list of names of his own. Of a
primitive that nobody has described, nothing is assumed: it is neither cheap nor repeatable.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..cotangents import Moves, is_differentiable
from ..jaxpr import aval_of
from ..jaxpr.types import Aval, JaxprEqn, Primitive

__all__ = [
    "CALL",
    "CONTRACTION",
    "DEAR",
    "ELEMENTWISE",
    "REDUCTION",
    "STRUCTURAL",
    "TRAITS",
    "UNKNOWN",
    "Digits",
    "Singularity",
    "Traits",
    "def_traits",
    "describe",
    "free",
    "operand",
    "results",
    "traits_of",
]


class Singularity(enum.StrEnum):
    """Where an operation or its derivative is infinite, or not a number; by what the nan finder's advice is filed."""

    ROOT = "sqrt"
    LOG = "log"
    POWER = "pow"
    DIVISION = "division"
    EDGE = "edge"  # of the domain, or a pole
    SPECTRUM = "spectrum"  # equal eigenvalues
    MATRIX = "matrix"  # without an inverse


class Digits(enum.Enum):
    """How an operation loses digits; by what the advice on precision is filed."""

    PAIR = "of two that it adds up or subtracts, which may cancel"
    SUM = "of many that it adds up"
    PRODUCT = "none itself: a product, quotient or power, of which a difference cancels"
    CAST = "all that the type it casts to has no room for"
    STEEP = "a large operand's last one is a large part of the result"


# --- counts of floating-point operations ------------------------------------------------------------------------------


def results(eqn: JaxprEqn) -> int:
    """One operation for each floating-point number that comes out."""
    types: Iterator[Aval] = (v.aval for v in eqn.outvars if hasattr(v.aval, "dtype"))
    return sum(math.prod(t.shape) for t in types if is_differentiable(t))


def operand(eqn: JaxprEqn, i: int = 0) -> int:
    """One operation for each number of operand i that is combined into a floating-point result."""
    return math.prod(aval_of(eqn.invars[i].aval).shape) if results(eqn) else 0


def free(eqn: JaxprEqn) -> int:
    """No operation: numbers are moved, chosen, compared or drawn."""
    return 0


# --- traits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traits:
    """What is known of a primitive. All that is said of costs and repetition holds where it holds of the programs
    inside an equation, too.

    Attributes:
        cheap: whether computing it again costs little: elementwise, structural, or a plain reduction.
        repeatable: whether it gives the same numbers when computed again: no draw, collective, callback.
        flops: `flops(eqn)`, how many floating-point operations an equation takes; left out, that of the programs
            inside it, or else its `results`.
        contracts: whether it is made of products of matrices, for which a machine has its highest rate.
        passes: how often it goes through its operands and results.
        inside: `inside(params, costs)`, what the programs inside cost together, of what each of them costs.
        linear: the operands that it is linear in, each while the others are held.
        scales: the operands of which each number of the result is a multiple (rounded, perhaps) while the others are
            held.
        moves: how it moves the numbers of its operands (of the linear ones, if these are given), if that is all it
            does, but for rounding them.
        writes: whether it writes the numbers of one operand over some of another's.
        sorts: whether it moves the numbers of its operands to places that depend on how large they are.
        singular: where it, or its derivative, is not finite.
        digits: how it loses digits, if in any way of its own.
        bounds: what its result lies between.
        step: whether it is a step function that follows its operand, such as rounding: its slope is zero.
        mark: whether it only says something of a value to those who look for it: its name, its feedback weight.

    Example:
        >>> import jax, funcbp as bp
        >>> bp.rules.traits_of(jax.lax.log_p).singular
        <Singularity.LOG: 'log'>
    """

    cheap: bool = False
    repeatable: bool = False
    flops: Callable[[JaxprEqn], int] | None = None
    contracts: bool = False
    passes: int = 1
    inside: Callable[[dict[str, Any], Sequence[float]], float] = lambda params, costs: sum(costs)
    linear: tuple[int, ...] = ()
    scales: tuple[int, ...] = ()
    moves: Moves = Moves.NOT
    writes: bool = False
    sorts: bool = False
    singular: Singularity | None = None
    digits: Digits | None = None
    bounds: tuple[float, float] | None = None
    step: bool = False
    mark: bool = False

    def but(self, **changes: Any) -> Traits:
        """The same but for these."""
        return dataclasses.replace(self, **changes)


ELEMENTWISE = Traits(cheap=True, repeatable=True)
STRUCTURAL = Traits(cheap=True, repeatable=True, flops=free)
REDUCTION = Traits(cheap=True, repeatable=True, flops=operand)
DEAR = Traits(repeatable=True)  # special functions, factorizations
CONTRACTION = DEAR.but(contracts=True)
CALL = Traits(cheap=True, repeatable=True)  # if all that is inside is

UNKNOWN = Traits()
TRAITS: dict[Primitive | str | None, Traits] = {}  # by primitive, and by its name


def describe(primitive: Primitive, traits: Traits | None, family: Traits) -> None:
    """Enter the traits of a primitive; left out, those of its family, unless others are known: they outlast a rule."""
    for key in (primitive, primitive.name):
        if traits is not None:
            TRAITS[key] = traits
        else:
            TRAITS.setdefault(key, family)


def def_traits(traits: Traits, *primitives: Primitive | None) -> None:
    """Say what is known of primitives that have no rule.

    Args:
        traits: of each of them.
        *primitives: those that this JAX does not have are passed as None and skipped.

    Example:
        >>> import jax, funcbp as bp
        >>> noise_p = jax.extend.core.Primitive("noise_of_doc")
        >>> bp.rules.def_traits(bp.rules.Traits(repeatable=True), noise_p)
        >>> bp.rules.traits_of(noise_p).repeatable
        True
    """
    for p in primitives:
        if p is not None:
            describe(p, traits, traits)


def traits_of(primitive: Primitive | str | None) -> Traits:
    """Return what is known of a primitive. Of an unknown one nothing is assumed.

    Args:
        primitive: a primitive, or its name.

    Returns:
        Its traits: what it costs, what it does with numbers, where it is linear and where singular.

    Example:
        >>> import jax, funcbp as bp
        >>> bp.rules.traits_of(jax.lax.tanh_p).cheap, bp.rules.traits_of(jax.lax.dot_general_p).cheap
        (True, False)
    """
    return TRAITS.get(primitive, UNKNOWN)
