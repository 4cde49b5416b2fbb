"""Marks, barriers and places: operations that only say what a value is called, when it is made, or where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from ..cotangents import Cotangent, Moves, Zero
from ..jaxpr import barrier_p, bind_device_put, feedback_p, is_high, laid_out_for, primitive, primitives, to_space
from ..jaxpr.types import Aval
from .contract import TYPES
from .registry import def_linear, def_rule
from .traits import STRUCTURAL, Traits, free


def barrier_bwd(
    types: Sequence[Aval], ct: Sequence[jax.Array | Any], perturbed: Sequence[bool], **_: Any
) -> list[Cotangent]:
    """The identity, behind a barrier; so are the cotangents that exist and are asked for."""
    wanted = [p and c is not Zero for c, p in zip(ct, perturbed, strict=True)]
    exist = [c for c, w in zip(ct, wanted, strict=True) if w]
    behind = iter(
        barrier_p.bind(*exist) if any(map(is_high, exist)) else lax.optimization_barrier(exist) if exist else ()
    )
    return [next(behind) if w else Zero for w in wanted]


def device_put_bwd(
    types: Sequence[Aval], ct: Sequence[jax.Array | Any], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """The identity, on another device or in another memory; cotangents go back to where the primals came from."""

    def back(i: int, c: jax.Array) -> jax.Array:
        space = types[i].memory_space
        return bind_device_put(c, params, i) if jax.typeof(c).memory_space == space else to_space(c, space)

    return [c if c is Zero else back(i, c) for i, c in enumerate(ct)]


def shard_alike_bwd(types: Sequence[Aval], ct: Sequence[jax.Array | Any], perturbed: Sequence[bool]) -> list[Cotangent]:
    """Two identities whose results are sharded alike; so are the cotangents, where both exist."""
    return list(ct) if Zero in ct else primitive("shard_alike_p").bind(*ct)


def reshard_back(ct: jax.Array, x: Aval, *, concrete_mesh: Any, **_: Any) -> jax.Array:
    """The identity; the cotangent is laid out as the primal was, in its mesh, or in none if that knew of none."""
    return laid_out_for(ct, x, concrete_mesh)


# Where a value lies is a question of the whole program: none of these is done again, and the marks stay where they are.
PLACED, MARK = Traits(flops=free), STRUCTURAL.but(mark=True)

def_linear(primitives.name_p, lambda ct, x, **_: ct, Moves.STAYS, traits=MARK)
def_linear(feedback_p, lambda ct, w: ct, Moves.STAYS, traits=MARK)  # the recording gives w its feedback weight instead
def_linear(
    primitives.sharding_constraint_p,
    lambda ct, x, **params: primitives.sharding_constraint_p.bind(ct, **params),
    Moves.ALL,
    traits=PLACED,
)
def_linear(primitive("layout_constraint_p"), lambda ct, x, **_: ct, Moves.ALL, traits=PLACED)
def_linear(primitive("reshard_p"), reshard_back, Moves.ALL, traits=PLACED)
def_linear(primitive("xla_metadata_value_p"), lambda ct, x, **_: ct, Moves.STAYS, traits=PLACED)
def_rule(primitive("shard_alike_p"), shard_alike_bwd, save=TYPES, traits=PLACED.but(moves=Moves.STAYS))
def_rule(primitive("optimization_barrier_p"), barrier_bwd, save=TYPES, traits=PLACED.but(moves=Moves.STAYS))
def_rule(barrier_p, barrier_bwd, save=TYPES, traits=PLACED.but(moves=Moves.STAYS))
def_rule(primitives.device_put_p, device_put_bwd, save=TYPES, traits=PLACED.but(moves=Moves.STAYS))
