"""What has no derivative here, and why: by name, since some of these live in modules that are not imported."""

from __future__ import annotations

from typing import Any

from jax import lax

from ..jaxpr import current_source, primitives, user_line
from .contract import MissingRuleError
from .kinds import BodyRule
from .registry import def_unsupported, enter

AS_JAX = "schur hessenberg tridiagonal householder_product igamma_grad_a reduce_window select_and_scatter"
AS_JAX += " pmax pmin"
PYTHON = "pure_callback io_callback debug_callback debug_print ffi_call buffer_callback check inspect_sharding"
KERNELS = "pallas_call mpmd_map"
REFERENCES = "accum_grad_in_ref run_state masked_load masked_swap get_global"
BOXES = "box_get box_set new_box new_log log_extend log_read"
COLLECTIVES = """
    shard_map psum_invariant pvary pbroadcast pbroadcast_dynamic preduced all_gather all_gather_invariant
    all_gather_reduced all_to_all ragged_all_to_all ppermute reduce_scatter unreduced_psum unreduced_reduce_scatter
    vary_unreduced_cast vary_unreduced_cast_p reduced_vary_cast reduced_vary_cast_p
"""
SPARSE = """
    bcoo_dot_general bcoo_dot_general_sampled bcoo_extract bcoo_fromdense bcoo_sort_indices bcoo_spdot_general
    bcoo_sum_duplicates bcoo_todense bcoo_transpose bcsr_dot_general bcsr_extract bcsr_fromdense bcsr_todense
    coo_fromdense coo_matmat coo_matvec coo_todense csr_fromdense csr_matmat csr_matvec csr_todense spsolve todense
"""
INTERNAL = """
    call_hi_primitive call_hi_primitive_linearized
    custom_lin eval_jaxpr remat_opt stage tie dce_sink to_edtype from_edtype call relayout
    with_memory_space_constraint xla_metadata_call
"""

def_unsupported("JAX's reverse mode has none either.", *AS_JAX.split())
def_unsupported("its Python function cannot be looked into. Wrap it in jax.custom_vjp.", *PYTHON.split())
def_unsupported("a kernel's body is not walked. Wrap it in jax.custom_vjp, whose rule is then used.", *KERNELS.split())
def_unsupported(
    "it works on mutable references in a way that is not followed: jax.new_ref, jax.ref.get, set, swap, addupdate and "
    "jax.freeze are.",
    *REFERENCES.split(),
)
def_unsupported("mutable boxes and logs are not recorded. Use jax.new_ref.", *BOXES.split())
ACROSS_DEVICES = (
    "funcbp does not look inside shard_map, where a wrong factor of the number of devices would be silent. Leave the "
    "communication to the compiler (jax.jit with shardings), or use jax.grad."
)
def_unsupported(ACROSS_DEVICES, *COLLECTIVES.split())
def_unsupported("jax.experimental.sparse is not supported. Use dense arrays, or jax.grad.", *SPARSE.split())
def_unsupported("it is part of JAX's own machinery. Use jax.grad for this program.", *INTERNAL.split())


def psum_body(params: dict[str, Any]) -> Any:
    """A sum over the axes that `vmap` made of named ones is a plain sum; over devices, it is refused."""
    axes = params["axes"]
    if not all(isinstance(axis, int) for axis in axes) or params["axis_index_groups"] is not None:
        raise MissingRuleError(psum_message(f"`psum` at {user_line(current_source())}"))
    if primitives.psum_p.multiple_results:
        return lambda *xs: [lax.reduce_sum(x, axes) for x in xs]
    return lambda x: lax.reduce_sum(x, axes)


def psum_message(where: str) -> str:
    return f"funcbp has no derivative for {where} over devices: {ACROSS_DEVICES}"


enter(primitives.psum_p, BodyRule(body=psum_body, message=psum_message))
