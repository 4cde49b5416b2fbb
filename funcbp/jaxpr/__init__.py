"""The one door to JAX's unstable side.

Everything that reads `jax._src`, `jax.extend`, or the parameters of a higher-order primitive lives in this folder, so
that the two JAX worlds funcbp supports (0.10.2 and the newest) differ here and in two traces only (`recording.py` and
`observe.py`, in `autodiff`). It probes for the shape of things, never for a version string. `interpreter.py` runs and
reads programs; the file to open first.
"""

from jax.extend.core import primitives as primitives

from .inside import bind_cond as bind_cond
from .inside import bind_device_put as bind_device_put
from .inside import bind_remat as bind_remat
from .inside import bind_scan as bind_scan
from .inside import cond_of_marked as cond_of_marked
from .inside import constrained as constrained
from .inside import custom_bwd as custom_bwd
from .inside import inlined as inlined
from .inside import is_saved as is_saved
from .inside import loops_apart as loops_apart
from .inside import reducer as reducer
from .inside import remat_of_marked as remat_of_marked
from .inside import run_behind_barrier as run_behind_barrier
from .inside import scan_of_marked as scan_of_marked
from .inside import solve_parts as solve_parts
from .inside import transposed_solve as transposed_solve
from .interpreter import CALLS as CALLS
from .interpreter import CONTROL as CONTROL
from .interpreter import Inside as Inside
from .interpreter import Kind as Kind
from .interpreter import Occurrence as Occurrence
from .interpreter import Visitor as Visitor
from .interpreter import as_function as as_function
from .interpreter import call_jaxpr as call_jaxpr
from .interpreter import cond_branches as cond_branches
from .interpreter import equations as equations
from .interpreter import inner as inner
from .interpreter import inside_of as inside_of
from .interpreter import programs_of as programs_of
from .interpreter import run as run
from .interpreter import scan_parts as scan_parts
from .interpreter import while_condition as while_condition
from .interpreter import while_parts as while_parts
from .marks import feedback_p as feedback_p
from .programs import Program as Program
from .programs import bind_eqn as bind_eqn
from .programs import in_avals as in_avals
from .programs import is_literal as is_literal
from .programs import out_avals as out_avals
from .programs import part as part
from .programs import signature as signature
from .programs import trace as trace
from .programs import trace_tree as trace_tree
from .programs import trace_with as trace_with
from .sources import called_through as called_through
from .sources import current_source as current_source
from .sources import inside_call as inside_call
from .sources import own_name as own_name
from .sources import path_name as path_name
from .sources import restored as restored
from .sources import scope as scope
from .sources import user_line as user_line
from .sources import user_place as user_place
from .sources import written_at as written_at
from .sources import written_where as written_where
from .values import Aval as Aval
from .values import as_array as as_array
from .values import aval_of as aval_of
from .values import dilated as dilated
from .values import float0 as float0
from .values import instantiated_tangent as instantiated_tangent
from .values import is_jax_zero as is_jax_zero
from .values import like as like
from .values import pack as pack
from .values import packed as packed
from .values import packs as packs
from .values import permuted_sharding as permuted_sharding
from .values import perturbed_mark as perturbed_mark
from .values import primitive as primitive
from .values import public_names as public_names
from .values import row as row
from .values import sharding_of as sharding_of
from .values import split_list as split_list
from .values import strong as strong
from .values import to_strong as to_strong
from .values import type_of as type_of
from .values import unpack as unpack
from .values import weakref_cache as weakref_cache
from .values import zero_tangent as zero_tangent
from .values import zeros as zeros
