"""What has no derivative here, and why: by name, since some of these live in modules that are not imported."""

from __future__ import annotations

from .registry import def_unsupported

AS_JAX = "schur hessenberg tridiagonal householder_product igamma_grad_a reduce_window select_and_scatter"
AS_JAX += " pmax pmin unreduced_pmax unreduced_pmin"
PYTHON = "pure_callback io_callback debug_callback debug_print ffi_call buffer_callback check inspect_sharding"
KERNELS = "pallas_call mpmd_map"
REFERENCES = "accum_grad_in_ref run_state masked_load masked_swap get_global"
BOXES = "box_get box_set new_box new_log log_extend log_read"
INTERNAL = """
    call_hi_primitive_linearized
    remat_opt stage tie dce_sink call relayout
    with_memory_space_constraint
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
def_unsupported(
    "it is the tangent of a jax.custom_vjp function, which has none, in JAX either. Write the function's derivative as "
    "a jax.custom_jvp rule.",
    "custom_lin",
)
def_unsupported("it is part of JAX's own machinery. Use jax.grad for this program.", *INTERNAL.split())
