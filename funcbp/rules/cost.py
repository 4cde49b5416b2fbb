"""What an equation costs, and whether it may be computed again: by the traits of what it is made of."""

from __future__ import annotations

from ..jaxpr import closed_sizes, inner, inside_of
from ..jaxpr.types import JaxprEqn
from .traits import results, traits_of

__all__ = ["flops", "is_cheap", "is_repeatable"]


def is_cheap(eqn: JaxprEqn) -> bool:
    """Tell whether it costs little to compute this equation again: elementwise, structural, or a plain reduction.

    Args:
        eqn: an equation of a jaxpr.

    Returns:
        Whether it is cheap.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import remat
        >>> closed = jax.make_jaxpr(lambda x, w: jnp.tanh(x) @ w)(jnp.ones((2, 3)), jnp.ones((3, 4)))
        >>> [remat.is_cheap(eqn) for eqn in closed.jaxpr.eqns]
        [True, False]
    """
    return not eqn.effects and traits_of(eqn.primitive).cheap and all(map(is_cheap, inner(eqn)))


def is_repeatable(eqn: JaxprEqn) -> bool:
    """Whether this equation gives the same numbers when computed again: no draw, collective, callback, custom call."""
    return not eqn.effects and traits_of(eqn.primitive).repeatable and all(map(is_repeatable, inner(eqn)))


def flops(eqn: JaxprEqn) -> float:
    """How many floating-point operations an equation takes: multiplications and additions count one each.

    A contraction costs 2 per term of its sums; reductions and adding writes 1 per element that goes in, elementwise
    operations 1 per element that comes out; moving, choosing and comparing numbers is free. Loops count as often as
    they run (a `while` once), and of branches the dearest.
    """
    traits, eqn = traits_of(eqn.primitive), closed_sizes(eqn)
    if traits.flops is not None:
        return traits.flops(eqn)
    if not (programs := inside_of(eqn).programs):
        return results(eqn)
    return traits.inside(eqn.params, [sum(map(flops, program.eqns)) for program in programs])
