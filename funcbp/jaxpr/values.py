"""Values and their types: shapes, dtypes, shardings, weakness; booleans as bits."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import ad_util, config, core, dispatch, dtypes, hijax, util
from jax._src.interpreters.ad import JVPTracer
from jax._src.interpreters.partial_eval import DynamicJaxprTrace
from jax._src.lax import lax as lax_internal
from jax._src.mesh import get_abstract_mesh, use_abstract_mesh
from jax.extend.core import primitives

from .types import Aval, JaxprEqn, Primitive, T, Value

weakref_cache = util.weakref_lru_cache


float0 = jax.dtypes.float0


_PLACES = """
    lax.lax lax.slicing lax.special lax.linalg lax.fft lax.ann lax.windowed_reductions lax.eval_jaxpr
    lax.control_flow.conditionals lax.control_flow.solves lax.parallel core pjit dispatch custom_batching
    custom_derivatives random.core random.prng interpreters.partial_eval hijax xla_metadata shard_alike compute_on
""".split()
_TRIAL_PLACES = ("scheduling_groups", "fused")


def primitive(name: str) -> Primitive | Any:
    """The primitive of this name (`tanh_p`), or None where this JAX has no such primitive."""
    if hasattr(primitives, name):
        return getattr(primitives, name)
    modules = [*(f"jax._src.{place}" for place in _PLACES), *(f"jax.experimental.{place}" for place in _TRIAL_PLACES)]
    found = (importlib.import_module(m) for m in modules if importlib.util.find_spec(m))
    return next((getattr(m, name) for m in found if hasattr(m, name)), None)


type_of = core.typeof
pvary = core.pvary
tangent_dtype = core.primal_dtype_to_tangent_dtype


def varying(aval: Aval) -> frozenset[str]:
    """The mesh axes over which values of this type may differ from device to device."""
    return aval.mat.varying if isinstance(aval, core.ShapedArray) else frozenset()


def is_high(x: Any) -> bool:
    """Whether this is a value of a type that somebody defines (`jax.experimental.hijax.HiType`), or such a type.

    Such a value is no array. Its author says what type its tangents and cotangents have, what zero is, and a sum.
    """
    aval = getattr(x, "aval", x)
    if type(aval) is core.ShapedArray:
        return False
    if isinstance(aval, core.AbstractValue):
        return isinstance(aval, hijax.HiType)
    defined = type(aval) in core.pytype_aval_mappings and not isinstance(aval, np.ndarray)
    return defined and core.valid_jaxtype(aval) and isinstance(core.typeof(aval), hijax.HiType)


def is_value(x: Any) -> bool:
    """Whether this is an array, a mutable reference, or a value of a type that somebody defines."""
    arrays = (jax.Array, np.ndarray, np.generic, jax.Ref)
    return isinstance(x, arrays) or (not isinstance(x, core.AbstractValue) and is_high(x))


def low_types(aval: Aval) -> list[Aval]:
    """The types of the arrays that values of this type are made of."""
    return [low for t in aval.lo_ty() for low in low_types(t)] if is_high(aval) else [aval]


def bytes_of_type(aval: Aval) -> int:
    """How many bytes a value of this type has; none, if it is no array and is not made of arrays."""
    types = (t for t in map(core.physical_aval, low_types(aval)) if hasattr(t, "dtype"))
    return sum(math.prod(map(closed_size, t.shape)) * t.dtype.itemsize for t in types)


OPEN_SIZE = 64  # how long an axis is taken to be, where it is reckoned what costs how much, that is left open


def closed_size(n: Any) -> Any:
    """A size to reckon with: in a program that is exported for any size of an axis, that has no number."""
    return n if type(n) is int or not core.is_symbolic_dim(n) else OPEN_SIZE


def closed_sizes(eqn: JaxprEqn) -> JaxprEqn:
    """The equation with sizes to reckon with; itself, if none is left open."""
    sizes = lambda v: getattr(v.aval, "shape", ())
    if all(type(n) is int for v in (*eqn.invars, *eqn.outvars) for n in sizes(v)):
        return eqn
    closed = lambda v: core.Var(v.aval.update(shape=tuple(map(closed_size, sizes(v))))) if sizes(v) else v
    number = lambda p: tuple(map(closed_size, p)) if type(p) is tuple else closed_size(p)
    params = {name: number(p) for name, p in eqn.params.items()}
    return eqn.replace(invars=list(map(closed, eqn.invars)), outvars=list(map(closed, eqn.outvars)), params=params)


def shown_type(aval: Aval) -> str:
    """A type as error messages write it."""
    return aval.str_short() if is_high(aval) else f"{aval.dtype}{list(aval.shape)}"


def takes(aval: Aval, ct: Aval) -> bool:
    """Whether this may be the type of a cotangent of a value of type `aval`."""
    if is_high(aval):
        return bool(core.typematch(aval.to_ct_aval(), ct))
    return not is_high(ct) and bool(ct.shape == aval.shape and ct.dtype == cotangent_type(aval).dtype)


def concrete(x: Any) -> Any:
    """The value itself where it is known now, or None while a program is being traced."""
    return core.to_concrete_value(x) if isinstance(x, core.Tracer) else x


def is_staging(trace: core.Trace | None = None) -> bool:
    """Whether what runs in this trace (the current one, if left out) is written into a program, as under `jax.jit`."""
    return isinstance(core.trace_ctx.trace if trace is None else trace, DynamicJaxprTrace)


def public_names() -> list[str]:
    """The names of JAX's public primitives."""
    return [getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")]


def zeros(aval: Aval) -> jax.Array:
    """An array of zeros of this type: shape, dtype, sharding, memory."""
    if is_high(aval):
        return aval.vspace_zero()
    with mesh_of(aval), width_of([aval]):
        zero = ad_util.zeros_like_aval(aval)
    if isinstance(aval, core.ShapedArray) and (axes := tuple(aval.mat.unreduced - core.typeof(zero).mat.unreduced)):
        zero = primitive("vary_unreduced_cast_p").bind(pvary(zero, axes), axes=axes)
    here, space = core.typeof(zero).memory_space, getattr(aval, "memory_space", None)
    return zero if space in (None, here) else to_space(zero, space)


def zero_cotangent(aval: Aval) -> jax.Array:
    """An array of zeros of the type that cotangents of values of this type have."""
    return zeros(cotangent_type(aval))


def add(a: Value, b: Value) -> Value:
    """Add two values of one type in the context of their mesh."""
    if is_high(a):
        return core.typeof(a).vspace_add(a, b)
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.extended):  # of a dtype whose author says what a sum is
        return ad_util.add_jaxvals(a, b)
    with mesh_of(core.typeof(a)):
        return lax.add(a, b)


def width_of(values: Iterable[Any]) -> AbstractContextManager[object]:
    """Enter a context that knows of 64 bits, if one of these values, or of these types, has them.

    They may have been switched on inside of a function (`jax.enable_x64`), and the context around knows of 32 only.
    """
    if not config.enable_x64.value:
        for v in values:
            if getattr(v, "dtype", None) in _WIDE:
                return jax.enable_x64(True)
    return _NOTHING


_WIDE = {np.dtype(np.float64), np.dtype(np.complex128)}
_NOTHING = nullcontext()


def mesh_of(aval: Aval) -> AbstractContextManager[object]:
    """Enter the context of a type's mesh: within `auto_axes`, or of what a map closes over, it is not that around."""
    sharding, around = sharding_of(aval), get_abstract_mesh()
    return nullcontext() if sharding is None or around.empty else use_abstract_mesh(aval.sharding.mesh)


def as_array(x: Value) -> Value:
    """A Python number or a numpy array as an array of JAX's; what is one stays as it is."""
    if is_number(x):
        return lax_internal._convert_element_type(x, weak_type=not isinstance(x, bool))
    return jnp.asarray(x) if isinstance(x, np.ndarray) and x.dtype != float0 else x


def is_number(x: object) -> bool:
    """Whether this is a Python number."""
    return isinstance(x, (bool, int, float, complex))


def with_dtype(x: Value) -> Value:
    """A Python number as a number with a dtype, a numpy array as one of JAX's kinds, as JAX hands them on."""
    return dtypes.canonicalize_value(x)


def as_residual(x: Value) -> Value:
    """What a backward rule gets of what its forward rule kept: Python numbers as numbers with a dtype, as JAX does."""
    return with_dtype(x) if is_number(x) else as_array(x)


def as_cotangent(x: Any, aval: Aval) -> Any:
    """What a person's backward rule returned for a primal of this type, None for zero; real numbers get its precision.

    JAX hands on those of another one, and raises an error where they meet what has the right one.
    """
    if x is None or is_jax_zero(x):
        return None
    if is_number(x):
        return jnp.asarray(x, aval.dtype)
    real = lambda t: isinstance(t, core.ShapedArray) and jax.dtypes.issubdtype(t.dtype, np.floating)
    return lax.convert_element_type(x, aval.dtype) if real(aval) and real(core.typeof(x)) else x


class _Perturbed(JVPTracer):
    """A tracer that is never run: by it, JAX knows a value for one that is being differentiated."""

    def __init__(self) -> None:
        self.tangent = None


def perturbed_mark() -> core.Tracer:
    """What `jax.closure_convert` and its like look for among the contents of a tracer."""
    return _Perturbed()


def zero_tangent(x: Value, symbolic: bool) -> Value:
    """The tangent of a value that does not move: zeros, or JAX's word for them."""
    aval = core.typeof(x).to_tangent_aval()
    return ad_util.SymbolicZero(aval) if symbolic else zeros(aval)


def tangent_value(x: Any) -> Any:
    """A value of the type of this one's tangents: itself, where that is its own."""
    aval = core.typeof(x)
    return zeros(aval.to_tangent_aval()) if is_high(aval) and aval.to_tangent_aval() != aval else x


def is_jax_zero(x: object) -> bool:
    """Whether this is one of JAX's words for a tangent or cotangent that is zero."""
    return isinstance(x, (ad_util.Zero, ad_util.SymbolicZero))


def instantiated_tangent(tangent: Value) -> Value:
    """A tangent as an array, also where JAX says by a word that it is zero."""
    return ad_util.instantiate(tangent)


def cotangent_type(aval: Aval) -> Aval:
    """The type of the cotangent: of a sum over devices that has not been taken (unreduced), what is the same on all of
    them because of it (reduced), and the other way round; of a dtype of somebody's own, what its author says.
    """
    if is_high(aval):
        return aval.to_ct_aval()
    if not isinstance(aval, core.ShapedArray):
        return aval
    spec, of_devices = aval.sharding.spec, aval.mat
    sums = spec.unreduced or spec.reduced or of_devices.unreduced or of_devices.reduced
    return aval.to_ct_aval() if sums or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended) else aval


def type_of_struct(struct: jax.ShapeDtypeStruct) -> Aval:
    """The type of the arrays that a `jax.ShapeDtypeStruct` stands for."""
    return jax.make_jaxpr(lambda x: x)(struct).in_avals[0]


def strong(aval: Aval) -> Aval:
    """The type of the cotangent without weakness: what a cotangent of a value of this type has."""
    aval = cotangent_type(aval)
    return aval.update(weak_type=False) if isinstance(aval, core.ShapedArray) and aval.weak_type else aval


def row(aval: Aval, axis: int = 0) -> Aval:
    """The type of what is at one index of an axis."""
    return core.mapped_aval(aval.shape[axis], axis, aval)


def is_weak(aval: Aval) -> bool:
    """Whether values of this type are weakly typed."""
    return isinstance(aval, core.ShapedArray) and aval.weak_type


def to_strong(x: Any) -> Any:
    """The same numbers, not weakly typed."""
    return like(x, strong(core.typeof(x)))


def like(x: Value, aval: Aval) -> Value:
    """The same numbers, weakly typed if a value of this type is."""
    weak, own = is_weak(aval), core.typeof(x)
    if is_weak(own) == weak:
        return x
    with mesh_of(own):
        return lax_internal._convert_element_type(x, x.dtype, weak_type=weak)


# --- how values are stored between the passes -------------------------------------------------------------------------


def packs(aval: Aval) -> bool:
    """Whether values of this type are kept as bits: booleans whose last axis is a whole number of bytes."""
    return (
        isinstance(aval, core.ShapedArray)
        and aval.dtype == bool
        and bool(aval.shape)
        and aval.shape[-1] % 8 == 0
        and sharding_of(aval) is None
    )


class Bits:
    """Booleans as bits, eight neighbours along the last axis in one byte."""

    @staticmethod
    def stored(aval: Aval) -> Aval:
        """The type of such values as bits."""
        return aval.update(shape=(*aval.shape[:-1], aval.shape[-1] // 8), dtype=np.dtype(np.uint8), weak_type=False)

    @staticmethod
    def store(x: Value) -> Value:
        eights = x.reshape(*x.shape[:-1], x.shape[-1] // 8, 8).astype(np.uint8)
        return lax.shift_left(eights, lax.broadcasted_iota(np.uint8, eights.shape, x.ndim)).sum(-1, dtype=np.uint8)

    @staticmethod
    def fetch(x: Value) -> Value:
        eights = lax.broadcast_in_dim(x, (*x.shape, 8), range(x.ndim))
        shifted = lax.shift_right_logical(eights, lax.broadcasted_iota(np.uint8, eights.shape, x.ndim))
        return (shifted & np.uint8(1)).astype(bool).reshape(*x.shape[:-1], 8 * x.shape[-1])


class Offload(NamedTuple):
    """Values in another memory, such as the host's.

    Attributes:
        space: the memory where they wait.
        home: the one they come from, and go back to.
    """

    space: core.MemorySpace
    home: core.MemorySpace

    def stored(self, aval: Aval) -> Aval:
        """The type of such values there."""
        return aval.update(memory_space=self.space)

    def store(self, x: Value) -> Value:
        return to_space(x, self.space)

    def fetch(self, x: Value) -> Value:
        return to_space(x, self.home)


Storage = type[Bits] | Offload


def to_space(x: Value, space: core.MemorySpace) -> Value:
    """The same numbers in this memory."""
    how = dispatch.ArrayCopySemantics.ALWAYS_COPY
    return primitives.device_put_p.bind(x, devices=(space,), srcs=(None,), copy_semantics=(how,))[0]


def in_space_of(x: Value, aval: Aval) -> Value:
    """The same numbers in the memory that values of this type are in."""
    return x if core.typeof(x).memory_space == aval.memory_space else to_space(x, aval.memory_space)


# --- types ------------------------------------------------------------------------------------------------------------


def device_here() -> jax.Device:
    """The device that a program is traced for: JAX's default device, and where none is set, its first one."""
    device = config.default_device.value
    return jax.devices(device)[0] if device is None or isinstance(device, str) else device


def sharding_of(x: Value | Aval) -> jax.sharding.NamedSharding | None:
    """The sharding that a value of this type has over an explicit mesh, or None where no mesh is set."""
    sharding = getattr(aval_of(x), "sharding", None)
    return None if sharding is None or sharding.mesh.empty else sharding


def is_plain(x: Value | Aval) -> bool:
    """Whether the sizes are numbers, and the array is not divided over devices in a way that its type says."""
    return sharding_of(x) is None and all(isinstance(n, int) for n in aval_of(x).shape)


def ones_as_cotangent(x: Value) -> jax.Array:
    """The cotangent of a value that is one everywhere, of the type that cotangents of it have."""
    sharding = cotangent_sharding(x)
    with width_of([x]):
        return jnp.ones_like(x) if sharding is None else lax.full_like(x, 1, shape=np.shape(x), sharding=sharding)


def laid_out_as(stack: jax.Array, x: Value) -> jax.Array:
    """Lay a stack of cotangents of x out over the devices as these are: each row as x."""
    sharding = cotangent_sharding(x)
    if sharding is not None and any(sharding.spec.partitions):
        spec = sharding.spec.update(partitions=(None, *sharding.spec.partitions))
        stack = jax.sharding.reshard(stack, sharding.update(spec=spec))
    return pvary(stack, tuple(varying(type_of(x)) - varying(type_of(stack))))


def cotangent_sharding(x: Value | Aval) -> jax.sharding.NamedSharding | None:
    """The sharding that the cotangent of a value of this type has, or None where no mesh is set."""
    return sharding_of(cotangent_type(aval_of(x)))


def laid_out_for(ct: jax.Array, x: Value | Aval, concrete_mesh: Any = None) -> jax.Array:
    """Lay a cotangent out as that of x, in the mesh of x, or in none if x knows of none."""
    sharding = cotangent_sharding(x) or aval_of(x).sharding
    with use_abstract_mesh(sharding.mesh.abstract_mesh):
        return primitive("reshard_p").bind(ct, dst_sharding=sharding, concrete_mesh=concrete_mesh)


def in_mesh_of(ct: jax.Array, x: Aval) -> jax.Array:
    """A cotangent that was made in a mesh which is neither that of x nor that around, in the mesh of x.

    Inside `jax.sharding.auto_axes`, where the mesh is another one, a function may use what it closes over. Where x and
    what is around know of no mesh, a cotangent that left `shard_map` over automatic axes goes with both as it is.
    """
    own = sharding_of(ct)
    if own is None:
        return ct
    home, around = aval_of(x).sharding.mesh, get_abstract_mesh()
    if own.mesh in (home, around) or (home.empty and around.empty and own.mesh.are_all_axes_auto):
        return ct
    return laid_out_for(ct, x)


def permuted_sharding(x: Value | Aval, axes: Sequence[int]) -> jax.sharding.NamedSharding | None:
    """The sharding of the cotangent of x with its axes in another order, or None where no mesh is set.

    A value that was made under no mesh is the same on all devices of the one that is set.
    """
    sharding = cotangent_sharding(x)
    if sharding is None:
        mesh = get_abstract_mesh()
        return None if mesh.empty else jax.sharding.NamedSharding(mesh, jax.P(*(None for _ in axes)))
    spec = sharding.spec
    return sharding.update(spec=spec.update(partitions=tuple(spec.partitions[i] for i in axes)))


def aval_of(x: Value | Aval) -> Aval:
    return x if isinstance(x, core.AbstractValue) else core.typeof(x)


def dilated(shape: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Sizes after `dilation - 1` holes are put between neighbours."""
    return [0 if n == 0 else 1 + d * (n - 1) for n, d in zip(shape, dilation, strict=True)]


def split_list(items: Sequence[T], *sizes: int) -> list[list[T]]:
    """Consecutive parts of these sizes, and the rest."""
    out, start = [], 0
    for n in sizes:
        out.append(list(items[start : start + n]))
        start += n
    return [*out, list(items[start:])]
