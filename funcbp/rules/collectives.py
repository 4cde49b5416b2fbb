"""Collectives: what the devices of a mesh, or the examples of a `vmap`, do together over a named axis.

With varying types (in `shard_map`, unless `check_vma=False`) the type of a value says over which axes it may differ,
`jax.typeof(x).mat.varying`, and its cotangent differs over the same ones:

    y = pvary(x)             x is the same on all devices:  x̄ = Σ ȳ over the devices
    y = psum_invariant(x)    y is the same on all devices:  x̄ = ȳ on each of them

Without them (in `vmap`, with `check_vma=False`) nothing says what is the same. There a cotangent is that of the sum of
all devices' outputs, and a sum is its own transpose. A value may also stand for a sum that has not been taken yet
(unreduced), and then its cotangent is the same on all devices (reduced), and the other way round.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..cotangents import Cotangent, Moves, is_differentiable
from ..jaxpr import primitive, primitives, pvary, zero_cotangent
from ..jaxpr.types import Aval, PyTree, Value
from .reduction import spread
from .registry import def_linear, def_rule
from .traits import STRUCTURAL, Traits, free


def type_and_rest(
    primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    """Keep the type of what is sent, and the integers that say where to."""
    return (jax.typeof(primals[0]), *(x for x in primals[1:] if not is_differentiable(x)))


pvary_p, psum_invariant_p = primitive("pvary_p"), primitive("psum_invariant_p")
unreduced_psum_p, preduced_p = primitive("unreduced_psum_p"), primitive("preduced_p")
vary_unreduced_p, reduced_vary_p = primitive("vary_unreduced_cast_p"), primitive("reduced_vary_cast_p")
all_gather_reduced_p = primitive("all_gather_reduced_p")
unreduced_reduce_scatter_p = primitive("unreduced_reduce_scatter_p")


def psum_back(
    ct: jax.Array, x: Aval, *, axes: Sequence[Hashable], axis_index_groups: Sequence[Sequence[int]] | None
) -> jax.Array:
    """y = Σ x:  x̄ = Σ ȳ over named axes;  x̄ = ȳ, everywhere, over axes that `vmap` has made positions."""
    positions, named = [a for a in axes if isinstance(a, int)], [a for a in axes if not isinstance(a, int)]
    if positions:
        ct = spread(ct, x, positions)
    return primitives.psum_p.bind(ct, axes=tuple(named), axis_index_groups=axis_index_groups) if named else ct


def all_gather_back(
    ct: jax.Array,
    x: Aval,
    *,
    all_gather_dimension: int,
    axis_name: Hashable,
    axis_index_groups: Sequence[Sequence[int]] | None,
    tiled: bool,
    **_: Any,
) -> jax.Array:
    """y = the parts of all devices:  x̄ = Σ ȳ over the devices, of which each takes its part."""
    how = dict(scatter_dimension=all_gather_dimension, axis_index_groups=axis_index_groups, tiled=tiled)
    return lax.psum_scatter(ct, axis_name, **how)


def reduce_scatter_back(
    ct: jax.Array,
    x: Aval,
    *,
    scatter_dimension: int,
    axis_name: Hashable,
    axis_index_groups: Sequence[Sequence[int]] | None,
    tiled: bool,
    **_: Any,
) -> jax.Array:
    """y = this device's part of Σ x:  x̄ = the parts ȳ of all devices."""
    return lax.all_gather(ct, axis_name, axis=scatter_dimension, axis_index_groups=axis_index_groups, tiled=tiled)


def all_gather_invariant_back(
    ct: jax.Array, x: Aval, *, all_gather_dimension: int, axis_name: Hashable, axis_size: int, tiled: bool
) -> jax.Array:
    """y = the parts of all devices, of the same type on each of them:  x̄ = this device's part of ȳ."""
    n = ct.shape[all_gather_dimension] // axis_size
    part = lax.dynamic_slice_in_dim(ct, lax.axis_index(axis_name) * n, n, all_gather_dimension)
    return part if tiled else lax.squeeze(part, [all_gather_dimension])


def all_gather_reduced_back(ct: jax.Array, x: Aval, *, all_gather_dimension: int, **params: Any) -> jax.Array:
    """y = the parts of all devices, whose cotangent is a sum that has not been taken:  x̄ = this device's part of it."""
    return unreduced_reduce_scatter_p.bind(ct, scatter_dimension=all_gather_dimension, **params)


def unreduced_reduce_scatter_back(ct: jax.Array, x: Aval, *, scatter_dimension: int, **params: Any) -> jax.Array:
    """y = this device's part of a sum that had not been taken:  x̄ = the parts ȳ of all devices."""
    return all_gather_reduced_p.bind(ct, all_gather_dimension=scatter_dimension, **params)


def all_to_all_back(
    ct: jax.Array,
    x: Aval,
    *,
    axis_name: Hashable,
    split_axis: int,
    concat_axis: int,
    axis_index_groups: Sequence[Sequence[int]] | None,
    tiled: bool,
) -> jax.Array:
    """Send every part back to where it came from.

    Where nothing is tiled, and the two axes differ, JAX has put in the axis of length one that becomes the new one
    before it binds the primitive: what that does is tiled in any case.
    """
    how = dict(split_axis=concat_axis, concat_axis=split_axis, axis_index_groups=axis_index_groups)
    return lax.all_to_all(ct, axis_name, tiled=True, **how)


def ppermute_back(ct: jax.Array, x: Aval, *, axis_name: Hashable, perm: Sequence[tuple[int, int]]) -> jax.Array:
    """Send the cotangents the other way; who sent nothing has none."""
    return lax.ppermute(ct, axis_name, [(to, source) for source, to in perm])


def pbroadcast_back(ct: jax.Array, x: Aval, *, axis_name: Hashable, source: int | jax.Array) -> jax.Array:
    """y = x of the source, on all devices:  x̄ = Σ ȳ on the source, and 0 on the others."""
    total = lax.psum(ct, axis_name)
    return jnp.where(lax.axis_index(axis_name) == source, total, zero_cotangent(x))


def pbroadcast_dynamic_bwd(
    res: PyTree, ct: jax.Array, perturbed: Sequence[bool], *, axis_name: Hashable
) -> list[Cotangent]:
    """Do the same for a source that is computed."""
    x, source = res
    return [pbroadcast_back(ct, x, axis_name=axis_name, source=source), None]


def ragged_all_to_all_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    axis_name: Hashable,
    axis_index_groups: Sequence[Sequence[int]] | None,
) -> list[Cotangent]:
    """y = the output, with the rows that other devices sent in some places: those go back, the others stay."""
    operand, input_offsets, send_sizes, output_offsets, recv_sizes = res
    exchanged = lambda offsets: lax.all_to_all(offsets, axis_name, 0, 0, tiled=True)
    arrived, left = exchanged(output_offsets), exchanged(input_offsets)
    back = primitives.ragged_all_to_all_p.bind(
        ct,
        zero_cotangent(operand),
        arrived,
        recv_sizes,
        left,
        send_sizes,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )
    rows = lax.broadcasted_iota(arrived.dtype, (ct.shape[0], arrived.shape[0]), 0)
    written = jnp.any((rows >= arrived[None]) & (rows < (arrived + recv_sizes)[None]), axis=1)
    stays = jnp.where(written.reshape(-1, *(1,) * (ct.ndim - 1)), jnp.zeros_like(ct), ct)
    return [back, stays, None, None, None, None]


# --- the table --------------------------------------------------------------------------------------------------------

# Communication is not repeated: all devices would have to do it again together. What is moved goes to any number of
# devices; a copy's own transpose is a sum.
SUM, MOVE = Traits(), Traits(flops=free)
COPIES = Moves.COPIES

def_linear(primitives.psum_p, psum_back, traits=SUM)
def_linear(psum_invariant_p, lambda ct, x, *, axes: pvary(ct, axes), traits=SUM)
def_linear(pvary_p, lambda ct, x, *, axes: psum_invariant_p.bind(ct, axes=axes), COPIES, STRUCTURAL)
def_linear(primitives.all_gather_p, all_gather_back, COPIES, MOVE)
def_linear(primitive("all_gather_invariant_p"), all_gather_invariant_back, COPIES, MOVE)
def_linear(primitive("reduce_scatter_p"), reduce_scatter_back, traits=SUM)
def_linear(primitives.all_to_all_p, all_to_all_back, COPIES, MOVE)
def_linear(primitives.ppermute_p, ppermute_back, COPIES, MOVE)
def_linear(primitive("pbroadcast_p"), pbroadcast_back, COPIES, MOVE)
def_rule(primitive("pbroadcast_dynamic_p"), pbroadcast_dynamic_bwd, save=type_and_rest, traits=MOVE)
def_rule(primitives.ragged_all_to_all_p, ragged_all_to_all_bwd, save=type_and_rest, traits=MOVE)

# a sum that has not been taken yet (unreduced), and what has one for its cotangent (reduced)
def_linear(unreduced_psum_p, lambda ct, x, *, axes: preduced_p.bind(ct, axes=axes), traits=SUM)
def_linear(preduced_p, lambda ct, x, *, axes: unreduced_psum_p.bind(ct, axes=axes), COPIES, STRUCTURAL)
def_linear(vary_unreduced_p, lambda ct, x, *, axes: reduced_vary_p.bind(ct, axes=axes), traits=STRUCTURAL)
def_linear(reduced_vary_p, lambda ct, x, *, axes: vary_unreduced_p.bind(ct, axes=axes), COPIES, STRUCTURAL)
def_linear(all_gather_reduced_p, all_gather_reduced_back, COPIES, MOVE)
def_linear(unreduced_reduce_scatter_p, unreduced_reduce_scatter_back, traits=SUM)
