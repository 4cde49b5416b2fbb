"""`shard_map`: its body as a program of one device's parts, and programs run on the parts of all devices."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from jax import lax
from jax._src import config, core, shard_map
from jax._src.mesh import use_abstract_mesh
from jax.sharding import PartitionSpec

from .inside import marked_body
from .programs import Program, is_literal, trace_with
from .types import Primitive, Value, WrappedFun
from .values import Aval

shard_map_p = shard_map.shard_map_p


def bind_in(around: core.Trace, primitive: Primitive, values: Sequence[Value], params: dict[str, Any]) -> Value:
    """Run an operation in this trace; of a `shard_map`, by the program in its parameters."""
    if primitive is shard_map_p:
        params = primitive.get_bind_params(params)
    outs = primitive.bind_with_trace(around, tuple(values), tuple(map(core.typeof, values)), params)
    return list(outs) if primitive.multiple_results else outs


def staged_map(
    primitive: Primitive, f: WrappedFun, operands: Sequence[Value], params: dict[str, Any]
) -> tuple[dict[str, Any], list[Value], Callable[[Sequence[Value]], Value]]:
    """Trace the function of a `shard_map` on its way from trace to trace.

    Returns:
        The parameters of the equation that it is, with the program; its operands, those that the function closed over
        first; and what makes of the outputs what JAX passes on.
    """

    def stage(*xs: Value) -> tuple[list[Value], Any]:
        with core.take_current_trace() as staging:
            outs = staging.process_shard_map(primitive, f, xs, **params)  # type: ignore[attr-defined]
        return list(outs), outs

    program, tree = trace_with(stage, list(map(core.typeof, operands)), "shard_map")
    values = dict(zip([*program.constvars, *program.invars], [*program.consts, *operands], strict=True))
    (eqn,) = program.eqns
    return eqn.params, [v.val if is_literal(v) else values[v] for v in eqn.invars], tree.update


def spmd_axes() -> frozenset[Hashable]:
    """The axes of a mesh that the `vmap`s around divide their examples over (`spmd_axis_name`)."""
    return core.get_axis_env().spmd_axis_names


@contextlib.contextmanager
def _only_spmd_axes(names: frozenset[Hashable]) -> Iterator[None]:
    before = core.get_axis_env()
    core.trace_ctx.set_axis_env(core.AxisEnv(before.axis_sizes, names, before.explicit_mesh_axis_names))
    try:
        yield
    finally:
        core.trace_ctx.set_axis_env(before)


def outside_vmaps(names: frozenset[Hashable]) -> contextlib.AbstractContextManager[None]:
    """Enter the context around the `vmap`s that have handed on an operation: that with these `spmd_axes` alone.

    JAX leaves the others out of what a `shard_map` is divided over, and one that was mapped already is divided over
    them.
    """
    return contextlib.nullcontext() if spmd_axes() == names else _only_spmd_axes(names)


@contextlib.contextmanager
def on_each_device(params: dict[str, Any]) -> Iterator[None]:
    """Enter the context in which the body of this `shard_map` is traced."""
    mesh, axes = params["mesh"], params["newly_manual_axes"]
    inner = shard_map._as_manual_mesh(mesh, axes)
    with shard_map._extend_axis_env(mesh, axes), use_abstract_mesh(inner), config._check_vma(params["check_vma"]):
        yield


def run_on_devices(
    program: Program,
    operands: Sequence[Value],
    params: dict[str, Any],
    in_specs: Sequence[PartitionSpec],
    out_specs: Sequence[PartitionSpec],
) -> list[Value]:
    """Run another program in the place of a `shard_map`'s."""
    new = dict(params, jaxpr=program.jaxpr, in_specs=tuple(in_specs), out_specs=tuple(out_specs))
    bound = shard_map_p.get_bind_params(new)
    (of_all,) = bound.pop("subfuns")
    return list(shard_map_p.bind(*operands, subfuns=(lambda *xs: of_all(*program.consts, *xs),), **bound))


def cotangent_spec(spec: PartitionSpec) -> PartitionSpec:
    """How the cotangent of a value is laid out over the mesh."""
    return spec.to_ct_spec()


def stacked_spec(aval: Aval, params: dict[str, Any]) -> PartitionSpec:
    """How a value of the body leaves it: the parts of the devices over which it varies behind one another."""
    mesh, newly = params["mesh"], params["newly_manual_axes"]
    spec = aval.nospec(mesh, params["check_vma"], shard_map._all_newly_manual_mesh_names(mesh, newly))
    # inside of another map it still varies over the axes of that one
    return spec.update(partitions=[tuple(a for a in axes_of(part) if a in newly) for part in spec.partitions])


def axes_of(part: Any) -> tuple[Hashable, ...]:
    """The axes of a mesh that one entry of a spec names: several, or one, which stands there by itself, or none."""
    return () if part is None else part if isinstance(part, tuple) else (part,)


def stackable(x: Value) -> Value:
    """Give a number an axis along which those of several devices can be stacked."""
    return x if x.shape else lax.broadcast(x, (1,))


def stackable_type(aval: Aval) -> Aval:
    """The type of such a number."""
    return core.unmapped_aval(1, 0, aval)


def part_type(aval: Aval, spec: PartitionSpec, params: dict[str, Any]) -> Aval:
    """The type of one device's part of such a value."""
    return core.shard_aval(params["mesh"], params["newly_manual_axes"], params["check_vma"], spec, aval)


def unmentioned_axes(spec: PartitionSpec, params: dict[str, Any]) -> tuple[Hashable, ...]:
    """The mapped axes of the mesh over which a value is not divided: each device along them has the same part."""
    return tuple(shard_map._unmentioned2(params["mesh"], spec, params["newly_manual_axes"]))


def axes_size(axes: Sequence[Hashable], params: dict[str, Any]) -> int:
    """How many devices there are along these axes."""
    return math.prod(params["mesh"].shape[a] for a in axes)


def devices_of(params: dict[str, Any]) -> int:
    """On how many devices the body of this `shard_map` runs."""
    return axes_size(params["newly_manual_axes"], params)


def map_of_marked(params: dict[str, Any], which: Sequence[bool]) -> dict[str, Any]:
    """The parameters of a `shard_map` with one more operand after each of `which`, its feedback weight."""
    with on_each_device(params):
        body = marked_body(params["jaxpr"], tuple(which)).jaxpr
    specs = (s for s, w in zip(params["in_specs"], which, strict=True) for _ in range(2 if w else 1))
    return dict(params, jaxpr=body, in_specs=tuple(specs))
